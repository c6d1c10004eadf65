"""Slices with lung masks: two folders whose files have the same names, to train and validate the lung U-Net."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import unquote

import numpy as np

from gansfp import store
from gansfp.errors import DataError, UsageError
from gansfp.images.grey_levels import AUTO, Evidence, choose_rule
from gansfp.images.image_file import GREY, UNKNOWN, NoSliceError, Numbers
from gansfp.images.slices import MAX_BYTES, Source, decode, examine, numbers_of_file, recognise, resize
from gansfp.images.tiff_pages import MIN_IS_BLACK, MIN_IS_WHITE, PHOTOMETRIC, read_pages

READERS = 8  # threads that read files: a store answers slowly, but answers many requests at once
MOST_LABELS = 32  # different numbers in a mask; a slice has more
MOST_LUNG = 0.6  # of a slice; lungs that radiologists marked fill at most 0.25 of any of 278 slices
MOST_LUNG_AT_BORDER = 0.5  # of the pixels at the sides of a slice; a CT reader expects air around a body

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MaskedSlices:
    """Files of slices and of their lung masks.

    images: with the rule of their numbers of 16 bits, which is the same for all.
    volumes: the train/test split keeps the slices of a volume together. digest: of the contents of all files.
    """

    images: tuple[Source, ...]
    masks: tuple[str, ...]
    volumes: tuple[str, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: np.ndarray) -> MaskedSlices:
        """Returns the slices of these rows, in the order of the rows."""
        images = tuple(self.images[row] for row in rows)
        masks, volumes = (tuple(column[row] for row in rows) for column in (self.masks, self.volumes))
        return MaskedSlices(images, masks, volumes, self.digest)


def pair_folders(images: str, masks: str) -> MaskedSlices:
    """Reads the slices of one folder (a path or a URI) and the masks of another, whose files have the same names.

    A mask is 0, and has a label above 0 where lung is; it may have another size than the slice, of the same shape.
    Outlines of a mask may have other numbers in between; half of the highest and more is lung there. All numbers of 16
    bits of slices are read by the rule of grey_levels.SIXTEEN_BITS that fits the whole folder. The volume of a slice is
    its group in groups.csv (image_id,group) in the image folder. Without that table it is the part of the slice's name
    before `_z`, or else the whole name. All files are read once. Slices that cannot be read are left out, with a
    warning.

    Raises UsageError where both folders are the same, DataError where names do not match, a file is not a mask (it has
    more than 32 labels, or no 0, or is the slice itself, is inverted, or has other proportions than its slice), the
    table lacks a slice, all masks are empty, or a folder has no files.
    """
    image_files, mask_files = _files_by_name(images, masks)
    volumes = _volumes(images, sorted(image_files))
    pairs, rule = _read_all(images, {name: (image_files[name], mask_files[name]) for name in volumes})
    if not any(pair.lung_pixels for pair in pairs.values()):
        raise DataError(f"--masks: got {masks!r}, where all masks are empty, expected some with lungs")
    content = [[name, volumes[name], pair.digest, rule if pair.evidence else ""] for name, pair in pairs.items()]
    return MaskedSlices(
        tuple(Source(image_files[name], rule=rule) for name in pairs),
        tuple(mask_files[name] for name in pairs),
        tuple(volumes[name] for name in pairs),
        hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16],
    )


def _files_by_name(images: str, masks: str) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the URIs of the images and of the masks by file name. Raises as pair_folders where the names differ."""
    if store.absolute(images) == store.absolute(masks):
        raise UsageError(f"--masks: got {masks!r}, which is --images, expected another folder")
    image_files, mask_files = ({_name(uri): uri for uri in store.list_files(folder)} for folder in (images, masks))
    image_files.pop("groups.csv", None)
    for option, folder, files in (("--images", images, image_files), ("--masks", masks, mask_files)):
        if not files:
            raise DataError(f"{option}: got {folder!r}, which has no files, expected a folder of slices")
    unpaired = sorted(image_files.keys() ^ mask_files.keys())
    if unpaired:
        raise DataError(
            f"--masks: got {len(unpaired)} names that only one of {images!r} and {masks!r} has, such as "
            f"{', '.join(unpaired[:3])}; expected a mask of the same name for every slice"
        )
    return image_files, mask_files


@dataclass(frozen=True)
class _Pair:
    """A slice and its mask that can be read.

    digest: of both files. lung_pixels: how many pixels of lung there are. evidence: what the numbers of 16 bits of the
    slice say, None where the file tells what they are.
    """

    digest: str
    lung_pixels: int
    evidence: Evidence | None


def _read_all(images: str, uris: Mapping[str, tuple[str, str]]) -> tuple[dict[str, _Pair], str]:
    """Reads all slices with their masks, by name; leaves out those that cannot be read, with a warning.

    uris: of the image and of the mask. Returns also the rule for numbers of 16 bits. Raises DataError where nothing can
    be read.
    """
    with ThreadPoolExecutor(READERS) as readers:
        contents = dict(zip(uris, readers.map(lambda pair: _inspect(*pair), uris.values()), strict=True))
    pairs = {name: content for name, content in contents.items() if not isinstance(content, str)}
    errors = {name: content for name, content in contents.items() if isinstance(content, str)}
    undecided = {name: pair.evidence for name, pair in pairs.items() if pair.evidence}
    choice = choose_rule(list(undecided.values()))
    if undecided and choice.rule:
        log.info("16 bits: the %d slices are read as %s (%s)", len(undecided), choice.rule, choice.why)
    elif undecided:
        errors |= dict.fromkeys(undecided, f"it is unknown what the numbers of 16 bits are ({choice.why})")
        pairs = {name: pair for name, pair in pairs.items() if name not in undecided}
    described = [f"{name}: {error}" for name, error in errors.items()]
    if not pairs:
        raise DataError(f"--images: got {images!r}, where no slice can be read, such as {described[0]}")
    if errors:
        log.warning("left out %d of %d slices that cannot be read, such as %s", len(errors), len(uris), described[0])
    return pairs, choice.rule or AUTO


def _name(uri: str) -> str:
    """Returns a file's name without its folders."""
    return unquote(uri.partition("?")[0].rpartition("/")[2]) if store.is_remote(uri) else os.path.basename(uri)


def _volumes(images: str, names: Sequence[str]) -> dict[str, str]:
    """Returns the volume of each slice, by name. Raises DataError where groups.csv lacks a slice."""
    stems = {name: name.rpartition(".")[0] or name for name in names}
    table = store.join(images, "groups.csv")
    if not store.exists(table):
        return {name: stem.rpartition("_z")[0] or stem for name, stem in stems.items()}
    columns = store.read_csv(table, ("image_id", "group"))
    groups = dict(zip(columns["image_id"], columns["group"], strict=True))
    for name, stem in stems.items():
        if not groups.get(stem):
            raise DataError(f"{table}: has no group for {stem!r}, expected one for every slice of its folder ({name})")
    return {name: groups[stem] for name, stem in stems.items()}


def _inspect(image: str, mask: str) -> _Pair | str:
    """Reads a slice and its mask; returns the reason where they cannot be read. Raises DataError as pair_folders."""
    try:
        files = [store.read_bytes(uri, MAX_BYTES) for uri in (image, mask)]
        header = examine(files[0], image)
        undecided = header.scale == UNKNOWN and not header.unknown_because
        error = header.error or ("" if undecided else decode(files[0], image).error)
        if error:
            return error
        lungs = _lungs(files[1], mask, files[0], image, (header.height, header.width))
    except (OSError, NoSliceError) as error:
        return store.one_line(error)
    digest = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in files)).hexdigest()
    return _Pair(digest, int(lungs.sum()), header.evidence if undecided else None)


def _lungs(mask: bytes, mask_uri: str, image: bytes, image_uri: str, shape: tuple[int, int]) -> np.ndarray:
    """Returns where a mask shows lung: (256, 256) bool, at least half of a pixel's area.

    shape: height and width of the image.

    Raises NoSliceError for a file that cannot be read, DataError for one that is not a mask.
    """
    numbers = numbers_of_file(mask, mask_uri)
    labels = numbers.values
    if numbers.inverted:
        labels = (0xFF if numbers.scale == GREY else labels.max()) - labels
    if numbers.opacity is not None:
        labels = np.where(numbers.opacity > 127, labels, 0)
    levels = np.unique(labels)
    has_outlines = len(levels) > 2 and levels[0] == 0 and _is_between_at_outlines_only(labels, levels[-1])
    if not has_outlines:
        reason = _why_no_mask(levels)
        if not reason and len(levels) > 2:
            if getattr(recognise(mask, mask_uri), "name", "") == "JPEG":
                reason = f"a JPEG file of {len(levels)} grey levels, which does not keep labels; save it as PNG"
            elif np.array_equal(numbers.values, numbers_of_file(image, image_uri).values):
                reason = "the same picture as the slice"
        if reason:
            raise DataError(f"{mask_uri}: got {reason}, expected 0, and 255 (or another label) where lung is")
    if not _are_proportional(labels.shape, shape):
        sizes = [f"{width}x{height}" for height, width in (labels.shape, shape)]
        raise DataError(
            f"{mask_uri}: got a mask of {sizes[0]} pixels, expected the proportions of its slice, {sizes[1]}"
        )
    lungs = labels >= levels[-1] / 2 if has_outlines else labels > 0
    reason = _why_no_lungs(lungs)
    if reason:
        raise DataError(f"{mask_uri}: got {reason}; is it inverted?{_hint_at_inversion(numbers, mask, mask_uri)}")
    return resize(lungs.astype(np.uint8) * 0xFF) > 0x7F


def _why_no_mask(levels: np.ndarray) -> str:
    """Returns what a file is whose numbers, sorted and each once, are not labels; "" if they are labels."""
    middle = levels[len(levels) // 2]
    if len(levels) > MOST_LABELS or levels[0] < 0 or (levels != np.rint(levels)).any():
        return f"a mask of {len(levels)} grey levels, such as {middle:g}"
    if levels[0] > 0 and len(levels) > 1:  # _why_no_lungs tells of the other ones
        return f"a mask without 0, with grey levels such as {middle:g}"
    return ""


def _are_proportional(mask: tuple[int, ...], image: tuple[int, ...]) -> bool:
    """Returns True where two (height, width) differ by a factor only; sides were rounded to whole pixels."""
    factor = max(mask) / max(image)
    return all(abs(side * factor - mask_side) < 1 for mask_side, side in zip(mask, image, strict=True))


def _why_no_lungs(lungs: np.ndarray) -> str:
    """Returns why (height, width) bool cannot be the lungs of a slice, with figures; "" if it can be."""
    border = np.concatenate([lungs[0], lungs[-1], lungs[:, 0], lungs[:, -1]])
    corners = int(lungs[[0, 0, -1, -1], [0, -1, 0, -1]].sum())
    if lungs.mean() <= MOST_LUNG and border.mean() <= MOST_LUNG_AT_BORDER and corners < 4:
        return ""
    return (
        f"lung in {lungs.mean():.1%} of the slice, {border.mean():.1%} of its border and {corners} of its corners, "
        f"expected at most {MOST_LUNG:.0%}, {MOST_LUNG_AT_BORDER:.0%} and 3"
    )


def _hint_at_inversion(numbers: Numbers, mask: bytes, uri: str) -> str:
    """Returns what to do about a mask whose file says that 0 is white. tifffile writes masks of bool so."""
    is_tiff = getattr(recognise(mask, uri), "name", "") == "TIFF"
    if numbers.inverted or (is_tiff and read_pages(mask)[0].number(PHOTOMETRIC, MIN_IS_BLACK) == MIN_IS_WHITE):
        return " Its file says that 0 is white (MinIsWhite, MONOCHROME1); save it as PNG"
    return ""


def _is_between_at_outlines_only(labels: np.ndarray, high: float) -> bool:
    """Returns True where no number between 0 and the highest fills an area: a mask that was resized with smoothing.

    Such numbers then say how much of a pixel is lung; they are no labels.
    """
    between = np.pad((labels > 0) & (labels < high), 1)
    inside = between[1:-1, 1:-1] & between[:-2, 1:-1] & between[2:, 1:-1] & between[1:-1, :-2] & between[1:-1, 2:]
    return not inside.any()


def read_pair(image: Source, mask: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads a slice, (256, 256) uint8, and its mask, (256, 256) bool.

    Raises DataError where they could be read before and now cannot be read.
    """
    try:
        files = store.read_bytes(image.uri, MAX_BYTES), store.read_bytes(mask, MAX_BYTES)
        decoded = decode(files[0], image.uri, image.frame, image.rule)
        if decoded.pixels is not None:
            shape = decoded.height, decoded.width
            return decoded.pixels, _lungs(files[1], mask, files[0], image.uri, shape)
        reason = decoded.error
    except (OSError, NoSliceError) as error:
        reason = store.one_line(error)
    raise DataError(f"{image.uri}: could be read before and now cannot be read ({reason})")
