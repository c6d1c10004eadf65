"""Four generators of slices, trained on the spot, that leak their training slices as differently as real ones do.

Every generator is a function of training slices, a count, a seed and settings, and returns generated slices; equal
arguments give equal bytes on one machine. The networks train in float32 on one thread: so small a network gains little
from a second one (two trainings side by side gain twice), its sums do not depend on the machine's cores, and bfloat16,
a fifth faster where the processor has it, would be several times slower where it has not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from threadpoolctl import threadpool_limits
from torch import nn

from gansfp.errors import UsageError
from gansfp.simulation.phantom import SIDE, spline_matrix

_BATCH = 16


@dataclass(frozen=True)
class Settings:
    """What a generator may be told; each heeds what concerns it."""

    strength: float = 0.85  # of `warp`: 1 a nearly exact copy of a training slice, towards 0 a strongly deformed blend
    vae_steps: int = 200
    glo_steps: int = 300


def eigen(training: np.ndarray, count: int, seed: int, settings: Settings) -> np.ndarray:
    """A Gaussian in the leading principal components of the training slices ("eigenfaces"): leaks little.

    No generated slice is near a single training slice; what leaks is the space that they span.
    """
    del settings
    rng = np.random.default_rng(seed)
    components = min(len(training) - 1, 20)
    codes, axes, mean = _principal_components(training, components)
    drawn = rng.standard_normal((count, components)) * codes.std(axis=0)
    pictures = mean + drawn @ axes
    # a linear model has no edges and no noise of its own: grain keeps it from being told by smoothness alone
    pictures = pictures.reshape(count, SIDE, SIDE) + 2.0 * rng.standard_normal((count, SIDE, SIDE))
    return _to_grey(pictures)


def warp(training: np.ndarray, count: int, seed: int, settings: Settings) -> np.ndarray:
    """A training slice, smoothly deformed and blended with one of its nearest training slices: leaks much."""
    rng = np.random.default_rng(seed)
    bend = 1.0 + 14.0 * (1.0 - settings.strength)  # pixels, the root mean square of the displacement
    most = 0.15 + 0.35 * (1.0 - settings.strength)  # the neighbour's largest share
    small = training[:, 4::8, 4::8].reshape(len(training), -1).astype(np.float32)
    squares = (small**2).sum(axis=1)
    distances = squares[:, None] + squares[None] - 2 * small @ small.T
    np.fill_diagonal(distances, np.inf)
    neighbours = np.argsort(distances, axis=1)[:, : max(1, min(4, len(training) - 1))]
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    spline = spline_matrix(9)

    def deformed(picture: np.ndarray) -> np.ndarray:
        # the mean square of a cubic spline through white noise is 0.23 of the noise's, hence the factor
        down, right = (2.1 * bend * (spline @ rng.standard_normal((9, 9)) @ spline.T) for _ in range(2))
        return ndimage.map_coordinates(picture, [rows + down, columns + right], np.float32, order=1, mode="nearest")

    generated = np.empty((count, SIDE, SIDE), np.uint8)
    for i in range(count):
        chosen = rng.integers(len(training))
        share = rng.uniform(0, most)
        other = rng.choice(neighbours[chosen])
        generated[i] = _to_grey((1 - share) * deformed(training[chosen]) + share * deformed(training[other]))
    return generated


def vae(training: np.ndarray, count: int, seed: int, settings: Settings) -> np.ndarray:
    """A small convolutional variational autoencoder (Kingma and Welling 2014), upsampling by nearest neighbour and
    convolution. Its slices are smooth averages: it leaks less than a decoder fitted to every slice."""
    latent = 32
    upsampled = lambda a, b: nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(a, b, 3, padding=1))  # noqa: E731
    with torch.device("meta"):
        encoder = nn.Sequential(
            nn.AvgPool2d(4),
            *_stages((1, 16, 32, 48), lambda a, b: nn.Conv2d(a, b, 4, stride=2, padding=1)),
            nn.Flatten(),
            nn.Linear(48 * 64, 2 * latent),
        )
        decoder = nn.Sequential(
            nn.Linear(latent, 48 * 64),
            nn.Unflatten(1, (48, 8, 8)),
            nn.LeakyReLU(0.2),
            *_stages((48, 40, 32, 16, 8), upsampled),
            nn.Conv2d(8, 1, 3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear"),
        )
    random = torch.Generator().manual_seed(seed)
    networks = _initialised(nn.ModuleList([encoder, decoder]), random)
    slices = _to_signed(training)
    # what all slices share is given: else the codes spend their first hundreds of steps on it
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
    return _decoded(decoder, _gaussian_like(codes, count, random), average)


def glo(training: np.ndarray, count: int, seed: int, settings: Settings) -> np.ndarray:
    """A decoder of transposed convolutions and one free code a training slice, fitted together: generative latent
    optimisation (Bojanowski et al. 2018). New slices are decoded from a Gaussian fitted to the codes.

    It overfits and so leaks, yet unlike a GAN on a hundred slices it neither collapses nor needs luck.
    """
    latent = min(48, len(training) - 1)
    with torch.device("meta"):
        decoder = nn.Sequential(
            nn.Linear(latent, 48 * 256),
            nn.Unflatten(1, (48, 16, 16)),
            nn.LeakyReLU(0.2),
            *_stages((48, 32, 24, 12), lambda a, b: nn.ConvTranspose2d(a, b, 4, stride=2, padding=1)),
            nn.ConvTranspose2d(12, 1, 4, stride=2, padding=1),
        )
    random = torch.Generator().manual_seed(seed)
    _initialised(decoder, random)
    slices = _to_signed(training)
    start = _principal_components(training, latent)[0]  # as the paper does: a third of the steps for the same fit
    codes = nn.Parameter(torch.from_numpy((start / start.std()).astype(np.float32)))

    def loss(batch: torch.Tensor) -> torch.Tensor:
        return (decoder(codes[batch]) - slices[batch]).square().mean()

    rates = [(list(decoder.parameters()), 4e-3), ([codes], 2e-2)]
    _train(loss, rates, len(slices), settings.glo_steps, random)
    return _decoded(decoder, _gaussian_like(codes.detach(), count, random))


Generator = Callable[[np.ndarray, int, int, Settings], np.ndarray]
GENERATORS: dict[str, Generator] = {"eigen": eigen, "warp": warp, "vae": vae, "glo": glo}


def generate(name: str, training: np.ndarray, count: int, seed: int, settings: Settings | None = None) -> np.ndarray:
    """`count` slices of the generator `name`, trained on `training`.

    training: (n, 256, 256) uint8, n at least 2; returns (count, 256, 256) uint8. Raises UsageError.
    """
    if name not in GENERATORS:
        raise UsageError(f"got generator {name!r}, expected one of {sorted(GENERATORS)}")
    if len(training) < 2 or count < 1:
        raise UsageError(f"got {len(training)} training slices and {count} to make, expected at least 2 and 1")
    with one_thread():
        return GENERATORS[name](training, count, seed, settings or Settings())


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch's and BLAS's operations inside, the caller's numbers after."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


def _principal_components(training: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes (n, components), axes (components, d) and mean (d,), float64, from the n by n Gram matrix, as n << d."""
    flat = training.reshape(len(training), -1).astype(np.float64)
    mean = flat.mean(axis=0)
    flat -= mean
    values, vectors = np.linalg.eigh(flat @ flat.T)
    lengths = np.sqrt(np.maximum(values[::-1][:components], 1e-6))
    left = vectors[:, ::-1][:, :components]
    return left * lengths, (left / lengths).T @ flat, mean


def _stages(channels: tuple[int, ...], layer: Callable[[int, int], nn.Module]) -> Iterator[nn.Module]:
    """A layer and a leaky rectifier for each step from one number of channels to the next."""
    for before, after in itertools.pairwise(channels):
        yield layer(before, after)
        yield nn.LeakyReLU(0.2)


def _initialised(network: nn.Module, random: torch.Generator) -> nn.Module:
    """torch's own initialisation, but drawn from `random`, of a network built on the meta device; channels last.

    A layer built on the CPU would draw its first weights from torch's global generator, which is the caller's.
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
    """Adam with one cycle of the learning rate; a step takes the next batch of an endless shuffled deck."""
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
    """(n, 256, 256) uint8 to (n, 1, 256, 256) float32 from -1 to 1."""
    return torch.from_numpy(training.astype(np.float32))[:, None] / 127.5 - 1


def _gaussian_like(codes: torch.Tensor, count: int, random: torch.Generator) -> torch.Tensor:
    """(count, latent) draws from a Gaussian fitted to codes (n, latent): ex-post density estimation (Ghosh 2020)."""
    n = len(codes)
    centred = codes - codes.mean(dim=0)
    # normal weights over the centred codes have just their covariance, also where n <= latent
    return codes.mean(dim=0) + torch.randn(count, n, generator=random) @ centred / math.sqrt(n)


@torch.no_grad()
def _decoded(decoder: nn.Module, codes: torch.Tensor, average: torch.Tensor | float = 0.0) -> np.ndarray:
    """(count, 256, 256) uint8: the slices of the codes, plus the average that training left out."""
    signed = (decoder(part) + average for part in codes.split(32))
    return np.concatenate([_to_grey((pictures[:, 0].numpy() + 1) * 127.5) for pictures in signed])


def _to_grey(pictures: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(pictures), 0, 255).astype(np.uint8)
