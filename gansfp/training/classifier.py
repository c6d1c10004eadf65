"""Fine-tuned classifiers: a timm model trained stage by stage on labelled slices, and what it says of others.

FOLDER/stage-1, stage-2, ... hold the network after each stage, as gansfp.training.loop leaves them; FOLDER itself holds that
of the last one, which is a backbone by the name MODEL@FOLDER.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import distributed

from gansfp import store
from gansfp.embedding.backbones import parse_backbone
from gansfp.embedding.preparation import preparation
from gansfp.errors import DataError, UsageError, WeightsError
from gansfp.images.augmentation import get_augmentation
from gansfp.images.lungs import check_mask, is_network
from gansfp.images.slices import SIDE
from gansfp.images.views import get_view
from gansfp.networks.model_files import read_finished, read_model, write_model
from gansfp.networks.weights import Weights, create, digest_of, has_fixed_size, translate, without_head
from gansfp.training.examples import LabelledSlices, Masker, SliceExamples, masker_of, read_blocks, split_by_group
from gansfp.training.heads import HEADS, InputTransform, SliceLearner, folded
from gansfp.training.loop import Report, train
from gansfp.training.stages import Stage

COPIED = "real"  # the class of which `copies` are made

_LONG = ("identity", "history")  # what is left out of the facts of each stage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassifierTraining:
    """What is to be trained and how; raises UsageError or DataError, in one line, for what cannot be.

    backbone: a timm model, by its name alone. start: its weights (see gansfp.networks.weights.load_weights); None: random.
    size: pixels a side of its inputs, 0 for its own. copies: augmented pictures that a slice of the class "real"
    becomes; the other classes are not augmented then. share: of every class, by groups, to validate with.
    mask_weights: of a mask that a network makes (see gansfp.embedding.network_masks.load_mask); None: looked for.
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
        parsed = parse_backbone(self.backbone)
        if (parsed.kind.name, parsed.model) != ("timm", self.backbone):
            raise UsageError(f"backbone: got {self.backbone!r}, expected the name of a timm model alone")
        if self.size:
            parse_backbone(f"{self.backbone}:{self.size}")
        get_view(self.view)
        check_mask(self.mask)
        get_augmentation(self.augmentation)
        if self.head not in HEADS:
            raise UsageError(f"head: got {self.head!r}, expected one of {sorted(HEADS)}")
        if self.copies < 1 or (self.copies > 1 and not self.augmentation):
            raise UsageError(f"copies: got {self.copies}, expected 1, or more with an augmentation")
        if not 0 < self.share < 1:
            raise UsageError(f"share to validate with: got {self.share}, expected more than 0 and less than 1")
        if self.start and self.start.network.partition("@")[0] != self.backbone:
            raise UsageError(f"start: got weights of {self.start.network!r}, expected some of {self.backbone!r}")
        if not self._to_train():
            told = "; ".join(f"{stage.name!r}: {self._why_not(stage)}" for stage in self.stages) or "none named"
            raise DataError(f"no stage can be trained ({told})")
        for _, stage, examples in self._to_train():
            if self.head == "dropout_dense" and stage.labels == "supervised" and len(examples.classes) != 2:
                raise UsageError(f"stage {stage.name!r}: head 'dropout_dense' tells two classes apart, got more")
            if examples.side != SIDE and self.view != "full":
                raise UsageError(f"view: got {self.view!r} of pictures of {examples.side} pixels, expected 'full'")
        if self.mask_weights and not is_network(self.mask):
            raise UsageError(f"lung mask {self.mask!r} takes no weights, got those of {self.mask_weights.network!r}")
        if self._needs_masks() and is_network(self.mask) and not self.mask_weights:
            from gansfp.embedding.network_masks import load_mask  # which most trainings do without

            object.__setattr__(self, "mask_weights", load_mask(self.mask, None))
        self._check_size()

    def _check_size(self) -> None:
        """Raises UsageError where the network does not take inputs of that size."""
        pixels = preparation(self.backbone, self.size).size
        try:
            with torch.no_grad():
                self._blank(2).eval()(torch.zeros(1, 3, pixels, pixels))
        except Exception as error:  # models refuse a size in many ways
            raise UsageError(
                f"backbone {self.backbone!r}: no classifier of {pixels} pixels ({store.one_line(error)[:150]})"
            ) from error

    def _why_not(self, stage: Stage) -> str:
        """Why a stage will not be trained, as far as is known beforehand; "" where it will."""
        earlier = self.stages[: self.stages.index(stage)]
        lone = stage.labels == "pseudo" and not any(s.labels == "supervised" and not s.skipped for s in earlier)
        return stage.skipped or ("there is no network before it" if lone else "")

    def _to_train(self) -> list[tuple[int, Stage, LabelledSlices]]:
        """The stages that will be trained, with their numbers and slices."""
        numbered = enumerate(self.stages, 1)
        return [(n, stage, stage.examples) for n, stage in numbered if stage.examples and not self._why_not(stage)]

    @property
    def epochs(self) -> int:
        """How many there are at most, in all stages together."""
        return sum(stage.settings.epochs for _, stage, _ in self._to_train())

    @property
    def skipped(self) -> list[dict[str, str]]:
        """The stages that will not be trained, as far as is known beforehand: their names, and why."""
        return [{"stage": stage.name, "why": why} for stage in self.stages if (why := self._why_not(stage))]

    @property
    def classes(self) -> tuple[str, ...]:
        """Those of the last stage that has labels of its own."""
        return [slices.classes for _, stage, slices in self._to_train() if stage.labels == "supervised"][-1]

    def identity(self) -> dict[str, Any]:
        """What is trained on what, as JSON: what FOLDER/model.json holds under this name."""
        stages = [
            {
                "name": stage.name,
                "labels": stage.labels,
                "examples": slices.digest(),
                "settings": asdict(stage.settings),
            }
            for _, stage, slices in self._to_train()
        ]
        return {**self._common(), "classes": list(self.classes), "start": self._start(), "stages": stages}

    def _common(self) -> dict[str, Any]:
        """What all stages share."""
        return {
            "kind": "classifier",
            "backbone": self.backbone,
            "size": self.size,
            "view": self.view,
            "mask": self._mask(),
            "head": self.head,
            "augmentation": self.augmentation,
            "copies": self.copies,
            "seed": self.seed,
            "share": self.share,
        }

    def _mask(self) -> str:
        """What the masks are: not the folder of a network, which may be trained again, but what is in it."""
        if not self._needs_masks():
            return ""
        return f"{self.mask.partition(':')[0]}:{self.mask_weights.digest}" if self.mask_weights else self.mask

    def _masker(self, device: str) -> Masker | None:
        if not self._needs_masks():
            return None
        if not self.mask_weights:
            return masker_of(self.mask)
        from gansfp.embedding.network_masks import Segmenter

        return Segmenter(self.mask, self.mask_weights, device)

    def _start(self) -> str:
        return self.start.digest if self.start else "random"

    def _needs_masks(self) -> bool:
        return get_view(self.view).region != "all"

    def run(self, folder: str, device: str, report: Report | None = None) -> dict[str, Any]:
        """Trains all stages, or goes on where they were left, and returns what FOLDER/model.json holds.

        That is the last stage's facts (see gansfp.training.loop.train), with `identity` of the whole, `stages`: the facts of
        each without its history, and `skipped`: stages that were not trained, and why. report: as for train, with
        "stage". Where torch.distributed is initialised, every process calls this. Raises what train and read_model do.
        """
        identity = self.identity()
        if finished := read_finished(folder, {"identity": identity}):
            return finished
        skipped, done = self.skipped, []
        classes: tuple[str, ...] = ()
        tensors, start = (dict(self.start.tensors) if self.start else {}), self._start()
        place, facts = "", {}
        for number, stage, examples in self._to_train():
            told = {
                **self._common(),
                "classes": list(examples.classes if stage.labels == "supervised" else classes),
                "stage": stage.name,
                "labels": stage.labels,
                "examples": examples.digest(),
                "start": start,
            }
            here = store.join(folder, f"stage-{number}")
            found = read_finished(here, {"identity": told, "settings": asdict(stage.settings)})
            if found is None:
                if stage.labels == "pseudo":
                    examples = _labelled_by(place, examples, device, self._masker(device))
                if len(set(examples.labels)) < 2:
                    alike = [examples.classes[label] for label in set(examples.labels)]
                    why = f"its slices are all {alike[0]!r} to the network before" if alike else "no slice can be read"
                    log.warning("stage %r is skipped: %s", stage.name, why)
                    skipped = [*skipped, {"stage": stage.name, "why": why}]
                    continue
                network = self._network(tensors, classes, examples.classes)
                learner = self._learner(network, examples, device)
                found = train(learner, here, stage.settings, told, device, _named(report, stage.name))
            place, facts, classes = here, found, tuple(told["classes"])
            tensors = read_model(place)[1]
            start = digest_of(tensors)
            done.append({"stage": stage.name, **{name: facts[name] for name in facts if name not in _LONG}})
        facts = {**facts, "identity": identity, "stages": done, "skipped": skipped}
        if _is_first():
            write_model(folder, facts, tensors)
        if _together():
            distributed.barrier()
        return facts

    def _network(
        self, tensors: dict[str, torch.Tensor], before: tuple[str, ...], classes: tuple[str, ...]
    ) -> torch.nn.Module:
        """The network as a stage starts with it; its head is made anew unless the classes stay the same."""
        network = self._blank(len(classes))
        if tensors:
            kept = tensors if before == classes else without_head(tensors, self.backbone)
            _load(network, kept, self.backbone)
        return network.to(memory_format=torch.channels_last)

    def _blank(self, classes: int) -> torch.nn.Module:
        """The network with random weights, always the same by the seed.

        Its head begins by Glorot and Bengio 2010, as Keras has it: some of timm's own begin ten times as large, from
        which the published rates hardly come back.
        """
        head = HEADS[self.head]
        options: dict[str, Any] = {"drop_rate": head.dropout} if head.dropout else {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network: Any = create(self.backbone, head.outputs(classes), self.size, **options)
            top = network.get_classifier()
            if isinstance(top, torch.nn.Linear):
                torch.nn.init.xavier_uniform_(top.weight)
                torch.nn.init.zeros_(top.bias)
        return network

    def _learner(self, network: torch.nn.Module, slices: LabelledSlices, device: str) -> SliceLearner:
        rows = split_by_group(slices.labels, slices.groups, self.share, self.seed)
        masker = self._masker(device)
        copied = slices.classes.index(COPIED) if COPIED in slices.classes else -1
        augmentation = get_augmentation(self.augmentation)
        copies = self.copies if copied >= 0 else 1
        learnt = SliceExamples(slices.take(rows[0]), masker, augmentation, copies, copied, self.seed)
        held = SliceExamples(slices.take(rows[1]), masker)
        input_transform = InputTransform(self.backbone, self.size, self.view)
        return SliceLearner(network, learnt, held, input_transform, HEADS[self.head], folded(network))


def predict(
    folder: str, slices: LabelledSlices, device: str, batch: int = 256, masker: Masker | None = None
) -> np.ndarray:
    """What a trained classifier says of slices: (n, classes) float32 probabilities, NaN for those not to be read.

    folder: as ClassifierTraining.run left it, whose model.json names the classes. The slices' own labels are not looked
    at. They are read as they are needed, `batch` at a time. masker: for masks that a network makes, a
    gansfp.embedding.network_masks.Segmenter. Raises WeightsError where there is no classifier, UsageError for no masker.
    """
    facts, tensors = read_model(folder)
    told = facts["identity"]
    if told.get("kind") != "classifier":
        raise WeightsError(f"{folder}: holds no classifier, its model.json says kind {told.get('kind')!r}")
    head = HEADS[told["head"]]
    network = create(told["backbone"], head.outputs(len(told["classes"])), told["size"])
    _load(network, tensors, told["backbone"], headless=False)
    network = network.eval().to(device).to(memory_format=torch.channels_last)
    input_transform = InputTransform(told["backbone"], told["size"], told["view"])
    if told["mask"] and not masker:
        masker = masker_of(told["mask"])
    found = np.full((len(slices), len(told["classes"])), np.nan, np.float32)
    cuda = device.startswith("cuda")
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=cuda):
        for block in read_blocks(slices, batch):
            for line in block.errors:
                log.warning("left out: %s", line)
            if block.rows:
                masks = torch.from_numpy(masker(block.pixels)).to(device) if masker else None
                logits = network(input_transform(torch.from_numpy(block.pixels).to(device), masks)).float()
                found[block.rows] = head.probabilities(logits).cpu().numpy()
    return found


def _load(network: torch.nn.Module, tensors: dict[str, torch.Tensor], backbone: str, headless: bool = True) -> None:
    """Loads tensors into a network, all of which must fit; `headless`: those of its head may be missing."""
    fitting = translate(tensors, network) if has_fixed_size(backbone) else tensors
    missing, unexpected = network.load_state_dict(fitting, strict=False)
    needed = without_head(network.state_dict(), backbone) if headless else network.state_dict()
    if unexpected or needed.keys() & set(missing):
        raise WeightsError(f"weights of {backbone!r}: {[*missing, *unexpected][0]!r} does not fit the network")


def _labelled_by(folder: str, slices: LabelledSlices, device: str, masker: Masker | None) -> LabelledSlices:
    """The slices that can be read, labelled by the classifier in a folder; the same in every process."""
    classes = tuple(read_model(folder)[0]["identity"]["classes"])
    labels = torch.full((len(slices),), -1, dtype=torch.int64)
    if _is_first():
        said = predict(folder, slices, device, masker=masker)
        readable = np.isfinite(said).all(1)
        labels[torch.from_numpy(readable)] = torch.from_numpy(said[readable].argmax(1))
    if _together():
        labels = labels.to(device)
        distributed.broadcast(labels, 0)
    kept = np.flatnonzero(labels.cpu().numpy() >= 0)
    return slices.take(kept).relabelled(labels.cpu().numpy()[kept].tolist(), classes)


def _named(report: Report | None, stage: str) -> Report | None:
    return (lambda facts: report({"stage": stage, **facts})) if report else None


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _is_first() -> bool:
    return not _together() or distributed.get_rank() == 0
