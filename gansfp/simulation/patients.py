"""Real slices with their patients, and the dealing of whole patients to the classes of a challenge."""

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from gansfp import store
from gansfp.errors import DataError
from gansfp.images import slices
from gansfp.images.slices import ENDINGS

_READERS = 4  # threads


@dataclass(frozen=True)
class Source:
    """Real slices, or what stands for them: pixels (n, 256, 256) uint8 and patients (n,) str."""

    pixels: np.ndarray
    patients: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> "Source":
        return Source(self.pixels[rows], self.patients[rows])

    def __len__(self) -> int:
        return len(self.pixels)


def real_source(folder: str, most: int, seed: int = 0, progress: Callable[[str], None] = lambda line: None) -> Source:
    """The images below `folder`, at most `most` of them, from as many patients as possible.

    An optional groups.csv (image_id,group) in `folder` gives the patients; an image_id is a file's name or its path
    below `folder`, without ending. An image without a group is a patient of its own. Raises DataError.
    """
    files = [uri for uri in store.list_files(folder, recursive=True) if uri.lower().endswith(ENDINGS)]
    if not files:
        raise DataError(f"no images found in {folder}, expected files that end in {', '.join(ENDINGS)}")
    stems = [uri[len(store.join(folder, "")) :].lstrip("/").rpartition(".")[0] for uri in files]
    groups: dict[str, str] = {}
    if store.exists(store.join(folder, "groups.csv")):
        columns = store.read_csv(store.join(folder, "groups.csv"), ("image_id", "group"))
        groups = dict(zip(columns["image_id"], columns["group"], strict=True))
    patients = np.array([groups.get(stem) or groups.get(os.path.basename(stem)) or stem for stem in stems])
    chosen = np.sort(_in_turns(patients, np.random.default_rng([seed, 1]))[:most])
    with ThreadPoolExecutor(_READERS) as pool:
        loaded = list(pool.map(slices.load, [files[i] for i in chosen]))
    bad = [(files[i], s.error) for i, s in zip(chosen, loaded, strict=True) if s.pixels is None]
    if bad:
        progress(f"{len(bad)} images left out that could not be read, such as {bad[0][0]}: {bad[0][1]}")
    pixels = [s.pixels for s in loaded if s.pixels is not None]
    if not pixels:
        raise DataError(f"none of the {len(chosen)} images in {folder} could be read, such as {bad[0][0]}: {bad[0][1]}")
    readable = [i for i, s in zip(chosen, loaded, strict=True) if s.pixels is not None]
    return Source(np.stack(pixels), patients[readable])


def _in_turns(patients: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n,) rows in the order in which shuffled patients give one slice each, turn after turn."""
    order = rng.permutation(len(patients))
    seen: Counter[str] = Counter()
    turns = np.empty(len(patients), int)
    for place, row in enumerate(order):
        turns[place] = seen[patients[row]]
        seen[patients[row]] += 1
    return order[np.argsort(turns, kind="stable")]


def deal(patients: np.ndarray, needs: dict[str, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Whole patients to classes: all rows (shuffled) of each class's patients, at least needs[class] of them.

    patients: (n,) str. The largest patients are dealt first, each to the class that lacks most. Raises DataError.
    """
    sizes = Counter(patients.tolist())
    queue = sorted(rng.permutation(sorted(sizes)).tolist(), key=lambda patient: -sizes[patient])
    have = dict.fromkeys(needs, 0)
    holder: dict[str, str] = {}
    for patient in queue:
        name = min(needs, key=lambda name: (have[name] >= needs[name], have[name] / needs[name]))
        holder[patient] = name
        have[name] += sizes[patient]
    if any(have[name] < needs[name] for name in needs):
        wanted = ", ".join(f"{count} {name}" for name, count in needs.items())
        raise DataError(
            f"got {len(patients)} slices of {len(sizes)} patients, needed at least {sum(needs.values())} of "
            f"{len(needs)} patients or more, as a patient's slices stay together ({wanted}): give more or ask for less"
        )
    order = _in_turns(patients, rng)
    holders = np.array([holder[patient] for patient in patients[order].tolist()])
    return {name: order[holders == name] for name in needs}
