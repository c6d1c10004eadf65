"""The table of backbone kinds: how names such as `resnet50`, `vgg16:flat` or `highpass-w15-32` are read and computed.

Names that a user may write:

    MODEL                   a timm model, pooled features (`num_classes=0`), at the model's own input size
    MODEL:flat              its last feature map, flattened (vgg16 at 224 pixels: 25,088 numbers)
    MODEL:map, MODEL:mapL   the feature map at level L of the model (0 is the finest; default 2): the mean of each
                            channel is subtracted, the map is flattened and scaled to norm 1. Pooled features lose the
                            positions of structures; feature maps keep them.
    MODEL:sketch, :sketchL  the same map in at most 4,093 numbers, by a random projection that is the same each time and
                            keeps the distances between maps; scaled to norm 1
    ...:SIZE                at another input size in pixels: the whole slice is resized to it, without a centre crop
    ...@random              with random weights
    ...@FOLDER              with the weights of a classifier that was trained here, at the input size of its training
                            unless the name gives another size
    highpass, highpass-wW-SIDE   without weights: slice minus its W-pixel mean (default 31; 0: the slice itself),
                            area-resized to SIDE x SIDE (default 64)
    residual                without weights: statistics of the high-pass residual, for attribution
    measures                without weights: plain measurements, such as noise and brightness; for the blind control
    lbp, lbp-mean           without weights: histogram (or mean) of uniform local binary patterns

A new kind of backbones is a new entry of KINDS; nothing else depends on the kinds that there are. The functions below
import timm and PyTorch only when they are called: timm takes two seconds in every process. They import timm by way of
gansfp.networks.architectures, which adds models to it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gansfp.embedding.backbone import Backbone, CpuKind, DeviceKind, DeviceNetwork, Kind, NetworkKind
from gansfp.embedding.lbp import lbp_features
from gansfp.errors import UsageError
from gansfp.images.slices import SIDE
from gansfp.images.views import View, get_view

if TYPE_CHECKING:
    from torch import Tensor

    from gansfp.networks.weights import Weights

DEFAULT_LEVEL = 2  # of a feature map


@lru_cache(maxsize=1024)
def parse_backbone(name: str) -> Backbone:
    """Returns the backbone of a name. Raises UsageError for a name that has none of the forms above."""
    kind = _kind_of(name)
    match = kind.pattern.fullmatch(name) if kind else None
    if kind is None or match is None:
        raise _unknown(name)
    return kind.read(kind, match)


def is_on_cpu(name: str) -> bool:
    """True for the name of a backbone that CPUs compute. Unlike parse_backbone, this never imports timm."""
    return isinstance(_kind_of(name), CpuKind)


def cpu_features(
    pairs: Sequence[tuple[str, str]], pixels: NDArray[np.uint8], mask: NDArray[np.bool_]
) -> dict[tuple[str, str], NDArray[np.float32]]:
    """Computes the pairs whose backbones run on CPUs, for one slice: {(backbone, view): (d,) float32}.

    Leaves out the other pairs. pixels: (256, 256) uint8; mask: (256, 256) bool, the lungs of the slice. Raises
    UsageError for an unknown view.
    """
    features: dict[tuple[str, str], NDArray[np.float32]] = {}
    for kind in (kind for kind in KINDS if isinstance(kind, CpuKind)):
        of_kind = [pair for pair in pairs if _kind_of(pair[0]) is kind]
        if of_kind:
            members = [(parse_backbone(backbone), get_view(view)) for backbone, view in of_kind]
            features |= dict(zip(of_kind, kind.compute(members, pixels, mask), strict=True))
    return features


def _kind_of(name: str) -> Kind | None:
    return next((kind for kind in KINDS if kind.pattern.fullmatch(name)), None)


def _unknown(name: str) -> UsageError:
    """The error for a name of no kind: it lists the forms that names can have, and timm models with similar names."""
    *forms, last = [form for kind in reversed(KINDS) for form in kind.forms]
    return UsageError(f"backbone: got {name!r}, expected {', '.join(forms)} or {last}{_similar_models(name)}")


def _similar_models(name: str) -> str:
    from gansfp.networks.architectures import timm

    start = re.split("[.:@]", name)[0]
    if not re.fullmatch("[A-Za-z0-9_]{3,}", start):
        return ""
    models = (timm.list_models(f"{start}*") or timm.list_models(f"*{start[:8]}*"))[:3]
    return f" (similar timm models: {', '.join(models)})" if models else ""


def _read_timm(kind: Kind, match: re.Match[str]) -> Backbone:
    name, size = match[0], int(match["size"] or 0)
    if not _timm_has(match["model"]):
        raise _unknown(name)
    if match["size"] and not 16 <= size <= 1024:
        raise UsageError(f"backbone {name!r}: got input size {size}, expected 16 to 1024 pixels")
    features = (match["features"] or "pooled").rstrip("0123456789")
    of_map, random = features in ("map", "sketch"), match["source"] == "random"
    return Backbone(
        name,
        kind,
        match["model"],
        features,
        level=int(match["level"] or DEFAULT_LEVEL) if of_map else 0,
        size=size,
        random=random,
        trained="" if random else match["source"] or "",
        unit_norm=of_map,
    )


def _timm_has(model: str) -> bool:
    """True for a model that timm has, and under its tag where the name has one (`resnet50.a1_in1k`)."""
    from gansfp.networks.architectures import timm

    base, _, tag = model.partition(".")
    return timm.is_model(base) and (not tag or model in timm.list_pretrained(f"{base}.*"))


def _load_timm(backbone: Backbone, folder: str | None) -> Weights:
    from gansfp.networks.weights import load_weights

    return load_weights(backbone.model, folder, backbone.random, backbone.trained)


def _check_timm(backbone: Backbone, weights: Weights) -> None:
    from gansfp.embedding.timm_network import check_runs

    check_runs(backbone, weights)


def _create_timm(backbone: Backbone, weights: Weights, device: str, precision: str) -> DeviceNetwork:
    from gansfp.embedding.timm_network import TimmNetwork

    return TimmNetwork(backbone, weights, device, precision)


def _read_highpass(kind: Kind, match: re.Match[str]) -> Backbone:
    name, window, side = match[0], int(match["window"] or 31), int(match["side"] or 64)
    if window and (window % 2 == 0 or not 3 <= window < SIDE):
        raise UsageError(f"backbone {name!r}: got window {window}, expected 0 or an odd number, 3 to {SIDE - 1}")
    if not 2 <= side <= SIDE:
        raise UsageError(f"backbone {name!r}: got side {side}, expected 2 to {SIDE}")
    return Backbone(name, kind, size=side, window=window, unit_norm=True)


def _read_plain(kind: Kind, match: re.Match[str]) -> Backbone:
    return Backbone(match[0], kind)


def _highpass(members: Sequence[tuple[Backbone, View]], pixels: Tensor, masks: Tensor) -> list[Tensor]:
    from gansfp.embedding.weight_free import highpass

    return highpass([(backbone.window, backbone.size, view) for backbone, view in members], pixels, masks)


def _residual(members: Sequence[tuple[Backbone, View]], pixels: Tensor, masks: Tensor) -> list[Tensor]:
    from gansfp.embedding.weight_free import residual

    return residual([view for _, view in members], pixels, masks)


def _measures(members: Sequence[tuple[Backbone, View]], pixels: Tensor, masks: Tensor) -> list[Tensor]:
    from gansfp.embedding.measures import measures

    del masks  # of the whole slice, whatever the view
    return [measures(pixels)] * len(members)


def _read_lbp(kind: Kind, match: re.Match[str]) -> Backbone:
    return Backbone(match[0], kind, features=match["output"] or "histogram")


def _lbp(
    members: Sequence[tuple[Backbone, View]], pixels: NDArray[np.uint8], mask: NDArray[np.bool_]
) -> list[NDArray[np.float32]]:
    return lbp_features([(backbone.features, view) for backbone, view in members], pixels, mask)


# A name belongs to the first kind whose pattern matches it. timm's comes last, because its pattern matches any word.
KINDS: tuple[Kind, ...] = (
    DeviceKind(
        "highpass",
        ("highpass", "highpass-wW-SIDE"),
        re.compile(r"highpass(?:-w(?P<window>\d+))?(?:-(?P<side>\d+))?"),
        _read_highpass,
        compute=_highpass,
    ),
    DeviceKind(
        "residual",
        ("residual",),
        re.compile("residual"),
        _read_plain,
        compute=_residual,
    ),
    DeviceKind(
        "measures",
        ("measures",),
        re.compile("measures"),
        _read_plain,
        compute=_measures,
    ),
    CpuKind("lbp", ("lbp", "lbp-mean"), re.compile("lbp(?:-(?P<output>mean))?"), _read_lbp, compute=_lbp),
    NetworkKind(
        "timm",
        ("a timm model", "MODEL@FOLDER"),
        re.compile(
            r"(?P<model>[A-Za-z0-9_.]+)(?::(?P<features>flat|(?:map|sketch)(?P<level>\d+)?))?(?::(?P<size>\d+))?(?:@(?P<source>.+))?"
        ),
        _read_timm,
        load_weights=_load_timm,
        check=_check_timm,
        create=_create_timm,
    ),
)
