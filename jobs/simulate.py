"""Writes a challenge with known truth, from phantoms or from real slices: python -m jobs.simulate --out DATA."""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Sequence

from gansfp.runtime.command import Parser, run
from gansfp.runtime.options import positive
from gansfp.simulation.challenge import simulate
from gansfp.simulation.configuration import SimulationConfig

SIZES: dict[str, Callable[[], SimulationConfig]] = {
    "small": SimulationConfig.tiny,
    "default": SimulationConfig,
    "default-x4": lambda: SimulationConfig().times(4),
    "default-x16": lambda: SimulationConfig().times(16),
    "imageclef-2024": SimulationConfig.imageclef_2024,
}
COUNTS = {
    "labelled": "number of real slices labelled used in each set, and as many labelled not used",
    "unknown": "number of real slices to decide about in each set; half of them are used",
    "generated": "number of generated slices for training in each set",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the challenge that the command line describes. Progress is printed to standard output."""
    options = parser().parse_args(arguments)
    config = simulation_config(options)
    simulate(config, options.out, options.real, progress=functools.partial(print, flush=True))


def simulation_config(options: argparse.Namespace) -> SimulationConfig:
    """Returns the configuration for these options. Raises UsageError for impossible values."""
    counts = {name: getattr(options, name) for name in COUNTS if getattr(options, name)}
    return dataclasses.replace(SIZES[options.size]().with_counts(**counts), seed=options.seed, leak=options.leak)


def parser() -> Parser:
    """Returns the parser of the command's options."""
    default = SimulationConfig()
    parser = Parser(prog="python -m jobs.simulate", description=__doc__)
    parser.add_argument(
        "--out", required=True, metavar="DATA", help="folder to write; it must not exist, or must be empty"
    )
    parser.add_argument(
        "--real", metavar="DIR", help="folder of real slices to use instead of phantoms; DIR/groups.csv names patients"
    )
    parser.add_argument(
        "--seed", type=int, default=default.seed, help="seed of all random numbers (default: %(default)s)"
    )
    parser.add_argument(
        "--leak",
        type=float,
        default=default.leak,
        metavar="0..1",
        help="how similar the slices of the generator `warp` are to its training slices; 0: no set leaks "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        choices=SIZES,
        default="default",
        help="of the challenge: small, in a few seconds, without training networks; default; 4 and 16 times as many "
        "slices; or 50,000 slices, as ImageCLEFmedical GANs 2024 had (default: %(default)s)",
    )
    parser.add_argument("--small", action="store_const", dest="size", const="small", help="the same as --size small")
    for name, meaning in COUNTS.items():
        parser.add_argument(f"--{name}", type=positive, metavar="N", help=meaning)
    return parser


if __name__ == "__main__":
    run(main)
