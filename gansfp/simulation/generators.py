"""Four generators of slices that are trained here. They leak their training slices to different degrees.

Every generator is a function of training slices, a count, a seed and settings, and yields generated slices one by one,
so that nobody needs memory for all of them. Equal arguments give equal bytes on one machine. The networks are trained
in float32 on one thread, for three reasons. A second thread speeds up so small a network only a little, while two
trainings in parallel are twice as fast. The sums do not depend on the number of cores. bfloat16 is a fifth faster on
processors that support it, and several times slower on others.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy import ndimage
from threadpoolctl import threadpool_limits
from torch import nn

from gansfp.errors import UsageError
from gansfp.simulation.phantom import SIDE, spline_matrix

_BATCH = 16


@dataclass(frozen=True)
class GeneratorSettings:
    """The settings of all generators; each generator uses its own."""

    strength: float = 0.85  # of `warp`: 1: nearly exact copies of training slices; near 0: strongly deformed blends
    vae_steps: int = 200
    glo_steps: int = 300


def eigen(training: np.ndarray, count: int, seed: int, settings: GeneratorSettings) -> Iterator[np.ndarray]:
    """Draws from a Gaussian in the leading principal components of the training slices ("eigenfaces"). Leaks little.

    No generated slice is close to a single training slice. Only the space that the training slices span leaks.
    """
    del settings
    rng = np.random.default_rng(seed)
    components = min(len(training) - 1, 20)
    codes, axes, mean = _principal_components(training, components)
    drawn = rng.standard_normal((count, components)) * codes.std(axis=0)
    for start in range(0, count, _BATCH):
        pictures = (mean + drawn[start : start + _BATCH] @ axes).reshape(-1, SIDE, SIDE)
        # A linear model produces no edges and no noise. Without added noise its smoothness would give it away.
        yield from _to_grey(pictures + 2.0 * rng.standard_normal(pictures.shape))


def warp(training: np.ndarray, count: int, seed: int, settings: GeneratorSettings) -> Iterator[np.ndarray]:
    """Deforms a training slice smoothly and blends it with one of its nearest training slices. Leaks much."""
    rng = np.random.default_rng(seed)
    displacement = displacement_of(settings.strength)
    largest_share = 0.15 + 0.35 * (1.0 - settings.strength)  # of the neighbour in the blend
    neighbours = most_alike(training)
    for _ in range(count):
        chosen = rng.integers(len(training))
        share = rng.uniform(0, largest_share)
        neighbour = rng.choice(neighbours[chosen])
        yield blended_copy(training[chosen], training[neighbour], share, displacement, rng)


def displacement_of(strength: float) -> float:
    """The root mean square of the displacements that `warp` deforms by, in pixels."""
    return 1.0 + 14.0 * (1.0 - strength)


def most_alike(pictures: np.ndarray, apart: np.ndarray | None = None) -> np.ndarray:
    """The rows (n, at most 4) of the slices that look most like each slice. pictures: (n, 256, 256) uint8; apart: (n,),
    with it only slices that differ in it from the slice count."""
    small = pictures[:, 4::8, 4::8].reshape(len(pictures), -1).astype(np.float32)
    squares = (small**2).sum(axis=1)
    distances = squares[:, None] + squares[None] - 2 * small @ small.T
    np.fill_diagonal(distances, np.inf)
    if apart is not None:
        distances[apart[:, None] == apart] = np.inf
    return np.argsort(distances, axis=1)[:, : max(1, min(4, len(pictures) - 1))]


def blended_copy(
    picture: np.ndarray, neighbour: np.ndarray, share: float, displacement: float, rng: np.random.Generator
) -> np.ndarray:
    """Deforms two slices smoothly and blends them: (256, 256) uint8. share: of the neighbour; displacement: pixels."""
    first = _deformed(picture, displacement, rng)
    return _to_grey((1 - share) * first + share * _deformed(neighbour, displacement, rng))


def _deformed(picture: np.ndarray, displacement: float, rng: np.random.Generator) -> np.ndarray:
    rows, columns, spline = _grid()
    # The mean square of a cubic spline through white noise is 0.23 times that of the noise; 2.1 corrects this.
    down, right = (2.1 * displacement * (spline @ rng.standard_normal((9, 9)) @ spline.T) for _ in range(2))
    return ndimage.map_coordinates(picture, [rows + down, columns + right], np.float32, order=1, mode="nearest")


@cache
def _grid() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    return rows, columns, spline_matrix(9)


def vae(training: np.ndarray, count: int, seed: int, settings: GeneratorSettings) -> Iterator[np.ndarray]:
    """Trains a small convolutional variational autoencoder (Kingma and Welling 2014) and draws from it.

    It upsamples by nearest neighbour and convolution. Its slices are smooth averages, so it leaks less than a decoder
    that is fitted to every slice.
    """
    latent = 32
    upsampled = lambda a, b: nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(a, b, 3, padding=1))  # noqa: E731
    with torch.device("meta"):
        encoder = nn.Sequential(
            nn.AvgPool2d(4),
            *_layers((1, 16, 32, 48), lambda a, b: nn.Conv2d(a, b, 4, stride=2, padding=1)),
            nn.Flatten(),
            nn.Linear(48 * 64, 2 * latent),
        )
        decoder = nn.Sequential(
            nn.Linear(latent, 48 * 64),
            nn.Unflatten(1, (48, 8, 8)),
            nn.LeakyReLU(0.2),
            *_layers((48, 40, 32, 16, 8), upsampled),
            nn.Conv2d(8, 1, 3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear"),
        )
    random = torch.Generator().manual_seed(seed)
    networks = _initialised(nn.ModuleList([encoder, decoder]), random)
    slices = _to_signed(training)
    # The average slice is subtracted. Otherwise the first hundreds of steps would be spent on learning it.
    average = slices.mean(dim=0)
    slices -= average

    def loss(batch: torch.Tensor) -> torch.Tensor:
        mean, spread = encoder(slices[batch]).chunk(2, dim=1)
        drawn = mean + torch.exp(0.5 * spread) * torch.randn(mean.shape, generator=random)
        distance = (decoder(drawn) - slices[batch]).square().mean()
        divergence = (mean.square() + spread.exp() - 1 - spread).sum(dim=1).mean() / 2
        return distance + 3e-5 * divergence

    _train(loss, [(list(networks.parameters()), 2e-3)], len(slices), settings.vae_steps, random)
    with torch.no_grad():
        codes = encoder(slices)[:, :latent]
    yield from _decoded(decoder, _gaussian_like(codes, count, random), average)


def glo(training: np.ndarray, count: int, seed: int, settings: GeneratorSettings) -> Iterator[np.ndarray]:
    """Generative latent optimisation (Bojanowski et al. 2018): fits a decoder of transposed convolutions together with
    one free code for each training slice. New slices are decoded from a Gaussian that is fitted to the codes.

    It overfits and therefore leaks. Unlike a GAN on a hundred slices, it trains reliably and does not collapse.
    """
    latent = min(48, len(training) - 1)
    with torch.device("meta"):
        decoder = nn.Sequential(
            nn.Linear(latent, 48 * 256),
            nn.Unflatten(1, (48, 16, 16)),
            nn.LeakyReLU(0.2),
            *_layers((48, 32, 24, 12), lambda a, b: nn.ConvTranspose2d(a, b, 4, stride=2, padding=1)),
            nn.ConvTranspose2d(12, 1, 4, stride=2, padding=1),
        )
    random = torch.Generator().manual_seed(seed)
    _initialised(decoder, random)
    slices = _to_signed(training)
    start = _principal_components(training, latent)[0]  # as in the paper; needs a third of the steps for the same fit
    codes = nn.Parameter(torch.from_numpy((start / start.std()).astype(np.float32)))

    def loss(batch: torch.Tensor) -> torch.Tensor:
        return (decoder(codes[batch]) - slices[batch]).square().mean()

    rates = [(list(decoder.parameters()), 4e-3), ([codes], 2e-2)]
    _train(loss, rates, len(slices), settings.glo_steps, random)
    yield from _decoded(decoder, _gaussian_like(codes.detach(), count, random))


Generator = Callable[[np.ndarray, int, int, GeneratorSettings], Iterator[np.ndarray]]
GENERATORS: dict[str, Generator] = {"eigen": eigen, "warp": warp, "vae": vae, "glo": glo}


def generate(
    name: str, training: np.ndarray, count: int, seed: int, settings: GeneratorSettings | None = None
) -> np.ndarray:
    """Returns the slices that `generate_in_turn` yields: (count, 256, 256) uint8. Raises UsageError."""
    return np.stack(list(generate_in_turn(name, training, count, seed, settings)))


def generate_in_turn(
    name: str, training: np.ndarray, count: int, seed: int, settings: GeneratorSettings | None = None
) -> Iterator[np.ndarray]:
    """Trains the generator `name` and yields `count` slices, each (256, 256) uint8.

    training: (n, 256, 256) uint8, n at least 2. Raises UsageError.
    """
    if name not in GENERATORS:
        raise UsageError(f"got generator {name!r}, expected one of {sorted(GENERATORS)}")
    if len(training) < 2 or count < 1:
        raise UsageError(f"got {len(training)} training slices and {count} to make, expected at least 2 and 1")
    with one_thread():
        yield from GENERATORS[name](training, count, seed, settings or GeneratorSettings())


@contextmanager
def one_thread() -> Iterator[None]:
    """Limits torch and BLAS to one thread inside the block, and restores the caller's numbers of threads after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


def _principal_components(training: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns codes (n, components), axes (components, d) and mean (d,), float64, from the (n, n) Gram matrix.

    gansfp.scoring.distances.pca fixes the signs of its components. Its use here would change the slices of every seed.
    """
    flat = training.reshape(len(training), -1).astype(np.float64)
    mean = flat.mean(axis=0)
    flat -= mean
    values, vectors = np.linalg.eigh(flat @ flat.T)
    lengths = np.sqrt(np.maximum(values[::-1][:components], 1e-6))
    left = vectors[:, ::-1][:, :components]
    return left * lengths, (left / lengths).T @ flat, mean


def _layers(channels: tuple[int, ...], layer: Callable[[int, int], nn.Module]) -> Iterator[nn.Module]:
    """Yields a layer and a leaky rectifier for each step from one number of channels to the next."""
    for before, after in itertools.pairwise(channels):
        yield layer(before, after)
        yield nn.LeakyReLU(0.2)


def _initialised(network: nn.Module, random: torch.Generator) -> nn.Module:
    """Initialises a network that was built on the meta device, as torch does but with `random`; channels last.

    A layer that is built on the CPU would draw its weights from torch's global generator and change its state.
    """
    network = network.to_empty(device="cpu")
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=random)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network.to(memory_format=torch.channels_last)


def _train(
    loss: Callable[[torch.Tensor], torch.Tensor],
    rates: list[tuple[list[nn.Parameter], float]],
    n: int,
    steps: int,
    random: torch.Generator,
) -> None:
    """Trains by Adam with one cycle of the learning rate. Each step takes the next batch of an endless shuffled deck.

    rates: (parameters, learning rate). n: the number of training slices.
    """
    optimiser = torch.optim.Adam([{"params": parameters, "lr": rate} for parameters, rate in rates])
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [rate for _, rate in rates], total_steps=max(steps, 2), pct_start=0.1
    )
    deck = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(deck) < _BATCH:
            deck = torch.cat([deck, torch.randperm(n, generator=random)])
        batch, deck = deck[:_BATCH], deck[_BATCH:]
        optimiser.zero_grad(set_to_none=True)
        loss(batch).backward()
        optimiser.step()
        schedule.step()


def _to_signed(training: np.ndarray) -> torch.Tensor:
    """(n, 256, 256) uint8 -> (n, 1, 256, 256) float32 from -1 to 1."""
    return torch.from_numpy(training.astype(np.float32))[:, None] / 127.5 - 1


def _gaussian_like(codes: torch.Tensor, count: int, random: torch.Generator) -> torch.Tensor:
    """Draws (count, latent) from a Gaussian fitted to codes (n, latent): ex-post density estimation (Ghosh 2020)."""
    n = len(codes)
    centred = codes - codes.mean(dim=0)
    # Sums of the centred codes with normal weights have exactly the covariance of the codes, even if n <= latent.
    return codes.mean(dim=0) + torch.randn(count, n, generator=random) @ centred / math.sqrt(n)


@torch.no_grad()
def _decoded(decoder: nn.Module, codes: torch.Tensor, average: torch.Tensor | float = 0.0) -> Iterator[np.ndarray]:
    """Decodes the codes and adds the average that was subtracted for training; yields slices (256, 256) uint8."""
    for part in codes.split(32):
        yield from _to_grey(((decoder(part) + average)[:, 0].numpy() + 1) * 127.5)


def _to_grey(pictures: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(pictures), 0, 255).astype(np.uint8)
