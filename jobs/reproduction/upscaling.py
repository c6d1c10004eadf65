"""Slices enlarged by 4 on the cluster, for the system that asks for it; kept in WORK/enlarged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ray

from gansfp import store
from gansfp.collection.catalog import Catalog
from gansfp.errors import GansfpError, WeightsError
from gansfp.published.superresolution import FACTOR, Pictures, Upscaler, UpscalerWeights, load_upscaler, upscale_files
from gansfp.runtime.progress import Progress
from gansfp.runtime.tasks import Call, spread

CHUNK = 16  # slices a task
LEAST = 8  # pixels a side before they are enlarged
RANDOM_BLOCKS = 1  # of an untrained network, which the published 23 would make no better but slow


def get_upscaler(name: str, folder: str | None, random: bool) -> UpscalerWeights:
    """The upscaler of that name, ESRGAN from its file in a folder; with `random` an untrained network where there is
    none. Raises GansfpError."""
    try:
        return load_upscaler(name, folder)
    except WeightsError:
        if not random:
            raise
        return load_upscaler("esrgan@random", folder, RANDOM_BLOCKS)


def enlarge(images: Catalog, real: UpscalerWeights, size: int, work: str, start: Callable[[], int]) -> Pictures:
    """Pictures of about size x size pixels of these slices, by the sha256 of their files; of one that cannot be read
    there is none.

    real: what enlarges real slices; generated ones are only resized (bicubic). start: brings Ray up where something is
    to be done, and returns the number of GPUs. Raises GansfpError where a task fails.
    """
    side, folder = max(LEAST, size // FACTOR), store.join(work, "enlarged")
    found: dict[str, str] = {}
    for weights, part in ((real, _real(images)), (load_upscaler("bicubic", None), images.select(role="generated"))):
        of = dict(zip(part.column("sha256").tolist(), part.column("uri").tolist(), strict=True))
        place = store.join(folder, f"{weights.identity}-{side}")
        there = set(store.list_files(place, ".png"))
        wanted = {sha256: store.join(place, f"{sha256}.png") for sha256 in of}
        found |= {sha256: uri for sha256, uri in wanted.items() if uri in there}
        todo = [sha256 for sha256, uri in wanted.items() if uri not in there]
        if todo:
            found |= _make([(sha256, of[sha256]) for sha256 in todo], weights, side, folder, start())
    return Pictures(f"{real.identity}-{side}", found)


def _real(images: Catalog) -> Catalog:
    rows = images.column("role") != "generated"
    return images.where(rows)


def _make(
    files: Sequence[tuple[str, str]], weights: UpscalerWeights, side: int, folder: str, gpus: int
) -> dict[str, str]:
    shared = ray.put(weights)
    chunks = [files[at : at + CHUNK] for at in range(0, len(files), CHUNK)]
    calls = {
        str(number): Call(enlarge_chunk, (chunk, shared, side, folder), on_device=weights.name != "bicubic")
        for number, chunk in enumerate(chunks)
    }
    found: dict[str, str] = {}
    with Progress(f"enlarge by {weights.name}", len(files)) as progress:
        for number, outcome in spread(calls, gpus):
            if outcome.error:
                raise GansfpError(f"super-resolution: {outcome.error}")
            found |= outcome.value
            progress.add(len(chunks[int(number)]))
    return found


def enlarge_chunk(
    files: Sequence[tuple[str, str]], weights: UpscalerWeights, side: int, folder: str, device: str = "cpu"
) -> dict[str, str]:
    """Task: the pictures of some (sha256, uri), by sha256."""
    hashes, uris = [sha256 for sha256, _ in files], [uri for _, uri in files]
    pictures = upscale_files(uris, hashes, folder, Upscaler(weights, device), side)
    return {sha256: picture for sha256, picture in zip(hashes, pictures, strict=True) if picture}
