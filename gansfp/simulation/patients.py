"""Reads real slices with their patients, and deals whole patients to the classes of a challenge."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from gansfp import store
from gansfp.collection.folders import FolderFile, list_images, read_files
from gansfp.collection.names import key
from gansfp.collection.table import plain_names
from gansfp.errors import DataError
from gansfp.images import slices
from gansfp.images.slices import ENDINGS, without_ending

_READERS = 4  # threads


@dataclass(frozen=True)
class Archive:
    """Slices with their patients, real or of phantoms. pixels: (n, 256, 256) uint8; patients: (n,) str."""

    pixels: np.ndarray
    patients: np.ndarray

    def __getitem__(self, rows: np.ndarray | slice) -> "Archive":
        return Archive(self.pixels[rows], self.patients[rows])

    def __len__(self) -> int:
        return len(self.pixels)


def read_archive(folder: str, most: int, seed: int = 0, progress: Callable[[str], None] = lambda line: None) -> Archive:
    """Reads the images below `folder`, at most `most` of them, from as many patients as possible.

    An optional groups.csv (image_id,group) in `folder` gives the patients. An image_id is a file's name or its path
    below `folder`, without ending. Without a group, DICOM files are grouped by patient or series; another file counts
    as a patient of its own. Raises DataError.
    """
    paths = list_images(folder)
    if not paths:
        raise DataError(f"no images found in {folder}, expected files that end with one of {', '.join(ENDINGS)}")
    files = read_files([store.join(folder, path) for path in paths])
    images = [source for file in files for source in file.sources]
    owners = _owners(folder, [without_ending(path) for path in paths], files)
    patients = np.array([owner for owner, file in zip(owners, files, strict=True) for _ in file.sources])
    chosen = np.sort(_in_turns(patients, np.random.default_rng([seed, 1]))[:most])
    with ThreadPoolExecutor(_READERS) as pool:
        loaded = list(pool.map(slices.load, [images[i] for i in chosen]))
    pixels, readable, errors = [], [], []
    for row, slice_ in zip(chosen, loaded, strict=True):
        if slice_.pixels is None:
            errors.append(f"{images[row].uri}: {slice_.error}")
        else:
            pixels.append(slice_.pixels)
            readable.append(row)
    if errors:
        progress(f"{len(errors)} images left out that cannot be read, such as {errors[0]}")
    if not pixels:
        raise DataError(f"none of the {len(chosen)} images in {folder} can be read, such as {errors[0]}")
    return Archive(np.stack(pixels), patients[readable])


def _owners(folder: str, stems: Sequence[str], files: Sequence[FolderFile]) -> list[str]:
    """Returns the patient of each file: by groups.csv, else by what the file says, else the file itself.

    stems: paths below the folder, without ending. Patients that files name are numbered: their identifiers must not
    appear in any output.
    """
    groups: dict[str, str] = {}
    if store.exists(store.join(folder, "groups.csv")):
        columns = store.read_csv(store.join(folder, "groups.csv"), ("image_id", "group"))
        ids = (key(image_id) for image_id in columns["image_id"])
        groups = dict(zip(ids, plain_names(columns["group"]), strict=True))
    numbers: dict[str, int] = {}
    owners = []
    for stem, file in zip(stems, files, strict=True):
        group = groups.get(key(stem)) or groups.get(key(os.path.basename(stem)))
        if not group and file.patient:
            group = f"patient-{numbers.setdefault(file.patient, len(numbers) + 1):04d}"
        owners.append(group or stem)
    return owners


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
