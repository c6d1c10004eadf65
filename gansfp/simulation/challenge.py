"""Makes a challenge with known truth: real slices or phantoms, dealt by patient, and generators trained on some.

Each membership set is a separate experiment. Patients are dealt to four classes: used and labelled, used and unknown,
not used and labelled, not used and unknown. A set that must not leak has a fifth class, outsiders. The set's generator
is trained on all used slices of the set, or, in a set that must not leak, on the outsiders. In such a set "used" and
"not used" have no meaning, and a correct audit finds nothing. The generators of the attribution are all trained on the
training slices of the first set, so that only the generators' own traces differ.
"""

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gansfp.errors import DataError
from gansfp.simulation.configuration import SETS, SimulationConfig, check_names
from gansfp.simulation.generators import GENERATORS, GeneratorSettings, generate_in_turn
from gansfp.simulation.patients import Archive, deal, read_archive
from gansfp.simulation.phantom import phantoms
from gansfp.simulation.processes import processes
from gansfp.simulation.writing import Writer, complete_or_absent, numbered, write_picture

Progress = Callable[[str], None]


_ENOUGH_PATIENTS = 8  # for each class of each set; if a real folder has fewer, all sets share all patients
_MOST_TO_TRAIN = 1000  # slices that train a generator of the attribution alone: they bound its memory, about 1 GB


@dataclass(frozen=True)
class SimulatedSet:
    """One membership experiment with its truth, in memory."""

    name: str
    used: Archive
    not_used: Archive
    unknown: Archive
    unknown_used: np.ndarray  # (n unknown,) bool: the truth; in a set that does not leak, only a name
    training: np.ndarray  # (n, 256, 256) uint8: the training slices of the generator


def phantom_archive(config: SimulationConfig, patients: int, pool: Executor | None = None) -> Archive:
    """Draws slices of invented patients, `config.slices_per_patient` of each."""
    return Archive(*phantoms(patients, config.slices_per_patient, config.seed, pool))


def simulated_set(config: SimulationConfig, name: str, archive: Archive | None = None) -> SimulatedSet:
    """Deals an archive to the classes of the set `name`. archive: by default phantoms, just enough of them.

    Tests of statistics deal one archive many times, each time with another `config.seed`.
    `generate(SETS[name].generator, result.training, ...)` then makes the generated slices of the set.
    """
    check_names((name,), SETS)
    needs = config.needs(name)
    rng = np.random.default_rng([config.seed, 2, sorted(SETS).index(name)])
    archive = archive or phantom_archive(config, _patients(config, name))
    rows = {class_: dealt[: needs[class_]] for class_, dealt in deal(archive.patients, needs, rng).items()}
    # The number in a file's name must reveal neither the patient nor the truth.
    shuffled = {class_: rng.permutation(class_rows) for class_, class_rows in rows.items()}
    unknown = np.concatenate([rows["unknown_used"], rows["unknown_not_used"]])
    truth = np.arange(len(unknown)) < len(rows["unknown_used"])
    order = rng.permutation(len(unknown))
    training = rows["outside"] if "outside" in rows else np.concatenate([rows["used"], rows["unknown_used"]])
    return SimulatedSet(
        name=name,
        used=archive[shuffled["used"]],
        not_used=archive[shuffled["not_used"]],
        unknown=archive[unknown[order]],
        unknown_used=truth[order],
        training=archive.pixels[training],
    )


def _patients(config: SimulationConfig, name: str) -> int:
    """Returns the number of patients that the set `name` needs if each has `slices_per_patient` slices."""
    return sum(math.ceil(need / config.slices_per_patient) for need in config.needs(name).values())


def _archives(
    config: SimulationConfig, real: str | None, pool: Executor | None, progress: Progress
) -> dict[str, Archive]:
    """Returns the slices of each set. Each set has its own patients, unless a real folder has too few patients."""
    if real is None:
        counts = [_patients(config, name) for name in config.sets]
        whole = phantom_archive(config, sum(counts), pool)
        ends = np.cumsum(counts) * config.slices_per_patient
        return {
            name: whole[end - count * config.slices_per_patient : end]
            for name, count, end in zip(config.sets, counts, ends, strict=True)
        }
    needs = {name: config.needs(name) for name in config.sets}
    most = 4 * sum(sum(need.values()) for need in needs.values())  # enough to choose from, without reading all files
    whole = read_archive(real, most, config.seed, progress)
    if len(np.unique(whole.patients)) >= _ENOUGH_PATIENTS * sum(map(len, needs.values())):
        rng = np.random.default_rng([config.seed, 3])
        totals = {name: sum(need.values()) for name, need in needs.items()}
        try:
            pools = deal(whole.patients, totals, rng)
            for name, rows in pools.items():
                deal(whole.patients[rows], needs[name], rng)
            return {name: whole[rows] for name, rows in pools.items()}
        except DataError:
            pass  # the patients are too unequal; the sets share them
    if len(needs) > 1:
        progress(f"{len(np.unique(whole.patients))} patients are too few to give each set its own: the sets share them")
    return dict.fromkeys(config.sets, whole)


def simulate(config: SimulationConfig, out: str, real: str | None = None, progress: Progress = print) -> None:
    """Writes a challenge in the folder layout, with truth, groups.csv and simulation.json (the config) to `out`.

    out: a local folder that does not exist or is empty; it appears when it is complete. real: a folder of real slices
    to use instead of phantoms. The same config (and real folder) gives the same bytes on one machine. Raises DataError.
    """
    with complete_or_absent(out) as folder, processes(_pictures(config)) as pool:
        start = time.monotonic()

        def log(line: str) -> None:
            progress(f"{time.monotonic() - start:6.1f} s  {line}")

        archives = _archives(config, real, pool, log)
        distinct = {id(archive): len(archive) for archive in archives.values()}
        log(f"{sum(distinct.values())} {'real slices' if real else 'slices of phantoms'}")
        training = {}
        with Writer(folder) as writer:
            for name in config.sets:
                simulated = simulated_set(config, name, archives.pop(name))
                _write_real(writer, simulated)
                training[name] = simulated.training
            places = _places(config, writer)
            writer.text("simulation.json", json.dumps(dataclasses.asdict(config) | {"real": real}, indent=2) + "\n")
        for line in _all_made(_jobs(config, training, places, folder), pool):
            log(line)
        log(f"{writer.pictures + sum(map(len, places.values()))} images in {out}")


def _pictures(config: SimulationConfig) -> int:
    """Returns how many pictures a challenge has, those outside its sets apart."""
    sizes = [config.size(name) for name in config.sets]
    of_sets = [2 * size.labelled + size.unknown + size.generated + size.generated_test for size in sizes]
    known, unseen = len(config.known), len(config.unseen)
    return sum(of_sets) + known * config.attributed + (known + unseen) * config.attributed_test


def _write_real(writer: Writer, simulated: SimulatedSet) -> None:
    """Writes the real slices of a set, and the truth of the unknown ones."""
    home = f"membership/{simulated.name}"
    used, not_used, unknown = simulated.used, simulated.not_used, simulated.unknown
    writer.slices(f"{home}/train/used/real_used", used.pixels, used.patients)
    writer.slices(f"{home}/train/not_used/real_not_used", not_used.pixels, not_used.patients)
    names = writer.slices(f"{home}/test/unknown/real_unknown", unknown.pixels, unknown.patients)
    truth = zip(names, simulated.unknown_used.astype(int).tolist(), strict=True)
    writer.table(f"{home}/test/truth.csv", [("image_id", "used"), *truth])


def _places(config: SimulationConfig, writer: Writer) -> dict[tuple[str, str], list[str]]:
    """Returns where each generated slice goes, by (generator, set of its training slices), below the challenge's
    folder; writes the truth of the attribution.

    Each generator is trained once. Its first slices belong to the set, the last ones to the attribution, so that no
    slice is used twice.
    """
    places = {}
    for name in config.sets:
        home, size = f"membership/{name}", config.size(name)
        places[SETS[name].generator, name] = [
            *numbered(f"{home}/train/generated/generated", size.generated),
            *numbered(f"{home}/test/generated/generated_test", size.generated_test),
        ]
    if config.known:
        first, n = config.sets[0], config.attributed_test
        makers = [generator for generator in (*config.known, *config.unseen) for _ in range(n)]
        order = np.random.default_rng([config.seed, 5]).permutation(len(makers))
        test = numbered("attribution/test/generated", len(makers))
        of_slice = dict(zip(order.tolist(), test, strict=True))
        for number, generator in enumerate((*config.known, *config.unseen)):
            own = places.setdefault((generator, first), [])
            if generator in config.known:
                own += numbered(f"attribution/train/{generator}/{generator}", config.attributed)
            own += [of_slice[i] for i in range(number * n, (number + 1) * n)]
        truth = [(os.path.basename(place), makers[i]) for place, i in zip(test, order, strict=True)]
        writer.table("attribution/test/truth.csv", [("image_id", "generator"), *truth])
    return places


class _Job(NamedTuple):
    """A generator to train on `training`, and the files of its slices, without ending."""

    generator: str
    of_set: str
    training: np.ndarray
    seed: int
    settings: GeneratorSettings
    files: list[str]


def _jobs(
    config: SimulationConfig, training: Mapping[str, np.ndarray], places: Mapping[tuple[str, str], list[str]], out: str
) -> list[_Job]:
    """Returns the jobs, the slowest generators first, so that no core is idle at the end: they are last in GENERATORS.

    A generator of the attribution alone is trained on the first slices only, see _MOST_TO_TRAIN.
    """
    jobs = []
    for generator, name in sorted(places, key=lambda job: -list(GENERATORS).index(job[0])):
        key = [config.seed, 4, sorted(GENERATORS).index(generator), sorted(SETS).index(name)]
        seed = int(np.random.SeedSequence(key).generate_state(1)[0])
        most = None if SETS[name].generator == generator else _MOST_TO_TRAIN
        files = [os.path.join(out, place) for place in places[generator, name]]
        jobs.append(_Job(generator, name, training[name][:most], seed, config.settings(), files))
    return jobs


def _make(job: _Job) -> str:
    """Trains a generator and writes its slices. Returns a line that says so."""
    for folder in {os.path.dirname(file) for file in job.files}:
        os.makedirs(folder, exist_ok=True)
    made = generate_in_turn(job.generator, job.training, len(job.files), job.seed, job.settings)
    for file, picture in zip(job.files, made, strict=True):
        write_picture(file, picture)
    return f"{len(job.files)} slices by {job.generator}, trained on {len(job.training)} slices of set {job.of_set}"


def _all_made(jobs: Sequence[_Job], pool: Executor | None) -> Iterator[str]:
    """Yields the line of each job when it is done."""
    if pool is None:
        yield from map(_make, jobs)
    else:
        yield from (done.result() for done in as_completed([pool.submit(_make, job) for job in jobs]))
