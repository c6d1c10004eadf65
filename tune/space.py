"""The search space: the two tasks, the trials of the grid, and how Optuna draws a trial.

A trial is worth its overhead only if it shares work. The distances, dendrograms and principal components of one
prepared embedding serve every method, k, linkage and rule; these are swept inside the trial and give one row each.
"""

from __future__ import annotations

from collections.abc import Sequence

import optuna

from gansfp.decision.search_result import Trial
from gansfp.embedding.shards import Pair
from tune.attribution import ATTRIBUTION
from tune.membership import MEMBERSHIP
from tune.problem import Task

TASKS: dict[str, Task] = {task.name: task for task in (MEMBERSHIP, ATTRIBUTION)}
COMPONENTS = (0, 0.95)  # principal components of the grid: none, or the share of variance kept
DRAWN_COMPONENTS = (0, 0.8, 0.9, 0.95, 0.99)


def grid(task: Task, pairs: Sequence[Pair]) -> list[Trial]:
    """Every trial of the grid, in a fixed order."""
    return [trial for pair in pairs for components in COMPONENTS for trial in task.trials(pair, components)]


def suggest(drawn: optuna.Trial, task: Task, pairs: Sequence[Pair]) -> Trial:
    """One trial as Optuna draws it; a parameter exists only for the backbones that have it."""
    backbone, _, view = drawn.suggest_categorical("pair", [f"{b} {v}" for b, v in pairs]).rpartition(" ")
    trials = task.trials((backbone, view), drawn.suggest_categorical("components", list(DRAWN_COMPONENTS)))
    choice = drawn.suggest_int(f"preparation_of_{len(trials)}", 0, len(trials) - 1) if len(trials) > 1 else 0
    return trials[choice]
