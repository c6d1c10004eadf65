"""The options of every command that writes the report."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

ALL, FLAGGED, NONE = "all", "flagged", "none"
PICTURES = (ALL, FLAGGED, NONE)


@dataclass(frozen=True)
class ReportConfig:
    """pictures: of PICTURES: every flagged slice, the strongest of each kind, or no slice at all."""

    pictures: str = FLAGGED


def add_report_option(parser: argparse.ArgumentParser) -> None:
    """Adds --pictures."""
    parser.add_argument(
        "--pictures",
        choices=PICTURES,
        default=FLAGGED,
        help="slices in report.html: all that are flagged, the strongest of each kind, or none, real or synthetic, for "
        "sharing (default %(default)s)",
    )
