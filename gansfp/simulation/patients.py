"""Reads real slices with their patients, and deals whole patients to the classes of a challenge."""

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from gansfp import store
from gansfp.collection.folders import read_files
from gansfp.errors import DataError
from gansfp.images import slices
from gansfp.images.slices import ENDINGS, Source, without_ending

_READERS = 4  # threads


@dataclass(frozen=True)
class Archive:
    """Slices with their patients, real or of phantoms. pixels: (n, 256, 256) uint8; patients: (n,) str."""

    pixels: np.ndarray
    patients: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> "Archive":
        return Archive(self.pixels[rows], self.patients[rows])

    def __len__(self) -> int:
        return len(self.pixels)


def read_archive(folder: str, most: int, seed: int = 0, progress: Callable[[str], None] = lambda line: None) -> Archive:
    """Reads the images below `folder`, at most `most` of them, from as many patients as possible.

    An optional groups.csv (image_id,group) in `folder` gives the patients. An image_id is a file's name or its path
    below `folder`, without ending. An image without a group counts as a patient of its own. Raises DataError.
    """
    files = [uri for uri in store.list_files(folder, recursive=True) if uri.lower().endswith(ENDINGS)]
    if not files:
        raise DataError(f"no images found in {folder}, expected files that end with one of {', '.join(ENDINGS)}")
    images = [
        (source, without_ending(uri[len(store.join(folder, "")) :].lstrip("/")))
        for uri, file in zip(files, read_files(files), strict=True)
        for source in file.sources or [Source(uri)]
    ]
    stems = [stem for _, stem in images]
    groups: dict[str, str] = {}
    if store.exists(store.join(folder, "groups.csv")):
        columns = store.read_csv(store.join(folder, "groups.csv"), ("image_id", "group"))
        groups = dict(zip(columns["image_id"], columns["group"], strict=True))
    patients = np.array([groups.get(stem) or groups.get(os.path.basename(stem)) or stem for stem in stems])
    chosen = np.sort(_in_turns(patients, np.random.default_rng([seed, 1]))[:most])
    with ThreadPoolExecutor(_READERS) as pool:
        loaded = list(pool.map(slices.load, [images[i][0] for i in chosen]))
    pixels, readable, errors = [], [], []
    for row, slice_ in zip(chosen, loaded, strict=True):
        if slice_.pixels is None:
            errors.append(f"{images[row][0].uri}: {slice_.error}")
        else:
            pixels.append(slice_.pixels)
            readable.append(row)
    if errors:
        progress(f"{len(errors)} images left out that cannot be read, such as {errors[0]}")
    if not pixels:
        raise DataError(f"none of the {len(chosen)} images in {folder} can be read, such as {errors[0]}")
    return Archive(np.stack(pixels), patients[readable])


def _in_turns(patients: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns (n,) rows in turns: in each turn every patient gives one slice, in shuffled order, while any are left."""
    order = rng.permutation(len(patients))
    slices_so_far: Counter[str] = Counter()
    turns = np.empty(len(patients), int)
    for position, row in enumerate(order):
        turns[position] = slices_so_far[patients[row]]
        slices_so_far[patients[row]] += 1
    return order[np.argsort(turns, kind="stable")]


def deal(patients: np.ndarray, needs: dict[str, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Deals whole patients to classes. Returns all rows (shuffled) of each class's patients, at least needs[class].

    patients: (n,) str. Patients with the most slices are dealt first, each to the class with the smallest share of its
    need. Raises DataError if there are too few slices or patients.
    """
    sizes = Counter(patients.tolist())
    queue = sorted(rng.permutation(sorted(sizes)).tolist(), key=lambda patient: -sizes[patient])
    dealt = dict.fromkeys(needs, 0)
    class_of: dict[str, str] = {}
    for patient in queue:
        name = min(needs, key=lambda name: (dealt[name] >= needs[name], dealt[name] / needs[name]))
        class_of[patient] = name
        dealt[name] += sizes[patient]
    if any(dealt[name] < needs[name] for name in needs):
        counts = ", ".join(f"{count} {name}" for name, count in needs.items())
        raise DataError(
            f"got {len(patients)} slices of {len(sizes)} patients, needed at least {sum(needs.values())} of "
            f"{len(needs)} patients or more, because the slices of a patient stay together ({counts}); "
            "give more slices or ask for fewer"
        )
    order = _in_turns(patients, rng)
    classes = np.array([class_of[patient] for patient in patients[order].tolist()])
    return {name: order[classes == name] for name in needs}
