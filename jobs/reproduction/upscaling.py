"""Enlarges slices by 4 on the Ray cluster, for systems that need it. The pictures are kept in WORK/enlarged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ray

from gansfp import store
from gansfp.collection.catalog import Catalog
from gansfp.errors import GansfpError, WeightsError
from gansfp.images.slices import Source
from gansfp.published.superresolution import FACTOR, Pictures, Upscaler, UpscalerWeights, load_upscaler, upscale_files
from gansfp.runtime.progress import Progress
from gansfp.runtime.tasks import Call, run_calls

CHUNK, GPU_CHUNK = 16, 256  # slices in one task; a task with a GPU is a new process, which needs seconds to start
SMALLEST = 8  # pixels a side before enlarging
RANDOM_BLOCKS = 1  # of an untrained network; the published 23 would be slower, and no better without training


def get_upscaler(name: str, folder: str | None, random: bool) -> UpscalerWeights:
    """Loads the upscaler of this name; ESRGAN is loaded from its file in the folder.

    random: if there is no file, an untrained network is used. Raises GansfpError.
    """
    try:
        return load_upscaler(name, folder)
    except WeightsError:
        if not random:
            raise
        return load_upscaler("esrgan@random", folder, RANDOM_BLOCKS)


def enlarge(images: Catalog, upscaler: UpscalerWeights, size: int, work: str, start_ray: Callable[[], int]) -> Pictures:
    """Enlarges these slices to about size x size pixels. A slice that cannot be read has no picture.

    upscaler: for real slices; generated slices are only resized (bicubic). start_ray: starts Ray if there is work to
    do, and returns the number of GPUs. Raises GansfpError if a task fails.
    """
    side, folder = max(SMALLEST, size // FACTOR), store.join(work, "enlarged")
    generated = images.column("role") == "generated"
    pictures: dict[str, str] = {}
    for weights, slices in (
        (upscaler, images.where(~generated)),
        (load_upscaler("bicubic", None), images.where(generated)),
    ):
        sources = dict(zip(slices.hashes().values(), slices.sources(), strict=True))
        place = store.join(folder, f"{weights.identity}-{side}")
        existing = set(store.list_files(place, ".png"))
        expected = {name: store.join(place, f"{name}.png") for name in sources}
        pictures |= {name: uri for name, uri in expected.items() if uri in existing}
        to_do = [(name, sources[name]) for name, uri in expected.items() if uri not in existing]
        if to_do:
            pictures |= _enlarge_files(to_do, weights, side, folder, start_ray())
    return Pictures(f"{upscaler.identity}-{side}", pictures)


def _enlarge_files(
    files: Sequence[tuple[str, Source]], weights: UpscalerWeights, side: int, folder: str, gpus: int
) -> dict[str, str]:
    """Enlarges (hash, source) slices, some in each task; returns the pictures by hash."""
    shared = ray.put(weights)
    size = GPU_CHUNK if gpus else CHUNK
    chunks = [files[first : first + size] for first in range(0, len(files), size)]
    calls = {
        str(number): Call(enlarge_chunk, (chunk, shared, side, folder), on_device=weights.name != "bicubic")
        for number, chunk in enumerate(chunks)
    }
    pictures: dict[str, str] = {}
    with Progress(f"enlarge by {weights.name}", len(files)) as progress:
        for number, outcome in run_calls(calls, gpus):
            if outcome.error:
                raise GansfpError(f"super-resolution: {outcome.error}")
            pictures |= outcome.value
            progress.add(len(chunks[int(number)]))
    return pictures


def enlarge_chunk(
    files: Sequence[tuple[str, Source]], weights: UpscalerWeights, side: int, folder: str, device: str = "cpu"
) -> dict[str, str]:
    """Task: enlarges some (hash, source) slices; returns the pictures by hash."""
    hashes, sources = [name for name, _ in files], [source for _, source in files]
    pictures = upscale_files(sources, hashes, folder, Upscaler(weights, device), side)
    return {name: picture for name, picture in zip(hashes, pictures, strict=True) if picture}
