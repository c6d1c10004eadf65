"""Trains a network for other commands: a lung U-Net, a classifier that serves as backbone, an autoencoder of a set.

    python -m jobs.train unet --images IMAGES --masks MASKS --work WORK
    python -m jobs.train classifier --data DATA --work WORK --backbone densenet121 --target generated --set SET
    python -m jobs.train classifier --data DATA --work WORK --backbone resnet50 --stages kde-med-2024
    python -m jobs.train autoencoder --data DATA --work WORK --set SET

Results are in WORK/models/NAME. Ray Train runs one process per GPU, or one process on all cores. If the training was
stopped, the same command resumes it. If it has ended, the command trains nothing.
"""

from __future__ import annotations

import argparse
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from gansfp import store
from gansfp.collection.catalog import Catalog
from gansfp.embedding.backbones import parse_backbone
from gansfp.embedding.embedder import EmbedConfig
from gansfp.embedding.network_masks import load_mask
from gansfp.errors import UsageError
from gansfp.images.augmentation import AUGMENTATIONS
from gansfp.images.slices import SIDE
from gansfp.images.views import VIEWS
from gansfp.networks.weights import WEIGHT_ENDINGS, load_weights
from gansfp.runtime.cluster import ClusterConfig, start_ray
from gansfp.runtime.collection import read_collection
from gansfp.runtime.command import Parser, run
from gansfp.runtime.lock import held
from gansfp.runtime.options import (
    add_cluster_options,
    add_collection_options,
    check_places,
    cluster_config,
    collection_config,
    count,
    names,
    positive,
    seed,
)
from gansfp.runtime.ray_train import Training, fit
from gansfp.runtime.record import record_stage
from gansfp.training.autoencoder import AutoencoderTraining
from gansfp.training.classifier import ClassifierTraining
from gansfp.training.examples import LabelledSlices
from gansfp.training.heads import HEADS
from gansfp.training.loop import OPTIMISERS, Settings
from gansfp.training.masked_slices import pair_folders
from gansfp.training.records import read_record
from gansfp.training.stages import PUBLISHED_STAGES, SET_TARGETS, StagePlan, find_stages, read_stages
from gansfp.training.unet import UnetTraining

TARGETS = ("used", "generated", "generator")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """A training in WORK/models/<name>. configuration: what model.json must hold of it, see read_record."""

    kind: str
    name: str
    training: Training
    configuration: Mapping[str, Mapping[str, object]]
    work: str
    cluster: ClusterConfig


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line of the module's docstring."""
    parser = Parser(prog="jobs.train", description=(__doc__ or "").splitlines()[0])
    parsers = parser.add_subparsers(dest="kind", required=True, metavar="|".join(KINDS))
    for name, kind in KINDS.items():
        kind_parser = parsers.add_parser(name)
        kind_parser.add_argument("--work", required=True, help="where models go: a folder or a URI")
        kind_parser.add_argument("--name", help="folder in WORK/models (default: from the kind and the data)")
        kind.add_options(kind_parser)
        _add_settings(kind_parser)
        add_cluster_options(kind_parser)
    options = parser.parse_args(arguments)
    if options.name and not re.fullmatch(r"[\w-][\w.-]*", options.name):
        raise UsageError(f"--name: got {options.name!r}, expected letters, digits, '-', '_' and '.'")
    kind = KINDS[options.kind]
    settings = _settings(options, kind.settings)
    options.work = store.absolute(options.work)
    if options.kind == "unet":
        store.check_writable(options.work)
    else:
        check_places(options.data, options.work)
    with held(options.work, "jobs.train"):
        default_name, training = kind.prepare(options, settings)
        configuration: dict[str, Mapping[str, object]] = {"identity": training.identity()}
        if options.kind != "classifier":  # the training stages of a classifier have settings, which its identity holds
            configuration["settings"] = asdict(settings)
        name = options.name or default_name
        train(Plan(options.kind, name, training, configuration, options.work, cluster_config(options)))


def train(plan: Plan) -> None:
    """Trains a network, or resumes its training, and prints its figures and how to use it."""
    folder, started = store.join(plan.work, "models", plan.name), time.monotonic()
    record = read_record(folder, plan.configuration)
    if record:
        log.info("%s: the training has ended already", folder)
    else:
        start_ray(plan.cluster)
        record = fit(plan.training, plan.work, plan.name, plan.cluster.gpus)
        facts = {"epochs": record.epochs, "steps": record.steps, "figures": record.figures}
        facts = {"name": plan.name, "kind": plan.kind, **facts}
        record_stage(plan.work, "train", time.monotonic() - started, facts, record.identity)
    figures = ", ".join(f"{name} {value:.4f}" for name, value in record.figures.items())
    print(f"{plan.name}: best epoch {record.best_epoch} of {record.epochs}, on held-out slices: {figures}")
    print(f"use: {KINDS[plan.kind].use.format(folder=folder, backbone=record.identity.get('backbone'))}")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=positive, help="the most epochs")
    parser.add_argument("--max-steps", type=positive, help="the most optimiser steps in each stage, for quick trials")
    parser.add_argument("--batch-size", type=positive, help="examples per optimiser step")
    parser.add_argument("--optimiser", choices=sorted(OPTIMISERS), help="sgd has a momentum of 0.9")
    parser.add_argument("--rate", type=float, help="learning rate")
    parser.add_argument("--patience", type=count, help="epochs without a lower validation loss; 0: never stop early")
    parser.add_argument("--seed", type=seed, default=0, help="of the random numbers (default 0)")


def _settings(options: argparse.Namespace, defaults: Settings) -> Settings:
    """Returns the default settings with the values that the user gave. Raises UsageError for wrong values."""
    values = {
        "epochs": options.epochs,
        "max_steps": options.max_steps,
        "batch": options.batch_size,
        "optimiser": options.optimiser,
        "rate": options.rate,
        "patience": options.patience,
        "seed": options.seed,
    }
    return replace(defaults, **{name: value for name, value in values.items() if value is not None})


def _add_unet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", required=True, help="a folder of slices; its groups.csv names their volumes")
    parser.add_argument("--masks", required=True, help="a folder of their lung masks, under the same names")
    parser.add_argument(
        "--held-out", type=names, default=(), help="volumes to validate with (default: drawn by --seed)"
    )


def _prepare_unet(options: argparse.Namespace, settings: Settings) -> tuple[str, Training]:
    return "unet", UnetTraining(pair_folders(options.images, options.masks), settings, options.held_out)


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="the collection: a folder or a URI")
    add_collection_options(parser)
    parser.add_argument("--set", help="the membership set (default: the only one)")
    parser.add_argument("--input-size", type=positive, default=0, help="pixels per side (default: the network's own)")


def _add_classifier(parser: argparse.ArgumentParser) -> None:
    _add_data(parser)
    parser.add_argument(
        "--backbone",
        required=True,
        help="a timm model, conv5 or vgg11_1000; MODEL@random: random weights; MODEL@FOLDER: weights trained here",
    )
    parser.add_argument("--target", choices=TARGETS, help="the classes (default: generated against real)")
    parser.add_argument(
        "--stages",
        help="a file of training stages (gansfp/training/stages.py) or a published transfer: "
        f"{', '.join(PUBLISHED_STAGES)}",
    )
    parser.add_argument("--view", default="full", help=f"one of {','.join(VIEWS)}")
    parser.add_argument("--lungs", default="threshold", help="the lung mask, for views that need one")
    parser.add_argument("--augmentation", default="", help=f"one of {','.join(AUGMENTATIONS)} (default: none)")
    parser.add_argument("--copies", type=positive, default=1, help="augmented pictures made of each real slice")
    parser.add_argument("--head", default="linear", choices=sorted(HEADS), help="the last layers")
    parser.add_argument(
        "--weights", help=f"a folder of <timm name>{'|'.join(WEIGHT_ENDINGS)} (default: timm downloads them)"
    )


def _prepare_classifier(options: argparse.Namespace, settings: Settings) -> tuple[str, Training]:
    if options.stages and options.target:
        raise UsageError(f"--target: got {options.target!r} and --stages, expected only one: each stage has a target")
    backbone = parse_backbone(options.backbone)
    if backbone.features != "pooled" or backbone.size:
        raise UsageError(
            f"--backbone: got {options.backbone!r}, expected MODEL, MODEL@random or MODEL@FOLDER; set the size of the "
            "inputs with --input-size"
        )
    plans = read_stages(options.stages) if options.stages else ()
    catalog = read_collection(options.data, options.work, collection_config(options))
    if plans:
        plans = tuple(replace(plan, settings=_settings(options, plan.settings)) for plan in plans)
        examples_name = re.sub(r"\W+", "-", options.stages.rpartition("/")[2].removesuffix(".json"))
    else:
        target = options.target or "generated"
        data = _set(catalog, options.set) if target in SET_TARGETS else "attribution"
        plans, examples_name = (StagePlan(target, data, target, "supervised", settings),), f"{target}-{data}"
    stages = find_stages(plans, catalog)
    start = None if backbone.random else load_weights(backbone.model, options.weights, trained=backbone.trained)
    network_mask = EmbedConfig(((options.backbone, options.view),), options.lungs).network_mask
    training = ClassifierTraining(
        backbone.model,
        stages,
        options.view,
        options.lungs,
        options.input_size,
        options.augmentation,
        options.copies,
        options.head,
        start,
        options.seed,
        mask_weights=load_mask(network_mask, options.weights) if network_mask else None,
    )
    return f"{backbone.model}-{examples_name}", training.prepare()


def _prepare_autoencoder(options: argparse.Namespace, settings: Settings) -> tuple[str, Training]:
    catalog = read_collection(options.data, options.work, collection_config(options))
    name = _set(catalog, options.set)
    generated = catalog.of_set(name).select(role="generated", status="ok")
    hashes = list(generated.hashes().values())
    slices = LabelledSlices.unlabelled(generated.sources(), generated.groups().tolist(), hashes)
    return f"autoencoder-{name}", AutoencoderTraining(slices, options.input_size or SIDE, settings)


def _set(catalog: Catalog, name: str | None) -> str:
    """Returns the membership set of that name, or the only one. Raises UsageError where there is no such set."""
    sets = catalog.sets()
    if name is None and len(sets) == 1:
        return sets[0]
    if name not in sets:
        raise UsageError(f"--set: got {name!r}, expected one of {sets}")
    return name


@dataclass(frozen=True)
class Trainable:
    """A kind of network that this command trains.

    settings: the defaults. add_options: adds its options to a parser. prepare: makes the training, and the default name
    of its folder, from options and settings. use: the option or command that uses the network.
    """

    settings: Settings
    add_options: Callable[[argparse.ArgumentParser], None]
    prepare: Callable[[argparse.Namespace, Settings], tuple[str, Training]]
    use: str


KINDS: dict[str, Trainable] = {
    "unet": Trainable(UnetTraining.SETTINGS, _add_unet, _prepare_unet, "--lungs unet:{folder}"),
    "classifier": Trainable(
        Settings("adam", 1e-4, batch=64, epochs=50, patience=10),
        _add_classifier,
        _prepare_classifier,
        "--backbones {backbone}@{folder}",
    ),
    "autoencoder": Trainable(
        Settings("adam", 1e-3, batch=64, epochs=50, patience=10),
        _add_data,
        _prepare_autoencoder,
        "jobs.reproduce --systems 37,38 trains and uses autoencoders of its own; this one is in {folder}",
    ),
}


if __name__ == "__main__":
    run(main)
