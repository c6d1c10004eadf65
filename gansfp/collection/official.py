"""Takes the folders of the ImageCLEFmedical GAN challenges as they come out of their archives.

The archives hold class folders beside each other: generated_1, real_used_1, real_not_used_1 to train on, generated_1
and real_unknown_1 to decide about. The number at the end is the set's name; folders without a number belong to set 1.
Up to DEEPEST folders may lie around them.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from gansfp.collection.image import Purpose
from gansfp.errors import DataError

DEEPEST = 4  # folders around a class folder, such as Subtask2/Subtask2/training
ONLY_SET = 1  # the set of folders without a number: the challenges with one generator have number 1 or none

_IDENTIFICATION = ("real", "generated")  # the folders of task 2 of 2025
_NAME = re.compile(r"(generated|(?:real_)?(?:used|not_used|unknown))(?:_?(\d+))?")


class ClassFolder(NamedTuple):
    """A class folder of a challenge. place: the folder around it and its neighbours. number: at its end, or None."""

    folder: str
    place: str
    role: str
    number: int | None

    @property
    def set(self) -> int:
        return ONLY_SET if self.number is None else self.number


def class_folder_of(folders: Sequence[str]) -> ClassFolder | None:
    """Returns the class folder in a path, which is split into the names of its folders, or None.

    It is the first folder with such a name. A folder of the same role in it, as unpacking makes one (generated_1 in
    generated_1), takes its place. Raises DataError if the two have different numbers.
    """
    for depth, name in enumerate(folders[: DEEPEST + 1]):
        role, number = _role_of(name)
        if not role:
            continue
        place, end = "/".join(folders[:depth]), depth + 1
        while end < len(folders) and _role_of(folders[end])[0] == role:
            inner = _role_of(folders[end])[1]
            end += 1
            if None not in (number, inner) and number != inner:
                raise DataError(f"found the folder {'/'.join(folders[:end])}, whose numbers differ; rename one")
            number = number if inner is None else inner
        return ClassFolder("/".join(folders[:end]), place, role, number)
    return None


def _role_of(name: str) -> tuple[str, int | None]:
    """Returns role and number of a class folder's name, ("", None) for another name."""
    match = _NAME.fullmatch(re.sub(r"[\s-]", "_", name.lower()))
    if not match:
        return "", None
    return match[1].removeprefix("real_"), int(match[2]) if match[2] else None


def places_of_identification(classes: Collection[ClassFolder], paths: Iterable[str]) -> dict[str, set[str]]:
    """Returns the folders that hold task 2 of 2025, which asks from which real images a slice was generated.

    They hold two folders, `real` and `generated` in upper or lower case, with one folder for each subset of the real
    images in both. Returns {folder: these two folders in it}. paths: of all images. classes: the class folders that
    hold some of them.
    """
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))  # place -> name in lower case
    other = {class_folder.place for class_folder in classes if class_folder.role != "generated"}
    for path in paths:
        folders = path.split("/")[:-1]
        depth = next((depth for depth, name in enumerate(folders) if name.lower() in _IDENTIFICATION), None)
        if depth is None or depth > DEEPEST:
            continue
        place = "/".join(folders[:depth])
        found[place][folders[depth].lower()].add("/".join(folders[: depth + 1]))
        if depth == len(folders) - 1:  # an image that is in no subset
            other.add(place)
    return {
        place: set().union(*names.values())
        for place, names in found.items()
        if place not in other and len(names) == len(_IDENTIFICATION)
    }


def purposes_of(classes: Collection[ClassFolder]) -> dict[str, Purpose]:
    """Returns what each class folder is there for.

    Class folders of one set that lie in one place are a training set, or a test set if the real ones among them are
    unknown. Training and test set may lie in two places. A place with generated slices alone belongs to the part of
    its set that has none. Nothing is taken for anything where no set has generated slices and real ones.

    Raises DataError where two folders may be the same class, or where it is not clear to which set a folder belongs.
    """
    _check_numbers(classes)
    members: dict[int, list[ClassFolder]] = defaultdict(list)
    for found in classes:
        members[found.set].append(found)
    complete = [set_ for set_, of_set in members.items() if len({f.role == "generated" for f in of_set}) == 2]
    if not complete:
        return {}
    purposes = {}
    for of_set in members.values():
        splits = _splits(of_set)
        for found in of_set:
            split = "test" if found.role == "unknown" else splits[found.place]
            purposes[found.folder] = Purpose("membership", str(found.set), split, found.role, "")
    _check_once(purposes)
    return purposes


def _splits(of_set: Sequence[ClassFolder]) -> dict[str, str]:
    """Returns for each place of a set whether its generated slices are of the training or of the test set."""
    roles: dict[str, set[str]] = defaultdict(set)
    for found in of_set:
        roles[found.place].add(found.role)
    splits = {
        place: "train" if here & {"used", "not_used"} else "test"
        for place, here in roles.items()
        if here != {"generated"}
    }
    have_generated = {split for place, split in splits.items() if "generated" in roles[place]}
    for place in roles.keys() - splits.keys():
        lacking = [split for split in ("train", "test") if split in splits.values() and split not in have_generated]
        splits[place] = lacking[0] if lacking else "train"
    return splits


def _check_numbers(classes: Collection[ClassFolder]) -> None:
    """Raises DataError where folders without a number may belong to one of several sets."""
    unnumbered = [found.folder for found in classes if found.number is None]
    numbered = [found.folder for found in classes if found.number not in (None, ONLY_SET)]
    if unnumbered and numbered:
        raise DataError(
            f"found the folders {min(unnumbered)} and {min(numbered)}, expected a number at the end of both, which is "
            "their set, or at the end of neither; rename the first"
        )


def _check_once(purposes: Mapping[str, Purpose]) -> None:
    """Raises DataError where two folders are the same class."""
    folder_of: dict[Purpose, str] = {}
    for folder, purpose in sorted(purposes.items()):
        first = folder_of.setdefault(purpose, folder)
        if first != folder:
            raise DataError(
                f"found the folders {first} and {folder}, both for set {purpose.set}, {purpose.split}, {purpose.role}; "
                "remove one if it is a copy, or give each set its number, as in generated_1 and generated_2"
            )
