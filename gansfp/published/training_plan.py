"""What has to be trained for which recipes, at full or reduced scale: recipes of one training share its network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from gansfp import store
from gansfp.collection.catalog import Catalog
from gansfp.errors import UsageError
from gansfp.images.slices import SIDE
from gansfp.networks.weights import Weights
from gansfp.published.recipe import PlannedStage, Recipe, TrainingPlan
from gansfp.published.superresolution import Pictures
from gansfp.published.systems import Source
from gansfp.training.autoencoder import SIZES, AutoencoderTraining
from gansfp.training.classifier import ClassifierTraining
from gansfp.training.examples import LabelledSlices
from gansfp.training.loop import Settings
from gansfp.training.stages import Stage, StagePlan, find_stages

LEAST_SIDE = {"inception_v3": 75, "inception_resnet_v2": 75}  # pixels, below which their last maps vanish
SMALLEST = 32  # pixels, of the other networks
Training = ClassifierTraining | AutoencoderTraining


@dataclass(frozen=True)
class Scale:
    """How training is scaled down for trying out; 0: as published. Raises UsageError for what no network can take."""

    epochs: int = 0
    max_steps: int = 0
    input_size: int = 0
    batch_size: int = 0

    def __post_init__(self) -> None:
        if self.input_size and not SMALLEST <= self.input_size <= 1024:
            raise UsageError(f"--input-size: got {self.input_size}, expected {SMALLEST} to 1024 pixels")

    def size(self, recipe: Recipe) -> int:
        """Pixels a side of the recipe's inputs: as asked for, but no fewer than its network can take."""
        if not self.input_size:
            return recipe.size
        if recipe.model == "autoencoder":
            return max(size for size in SIZES if size <= self.input_size)
        return max(self.input_size, LEAST_SIDE.get(recipe.model, 0))

    def settings(self, plan: TrainingPlan, seed: int) -> Settings:
        """The plan's, scaled down."""
        # An epoch has a step at least, so there are no more of them than steps.
        epochs = min(plan.epochs, self.epochs or plan.epochs, self.max_steps or plan.epochs)
        batch = self.batch_size or plan.batch
        return Settings(plan.optimiser, plan.rate, batch, epochs, plan.patience, self.max_steps, seed)

    def told(self, recipe: Recipe) -> list[str]:
        """A note where the recipe's training is not the published one."""
        plan, size = recipe.training, self.size(recipe)
        assert plan is not None
        changed = [
            *([f"{self.epochs} epochs"] if self.epochs and self.epochs != plan.epochs else []),
            *([f"{self.max_steps} steps"] if self.max_steps else []),
            *([f"{size} px"] if size != recipe.size else []),
            *([f"batches of {self.batch_size}"] if self.batch_size and self.batch_size != plan.batch else []),
        ]
        return [f"scaled down: {', '.join(changed)}"] if changed else []


@dataclass(frozen=True)
class Planned:
    """What a recipe needs to have trained. source: what its decision stands on, but for embeddings; backbone: with its
    size, to embed with what was trained; notes: what makes this another training than the published one."""

    trainings: tuple[Training, ...]
    source: Source
    backbone: str
    notes: tuple[str, ...]

    def trained_backbone(self, work: str) -> str:
        """The backbone of the one network that serves all sets."""
        return f"{self.backbone}@{store.join(work, 'models', self.source.models[''])}"


@dataclass
class Planner:
    """Plans the trainings of recipes on one collection.

    mask: the lung mask. folders: data of stages that DATA has none for, in the order of the stages, "" for none.
    """

    catalog: Catalog
    scale: Scale
    mask: str
    seed: int
    folders: Sequence[str] = ()

    def __post_init__(self) -> None:
        # Recipes share them, and the log says once of each that is skipped.
        self._stages: dict[tuple[StagePlan, ...], tuple[Stage, ...]] = {}

    def plan(
        self, recipe: Recipe, start: Weights | None, pictures: Pictures | None = None, mask: Weights | None = None
    ) -> Planned:
        """What is to be trained for a recipe.

        start: the weights to start from, None for random ones. pictures: what is looked at instead of slices. mask: the
        weights of the lung mask, if a network makes it. Raises GansfpError where the collection lacks what is to be
        learnt from.
        """
        plan, size = recipe.training, self.scale.size(recipe)
        assert plan is not None
        trainings: dict[str, Training] = {}
        if plan.kind == "autoencoder":
            settings = self.scale.settings(plan, self.seed)
            for name in self.catalog.sets_to_decide():
                trainings[name] = AutoencoderTraining(self._generated(name), size, settings)
        else:
            for name, stages in self._planned(plan).items():
                trainings[name] = self._classifier(recipe, plan, stages, start, pictures, mask)
        skipped = (stage for training in trainings.values() for stage in getattr(training, "skipped", ()))
        notes = [f"stage {stage['stage']!r} skipped: {stage['why']}" for stage in skipped]
        return Planned(
            tuple(trainings.values()),
            Source(
                models={name: name_of(training) for name, training in trainings.items()},
                pictures=pictures.folder if pictures else "",
                side=size if pictures else SIDE,
            ),
            f"{recipe.model}:{size}",
            (*self.scale.told(recipe), *dict.fromkeys(notes)),
        )

    def _generated(self, name: str) -> LabelledSlices:
        """All generated slices of a set."""
        images = self.catalog.of_set(name).select(role="generated", status="ok")
        uris, hashes = (tuple(images.column(what).tolist()) for what in ("uri", "sha256"))
        return LabelledSlices(uris, (-1,) * len(images), tuple(images.groups().tolist()), hashes)

    def _planned(self, plan: TrainingPlan) -> dict[str, list[StagePlan]]:
        """The stages of each network that a plan asks for, by set."""
        sets = self.catalog.sets()
        if plan.scope == "each_set":
            return {name: self._of_set(plan, name) for name in self.catalog.sets_to_decide()}
        if plan.scope == "sets_in_order":
            return {"": [stage for name in sets for stage in self._of_set(plan, name)]}
        return {"": self._of_set(plan, sets[0] if sets and plan.scope == "first_set" else "attribution")}

    def _of_set(self, plan: TrainingPlan, name: str) -> list[StagePlan]:
        settings, folders = self.scale.settings(plan, self.seed), iter(self.folders)
        found = []
        for stage in plan.stages:
            data = next(folders, "") if not stage.data else name
            target = _TARGETS[stage.data]
            found.append(StagePlan(_called(stage, plan, name), data, target, stage.labels, settings))
        return found

    def _classifier(
        self,
        recipe: Recipe,
        plan: TrainingPlan,
        stages: list[StagePlan],
        start: Weights | None,
        pictures: Pictures | None,
        mask: Weights | None,
    ) -> ClassifierTraining:
        if tuple(stages) not in self._stages:
            self._stages[tuple(stages)] = find_stages(stages, self.catalog)
        found = self._stages[tuple(stages)]
        size = self.scale.size(recipe)
        if pictures is not None:
            found = tuple(
                replace(stage, examples=as_pictures(stage.examples, pictures, size)) if stage.examples else stage
                for stage in found
            )
        return ClassifierTraining(
            recipe.model,
            found,
            recipe.view,
            self.mask,
            size,
            plan.augmentation,
            plan.copies,
            plan.head,
            start,
            self.seed,
            plan.held_out,
            mask,
        )


def as_pictures(slices: LabelledSlices, pictures: Pictures, side: int) -> LabelledSlices:
    """The same slices as enlarged pictures, by the sha256 of their files; those that have none are left out."""
    taken = slices.take([row for row, sha256 in enumerate(slices.sha256) if sha256 in pictures.uris])
    uris = tuple(pictures.uris[sha256] for sha256 in taken.sha256)
    # What enlarged them is in their folder's name, and so in what identifies what was learnt from.
    names = tuple("/".join(uri.partition("?")[0].split("/")[-2:]) for uri in uris)
    return replace(taken, uris=uris, sha256=names, side=side)


def name_of(training: Training) -> str:
    """The folder in WORK/models of what is trained: recipes that ask for the same have the same."""
    if isinstance(training, AutoencoderTraining):
        what, told = "autoencoder", training.identity() | {"settings": asdict(training.settings)}
    else:
        what, told = training.backbone, training.identity()
    return f"{what}-{hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]}"


_TARGETS = {
    "labelled": "used",
    "unlabelled": "unknown",
    "real_and_generated": "generated",
    "generators": "generator",
    "": "folders",
}


def _called(stage: PlannedStage, plan: TrainingPlan, name: str) -> str:
    return f"set {name}" if plan.scope == "sets_in_order" else stage.name
