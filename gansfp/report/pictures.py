"""Pictures of slices for the report: loaded from DATA, checked by their hash, encoded into the page."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, features
from scipy import ndimage

from gansfp import store
from gansfp.collection.catalog import Catalog
from gansfp.cores import cores
from gansfp.images import slices
from gansfp.images.slices import Source

QUALITY = 80  # of WebP: a slice of 256 pixels takes some 6 kB
EDGE = np.array([230, 140, 0], np.uint8)  # orange: what is marked, seen on black and on white


class Pictures:
    """The slices of a catalog as pixels.

    allowed: False for a page without any picture, real or synthetic: a synthetic slice may be a copy of a patient's.
    missing: reasons by image id, of slices that could not be shown. loaded: how many could.
    """

    def __init__(self, catalog: Catalog | None, allowed: bool = True) -> None:
        self.missing: dict[str, str] = {}
        self.loaded = 0
        self._sources: dict[str, tuple[Source, str]] = {}
        if catalog is not None and allowed:
            hashes = catalog.table["sha256"].to_pylist()
            named = zip(catalog.ids.tolist(), catalog.sources(), hashes, strict=True)
            self._sources = {image_id: (source, sha256) for image_id, source, sha256 in named}

    def __bool__(self) -> bool:
        return bool(self._sources)

    def pixels(self, image_id: str) -> np.ndarray | None:
        """A slice, (256, 256) uint8. None where it cannot be shown; `missing` then says why."""
        known = self._sources.get(image_id)
        if known is None:
            return None
        source, sha256 = known
        try:
            content = store.read_bytes(source.uri)
        except OSError as error:
            self.missing[image_id] = store.one_line(error)
            return None
        if hashlib.sha256(content).hexdigest() != sha256:
            self.missing[image_id] = "the file has changed since the audit"
            return None
        decoded = slices.decode(content, source.uri, source.frame, source.rule)
        if decoded.pixels is None:
            self.missing[image_id] = decoded.error
        else:
            self.loaded += 1
        return decoded.pixels

    def many(self, image_ids: Sequence[str]) -> list[np.ndarray | None]:
        """Slices, in the order of the ids; see `pixels`."""
        with ThreadPoolExecutor(cores()) as threads:
            return list(threads.map(self.pixels, image_ids))


def encode(pixels: np.ndarray, size: int | None = None) -> str:
    """A picture as a data URI. pixels: (h, w) or (h, w, 3) uint8; size: of its longer side, by default as it is."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if size and size < max(image.size):
        image.thumbnail((size, size), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if features.check("webp"):
        image.save(file, "WEBP", quality=QUALITY, method=4)
        kind = "webp"
    else:
        image.save(file, "PNG", optimize=True)
        kind = "png"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def outlined(pixels: np.ndarray, area: np.ndarray) -> np.ndarray:
    """A slice with the outline of an area drawn in, (h, w, 3) uint8. pixels: (h, w) or (h, w, 3) uint8; area: (h, w)
    bool."""
    picture = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    drawn = picture.copy()
    drawn[area & ~ndimage.binary_erosion(area, iterations=2)] = EDGE
    return drawn


def lit(pixels: np.ndarray, area: np.ndarray) -> np.ndarray:
    """A slice whose area is tinted and the rest darkened, (h, w, 3) uint8. pixels: (h, w) uint8; area: (h, w) bool."""
    grey = pixels[..., None].astype(np.float32)
    tinted = 0.6 * grey + 0.4 * EDGE
    return np.rint(np.where(area[..., None], tinted, 0.45 * grey)).astype(np.uint8)


def difference_picture(difference: np.ndarray, largest: float = 80.0) -> np.ndarray:
    """Grey where nothing differs, red where the synthetic slice is brighter, blue where it is darker: (h, w, 3) uint8.

    difference: (h, w) grey levels; largest: the difference that gets the full colour.
    """
    strength = np.clip(difference / largest, -1, 1)[..., None]
    grey, red, blue = (np.array(colour, np.float32) for colour in ((200, 200, 200), (178, 24, 43), (33, 102, 172)))
    colours = np.where(strength > 0, grey + strength * (red - grey), grey - strength * (blue - grey))
    return np.rint(colours).astype(np.uint8)
