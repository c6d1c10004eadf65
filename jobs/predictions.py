"""All predictions of a run: embeds, trains and decides what is missing, each once for all systems that need it."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from gansfp.catalog import Catalog
from gansfp.recipe import Recipe
from jobs.cluster import start_ray, usable_gpus
from jobs.progress import Progress
from jobs.spread import Call, spread
from jobs.stages import Pair
from jobs.supply import Embedding, Supply
from jobs.systems import Part, Source, key, made, parts, run_system

log = logging.getLogger(__name__)


@dataclass
class Said:
    """How a system fared. notes: what makes it another than the published one. seconds: decision and training."""

    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    error: str = ""

    def take(self, facts: dict[str, Any]) -> None:
        """What made.json tells of the decision."""
        self.notes += facts["told"]
        self.seconds += facts["seconds"]


@dataclass
class Predictions:
    """A run over some recipes. weights: a folder of them or None; random: where random ones may stand in."""

    recipes: Sequence[Recipe]
    catalog: Catalog
    embedding: Embedding
    weights: str | None
    random: bool
    seed: int
    gpus: int | None = None

    def __post_init__(self) -> None:
        self.work = self.embedding.work
        self.supply = Supply()
        self.said = {recipe.id: Said() for recipe in self.recipes}

    def run(self) -> dict[int, Said]:
        """Makes all predictions; returns how each system fared, by id."""
        frozen = [recipe for recipe in self.recipes if recipe.training is None]
        self.supply.add([recipe.backbone for recipe in frozen], self.weights, self.random)
        self._decide({recipe.id: recipe.backbone for recipe in frozen})
        return self.said

    def start(self) -> int:
        """Ray, if it is not up; how many GPUs there are to count on."""
        if not ray.is_initialized():
            start_ray(self.embedding.address, self.embedding.verbose)
        return usable_gpus(self.gpus)

    def _decide(self, backbones: dict[int, str]) -> None:
        """Embeds for and runs the systems that decide by these backbones, by id."""
        sources: dict[int, Source] = {}
        needs: dict[Pair, frozenset[Part]] = defaultdict(frozenset)
        for recipe in self.recipes:
            if recipe.id not in backbones:
                continue
            backbone, said = backbones[recipe.id], self.said[recipe.id]
            if backbone in self.supply.lacking:
                said.error = self.supply.lacking[backbone]
                continue
            if self.supply.had[backbone] == f"{backbone}@random":
                said.notes.append("random weights")
            pair = (backbone, recipe.view)
            sources[recipe.id] = Source(identity=self.supply.identity(pair, self.embedding.config))
            if self._made(recipe, sources[recipe.id]) is None:
                needs[pair] |= parts(recipe)
        if needs:
            self.embedding.run(self.catalog, needs, self.supply, "embed for systems")
        self._run_systems(sources)

    def _run_systems(self, sources: dict[int, Source]) -> None:
        """Runs the systems whose predictions are not there, a task each; takes over those that are."""
        todo = {}
        for recipe in self.recipes:
            if recipe.id not in sources:
                continue
            facts = self._made(recipe, sources[recipe.id])
            if facts is None:
                todo[recipe.name] = recipe
            else:
                self.said[recipe.id].take(facts)
        if not todo:
            return
        gpus, catalog = self.start(), ray.put(self.catalog)
        calls = {
            name: Call(run_system, (recipe, catalog, self.work, sources[recipe.id], self.seed))
            for name, recipe in todo.items()
        }
        with Progress("systems", len(calls), "systems") as progress:
            for name, outcome in spread(calls, gpus):
                said = self.said[todo[name].id]
                if outcome.error:
                    said.error = outcome.error
                    log.warning("%s failed: %s", name, outcome.error)
                else:
                    said.take(outcome.value)
                progress.add(1, int(bool(outcome.error)))

    def _made(self, recipe: Recipe, source: Source) -> dict[str, Any] | None:
        return made(self.work, recipe, key(recipe, self.catalog, source, self.seed))
