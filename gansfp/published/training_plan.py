"""Plans the trainings of recipes, at full or reduced scale. Recipes with the same training share its network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from gansfp import store
from gansfp.collection.catalog import Catalog
from gansfp.errors import UsageError
from gansfp.images.slices import SIDE, Source
from gansfp.networks.weights import Weights
from gansfp.published.recipe import Recipe, TrainingPlan
from gansfp.published.superresolution import Pictures
from gansfp.published.systems import DecisionInput
from gansfp.training.autoencoder import SIZES, AutoencoderTraining
from gansfp.training.classifier import ClassifierTraining
from gansfp.training.examples import LabelledSlices
from gansfp.training.loop import Settings
from gansfp.training.stages import Stage, StagePlan, find_stages

# Pixels a side; with smaller inputs the last feature maps of these networks would be empty.
LEAST_SIDE = {"inception_v3": 75, "inception_resnet_v2": 75}
SMALLEST, LARGEST = 32, 1024  # pixels a side of the other networks
Training = ClassifierTraining | AutoencoderTraining


@dataclass(frozen=True)
class Scale:
    """How training is scaled down for a trial run; 0: as published. Raises UsageError for an impossible input size.

    epochs, max_steps, batch_size: of each training stage. input_size: pixels a side.
    """

    epochs: int = 0
    max_steps: int = 0
    input_size: int = 0
    batch_size: int = 0

    def __post_init__(self) -> None:
        if self.input_size and not SMALLEST <= self.input_size <= LARGEST:
            raise UsageError(f"--input-size: got {self.input_size}, expected {SMALLEST} to {LARGEST} pixels")

    def size(self, recipe: Recipe) -> int:
        """Returns the pixels a side of the recipe's inputs: input_size, or the least that its network can take."""
        if not self.input_size:
            return recipe.size
        if recipe.model == "autoencoder":
            return max(size for size in SIZES if size <= self.input_size)
        return max(self.input_size, LEAST_SIDE.get(recipe.model, 0))

    def settings(self, plan: TrainingPlan, seed: int) -> Settings:
        """Returns the settings of the plan, scaled down."""
        # Each epoch has at least one step, so there cannot be more epochs than steps.
        epochs = min(plan.epochs, self.epochs or plan.epochs, self.max_steps or plan.epochs)
        batch = self.batch_size or plan.batch
        return Settings(plan.optimiser, plan.rate, batch, epochs, plan.patience, self.max_steps, seed)

    def notes(self, recipe: Recipe) -> list[str]:
        """Returns a note that says how the recipe's training differs from the published one; none if it does not."""
        plan, size = recipe.training, self.size(recipe)
        assert plan is not None
        changes = [
            *([f"{self.epochs} epochs"] if self.epochs and self.epochs != plan.epochs else []),
            *([f"{self.max_steps} steps"] if self.max_steps else []),
            *([f"{size} px"] if size != recipe.size else []),
            *([f"batches of {self.batch_size}"] if self.batch_size and self.batch_size != plan.batch else []),
        ]
        return [f"scaled down: {', '.join(changes)}"] if changes else []


@dataclass(frozen=True)
class Planned:
    """The trainings of a recipe.

    source: where the numbers come from that the system decides by, without an embedding's identity. backbone: the
    backbone with its input size, for embedding with the trained network. notes: how the trainings differ from the
    published ones.
    """

    trainings: tuple[Training, ...]
    source: DecisionInput
    backbone: str
    notes: tuple[str, ...]

    def trained_backbone(self, work: str) -> str:
        """Returns the name of the trained backbone, where one network serves all sets."""
        return f"{self.backbone}@{store.join(work, 'models', self.source.models[''])}"


@dataclass
class Planner:
    """Plans the trainings of recipes on one collection.

    mask: the lung mask. folders: the folders for stages whose data DATA does not hold, in the order of the stages; ""
    for none.
    """

    catalog: Catalog
    scale: Scale
    mask: str
    seed: int
    folders: Sequence[str] = ()

    def __post_init__(self) -> None:
        # Recipes share stages. Finding the data of a stage only once also logs each skipped stage only once.
        self._stages: dict[tuple[StagePlan, ...], tuple[Stage, ...]] = {}

    def plan(
        self, recipe: Recipe, start: Weights | None, pictures: Pictures | None = None, mask: Weights | None = None
    ) -> Planned:
        """Plans the trainings of a recipe.

        start: the weights to start from; None: random weights. pictures: enlarged slices to use instead of the slices.
        mask: the weights of the lung mask, if it is a network. Raises GansfpError if the collection lacks the slices to
        train on.
        """
        plan, size = recipe.training, self.scale.size(recipe)
        assert plan is not None
        trainings: dict[str, Training] = {}
        skipped: list[str] = []
        if plan.kind == "autoencoder":
            settings = self.scale.settings(plan, self.seed)
            for name in self.catalog.sets_to_decide():
                trainings[name] = AutoencoderTraining(self._generated(name), size, settings)
        else:
            for name, stages in self._stage_plans(plan).items():
                classifier = self._classifier(recipe, plan, stages, start, pictures, mask)
                trainings[name] = classifier
                skipped += [f"stage {stage.stage!r} skipped: {stage.why}" for stage in classifier.skipped]
        return Planned(
            tuple(trainings.values()),
            DecisionInput(
                models={name: name_of(training) for name, training in trainings.items()},
                pictures=pictures.folder if pictures else "",
                side=size if pictures else SIDE,
            ),
            f"{recipe.model}:{size}",
            (*self.scale.notes(recipe), *dict.fromkeys(skipped)),
        )

    def _generated(self, name: str) -> LabelledSlices:
        """Returns all generated slices of a set, without labels."""
        images = self.catalog.of_set(name).select(role="generated", status="ok")
        return LabelledSlices.unlabelled(images.sources(), images.groups().tolist(), list(images.hashes().values()))

    def _stage_plans(self, plan: TrainingPlan) -> dict[str, list[StagePlan]]:
        """Returns the stages of each network of a plan, by set; "" is one network for all sets."""
        sets = self.catalog.sets()
        if plan.scope == "each_set":
            return {name: self._stages_of_set(plan, name) for name in self.catalog.sets_to_decide()}
        if plan.scope == "sets_in_order":
            return {"": [stage for name in sets for stage in self._stages_of_set(plan, name)]}
        return {"": self._stages_of_set(plan, sets[0] if sets and plan.scope == "first_set" else "attribution")}

    def _stages_of_set(self, plan: TrainingPlan, set_name: str) -> list[StagePlan]:
        settings, folders = self.scale.settings(plan, self.seed), iter(self.folders)
        stages = []
        for stage in plan.stages:
            name = f"set {set_name}" if plan.scope == "sets_in_order" else stage.name
            data = set_name if stage.data else next(folders, "")
            stages.append(StagePlan(name, data, _TARGETS[stage.data], stage.labels, settings))
        return stages

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
        stages_with_data = self._stages[tuple(stages)]
        size = self.scale.size(recipe)
        if pictures is not None:
            stages_with_data = tuple(
                replace(stage, examples=as_pictures(stage.examples, pictures, size)) if stage.examples else stage
                for stage in stages_with_data
            )
        return ClassifierTraining(
            recipe.model,
            stages_with_data,
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
        ).prepare()


def as_pictures(slices: LabelledSlices, pictures: Pictures, side: int) -> LabelledSlices:
    """Replaces slices by their enlarged pictures; slices without a picture are left out."""
    with_picture = slices.take([row for row, sha256 in enumerate(slices.sha256) if sha256 in pictures.uris])
    uris = tuple(pictures.uris[sha256] for sha256 in with_picture.sha256)
    # The folder's name says what enlarged the pictures. It becomes part of the identity of the training's examples.
    names = tuple("/".join(uri.partition("?")[0].split("/")[-2:]) for uri in uris)
    return replace(with_picture, sources=tuple(map(Source, uris)), sha256=names, side=side)


def name_of(training: Training) -> str:
    """Returns the folder of a training in WORK/models; equal trainings have the same folder."""
    if isinstance(training, AutoencoderTraining):
        network, settings = "autoencoder", {"settings": asdict(training.settings)}
    else:
        network, settings = training.backbone, {}
    content = {**training.identity(), **settings}
    return f"{network}-{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]}"


_TARGETS = {  # a recipe's stage data -> the target of gansfp.training.stages
    "labelled": "used",
    "unlabelled": "unknown",
    "real_and_generated": "generated",
    "generators": "generator",
    "": "folders",
}
