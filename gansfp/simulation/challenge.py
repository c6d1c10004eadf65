"""A challenge with known truth: real slices or phantoms, dealt by patient, and generators trained on some of them.

Each membership set is an experiment of its own. Patients are dealt to five classes: used and labelled, used and
unknown, not used and labelled, not used and unknown, and, for a set that must not leak, outsiders. The set's generator
trains on all its used slices, or, where nothing may leak, on the outsiders: then "used" and "not used" are names that
mean nothing, and an honest audit must find nothing. The attribution's generators all train on the first set's training
slices, so that only their own traces tell them apart.
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
from gansfp.simulation.generators import GENERATORS, Settings, generate, one_thread
from gansfp.simulation.patients import Source, deal, real_source
from gansfp.simulation.phantom import phantoms

Progress = Callable[[str], None]


class Recipe(NamedTuple):
    """How a membership set is made: by which generator, and whether that one saw the used slices."""

    generator: str
    leaks: bool


SETS = {name: Recipe(name, leaks=True) for name in GENERATORS} | {"clean": Recipe("warp", leaks=False)}

_ENOUGH_PATIENTS = 8  # a class: with fewer, all sets share all patients, else every set has patients of its own
_WORKERS = 2


@dataclass(frozen=True)
class SimulationConfig:
    """What to make. All counts are slices; raises UsageError for values that cannot be."""

    seed: int = 0
    sets: tuple[str, ...] = ("glo", "warp", "clean")  # of SETS
    known: tuple[str, ...] = ("vae", "glo", "warp")  # attribution's labelled generators; none: no attribution
    unseen: tuple[str, ...] = ("eigen",)  # generators only among the slices to attribute
    labelled: int = 60  # in each of used and not used
    unknown: int = 130  # half of them used
    generated: int = 200  # a set, beside the labelled
    generated_test: int = 100  # a set, beside the unknown
    attributed: int = 80  # a generator, in train and in test each
    slices_per_patient: int = 2  # of phantoms
    leak: float = 0.85  # how near `warp` stays to its training slices, up to 1; 0: no set leaks, whatever its generator
    vae_steps: int = Settings.vae_steps
    glo_steps: int = Settings.glo_steps

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
            raise UsageError(f"got unseen generators {list(self.unseen)} and no known ones, expected some of each")
        _check_names(self.sets, SETS)
        _check_names((*self.known, *self.unseen), GENERATORS)

    @classmethod
    def tiny(cls, **changes: Any) -> "SimulationConfig":
        """A challenge made in a few seconds, without networks."""
        tiny: dict[str, Any] = {
            "sets": ("warp", "clean"),
            "known": ("warp", "eigen"),
            "unseen": (),
            "labelled": 16,
            "unknown": 32,
            "generated": 60,
            "generated_test": 20,
            "attributed": 12,
        }
        return cls(**(tiny | changes))

    def leaks(self, name: str) -> bool:
        """Whether the generator of the set `name` trains on its used slices."""
        return SETS[name].leaks and self.leak > 0

    def needs(self, name: str) -> dict[str, int]:
        """The number of slices in each class of the set `name`."""
        used = self.unknown // 2
        needs = {
            "used": self.labelled,
            "not_used": self.labelled,
            "unknown_used": used,
            "unknown_not_used": self.unknown - used,
        }
        return needs if self.leaks(name) else needs | {"outside": self.labelled + used}

    def settings(self) -> Settings:
        """What the generators are told; a set without leak has the usual `warp`, trained on others."""
        return Settings(self.leak or Settings.strength, self.vae_steps, self.glo_steps)


def _check_names(names: Sequence[str], table: Mapping[str, object]) -> None:
    for name, times in Counter(names).items():
        if name not in table:
            raise UsageError(f"got {name!r}, expected one of {sorted(table)}")
        if times > 1:
            raise UsageError(f"got {name!r} {times} times, expected it once")


@dataclass(frozen=True)
class MembershipSet:
    """One membership experiment with its truth, in memory."""

    name: str
    used: Source
    not_used: Source
    unknown: Source
    unknown_used: np.ndarray  # (n unknown,) bool: the truth, or in a set without leak what is called so
    training: np.ndarray  # (n, 256, 256) uint8: what the generator is trained on


def phantom_source(config: SimulationConfig, patients: int) -> Source:
    """`patients` invented patients with `config.slices_per_patient` slices each."""
    return Source(*phantoms(patients, config.slices_per_patient, config.seed))


def membership_set(config: SimulationConfig, name: str, source: Source | None = None) -> MembershipSet:
    """Deals `source` (by default phantoms, just enough) to the classes of the set `name`.

    For tests of statistics: one source can be dealt again and again, with another `config.seed` each time.
    `generate(SETS[name].generator, result.training, ...)` then makes its generated slices.
    """
    _check_names((name,), SETS)
    needs = config.needs(name)
    rng = np.random.default_rng([config.seed, 2, sorted(SETS).index(name)])
    source = source or phantom_source(config, _patients(config, name))
    rows = {part: found[: needs[part]] for part, found in deal(source.patients, needs, rng).items()}
    # a name's number must not tell the patient nor the truth
    shuffled = {part: rng.permutation(found) for part, found in rows.items()}
    unknown = np.concatenate([rows["unknown_used"], rows["unknown_not_used"]])
    truth = np.arange(len(unknown)) < len(rows["unknown_used"])
    order = rng.permutation(len(unknown))
    trained = rows["outside"] if "outside" in rows else np.concatenate([rows["used"], rows["unknown_used"]])
    return MembershipSet(
        name=name,
        used=source[shuffled["used"]],
        not_used=source[shuffled["not_used"]],
        unknown=source[unknown[order]],
        unknown_used=truth[order],
        training=source.pixels[trained],
    )


def _patients(config: SimulationConfig, name: str) -> int:
    """Patients that the set `name` needs where each has `slices_per_patient`."""
    return sum(math.ceil(need / config.slices_per_patient) for need in config.needs(name).values())


def _sources(config: SimulationConfig, real: str | None, progress: Progress) -> dict[str, Source]:
    """Each set's slices. Sets have patients of their own, unless a real folder has too few for that."""
    if real is None:
        counts = [_patients(config, name) for name in config.sets]
        whole = phantom_source(config, sum(counts))
        ends = np.cumsum(counts) * config.slices_per_patient
        return {
            name: whole[np.arange(end - count * config.slices_per_patient, end)]
            for name, count, end in zip(config.sets, counts, ends, strict=True)
        }
    needs = {name: config.needs(name) for name in config.sets}
    most = 4 * sum(sum(need.values()) for need in needs.values())  # some to choose from, and not all of an archive
    whole = real_source(real, most, config.seed, progress)
    if len(np.unique(whole.patients)) >= _ENOUGH_PATIENTS * sum(map(len, needs.values())):
        rng = np.random.default_rng([config.seed, 3])
        totals = {name: sum(need.values()) for name, need in needs.items()}
        try:
            pools = deal(whole.patients, totals, rng)
            for name, rows in pools.items():
                deal(whole.patients[rows], needs[name], rng)
            return {name: whole[rows] for name, rows in pools.items()}
        except DataError:
            pass
    if len(needs) > 1:
        progress(f"{len(np.unique(whole.patients))} patients are too few for sets of their own: the sets share them")
    return dict.fromkeys(config.sets, whole)


def simulate(config: SimulationConfig, out: str, real: str | None = None, progress: Progress = print) -> None:
    """Writes a challenge in the folder layout, with truth, groups.csv and simulation.json (the config) to `out`.

    out: a local folder that is not there yet or empty; it appears when it is complete. real: a folder of real slices
    instead of phantoms. The same config (and real folder) gives the same bytes on one machine. Raises DataError.
    """
    # `one_thread` around the whole: threads that end while others work then restore to one, not to the caller's number
    with _complete_or_absent(out) as folder, one_thread():
        clock = time.monotonic()

        def tell(stage: str) -> None:
            progress(f"{time.monotonic() - clock:6.1f} s  {stage}")

        sources = _sources(config, real, tell)
        sets = {name: membership_set(config, name, source) for name, source in sources.items()}
        distinct = sum(len(s) for s in {id(s): s for s in sources.values()}.values())
        tell(f"{distinct} {'real slices' if real else 'slices of phantoms'}")
        made = _generate(config, {name: one.training for name, one in sets.items()}, tell)
        with _Writer(folder) as writer:
            for name, one in sets.items():
                generated = made[SETS[name].generator, name]
                _write_set(
                    writer, one, generated[: config.generated], generated[config.generated :][: config.generated_test]
                )
            if config.known:
                _write_attribution(writer, config, made)
            writer.text("simulation.json", json.dumps(dataclasses.asdict(config) | {"real": real}, indent=2) + "\n")
        tell(f"{writer.images} images in {out}")


def _generate(
    config: SimulationConfig, training: dict[str, np.ndarray], progress: Progress
) -> dict[tuple[str, str], np.ndarray]:
    """(generator, set of its training slices) -> all the slices wanted of it, the set's own first; trained once."""
    wanted: Counter[tuple[str, str]] = Counter()
    for name in training:
        wanted[SETS[name].generator, name] += config.generated + config.generated_test
    first = config.sets[0]
    for generator in config.known:
        wanted[generator, first] += 2 * config.attributed
    for generator in config.unseen:
        wanted[generator, first] += config.attributed

    def make(order: tuple[str, str]) -> np.ndarray:
        generator, name = order
        key = [config.seed, 4, sorted(GENERATORS).index(generator), sorted(SETS).index(name)]
        seed = int(np.random.SeedSequence(key).generate_state(1)[0])
        pictures = generate(generator, training[name], wanted[order], seed, config.settings())
        progress(f"{len(pictures)} slices by {generator}, trained on {len(training[name])} of set {name}")
        return pictures

    # the slowest come last in GENERATORS: they go first, so that no core waits for one of them at the end
    orders = sorted(wanted, key=lambda order: -list(GENERATORS).index(order[0]))
    with ThreadPoolExecutor(_WORKERS) as pool:
        return dict(zip(orders, pool.map(make, orders), strict=True))


class _Writer:
    """Writes images in threads, remembers their groups, and writes groups.csv at the end."""

    def __init__(self, folder: str) -> None:
        self.folder, self.images, self.groups = folder, 0, [("image_id", "group")]
        self._pool = ThreadPoolExecutor(_WORKERS)

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            self.table("groups.csv", self.groups)

    def pictures(self, part: str, stem: str, pixels: np.ndarray, patients: Iterable[str] = ()) -> list[str]:
        """Writes pixels (n, 256, 256) as <part>/<stem>_0000.png and on; returns the names without ending."""
        os.makedirs(os.path.join(self.folder, part), exist_ok=True)
        names = [f"{stem}_{number:04d}" for number in range(len(pixels))]
        self.groups += [(f"{part}/{name}", patient) for name, patient in zip(names, patients, strict=False)]
        paths = [os.path.join(self.folder, part, f"{name}.png") for name in names]
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


def _write_set(writer: _Writer, one: MembershipSet, generated: np.ndarray, generated_test: np.ndarray) -> None:
    home = f"membership/{one.name}"
    writer.pictures(f"{home}/train/generated", "generated", generated)
    writer.pictures(f"{home}/train/used", "real_used", one.used.pixels, one.used.patients)
    writer.pictures(f"{home}/train/not_used", "real_not_used", one.not_used.pixels, one.not_used.patients)
    writer.pictures(f"{home}/test/generated", "generated_test", generated_test)
    names = writer.pictures(f"{home}/test/unknown", "real_unknown", one.unknown.pixels, one.unknown.patients)
    truth = zip(names, one.unknown_used.astype(int).tolist(), strict=True)
    writer.table(f"{home}/test/truth.csv", [("image_id", "used"), *truth])


def _write_attribution(writer: _Writer, config: SimulationConfig, made: Mapping[tuple[str, str], np.ndarray]) -> None:
    """The last slices of each generator, as a set's own are the first: no slice serves twice."""
    first, n = config.sets[0], config.attributed
    test = []
    for generator in config.known:
        writer.pictures(f"attribution/train/{generator}", generator, made[generator, first][-2 * n : -n])
    for generator in (*config.known, *config.unseen):
        test += [(generator, picture) for picture in made[generator, first][-n:]]
    order = np.random.default_rng([config.seed, 5]).permutation(len(test))
    names = writer.pictures("attribution/test", "generated", np.stack([test[i][1] for i in order]))
    truth = zip(names, [test[i][0] for i in order], strict=True)
    writer.table("attribution/test/truth.csv", [("image_id", "generator"), *truth])


@contextmanager
def _complete_or_absent(out: str) -> Iterator[str]:
    """A new folder beside `out` that becomes `out` when the block ends well, and goes when it does not."""
    target = os.path.abspath(out)
    if "://" in out:
        raise UsageError(f"got {out!r}, expected a local folder to write the challenge to")
    if os.path.lexists(target) and (not os.path.isdir(target) or os.listdir(target)):
        raise DataError(f"{out} is there already and not an empty folder: name another one, or remove it")
    partial = f"{target}.partial-{os.getpid()}"
    try:
        os.makedirs(partial)
        yield partial
        os.rename(partial, target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise DataError(f"cannot write {out}: {error.strerror or error}") from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
