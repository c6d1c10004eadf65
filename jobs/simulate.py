"""Writes a challenge with known truth, from phantoms or from real slices: python -m jobs.simulate --out DATA."""

import dataclasses
import functools
from collections.abc import Sequence

from gansfp.runtime.command import Parser, run
from gansfp.runtime.options import positive
from gansfp.simulation.challenge import SimulationConfig, simulate


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and writes the challenge; progress goes to the standard output."""
    default = SimulationConfig()
    parser = Parser(prog="python -m jobs.simulate", description=__doc__)
    parser.add_argument("--out", required=True, metavar="DATA", help="a folder that is not there yet, or empty")
    parser.add_argument("--real", metavar="DIR", help="real slices instead of phantoms; DIR/groups.csv names patients")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument(
        "--leak",
        type=float,
        default=default.leak,
        metavar="0..1",
        help="how near `warp` stays to its training slices; 0: nothing leaks in any set (default %(default)s)",
    )
    parser.add_argument("--small", action="store_true", help="a challenge of a few seconds, without networks")
    for name, meaning in (
        ("labelled", "real slices labelled used, and as many not used, in each set"),
        ("unknown", "real slices to decide about in each set, half of them used"),
        ("generated", "generated slices beside the labelled of each set"),
    ):
        parser.add_argument(f"--{name}", type=positive, metavar="N", help=meaning)
    given = parser.parse_args(arguments)
    config = SimulationConfig.tiny() if given.small else default
    sizes = {name: getattr(given, name) for name in ("labelled", "unknown", "generated") if getattr(given, name)}
    config = dataclasses.replace(config, seed=given.seed, leak=given.leak, **sizes)
    simulate(config, given.out, given.real, progress=functools.partial(print, flush=True))


if __name__ == "__main__":
    run(main)
