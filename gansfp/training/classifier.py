"""Fine-tuned classifiers: a timm model is trained on labelled slices, in one or more training stages.

FOLDER/stage-1, stage-2, ... hold the network after each training stage, as gansfp.training.loop writes it. FOLDER
itself holds the network of the last stage; the backbone name MODEL@FOLDER uses it for embedding.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import distributed

from gansfp import store
from gansfp.embedding.backbones import parse_backbone
from gansfp.embedding.preparation import preparation
from gansfp.errors import DataError, UsageError
from gansfp.images.augmentation import get_augmentation
from gansfp.images.lungs import check_mask, is_network
from gansfp.images.slices import SIDE
from gansfp.images.views import get_view
from gansfp.networks.model_files import read_model, write_model
from gansfp.networks.weights import Weights, create, digest_of, without_head
from gansfp.training.examples import LabelledSlices, Masker, SliceExamples, masker_of, split_by_group
from gansfp.training.heads import HEADS, InputTransform, SliceLearner, has_folded_batch_norms
from gansfp.training.loop import train
from gansfp.training.prediction import load_tensors, predict
from gansfp.training.records import Report, SkippedStage, TrainingRecord, read_record
from gansfp.training.stages import Stage

COPIED = "real"  # the class whose slices `copies` multiplies

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Trained:
    """The network that a training stage starts with."""

    folder: str  # of the stage before; "" for the first stage
    classes: tuple[str, ...]  # of the stage before; empty for the first stage
    tensors: dict[str, torch.Tensor]  # empty: random weights
    digest: str


@dataclass(frozen=True)
class ClassifierTraining:
    """A classifier and how it is trained. Call `prepare` before `identity` and `run`.

    backbone: the name of a timm model, without options. start: its weights (see gansfp.networks.weights.load_weights);
    None: random weights. size: pixels per side of its inputs; 0: the model's own size. copies: how many augmented
    pictures are made of a slice of the class "real"; with more than one, the other classes are not augmented. share: of
    every class, by groups, to validate with. mask_weights: of a lung mask that a network makes (see
    gansfp.embedding.network_masks.load_mask); None: `prepare` loads them.
    Raises UsageError or DataError, in one line, for values that do not fit.
    """

    backbone: str
    stages: tuple[Stage, ...]
    view: str = "full"
    mask: str = "threshold"
    size: int = 0
    augmentation: str = ""
    copies: int = 1
    head: str = "linear"
    start: Weights | None = None
    seed: int = 0
    share: float = 0.2
    mask_weights: Weights | None = None

    def __post_init__(self) -> None:
        self._check_names()
        if self.copies < 1 or (self.copies > 1 and not self.augmentation):
            raise UsageError(f"copies: got {self.copies}, expected 1, or more with an augmentation")
        if not 0 < self.share < 1:
            raise UsageError(f"share to validate with: got {self.share}, expected more than 0 and less than 1")
        if self.start and self.start.network.partition("@")[0] != self.backbone:
            raise UsageError(f"start: got weights of {self.start.network!r}, expected weights of {self.backbone!r}")
        self._check_stages()
        if self.mask_weights and not is_network(self.mask):
            raise UsageError(f"lung mask {self.mask!r}: got weights of {self.mask_weights.network!r}, expected none")

    def _check_names(self) -> None:
        """Raises UsageError for an unknown backbone, view, mask, augmentation or head."""
        parsed = parse_backbone(self.backbone)
        if (parsed.kind.name, parsed.model) != ("timm", self.backbone):
            raise UsageError(f"backbone: got {self.backbone!r}, expected the name of a timm model without options")
        if self.size:
            parse_backbone(f"{self.backbone}:{self.size}")
        get_view(self.view)
        check_mask(self.mask)
        get_augmentation(self.augmentation)
        if self.head not in HEADS:
            raise UsageError(f"head: got {self.head!r}, expected one of {sorted(HEADS)}")

    def _check_stages(self) -> None:
        """Raises DataError where no stage can be trained, UsageError where head or view do not fit a stage."""
        if not self._to_train():
            reasons = "; ".join(f"{stage.name!r}: {self._skip_reason(stage)}" for stage in self.stages)
            raise DataError(f"no training stage can be trained ({reasons or 'none named'})")
        for _, stage, slices in self._to_train():
            if self.head == "dropout_dense" and stage.labels == "supervised" and len(slices.classes) != 2:
                raise UsageError(
                    f"training stage {stage.name!r}: head 'dropout_dense' needs two classes, got {len(slices.classes)}"
                )
            if slices.side != SIDE and self.view != "full":
                raise UsageError(f"view: got {self.view!r} for pictures of {slices.side} pixels, expected 'full'")

    def prepare(self) -> ClassifierTraining:
        """Returns this training with the weights of its lung mask, and checks that the network takes its input size.

        The weights may be downloaded, and the network is built once. Raises WeightsError where the weights cannot be
        loaded, UsageError for an input size that the network does not take.
        """
        if self._needs_masks() and is_network(self.mask) and not self.mask_weights:
            from gansfp.embedding.network_masks import load_mask  # slow to import; most trainings do not need it

            return replace(self, mask_weights=load_mask(self.mask, None)).prepare()
        pixels = preparation(self.backbone, self.size).size
        try:
            with torch.no_grad():
                self._new_network(2).eval()(torch.zeros(1, 3, pixels, pixels))
        except Exception as error:  # models refuse a size with errors of many kinds
            raise UsageError(
                f"backbone {self.backbone!r}: cannot classify inputs of {pixels} pixels per side; use another size "
                f"({store.one_line(error)[:150]})"
            ) from error
        return self

    def _skip_reason(self, stage: Stage) -> str:
        """Returns why a stage will not be trained, as far as it is known before the training; "" where it will."""
        earlier = self.stages[: self.stages.index(stage)]
        has_labels = stage.labels != "pseudo" or any(s.labels == "supervised" and not s.skipped for s in earlier)
        return stage.skipped or ("" if has_labels else "no stage before it is trained, so nothing can give it labels")

    def _to_train(self) -> list[tuple[int, Stage, LabelledSlices]]:
        """Returns the stages that will be trained, with their numbers and slices."""
        numbered = enumerate(self.stages, 1)
        return [(n, stage, stage.examples) for n, stage in numbered if stage.examples and not self._skip_reason(stage)]

    @property
    def epochs(self) -> int:
        """The most epochs that all stages have together."""
        return sum(stage.settings.epochs for _, stage, _ in self._to_train())

    @property
    def skipped(self) -> list[SkippedStage]:
        """The stages that will not be trained, as far as it is known before the training."""
        return [SkippedStage(stage.name, why) for stage in self.stages if (why := self._skip_reason(stage))]

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of the last stage that has labels of its own."""
        return [slices.classes for _, stage, slices in self._to_train() if stage.labels == "supervised"][-1]

    def identity(self) -> dict[str, object]:
        """Returns what identifies the trained network, as JSON: the "identity" in FOLDER/model.json."""
        stages = [
            {
                "name": stage.name,
                "labels": stage.labels,
                "examples": slices.digest(),
                "settings": asdict(stage.settings),
            }
            for _, stage, slices in self._to_train()
        ]
        return {**self._common(), "classes": list(self.classes), "start": self._start_digest(), "stages": stages}

    def _common(self) -> dict[str, object]:
        """Returns the part of the identity that all stages share."""
        return {
            "kind": "classifier",
            "backbone": self.backbone,
            "size": self.size,
            "view": self.view,
            "mask": self._mask_identity(),
            "head": self.head,
            "augmentation": self.augmentation,
            "copies": self.copies,
            "seed": self.seed,
            "share": self.share,
        }

    def _mask_identity(self) -> str:
        """Returns what identifies the masks: for a network the digest of its weights, not its folder.

        The folder may hold another network later.
        """
        if not self._needs_masks():
            return ""
        return f"{self.mask.partition(':')[0]}:{self.mask_weights.digest}" if self.mask_weights else self.mask

    def _start_digest(self) -> str:
        return self.start.digest if self.start else "random"

    def _needs_masks(self) -> bool:
        return get_view(self.view).region != "all"

    def run(self, folder: str, device: str, report: Report | None = None) -> TrainingRecord:
        """Trains all stages, or resumes their training, and returns what FOLDER/model.json holds.

        This is the record of the last stage (see gansfp.training.loop.train) with the identity of the whole, the
        records of all stages, and the stages that were skipped. report: as for train, with the name of the stage as
        "stage". Where torch.distributed is initialised, every process calls this. Raises as train and read_model do.
        """
        identity = self.identity()
        if finished := read_record(folder, {"identity": identity}):
            return finished
        before = _Trained("", (), dict(self.start.tensors) if self.start else {}, self._start_digest())
        last: TrainingRecord | None = None
        stages, skipped = [], self.skipped
        for number, stage, slices in self._to_train():
            stage_folder = store.join(folder, f"stage-{number}")
            classes = slices.classes if stage.labels == "supervised" else before.classes
            result = self._run_stage(stage, slices, classes, before, stage_folder, device, report)
            if isinstance(result, str):
                log.warning("training stage %r is skipped: %s", stage.name, result)
                skipped.append(SkippedStage(stage.name, result))
                continue
            last = result
            stages.append(last.of_stage(stage.name))
            tensors = read_model(stage_folder)[1]
            before = _Trained(stage_folder, classes, tensors, digest_of(tensors))
        assert last is not None  # the first stage of _to_train has labels of two classes, so it is not skipped
        record = replace(last, identity=identity, stages=tuple(stages), skipped=tuple(skipped))
        if _is_first_process():
            write_model(folder, record.as_dict(), before.tensors)
        if _has_several_processes():
            distributed.barrier()
        return record

    def _run_stage(
        self,
        stage: Stage,
        slices: LabelledSlices,
        classes: tuple[str, ...],
        before: _Trained,
        folder: str,
        device: str,
        report: Report | None,
    ) -> TrainingRecord | str:
        """Trains one stage, unless its training has ended; returns the reason where the stage is skipped."""
        identity = {
            **self._common(),
            "classes": list(classes),
            "stage": stage.name,
            "labels": stage.labels,
            "examples": slices.digest(),
            "start": before.digest,
        }
        if finished := read_record(folder, {"identity": identity, "settings": asdict(stage.settings)}):
            return finished
        if stage.labels == "pseudo":
            slices = _label(slices, before, device, self._masker(device))
        present = [slices.classes[label] for label in set(slices.labels)]
        if not present:
            return "no slice can be read"
        if len(present) == 1:
            return f"the previous stage's network predicts {present[0]!r} for every slice, so there is nothing to learn"
        network = self._network(before.tensors, before.classes, slices.classes)
        learner = self._learner(network, slices, device)
        return train(learner, folder, stage.settings, identity, device, _with_stage(report, stage.name))

    def _masker(self, device: str) -> Masker | None:
        if not self._needs_masks():
            return None
        if not self.mask_weights:
            return masker_of(self.mask)
        from gansfp.embedding.network_masks import Segmenter

        return Segmenter(self.mask, self.mask_weights, device)

    def _network(
        self, tensors: dict[str, torch.Tensor], before: tuple[str, ...], classes: tuple[str, ...]
    ) -> torch.nn.Module:
        """Returns the network that a stage starts with. It gets a new head unless the classes stay the same.

        tensors, before: the weights and the classes of the stage before.
        """
        network = self._new_network(len(classes))
        if tensors:
            load_tensors(network, tensors if before == classes else without_head(tensors, self.backbone), self.backbone)
        return network.to(memory_format=torch.channels_last)

    def _new_network(self, classes: int) -> torch.nn.Module:
        """Returns the network with random weights, which depend only on the seed.

        The weights of its head are drawn as in Glorot and Bengio 2010, Keras's default. Some heads of timm start with
        weights ten times as large; with the published learning rates the training hardly recovers from that.
        """
        head = HEADS[self.head]
        options = {"drop_rate": head.dropout} if head.dropout else {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network: Any = create(self.backbone, head.outputs(classes), self.size, **options)
            classifier = network.get_classifier()
            if isinstance(classifier, torch.nn.Linear):
                torch.nn.init.xavier_uniform_(classifier.weight)
                torch.nn.init.zeros_(classifier.bias)
        return network

    def _learner(self, network: torch.nn.Module, slices: LabelledSlices, device: str) -> SliceLearner:
        train_rows, valid_rows = split_by_group(slices.labels, slices.groups, self.share, self.seed)
        masker = self._masker(device)
        copied = slices.classes.index(COPIED) if COPIED in slices.classes else -1
        augmentation = get_augmentation(self.augmentation)
        copies = self.copies if copied >= 0 else 1
        train_examples = SliceExamples(slices.take(train_rows), masker, augmentation, copies, copied, self.seed)
        valid_examples = SliceExamples(slices.take(valid_rows), masker)
        input_transform = InputTransform(self.backbone, self.size, self.view)
        folded = has_folded_batch_norms(network)
        return SliceLearner(network, train_examples, valid_examples, input_transform, HEADS[self.head], folded)


def _label(slices: LabelledSlices, before: _Trained, device: str, masker: Masker | None) -> LabelledSlices:
    """Labels slices with the network of the stage before. Leaves out slices that cannot be read.

    The labels are the same in every process.
    """
    labels = torch.full((len(slices),), -1, dtype=torch.int64)
    if _is_first_process():
        probabilities = predict(before.folder, slices, device, masker=masker)
        readable = np.isfinite(probabilities).all(1)
        labels[torch.from_numpy(readable)] = torch.from_numpy(probabilities[readable].argmax(1))
    if _has_several_processes():
        labels = labels.to(device)
        distributed.broadcast(labels, 0)
    labelled_rows = np.flatnonzero(labels.cpu().numpy() >= 0)
    return slices.take(labelled_rows).relabelled(labels.cpu().numpy()[labelled_rows].tolist(), before.classes)


def _with_stage(report: Report | None, stage: str) -> Report | None:
    """Returns a report that adds the name of the training stage."""
    return (lambda epoch: report({"stage": stage, **epoch})) if report else None


def _has_several_processes() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _is_first_process() -> bool:
    return not _has_several_processes() or distributed.get_rank() == 0
