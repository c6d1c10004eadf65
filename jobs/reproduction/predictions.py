"""All predictions of a run: embeds, trains and decides what is missing, each once for all systems that need it."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from gansfp.collection.catalog import Catalog
from gansfp.embedding.backbones import parse_backbone
from gansfp.embedding.shards import Pair
from gansfp.errors import GansfpError
from gansfp.images.views import get_view
from gansfp.published.recipe import Recipe
from gansfp.published.superresolution import Pictures
from gansfp.published.systems import (
    LEARNT_GENERATED,
    ON_DEVICE,
    REAL,
    Part,
    Source,
    key,
    made,
    nothing_to_decide,
    parts,
    run_system,
    select,
)
from gansfp.published.training_plan import Planned, Planner
from gansfp.runtime.cluster import start_ray, usable_gpus
from gansfp.runtime.progress import Progress
from gansfp.runtime.tasks import Call, spread
from jobs.reproduction.prerequisites import Embedding, Supply
from jobs.reproduction.trainings import train_all
from jobs.reproduction.upscaling import enlarge, get_upscaler

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
    """A run over some recipes. weights: a folder of them or None; random: where random ones may stand in; upscaler: of
    the recipe that enlarges slices."""

    recipes: Sequence[Recipe]
    catalog: Catalog
    embedding: Embedding
    planner: Planner
    weights: str | None
    random: bool
    seed: int
    upscaler: str = "esrgan"

    def __post_init__(self) -> None:
        self.work = self.embedding.work
        self.supply = Supply()
        self.said = {recipe.id: Said() for recipe in self.recipes}

    def run(self) -> dict[int, Said]:
        """Makes all predictions; returns how each system fared, by id."""
        for recipe in self.recipes:
            self.said[recipe.id].error = nothing_to_decide(recipe.task, self.catalog)
        masked = [recipe for recipe in self._going(self.recipes) if get_view(recipe.view).region != "all"]
        if masked:
            self.supply.add_mask(self.planner.mask, self.weights)
            if self.planner.mask in self.supply.lacking:
                self._fail(masked, self.supply.lacking[self.planner.mask])
        going = self._going(self.recipes)
        frozen = [recipe for recipe in going if recipe.training is None]
        self.supply.add([recipe.backbone for recipe in frozen], self.weights, self.random)
        for recipe in frozen:
            self._can_be_had(recipe, recipe.backbone, "random weights")
        self._decide_by_vectors({recipe.id: recipe.backbone for recipe in frozen})
        self._run_trained([recipe for recipe in going if recipe.training is not None])
        return self.said

    def start(self) -> int:
        """Ray, if it is not up; how many GPUs there are to count on."""
        if not ray.is_initialized():
            start_ray(self.embedding.cluster)
        return usable_gpus(self.embedding.cluster.gpus)

    def _going(self, recipes: Iterable[Recipe]) -> list[Recipe]:
        return [recipe for recipe in recipes if not self.said[recipe.id].error]

    def _can_be_had(self, recipe: Recipe, backbone: str, note: str) -> None:
        """Notes where weights are random; fails the system where there are none."""
        said = self.said[recipe.id]
        if backbone in self.supply.lacking:
            said.error = self.supply.lacking[backbone]
        elif self.supply.had[backbone] == f"{backbone}@random":
            said.notes.append(note)

    def _decide_by_vectors(self, backbones: dict[int, str]) -> None:
        """Embeds for and runs the systems that decide by these backbones, by id."""
        sources: dict[int, Source] = {}
        needs: dict[Pair, frozenset[Part]] = defaultdict(frozenset)
        for recipe in self._going(recipe for recipe in self.recipes if recipe.id in backbones):
            pair = (backbones[recipe.id], recipe.view)
            sources[recipe.id] = Source(identity=self.supply.identity(pair, self.embedding.config))
            if self._made(recipe, sources[recipe.id]) is None:
                needs[pair] |= parts(recipe)
        if needs:
            self.embedding.run(self.catalog, needs, self.supply, "embed for systems")
        self._run_systems(sources)

    def _made(self, recipe: Recipe, source: Source) -> dict[str, Any] | None:
        return made(self.work, recipe, key(recipe, self.catalog, source, self.seed))

    def _run_systems(self, sources: dict[int, Source]) -> None:
        """Runs the systems whose predictions are not there, a task each; takes over those that are."""
        todo = {}
        for recipe in (recipe for recipe in self.recipes if recipe.id in sources):
            facts = self._made(recipe, sources[recipe.id])
            if facts is None:
                todo[recipe.name] = recipe
            else:
                self.said[recipe.id].take(facts)
        if not todo:
            return
        gpus, catalog = self.start(), ray.put(self.catalog)
        calls = {
            name: Call(
                run_system,
                (recipe, catalog, self.work, sources[recipe.id], self.seed),
                on_device=recipe.method in ON_DEVICE,
            )
            for name, recipe in todo.items()
        }
        with Progress("systems", len(calls), "systems") as progress:
            for name, outcome in spread(calls, gpus):
                if outcome.error:
                    self._fail([todo[name]], outcome.error)
                else:
                    self.said[todo[name].id].take(outcome.value)
                progress.add(1, int(bool(outcome.error)))

    def _fail(self, recipes: Iterable[Recipe], error: str) -> None:
        for recipe in recipes:
            self.said[recipe.id].error = error
            log.warning("%s failed: %s", recipe.name, error)

    def _run_trained(self, recipes: list[Recipe]) -> None:
        """Trains what these systems need and runs them."""
        on_imagenet = [recipe for recipe in recipes if recipe.weights == "imagenet"]
        self.supply.add([recipe.model for recipe in on_imagenet], self.weights, self.random)
        for recipe in on_imagenet:
            self._can_be_had(recipe, recipe.model, "random starting weights")
        planned = {r.id: plan for r in self._going(recipes) if (plan := self._planned(r)) is not None}
        trainings = [training for plan in planned.values() for training in plan.trainings]
        outcomes = train_all(trainings, self.work, self.start)
        for recipe in self._going(recipes):
            for name in planned[recipe.id].source.models.values():
                self.said[recipe.id].seconds += outcomes[name].value or 0.0
                if outcomes[name].error:
                    self._fail([recipe], f"training failed: {outcomes[name].error}")
        going = self._going(recipes)
        self._run_systems({recipe.id: planned[recipe.id].source for recipe in going if recipe.method in ON_DEVICE})
        backbones = {r.id: planned[r.id].trained_backbone(self.work) for r in going if r.method not in ON_DEVICE}
        self.supply.add(backbones.values(), self.weights, random=False)
        for recipe in going:
            if recipe.id in backbones:
                self._can_be_had(recipe, backbones[recipe.id], "")
        self._decide_by_vectors(backbones)

    def _planned(self, recipe: Recipe) -> Planned | None:
        """What is to be trained for a system; None, and the system has failed, where it cannot be."""
        try:
            start, pictures = None, None
            if recipe.weights == "imagenet":
                start = self.supply.weights[parse_backbone(self.supply.had[recipe.model]).network]
            if recipe.upscale:
                pictures = self._enlarge(recipe)
            mask = self.supply.weights.get(self.planner.mask) if get_view(recipe.view).region != "all" else None
            planned = self.planner.plan(recipe, start, pictures, mask)
        except GansfpError as error:
            self._fail([recipe], str(error))
            return None
        self.said[recipe.id].notes += planned.notes
        return planned

    def _enlarge(self, recipe: Recipe) -> Pictures:
        """The first set's slices, which are learnt from, and all unknown ones, enlarged."""
        upscaler = get_upscaler(self.upscaler, self.weights, self.random)
        if upscaler.name == "bicubic":
            self.said[recipe.id].notes.append("bicubic, no super-resolution")
        if upscaler.name.endswith("@random"):
            self.said[recipe.id].notes.append("random super-resolution")
        images = select(self.catalog, frozenset({*REAL, LEARNT_GENERATED}))
        needed = (images.column("set") == self.catalog.sets()[0]) | (images.column("role") == "unknown")
        images = images.where(needed)
        return enlarge(images, upscaler, self.planner.scale.size(recipe), self.work, self.start)
