"""Which packs are made, and the table that says how often the audit was right on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import beta

from gansfp.decision.verdict import LEAK
from jobs.validation.biases import BIASES
from jobs.validation.packs import Outcome, Pack

SHARES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
LIST_SHARES = (0.1, 0.3, 0.5)
POWER = "power"
OVERLAP = 0.9  # blind AUC up to which a leak must be found beside a bias


@dataclass(frozen=True)
class Plan:
    """How many packs of each kind. The defaults take some 80 minutes on two quiet cores."""

    null: int = 200
    biased: int = 8  # of each bias, without and with a leak
    shares: int = 30  # of each share
    lists: int = 33  # of each share
    glo: int = 8  # of each share of the lists, by a generator that must be trained
    power: int = 100  # each with three leaks

    def times(self, scale: float) -> Plan:
        """The plan with that many times the packs, at least one of each kind that needs no training."""
        scaled = {name: max(1, round(scale * count)) for name, count in asdict(self).items()}
        return Plan(**{**scaled, "glo": round(scale * self.glo)})


def packs(plan: Plan, patients: int, seed: int) -> dict[str, list[Pack]]:
    """The packs of each group, by its name. Equal arguments give equal packs."""
    seeds = iter(range(1_000_000 * seed, 1_000_000 * (seed + 1)))

    def some(count: int, leak: str = "", bias: str = "", share: float = 0.5, power: bool = False) -> list[Pack]:
        return [Pack(next(seeds), patients, leak, bias, share, power=power) for _ in range(count)]

    groups = {"null": some(plan.null)}
    groups |= {f"biased {bias}": some(plan.biased, bias=bias) for bias in BIASES}
    groups |= {f"leak and {bias}": some(plan.biased, "warp", bias) for bias in BIASES}
    groups |= {f"share {share:g}": some(plan.shares, "warp", share=share) for share in SHARES}
    groups |= {f"warp {share:g}": some(plan.lists, "warp", share=share) for share in LIST_SHARES}
    groups |= {f"glo {share:g}": some(plan.glo, "glo", share=share) for share in LIST_SHARES}
    groups |= {POWER: some(plan.power, power=True)}
    return groups


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    value: a share of `of` packs (`counted`), or a mean over them; low, high: its 95 % interval; at_least, at_most: what
    the value must reach, None for no limit.
    """

    name: str
    value: float
    of: int
    low: float
    high: float
    counted: bool
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the value is within its limit; None where it has none."""
        if self.at_least is None and self.at_most is None:
            return None
        return self.value >= (self.at_least or 0) - 1e-9 and self.value <= (1 if self.at_most is None else self.at_most)


def counted(name: str, right: Sequence[bool], at_least: float | None = None, at_most: float | None = None) -> Figure:
    """The share of packs for which `right` is true, with the interval of Clopper and Pearson (1934)."""
    n, k = len(right), int(sum(right))
    low = float(beta.ppf(0.025, k, n - k + 1)) if k else 0.0
    high = float(beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0
    return Figure(name, k / n if n else float("nan"), n, low, high, True, at_least, at_most)


def averaged(name: str, values: Sequence[float], at_least: float | None = None, at_most: float | None = None) -> Figure:
    """The mean over packs, with the normal interval of a mean."""
    mean, n = float(np.mean(values)) if values else float("nan"), len(values)
    half = 1.96 * float(np.std(values, ddof=1)) / np.sqrt(n) if n > 1 else float("nan")
    return Figure(name, mean, n, mean - half, mean + half, False, at_least, at_most)


def figures(outcomes: Mapping[str, Sequence[Outcome]]) -> list[Figure]:
    """The lines of the table, those without packs left out. outcomes: by the names that `packs` gives; those of POWER
    also by how many times the smallest leak."""
    outcomes = defaultdict(list, outcomes)
    null = outcomes["null"]
    found = [
        counted('no leak, no bias: "leak"', [o.finding == LEAK for o in null], at_most=0.08),
        counted("no leak, no bias: no patient is named", [not o.named for o in null], at_least=0.84),
    ]
    found += _biased(outcomes)
    found += _lists(outcomes, "warp", 0.8)
    found += _lists(outcomes, "glo", 0.5)
    found += _shares(outcomes)
    found += _power(outcomes)
    return [line for line in found if line.of]


def _biased(outcomes: Mapping[str, Sequence[Outcome]]) -> list[Figure]:
    accused, named, seen = [], [], []
    lines = []
    for bias, known in BIASES.items():
        without, beside = outcomes[f"biased {bias}"], outcomes[f"leak and {bias}"]
        overlapping = [o for o in beside if o.blind is not None and o.blind <= OVERLAP]
        accused += [o.finding == LEAK for o in without]
        named += [bool(set(known.kinds) & set(o.kinds)) for o in without]
        seen += [o.finding == LEAK for o in overlapping]
        lines.append(averaged(f"{bias}: blind AUC", [o.blind for o in without if o.blind is not None]))
        lines.append(averaged(f"{bias}: AUC of the attack, no leak", [o.auc for o in without if o.auc is not None]))
    return [
        counted('biased, no leak: "leak"', accused, at_most=0.1),
        counted("biased, no leak: the bias is named", named, at_least=0.9),
        counted(f'biased, a leak, blind AUC up to {OVERLAP:g}: "leak"', seen, at_least=0.75),
        *lines,
    ]


def _lists(outcomes: Mapping[str, Sequence[Outcome]], leak: str, least: float) -> list[Figure]:
    every = [o for share in LIST_SHARES for o in outcomes[f"{leak} {share:g}"]]
    wrong = [(o.named - o.used_named) / max(o.named, 1) for o in every]
    lines = [
        counted(f'{leak}: "leak"', [o.finding == LEAK for o in every]),
        averaged(f"{leak}: share of the named patients that is wrong", wrong, at_most=0.12),
    ]
    for share in LIST_SHARES:
        of_share = [o.used_named / o.used for o in outcomes[f"{leak} {share:g}"] if o.used]
        lines.append(averaged(f"{leak}, {share:.0%} used: share of them that is named", of_share, at_least=least))
    return lines


def _shares(outcomes: Mapping[str, Sequence[Outcome]]) -> list[Figure]:
    def off(o: Outcome) -> float:
        return abs(o.value - o.used / o.unknown)

    warp = [o for share in SHARES for o in outcomes[f"share {share:g}"]]
    glo = [o for share in LIST_SHARES for o in outcomes[f"glo {share:g}"]]
    return [
        counted("share used: the interval covers it", [o.low <= o.used / o.unknown <= o.high for o in warp], 193 / 210),
        averaged("share used, warp: mean error", [off(o) for o in warp], at_most=0.05),
        averaged("share used, glo: mean error", [off(o) for o in glo], at_most=0.1),
    ]


def _power(outcomes: Mapping[str, Sequence[Outcome]]) -> list[Figure]:
    limits: tuple[tuple[str, str, float | None, float | None], ...] = (
        ("0.5", "half the size", None, 0.6),
        ("1", "the smallest one that 80 % of audits would see", 0.72, 0.88),
        ("2", "twice the size", 0.95, None),
    )
    return [
        counted(f'a leak of {size}: "leak"', [o.finding == LEAK for o in outcomes[f"{POWER} {times}"]], least, most)
        for times, size, least, most in limits
    ]


def markdown(lines: Sequence[Figure], machine: str) -> str:
    """The table, with a heading."""
    text = [
        "# What the verdicts are worth",
        "",
        machine,
        "",
        "| what | value | 95 % interval | packs | must be | met |",
    ]
    text.append("|---|---|---|---|---|---|")
    for line in lines:
        shown: Callable[[float], str] = (lambda x: f"{x:.1%}") if line.counted else (lambda x: f"{x:.3f}")
        limits = (("at least", line.at_least), ("at most", line.at_most))
        limit = ", ".join(f"{word} {value:.3g}" for word, value in limits if value is not None)
        met = {True: "yes", False: "**no**", None: ""}[line.met]
        interval = f"{shown(line.low)} to {shown(line.high)}" if np.isfinite(line.low) else "–"
        text.append(f"| {line.name} | {shown(line.value)} | {interval} | {line.of} | {limit} | {met} |")
    return "\n".join(text) + "\n"
