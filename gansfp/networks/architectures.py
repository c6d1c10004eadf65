"""Published networks that timm does not have under these names, as models of timm: `conv5` and `vgg11_1000`.

Importing this file adds them to timm's registry; `from gansfp.networks.architectures import timm` imports timm with
them. Both come from KDE-lab 2023: its own network of five convolution blocks, and VGG11 whose features are the output
of its classifier.
"""

from __future__ import annotations

from typing import Any

import timm as timm  # other files import timm from here
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models.vgg import VGG
from timm.models.vgg import cfgs as vgg_layers
from torch import nn
from torch.nn.functional import dropout

WIDTHS = (
    32,
    64,
    128,
    256,
    512,
)  # of conv5's blocks: the paper gives only the number of blocks, so the widths are a default
HIDDEN = 512  # conv5's fully connected layer, as published
CLASSES = 1000  # of VGG11's own classifier, whose outputs are the features of vgg11_1000

FILES = {"vgg11_1000": "vgg11"}  # model -> the model whose file of weights it uses

default_cfgs = generate_default_cfgs(
    {
        "conv5": {
            "num_classes": 2,
            "input_size": (3, 224, 224),
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "blocks.0.0",
            "classifier": "head",
        },
        "vgg11_1000.tv_in1k": {
            # The number of classes of the added head. The file has no weights of that head, so none are left out.
            "num_classes": 0,
            "hf_hub_id": "timm/vgg11.tv_in1k",
            "input_size": (3, 224, 224),
            "crop_pct": 0.875,
            "interpolation": "bilinear",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "features.0",
            "classifier": "classifier",
            "license": "bsd-3-clause",
        },
    }
)


class Conv5(nn.Module):
    """Five blocks of convolution, batch norm, ReLU and pooling; the mean over positions; 512 numbers; a linear head."""

    def __init__(
        self, num_classes: int = 2, in_chans: int = 3, global_pool: str = "avg", drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.global_pool = global_pool
        self.num_features = self.head_hidden_size = HIDDEN
        channels = (in_chans, *WIDTHS)
        self.blocks = nn.Sequential(*(_block(*channels[i : i + 2]) for i in range(len(WIDTHS))))
        self.feature_info = [
            {"num_chs": width, "reduction": 2 ** (i + 1), "module": f"blocks.{i}"} for i, width in enumerate(WIDTHS)
        ]
        self.fc = nn.Linear(WIDTHS[-1], HIDDEN)
        self.head = _head(num_classes)

    def get_classifier(self) -> nn.Module:
        """Returns the classification layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classification layer by a new one; 0 classes remove it."""
        self.num_classes, self.global_pool = num_classes, global_pool or self.global_pool
        self.head = _head(num_classes).to(self.fc.weight.device)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 3, h, w) -> (n, 512, h / 32, w / 32)."""
        return self.blocks(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """The last feature map -> (n, 512) numbers of the fully connected layer, or the logits of the classes."""
        pooled = x.amax((2, 3)) if self.global_pool == "max" else x.mean((2, 3))
        x = dropout(self.fc(pooled).relu(), self.drop_rate, self.training)
        return x if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 3, h, w) -> (n, classes), or (n, 512) without classes."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Returns the feature maps of some blocks, as timm's models do.

        Unless `intermediates_only`, returns the last feature map and a list of these maps.
        """
        chosen, last = feature_take_indices(len(self.blocks), indices)
        maps = []
        for number, block in enumerate(self.blocks):
            if stop_early and number > last:
                break
            x = block(x)
            if number in chosen:
                maps.append(x)
        return maps if intermediates_only else (x, maps)


class Vgg11Classes(VGG):
    """VGG11 whose features are the 1000 outputs of its own classifier (`head`); `classifier` is a layer after them."""

    def __init__(self, cfg: list[Any], num_classes: int = 0, **options: Any) -> None:
        super().__init__(cfg, num_classes=CLASSES, **options)
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = CLASSES
        self.classifier = _head(num_classes, CLASSES)

    def get_classifier(self) -> nn.Module:
        """Returns the classification layer."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classification layer by a new one; 0 classes remove it."""
        self.num_classes = num_classes
        self.classifier = _head(num_classes, CLASSES).to(self.head.fc.weight.device)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """The last feature map -> (n, 1000) outputs of VGG11's classifier, or the logits of the classes."""
        x = dropout(super().forward_head(x), self.drop_rate, self.training)
        return x if pre_logits else self.classifier(x)


def _block(channels_in: int, channels_out: int) -> nn.Sequential:
    """Returns a block that halves the map. It rounds up, so that small inputs keep at least one position to the end."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2, ceil_mode=True),
    )


def _head(num_classes: int, width: int = HIDDEN) -> nn.Module:
    return nn.Linear(width, num_classes) if num_classes else nn.Identity()


@register_model
def conv5(pretrained: bool = False, **options: Any) -> Conv5:
    """Creates KDE-lab 2023's own network. There are no published weights of it."""
    return build_model_with_cfg(Conv5, "conv5", pretrained, feature_cfg={"flatten_sequential": True}, **options)


@register_model
def vgg11_1000(pretrained: bool = False, **options: Any) -> Vgg11Classes:
    """Creates VGG11 with the outputs of its classifier as features; it uses the weights of timm's `vgg11`."""
    features = {"flatten_sequential": True, "out_indices": options.pop("out_indices", (0, 1, 2, 3, 4, 5))}
    return build_model_with_cfg(
        Vgg11Classes, "vgg11_1000", pretrained, model_cfg=vgg_layers["vgg11"], feature_cfg=features, **options
    )
