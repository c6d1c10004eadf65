"""Trains what other commands use: a lung U-Net, a classifier whose features embed, an autoencoder of a generator.

    python -m jobs.train unet --images IMAGES --masks MASKS --work WORK
    python -m jobs.train classifier --data DATA --work WORK --backbone densenet121 --target generated --set SET
    python -m jobs.train classifier --data DATA --work WORK --backbone resnet50 --stages kde-med-2024
    python -m jobs.train autoencoder --data DATA --work WORK --set SET

Results are in WORK/models/NAME. By Ray Train: a process a GPU, or one on all cores. The same command goes on where it
was stopped, and does nothing where training has ended.
"""

from __future__ import annotations

import argparse
import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from gansfp import store
from gansfp.collection.catalog import Catalog
from gansfp.embedding.backbones import parse_backbone
from gansfp.embedding.embedder import EmbedConfig
from gansfp.embedding.network_masks import load_mask
from gansfp.errors import UsageError
from gansfp.images.augmentation import AUGMENTATIONS
from gansfp.images.slices import SIDE
from gansfp.images.views import VIEWS
from gansfp.networks.model_files import read_finished
from gansfp.networks.weights import WEIGHT_ENDINGS, Weights, load_weights
from gansfp.runtime.cluster import start_ray
from gansfp.runtime.collection import read_collection
from gansfp.runtime.command import Parser, run
from gansfp.runtime.lock import held
from gansfp.runtime.options import (
    add_cluster_options,
    add_outside_option,
    check_places,
    cluster_config,
    count,
    names,
    positive,
    seed,
)
from gansfp.runtime.ray_train import Training, fit
from gansfp.runtime.record import record_stage
from gansfp.training.autoencoder import AutoencoderTraining
from gansfp.training.classifier import HEADS, ClassifierTraining
from gansfp.training.examples import LabelledSlices
from gansfp.training.loop import OPTIMISERS, Settings
from gansfp.training.masked_slices import pair_folders
from gansfp.training.stages import PUBLISHED_STAGES, SET_TARGETS, StagePlan, find_stages, read_stages
from gansfp.training.unet import UnetTraining

DEFAULTS = {  # of the settings that no option names
    "unet": UnetTraining.SETTINGS,
    "classifier": Settings("adam", 1e-4, batch=64, epochs=50, patience=10),
    "autoencoder": Settings("adam", 1e-3, batch=64, epochs=50, patience=10),
}
TARGETS = ("used", "generated", "generator")

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the module's docstring."""
    parser = Parser(prog="jobs.train", description=(__doc__ or "").splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="unet|classifier|autoencoder")
    for kind, (add_options, _) in KINDS.items():
        options = kinds.add_parser(kind)
        options.add_argument("--work", required=True, help="where models go: a folder or a URI")
        options.add_argument("--name", help="of the folder in WORK/models (default: what is trained on what)")
        add_options(options)
        _add_settings(options)
        add_cluster_options(options)
    chosen = parser.parse_args(arguments)
    _, prepare = KINDS[chosen.kind]
    if chosen.name and not re.fullmatch(r"[\w-][\w.-]*", chosen.name):
        raise UsageError(f"--name: got {chosen.name!r}, expected letters, digits, '-', '_' and '.'")
    settings = _settings(chosen, DEFAULTS[chosen.kind])
    chosen.work = store.absolute(chosen.work)
    if chosen.kind == "unet":
        store.check_writable(chosen.work)
    else:
        check_places(chosen.data, chosen.work)
    with held(chosen.work, "jobs.train"):
        name, training = prepare(chosen, settings)
        told = {"identity": training.identity()}
        if chosen.kind != "classifier":  # whose stages have settings of their own, which are in its identity
            told["settings"] = asdict(settings)
        train(training, name, told, chosen)


def train(training: Training, name: str, told: dict[str, Any], options: argparse.Namespace) -> None:
    """Trains WORK/models/<name>, or goes on with it, and says what came of it; told: what model.json will say of it."""
    folder, started = store.join(options.work, "models", name), time.monotonic()
    facts = read_finished(folder, told)
    if facts is None:
        start_ray(cluster_config(options))
        facts = fit(training, options.work, name, options.gpus)
        about = {"name": name, "kind": options.kind, **{key: facts.get(key) for key in ("epochs", "steps", "figures")}}
        record_stage(options.work, "train", time.monotonic() - started, about, facts["identity"])
    else:
        log.info("%s: training has ended before", folder)
    figures = ", ".join(f"{key} {value:.4f}" for key, value in facts["figures"].items())
    print(f"{name}: best epoch {facts['best_epoch']} of {facts['epochs']}, on held-out slices: {figures}")
    print(f"use: {_USE[options.kind].format(folder=folder, backbone=facts['identity'].get('backbone'))}")


_USE = {
    "unet": "--lungs unet:{folder}",
    "classifier": "--backbones {backbone}@{folder}",
    "autoencoder": "jobs.reproduce --systems 37,38 trains and applies its own; this one is in {folder}",
}


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=positive, help="at most")
    parser.add_argument("--max-steps", type=positive, help="of the optimiser, in each stage; for trying out")
    parser.add_argument("--batch-size", type=positive, help="examples a step")
    parser.add_argument("--optimiser", choices=sorted(OPTIMISERS), help="sgd has a momentum of 0.9")
    parser.add_argument("--rate", type=float, help="learning rate")
    parser.add_argument("--patience", type=count, help="epochs without a better validation loss; 0: never stop early")
    parser.add_argument("--seed", type=seed, default=0)


def _settings(options: argparse.Namespace, defaults: Settings) -> Settings:
    """The defaults, but for what was asked for."""
    given = {
        "epochs": options.epochs,
        "max_steps": options.max_steps,
        "batch": options.batch_size,
        "optimiser": options.optimiser,
        "rate": options.rate,
        "patience": options.patience,
        "seed": options.seed,
    }
    return replace(defaults, **{name: value for name, value in given.items() if value is not None})


def _add_unet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", required=True, help="a folder of slices; groups.csv in it names their volumes")
    parser.add_argument("--masks", required=True, help="a folder of their lung masks, under the same names")
    parser.add_argument(
        "--held-out", type=names, default=(), help="volumes to validate with (default: drawn by --seed)"
    )


def _prepare_unet(options: argparse.Namespace, settings: Settings) -> tuple[str, Training]:
    training = UnetTraining(pair_folders(options.images, options.masks), settings, options.held_out)
    return options.name or "unet", training


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="the collection: a folder or a URI")
    add_outside_option(parser)
    parser.add_argument("--set", help="the membership set (default: the only one)")
    parser.add_argument("--input-size", type=positive, default=0, help="pixels a side (default: the network's own)")


def _add_classifier(parser: argparse.ArgumentParser) -> None:
    _add_data(parser)
    parser.add_argument(
        "--backbone",
        required=True,
        help="a timm model, conv5, vgg11_1000; @random: from nothing; @FOLDER: trained here",
    )
    parser.add_argument("--target", choices=TARGETS, help="what to tell apart (default: generated)")
    parser.add_argument(
        "--stages", help=f"a file of stages (gansfp/training/stages.py) or one of {', '.join(PUBLISHED_STAGES)}"
    )
    parser.add_argument("--view", default="full", help=f"among {','.join(VIEWS)}")
    parser.add_argument("--lungs", default="threshold", help="the lung mask, of views that need one")
    parser.add_argument("--augmentation", default="", help=f"among {','.join(filter(None, AUGMENTATIONS))}")
    parser.add_argument("--copies", type=positive, default=1, help="augmented pictures that a real slice becomes")
    parser.add_argument("--head", default="linear", choices=sorted(HEADS))
    parser.add_argument("--weights", help=f"a folder of <timm name>{'|'.join(WEIGHT_ENDINGS)}; else timm's download")


def _prepare_classifier(options: argparse.Namespace, settings: Settings) -> tuple[str, Training]:
    if options.stages and options.target:
        raise UsageError(f"--target: got {options.target!r} beside --stages, which says it for each stage")
    backbone = parse_backbone(options.backbone)
    if backbone.features != "pooled" or backbone.size:
        raise UsageError(
            f"--backbone: got {options.backbone!r}, expected MODEL, MODEL@random or MODEL@FOLDER; the input's size is "
            "--input-size"
        )
    plans = read_stages(options.stages) if options.stages else ()
    catalog = read_collection(options.data, options.work, options.allow_outside)
    if plans:
        plans = tuple(replace(plan, settings=_settings(options, plan.settings)) for plan in plans)
        about = re.sub(r"\W+", "-", options.stages.rpartition("/")[2].removesuffix(".json"))
    else:
        target = options.target or "generated"
        name = _set(catalog, options.set) if target in SET_TARGETS else "attribution"
        plans, about = (StagePlan(target, name, target, "supervised", settings),), f"{target}-{name}"
    training = ClassifierTraining(
        backbone.model,
        find_stages(plans, catalog),
        options.view,
        options.lungs,
        options.input_size,
        options.augmentation,
        options.copies,
        options.head,
        None if backbone.random else load_weights(backbone.model, options.weights, trained=backbone.trained),
        options.seed,
        mask_weights=_mask(options),
    )
    return options.name or f"{backbone.model}-{about}", training


def _mask(options: argparse.Namespace) -> Weights | None:
    """The weights of the lung mask, where a network makes it and the view asks for it."""
    wanted = EmbedConfig(((options.backbone, options.view),), options.lungs).network_mask
    return load_mask(wanted, options.weights) if wanted else None


def _add_autoencoder(parser: argparse.ArgumentParser) -> None:
    _add_data(parser)


def _prepare_autoencoder(options: argparse.Namespace, settings: Settings) -> tuple[str, Training]:
    catalog = read_collection(options.data, options.work, options.allow_outside)
    name = _set(catalog, options.set)
    generated = catalog.of_set(name).select(role="generated", status="ok")
    columns = [tuple(column.tolist()) for column in (generated.column("uri"), generated.column("sha256"))]
    slices = LabelledSlices(columns[0], (-1,) * len(generated), tuple(generated.groups().tolist()), columns[1])
    training = AutoencoderTraining(slices, options.input_size or SIDE, settings)
    return options.name or f"autoencoder-{name}", training


def _set(catalog: Catalog, name: str | None) -> str:
    """The membership set of that name, or the only one. Raises UsageError where there is none such."""
    sets = catalog.sets()
    if name is None and len(sets) == 1:
        return sets[0]
    if name not in sets:
        raise UsageError(f"--set: got {name!r}, expected one of {sets}")
    return name


Prepared = Callable[[argparse.Namespace, Settings], tuple[str, Training]]
KINDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], Prepared]] = {
    "unet": (_add_unet, _prepare_unet),
    "classifier": (_add_classifier, _prepare_classifier),
    "autoencoder": (_add_autoencoder, _prepare_autoencoder),
}


if __name__ == "__main__":
    run(main)
