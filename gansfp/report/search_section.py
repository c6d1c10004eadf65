"""What the report says of the search: what was tried, and what came out best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gansfp.decision.search_result import Search
from gansfp.report import search_plots as plots
from gansfp.report.audited import AuditedWork

COLUMNS = ["set", "backbone", "view", "method", "linkage", "metric", "components", "status", "auc", "ari_known"]


@dataclass(frozen=True)
class BestOfMethod:
    """The best configuration of one method. value: its AUC or ARI, cross-validated or on known generators."""

    method: str
    tried: int
    value: float
    backbone: str
    view: str


@dataclass(frozen=True)
class SearchSection:
    """The search of one set, or of the attribution (name ""). unit: AUC or ARI; heat_map: SVG."""

    name: str
    unit: str
    chance: float
    tried: int
    failed: int
    heat_map: str
    methods: Sequence[BestOfMethod]


def search_sections(audited: AuditedWork) -> list[SearchSection]:
    """The sections of the searches that there are, one for each set."""
    return [section for search in audited.searches.values() for section in _sections(search)]


def _sections(search: Search) -> list[SearchSection]:
    table = search.trials.read(COLUMNS)
    columns = {name: np.array(table[name].to_pylist(), dtype=object) for name in COLUMNS}
    membership = search.result.task == "membership"
    unit, chance, merit = ("AUC", 0.5, "auc") if membership else ("ARI", 0.0, "ari_known")
    values = np.array([np.nan if value is None else value for value in columns[merit]], dtype=np.float64)
    names = list(search.result.best)
    sections = []
    for number, name in enumerate(names, start=1):
        rows = np.flatnonzero(columns["set"] == name) if membership else np.arange(len(values))
        failed = int((columns["status"][rows] == "failed").sum())
        drawn = _heat_map(columns, values, rows, f"{search.result.task}{number}-heat", unit, chance)
        sections.append(SearchSection(name, unit, chance, len(rows), failed, drawn, _methods(columns, values, rows)))
    return sections


def _heat_map(
    columns: dict[str, np.ndarray], values: np.ndarray, rows: np.ndarray, name: str, unit: str, chance: float
) -> str:
    """The best value of each embedding."""
    backbones, views = (sorted(set(columns[part][rows].tolist())) for part in ("backbone", "view"))
    best = np.full((len(backbones), len(views)), np.nan)
    for row in rows:
        place = backbones.index(columns["backbone"][row]), views.index(columns["view"][row])
        best[place] = np.fmax(best[place], values[row])
    return plots.heat_map(backbones, views, best, name, unit, chance)


def _methods(columns: dict[str, np.ndarray], values: np.ndarray, rows: np.ndarray) -> list[BestOfMethod]:
    """The best row of each method, the best method first."""
    found = []
    for method in sorted({method for method in columns["method"][rows] if method}):
        of_method = rows[columns["method"][rows] == method]
        if np.isfinite(values[of_method]).any():
            best = of_method[np.nanargmax(values[of_method])]
            embedding = str(columns["backbone"][best]), str(columns["view"][best])
            found.append(BestOfMethod(str(method), len(of_method), float(values[best]), *embedding))
    return sorted(found, key=lambda best: -best.value)
