"""A 2D U-Net (Ronneberger et al. 2015) that segments lungs in slices: the network and its files.

The encoder comes from timm, the decoder from segmentation-models-pytorch. All weights are trained from scratch, see
gansfp/training/unet.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import segmentation_models_pytorch
import torch
from torch import nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from gansfp.networks.model_files import read_model

ENCODER = "tu-resnet10t"  # timm's ResNet of four blocks; ENCODER_OPTIONS make it narrow
ENCODER_OPTIONS = {"channels": (24, 32, 48, 64), "stem_width": 16}
DECODER = (48, 32, 24, 24, 16)  # channels, from the coarsest level to the finest
WIDTH = 16  # channels at the full size of a slice, before and after the U-Net
FOLD = 2  # a slice becomes 4 channels of 128x128: a quarter of the work, without losing a grey level
ARCHITECTURE = "unet-resnet10t-24-32-48-64-decoder-48-32-24-24-16-width-16-fold-2"
MEAN, STD = 128.0, 64.0  # grey levels


class LungUnet(nn.Module):
    """(n, 256, 256) grey levels, uint8 or floating -> (n, 256, 256) logits of lung."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolutions(FOLD**2)
        self.unet = segmentation_models_pytorch.Unet(
            ENCODER,
            encoder_depth=len(DECODER),
            encoder_weights=None,
            decoder_channels=DECODER,
            in_channels=WIDTH,
            classes=WIDTH,
            **ENCODER_OPTIONS,
        )
        # The decoder of the library does not use the finest level of the encoder, on which outlines depend.
        self.head = nn.Sequential(_convolutions(2 * WIDTH), nn.Conv2d(WIDTH, FOLD**2, 3, padding=1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        fine = self.stem(pixel_unshuffle((pixels[:, None].float() - MEAN) / STD, FOLD))
        return pixel_shuffle(self.head(torch.cat([self.unet(fine), fine], 1)), FOLD)[:, 0]


def _convolutions(channels: int) -> nn.Module:
    """Returns two convolutions, as on each level of a U-Net: from `channels` to WIDTH channels."""
    layers: list[nn.Module] = []
    for inputs in (channels, WIDTH):
        layers += [nn.Conv2d(inputs, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def read_unet(folder: str) -> tuple[Mapping[str, object], dict[str, torch.Tensor]]:
    """Returns the content of a U-Net's model.json, and LungUnet's tensors. Raises WeightsError if one is missing.

    The file holds the weights of the last step and their running average; only the average is returned.
    """
    content, tensors = read_model(folder)
    return content, {
        key.removeprefix("average."): value for key, value in tensors.items() if key.startswith("average.")
    }
