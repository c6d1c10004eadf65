"""Makes all predictions of a run. What is missing is embedded, trained and decided, each once for all systems."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import ray

from gansfp.collection.catalog import Catalog
from gansfp.embedding.backbones import parse_backbone
from gansfp.embedding.shards import Pair
from gansfp.errors import GansfpError
from gansfp.images.views import get_view
from gansfp.published.recipe import Recipe
from gansfp.published.superresolution import Pictures
from gansfp.published.systems import (
    ON_DEVICE,
    REAL_KINDS,
    TRAIN_GENERATED,
    DecisionInput,
    Made,
    SliceKind,
    decision_key,
    missing_slices,
    read_made,
    run_system,
    select_kinds,
    slice_kinds,
)
from gansfp.published.training_plan import Planned, Planner
from gansfp.runtime.cluster import start_ray, usable_gpus
from gansfp.runtime.progress import Progress
from gansfp.runtime.tasks import Call, run_calls
from jobs.reproduction.prerequisites import EmbeddingJob, LoadedWeights
from jobs.reproduction.trainings import train_all
from jobs.reproduction.upscaling import enlarge, get_upscaler

log = logging.getLogger(__name__)


@dataclass
class SystemOutcome:
    """How a system ended.

    notes: how it differs from the published system, and remarks about the run. seconds: of the decision and of the
    trainings that it needs. error: why it failed, "" if it did not.
    """

    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    error: str = ""

    def add(self, made: Made) -> None:
        """Adds the notes and seconds of the decision."""
        self.notes += made.notes
        self.seconds += made.seconds


@dataclass
class Predictions:
    """A run over some recipes.

    weights: a folder of weights, or None. random: random weights are used where weights are missing. upscaler: the name
    of the upscaler for recipes that enlarge slices.
    """

    recipes: Sequence[Recipe]
    catalog: Catalog
    embedding: EmbeddingJob
    planner: Planner
    weights: str | None
    random: bool
    seed: int
    upscaler: str = "esrgan"

    def __post_init__(self) -> None:
        self.work = self.embedding.work
        self.loaded = LoadedWeights()
        self.outcomes = {recipe.id: SystemOutcome() for recipe in self.recipes}

    def run(self) -> dict[int, SystemOutcome]:
        """Makes all predictions; returns how each system ended, by its id."""
        for recipe in self.recipes:
            self.outcomes[recipe.id].error = missing_slices(recipe.task, self.catalog)
        masked = [recipe for recipe in self._not_failed(self.recipes) if get_view(recipe.view).region != "all"]
        if masked:
            self.loaded.load_mask(self.planner.mask, self.weights)
            if self.planner.mask in self.loaded.missing:
                self._fail(masked, self.loaded.missing[self.planner.mask])
        recipes = self._not_failed(self.recipes)
        frozen = [recipe for recipe in recipes if recipe.training is None]
        self.loaded.add([recipe.backbone for recipe in frozen], self.weights, self.random)
        for recipe in frozen:
            self._check_loaded(recipe, recipe.backbone, "random weights")
        self._decide_by_embeddings({recipe.id: recipe.backbone for recipe in frozen})
        self._run_trained([recipe for recipe in recipes if recipe.training is not None])
        return self.outcomes

    def start_ray(self) -> int:
        """Starts Ray unless it runs already; returns the number of GPUs to plan for."""
        if not ray.is_initialized():
            start_ray(self.embedding.cluster)
        return usable_gpus(self.embedding.cluster.gpus)

    def _not_failed(self, recipes: Iterable[Recipe]) -> list[Recipe]:
        return [recipe for recipe in recipes if not self.outcomes[recipe.id].error]

    def _check_loaded(self, recipe: Recipe, backbone: str, note: str) -> None:
        """Fails the system if its backbone has no weights; adds the note if they are random."""
        outcome = self.outcomes[recipe.id]
        if backbone in self.loaded.missing:
            outcome.error = self.loaded.missing[backbone]
        elif self.loaded.resolved[backbone] == f"{backbone}@random":
            outcome.notes.append(note)

    def _decide_by_embeddings(self, backbones: Mapping[int, str]) -> None:
        """Embeds what is missing for these systems and runs them. backbones: by the id of the recipe."""
        sources: dict[int, DecisionInput] = {}
        wanted: dict[Pair, frozenset[SliceKind]] = defaultdict(frozenset)
        needs: dict[Pair, frozenset[SliceKind]] = defaultdict(frozenset)
        recipes = self._not_failed(recipe for recipe in self.recipes if recipe.id in backbones)
        pairs = {recipe.id: (backbones[recipe.id], recipe.view) for recipe in recipes}
        for recipe in recipes:
            wanted[pairs[recipe.id]] |= slice_kinds(recipe)
        self.embedding = self.embedding.settle_precision(self.catalog, wanted, self.loaded)
        for recipe in recipes:
            pair = pairs[recipe.id]
            sources[recipe.id] = DecisionInput(identity=self.loaded.identity(pair, self.embedding.config))
            if self._read_made(recipe, sources[recipe.id]) is None:
                needs[pair] |= slice_kinds(recipe)
        if needs:
            self.embedding.run(self.catalog, needs, self.loaded, "embed for systems")
        self._run_systems(sources)

    def _read_made(self, recipe: Recipe, source: DecisionInput) -> Made | None:
        return read_made(self.work, recipe, decision_key(recipe, self.catalog, source, self.seed))

    def _run_systems(self, sources: Mapping[int, DecisionInput]) -> None:
        """Runs the systems that have no predictions yet, one task for each; keeps existing predictions."""
        to_do: dict[str, Recipe] = {}
        for recipe in (recipe for recipe in self.recipes if recipe.id in sources):
            made = self._read_made(recipe, sources[recipe.id])
            if made is None:
                to_do[recipe.name] = recipe
            else:
                self.outcomes[recipe.id].add(made)
        if not to_do:
            return
        gpus, catalog = self.start_ray(), ray.put(self.catalog)
        calls = {
            name: Call(
                run_system,
                (recipe, catalog, self.work, sources[recipe.id], self.seed),
                on_device=recipe.method in ON_DEVICE,
            )
            for name, recipe in to_do.items()
        }
        with Progress("systems", len(calls), "systems") as progress:
            for name, outcome in run_calls(calls, gpus):
                if outcome.error:
                    self._fail([to_do[name]], outcome.error)
                else:
                    self.outcomes[to_do[name].id].add(outcome.value)
                progress.add(1, int(bool(outcome.error)))

    def _fail(self, recipes: Iterable[Recipe], error: str) -> None:
        for recipe in recipes:
            self.outcomes[recipe.id].error = error
            log.warning("%s failed: %s", recipe.name, error)

    def _run_trained(self, recipes: list[Recipe]) -> None:
        """Trains the networks of these systems and runs the systems."""
        on_imagenet = [recipe for recipe in recipes if recipe.weights == "imagenet"]
        self.loaded.add([recipe.model for recipe in on_imagenet], self.weights, self.random)
        for recipe in on_imagenet:
            self._check_loaded(recipe, recipe.model, "random starting weights")
        planned = {r.id: plan for r in self._not_failed(recipes) if (plan := self._plan(r)) is not None}
        trainings = [training for plan in planned.values() for training in plan.trainings]
        trained = train_all(trainings, self.work, self.start_ray)
        for recipe in self._not_failed(recipes):
            for name in planned[recipe.id].source.models.values():
                self.outcomes[recipe.id].seconds += trained[name].value or 0.0
                if trained[name].error:
                    self._fail([recipe], f"training failed: {trained[name].error}")
        recipes = self._not_failed(recipes)
        self._run_systems({r.id: planned[r.id].source for r in recipes if r.method in ON_DEVICE})
        backbones = {r.id: planned[r.id].trained_backbone(self.work) for r in recipes if r.method not in ON_DEVICE}
        self.loaded.add(backbones.values(), self.weights, random=False)
        for recipe in recipes:
            if recipe.id in backbones:
                self._check_loaded(recipe, backbones[recipe.id], "")
        self._decide_by_embeddings(backbones)

    def _plan(self, recipe: Recipe) -> Planned | None:
        """Plans the trainings of a system. If that is impossible, the system fails and the result is None."""
        try:
            start, pictures = None, None
            if recipe.weights == "imagenet":
                start = self.loaded.weights[parse_backbone(self.loaded.resolved[recipe.model]).network]
            if recipe.upscale:
                pictures = self._enlarge(recipe)
            mask = self.loaded.weights.get(self.planner.mask) if get_view(recipe.view).region != "all" else None
            planned = self.planner.plan(recipe, start, pictures, mask)
        except GansfpError as error:
            self._fail([recipe], str(error))
            return None
        self.outcomes[recipe.id].notes += planned.notes
        return planned

    def _enlarge(self, recipe: Recipe) -> Pictures:
        """Enlarges the slices of the first set, which the network is trained on, and all unknown slices."""
        upscaler = get_upscaler(self.upscaler, self.weights, self.random)
        if upscaler.name == "bicubic":
            self.outcomes[recipe.id].notes.append("bicubic, no super-resolution")
        if upscaler.name.endswith("@random"):
            self.outcomes[recipe.id].notes.append("random super-resolution")
        images = select_kinds(self.catalog, frozenset({*REAL_KINDS, TRAIN_GENERATED}))
        needed = (images.column("set") == self.catalog.sets()[0]) | (images.column("role") == "unknown")
        images = images.where(needed)
        return enlarge(images, upscaler, self.planner.scale.size(recipe), self.work, self.start_ray)
