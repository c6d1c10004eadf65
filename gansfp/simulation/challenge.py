"""Makes a challenge with known truth: real slices or phantoms, dealt by patient, and generators trained on some.

Each membership set is a separate experiment. Patients are dealt to four classes: used and labelled, used and unknown,
not used and labelled, not used and unknown. A set that must not leak has a fifth class, outsiders. The set's generator
is trained on all used slices of the set, or, in a set that must not leak, on the outsiders. In such a set "used" and
"not used" have no meaning, and a correct audit finds nothing. The generators of the attribution are all trained on the
training slices of the first set, so that only the generators' own traces differ.
"""

import csv
import dataclasses
import io
import json
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from gansfp.errors import DataError, UsageError
from gansfp.simulation.generators import GENERATORS, GeneratorSettings, generate, one_thread
from gansfp.simulation.patients import Archive, deal, read_archive
from gansfp.simulation.phantom import phantoms

Progress = Callable[[str], None]


class GeneratorRecipe(NamedTuple):
    """The generator of a membership set. leaks: it is trained on the used slices."""

    generator: str
    leaks: bool


SETS = {name: GeneratorRecipe(name, leaks=True) for name in GENERATORS}
SETS["clean"] = GeneratorRecipe("warp", leaks=False)

_ENOUGH_PATIENTS = 8  # for each class of each set; if a real folder has fewer, all sets share all patients
_WORKERS = 2  # threads


@dataclass(frozen=True)
class SimulationConfig:
    """The size and content of a challenge. Counts are numbers of slices. Raises UsageError for impossible values."""

    seed: int = 0
    sets: tuple[str, ...] = ("glo", "warp", "clean")  # of SETS
    known: tuple[str, ...] = ("vae", "glo", "warp")  # labelled generators of the attribution; none: no attribution
    unseen: tuple[str, ...] = ("eigen",)  # generators that only made slices to attribute
    labelled: int = 60  # used slices in each set, and as many that are not used
    unknown: int = 130  # in each set; half of them are used
    generated: int = 200  # in each set, for training
    generated_test: int = 100  # in each set, for the test
    attributed: int = 80  # of each generator, in train and again in test
    slices_per_patient: int = 2  # of phantoms
    leak: float = 0.85  # how similar `warp`'s slices are to its training slices, up to 1; 0: no set leaks
    vae_steps: int = GeneratorSettings.vae_steps
    glo_steps: int = GeneratorSettings.glo_steps

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UsageError(f"got seed {self.seed}, expected 0 or more")
        if not 0 <= self.leak <= 1:
            raise UsageError(f"got leak {self.leak}, expected a number from 0 to 1")
        for name in ("labelled", "unknown", "generated", "generated_test", "attributed"):
            if getattr(self, name) < 2:
                raise UsageError(f"got {name} {getattr(self, name)}, expected 2 or more")
        for name in ("slices_per_patient", "vae_steps", "glo_steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"got {name} {getattr(self, name)}, expected 1 or more")
        if not self.sets:
            raise UsageError(f"got no sets, expected one or more of {sorted(SETS)}")
        if self.unseen and not self.known:
            raise UsageError(f"got unseen generators {list(self.unseen)} but no known ones, expected some of both")
        _check_names(self.sets, SETS)
        _check_names((*self.known, *self.unseen), GENERATORS)

    @classmethod
    def tiny(cls, **changes: Any) -> "SimulationConfig":
        """Returns the configuration of a challenge that is made in a few seconds, without networks, with changes."""
        tiny = cls(
            sets=("warp", "clean"),
            known=("warp", "eigen"),
            unseen=(),
            labelled=16,
            unknown=32,
            generated=60,
            generated_test=20,
            attributed=12,
        )
        return dataclasses.replace(tiny, **changes)

    def leaks(self, name: str) -> bool:
        """Returns whether the generator of the set `name` is trained on the set's used slices."""
        return SETS[name].leaks and self.leak > 0

    def needs(self, name: str) -> dict[str, int]:
        """Returns the number of slices in each class of the set `name`."""
        used = self.unknown // 2
        needs = {
            "used": self.labelled,
            "not_used": self.labelled,
            "unknown_used": used,
            "unknown_not_used": self.unknown - used,
        }
        return needs if self.leaks(name) else needs | {"outside": self.labelled + used}

    def settings(self) -> GeneratorSettings:
        """Returns the settings of the generators. With leak 0, `warp` has its default strength."""
        return GeneratorSettings(self.leak or GeneratorSettings.strength, self.vae_steps, self.glo_steps)


def _check_names(names: Sequence[str], table: Mapping[str, object]) -> None:
    for name, times in Counter(names).items():
        if name not in table:
            raise UsageError(f"got {name!r}, expected one of {sorted(table)}")
        if times > 1:
            raise UsageError(f"got {name!r} {times} times, expected it once")


@dataclass(frozen=True)
class SimulatedSet:
    """One membership experiment with its truth, in memory."""

    name: str
    used: Archive
    not_used: Archive
    unknown: Archive
    unknown_used: np.ndarray  # (n unknown,) bool: the truth; in a set that does not leak, only a name
    training: np.ndarray  # (n, 256, 256) uint8: the training slices of the generator


def phantom_archive(config: SimulationConfig, patients: int) -> Archive:
    """Draws slices of invented patients, `config.slices_per_patient` of each."""
    return Archive(*phantoms(patients, config.slices_per_patient, config.seed))


def simulated_set(config: SimulationConfig, name: str, archive: Archive | None = None) -> SimulatedSet:
    """Deals an archive to the classes of the set `name`. archive: by default phantoms, just enough of them.

    Tests of statistics deal one archive many times, each time with another `config.seed`.
    `generate(SETS[name].generator, result.training, ...)` then makes the generated slices of the set.
    """
    _check_names((name,), SETS)
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


def _archives(config: SimulationConfig, real: str | None, progress: Progress) -> dict[str, Archive]:
    """Returns the slices of each set. Each set has its own patients, unless a real folder has too few patients."""
    if real is None:
        counts = [_patients(config, name) for name in config.sets]
        whole = phantom_archive(config, sum(counts))
        ends = np.cumsum(counts) * config.slices_per_patient
        return {
            name: whole[np.arange(end - count * config.slices_per_patient, end)]
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
    # Inside, one_thread runs in several threads, each of which restores the number of threads that it has found. The
    # outer one_thread makes this number one, so that no thread restores the caller's number while another still works.
    with _complete_or_absent(out) as folder, one_thread():
        start = time.monotonic()

        def log(line: str) -> None:
            progress(f"{time.monotonic() - start:6.1f} s  {line}")

        archives = _archives(config, real, log)
        sets = {name: simulated_set(config, name, archive) for name, archive in archives.items()}
        distinct = {id(archive): len(archive) for archive in archives.values()}
        log(f"{sum(distinct.values())} {'real slices' if real else 'slices of phantoms'}")
        generated = _generate(config, {name: simulated.training for name, simulated in sets.items()}, log)
        with _Writer(folder) as writer:
            for name, simulated in sets.items():
                _write_set(writer, config, simulated, generated[SETS[name].generator, name])
            if config.known:
                _write_attribution(writer, config, generated)
            writer.text("simulation.json", json.dumps(dataclasses.asdict(config) | {"real": real}, indent=2) + "\n")
        log(f"{writer.images} images in {out}")


def _generate(
    config: SimulationConfig, training: dict[str, np.ndarray], progress: Progress
) -> dict[tuple[str, str], np.ndarray]:
    """Trains each generator once. Returns all its slices by (generator, set of its training slices).

    The first slices belong to the set, the last ones to the attribution.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for name in training:
        counts[SETS[name].generator, name] += config.generated + config.generated_test
    first = config.sets[0]
    for generator in config.known:
        counts[generator, first] += 2 * config.attributed
    for generator in config.unseen:
        counts[generator, first] += config.attributed

    def make(job: tuple[str, str]) -> np.ndarray:
        generator, name = job
        key = [config.seed, 4, sorted(GENERATORS).index(generator), sorted(SETS).index(name)]
        seed = int(np.random.SeedSequence(key).generate_state(1)[0])
        generated = generate(generator, training[name], counts[job], seed, config.settings())
        progress(f"{len(generated)} slices by {generator}, trained on {len(training[name])} slices of set {name}")
        return generated

    # The slowest generators are the last in GENERATORS. They start first, so that no core is idle at the end.
    jobs = sorted(counts, key=lambda job: -list(GENERATORS).index(job[0]))
    with ThreadPoolExecutor(_WORKERS) as pool:
        return dict(zip(jobs, pool.map(make, jobs), strict=True))


class _Writer:
    """Writes images in threads, and groups.csv with their patients at the end."""

    def __init__(self, folder: str) -> None:
        self.folder, self.images, self.groups = folder, 0, [("image_id", "group")]
        self._pool = ThreadPoolExecutor(_WORKERS)

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, error_type: object, *error: object) -> None:
        self._pool.shutdown(cancel_futures=error_type is not None)
        if error_type is None:
            self.table("groups.csv", self.groups)

    def pictures(self, below: str, stem: str, pixels: np.ndarray, patients: Iterable[str] = ()) -> list[str]:
        """Writes pixels (n, 256, 256) to <below>/<stem>_0000.png, <stem>_0001.png, ...

        Returns the names without ending.
        """
        os.makedirs(os.path.join(self.folder, below), exist_ok=True)
        names = [f"{stem}_{number:04d}" for number in range(len(pixels))]
        self.groups += [(f"{below}/{name}", patient) for name, patient in zip(names, patients, strict=False)]
        paths = [os.path.join(self.folder, below, f"{name}.png") for name in names]
        list(self._pool.map(lambda path, picture: Image.fromarray(picture).save(path, compress_level=3), paths, pixels))
        self.images += len(names)
        return names

    def table(self, name: str, rows: Iterable[Sequence[object]]) -> None:
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(rows)
        self.text(name, buffer.getvalue())

    def text(self, name: str, text: str) -> None:
        with open(os.path.join(self.folder, name), "w", encoding="utf-8", newline="") as file:
            file.write(text)


def _write_set(writer: _Writer, config: SimulationConfig, simulated: SimulatedSet, generated: np.ndarray) -> None:
    """Writes a set with the first generated slices of its generator, those for training before those for the test."""
    home = f"membership/{simulated.name}"
    used, not_used, unknown = simulated.used, simulated.not_used, simulated.unknown
    first_test, end = config.generated, config.generated + config.generated_test
    writer.pictures(f"{home}/train/generated", "generated", generated[:first_test])
    writer.pictures(f"{home}/train/used", "real_used", used.pixels, used.patients)
    writer.pictures(f"{home}/train/not_used", "real_not_used", not_used.pixels, not_used.patients)
    writer.pictures(f"{home}/test/generated", "generated_test", generated[first_test:end])
    names = writer.pictures(f"{home}/test/unknown", "real_unknown", unknown.pixels, unknown.patients)
    truth = zip(names, simulated.unknown_used.astype(int).tolist(), strict=True)
    writer.table(f"{home}/test/truth.csv", [("image_id", "used"), *truth])


def _write_attribution(
    writer: _Writer, config: SimulationConfig, generated: Mapping[tuple[str, str], np.ndarray]
) -> None:
    """Writes the last slices of each generator. The set has the first ones, so no slice is used twice."""
    first, n = config.sets[0], config.attributed
    test = []
    for generator in config.known:
        writer.pictures(f"attribution/train/{generator}", generator, generated[generator, first][-2 * n : -n])
    for generator in (*config.known, *config.unseen):
        test += [(generator, picture) for picture in generated[generator, first][-n:]]
    order = np.random.default_rng([config.seed, 5]).permutation(len(test))
    names = writer.pictures("attribution/test", "generated", np.stack([test[i][1] for i in order]))
    truth = zip(names, [test[i][0] for i in order], strict=True)
    writer.table("attribution/test/truth.csv", [("image_id", "generator"), *truth])


@contextmanager
def _complete_or_absent(out: str) -> Iterator[str]:
    """Yields a new folder beside `out`. It is renamed to `out` if the block succeeds, and deleted if it fails."""
    target = os.path.abspath(out)
    if "://" in out:
        raise UsageError(f"got {out!r}, expected a local folder to write the challenge to")
    if os.path.lexists(target) and (not os.path.isdir(target) or os.listdir(target)):
        raise DataError(f"got {out!r}, which exists and is not an empty folder; name another folder or remove it")
    partial = f"{target}.partial-{os.getpid()}"
    try:
        os.makedirs(partial)
        yield partial
        os.rename(partial, target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise DataError(f"{out}: cannot be written ({error.strerror or error})") from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
