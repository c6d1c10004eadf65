"""Scores the predictions of systems and baselines, and makes their rows. jobs.reproduce reads the truth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from gansfp.collection.catalog import Catalog
from gansfp.errors import GansfpError
from gansfp.published.baselines import BASELINES
from gansfp.published.recipe import Recipe
from gansfp.published.systems import clusters_known_generators, missing_slices, read_predictions
from gansfp.published.table import Row
from gansfp.statistics.intervals import SetDecisions, attribution_figures, mean_f1
from gansfp.statistics.metrics import decision_metrics, f1_all_used, partition_metrics
from jobs.reproduction import baselines
from jobs.reproduction.predictions import SystemOutcome


@dataclass(frozen=True, eq=False)
class Truth:
    """The truth about the slices to decide about, in their order in the catalog.

    labels: (n,) 0 not used, 1 used, by set; a set without truth is absent. generators: (n,) names, None without truth.
    """

    labels: Mapping[str, np.ndarray] = field(default_factory=dict)
    generators: np.ndarray | None = None


@dataclass(frozen=True)
class Scorer:
    """Makes the rows of the table. work: WORK, with the predictions."""

    catalog: Catalog
    work: str
    truth: Truth
    seed: int

    def rows(
        self, recipes: Sequence[Recipe], outcomes: Mapping[int, SystemOutcome], levels: baselines.GreyLevels
    ) -> list[Row]:
        """Returns the rows of the baselines and of these systems, membership first. outcomes: by a recipe's id."""
        rows = []
        for task in BASELINES:
            task_recipes = [recipe for recipe in recipes if recipe.task == task]
            if task_recipes and not missing_slices(task, self.catalog):
                rows += [self._baseline_row(name, task, levels) for name in BASELINES[task]]
            rows += [self._system_row(recipe, outcomes[recipe.id]) for recipe in task_recipes]
        return rows

    def _baseline_row(self, name: str, task: str, levels: baselines.GreyLevels) -> Row:
        row = Row(name.replace("_", " "), task)
        try:
            return self._scored(row, baselines.predictions(name, task, self.catalog, levels, self.seed))
        except GansfpError as error:
            return replace(row, error=str(error))

    def _system_row(self, recipe: Recipe, outcome: SystemOutcome) -> Row:
        """Returns the row of a system that has made its predictions, or has failed."""
        published = recipe.published
        row = Row(
            recipe.name,
            recipe.task,
            str(recipe.id),
            recipe.paper,
            published["test_f1_mean" if recipe.task == "membership" else "test_ari"],
            published_known=published["train_ari"],
            assumed=recipe.assumed,
            notes=tuple(outcome.notes),
            seconds=math.nan if outcome.error else outcome.seconds,
            error=outcome.error,
        )
        if outcome.error:
            return row
        if recipe.task == "membership":
            sets = self.catalog.sets_to_decide()
            return self._scored(row, {name: self._read(recipe, name, self.catalog.unknown(name)) for name in sets})
        row = self._scored(row, {"attribution": self._read(recipe, "attribution", self.catalog.unattributed())})
        if not clusters_known_generators(recipe, self.catalog):
            return row
        known = self.catalog.known_generators()
        clusters = self._read(recipe, "known", known)
        return replace(row, reproduced_known=partition_metrics(known.column("generator"), clusters)["ari"])

    def _read(self, recipe: Recipe, name: str, images: Catalog) -> np.ndarray:
        return read_predictions(self.work, recipe, name, images)

    def _scored(self, row: Row, predictions: baselines.Predictions) -> Row:
        """Returns the row with the scores of these predictions; the row itself where there is no truth."""
        if row.task == "attribution":
            if self.truth.generators is None:
                return row
            groups = self.catalog.unattributed().groups()
            estimates = attribution_figures(self.truth.generators, predictions["attribution"], groups, seed=self.seed)
            return replace(row, reproduced=estimates["ari"], chance=0.0)
        decisions = {
            name: SetDecisions(
                truth=self.truth.labels[name], prediction=prediction, groups=self.catalog.unknown(name).groups()
            )
            for name, prediction in predictions.items()
            if name in self.truth.labels
        }
        if not decisions:
            return row
        metrics = {name: decision_metrics(of_set.truth, of_set.prediction) for name, of_set in decisions.items()}
        return replace(
            row,
            reproduced=mean_f1(list(decisions.values()), seed=self.seed),
            chance=float(np.mean([f1_all_used(of_set.truth) for of_set in decisions.values()])),
            f1={name: values["f1"] for name, values in metrics.items()},
            accuracy={name: values["accuracy"] for name, values in metrics.items()},
        )
