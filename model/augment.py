"""Batched augmentation: pure functions of images and of the choices drawn for them.

The choices of a whole epoch are drawn at once, on the CPU, so that every device trains on the same images.
"""

from dataclasses import dataclass

import torch

from model.config import Config

SIDE_PX = 32


@dataclass(frozen=True)
class Choices:
    """What is done to each of N images: crop offsets, mirroring, corner of the cutout square. All [N]."""

    crop_top: torch.Tensor
    crop_left: torch.Tensor
    mirror: torch.Tensor
    cutout_top: torch.Tensor
    cutout_left: torch.Tensor

    def of(self, index: torch.Tensor | slice) -> "Choices":
        return Choices(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def to(self, device: torch.device) -> "Choices":
        return Choices(*(getattr(self, name).to(device, non_blocking=True) for name in self.__dataclass_fields__))


def draw(examples: int, config: Config, generator: torch.Generator) -> Choices:
    """Uniform choices for each of `examples` images: 81 crops at padding 4, 625 squares at side 8."""

    def uniform(options: int) -> torch.Tensor:
        return torch.randint(options, (examples,), generator=generator)

    crops, corners = 2 * config.crop_pad_px + 1, SIDE_PX - config.cutout_px + 1
    return Choices(
        crop_top=uniform(crops),
        crop_left=uniform(crops),
        mirror=uniform(2).bool() if config.flip else torch.zeros(examples, dtype=torch.bool),
        cutout_top=uniform(corners),
        cutout_left=uniform(corners),
    )


def crop_and_flip(images: torch.Tensor, choices: Choices, pad_px: int) -> torch.Tensor:
    """Crop 32x32 out of the reflect-padded image, then mirror: [B, 32, 32, 3] -> [B, 32, 32, 3], any dtype."""
    side = torch.arange(SIDE_PX, device=images.device)
    rows = choices.crop_top[:, None] + side
    cols = choices.crop_left[:, None] + torch.where(choices.mirror[:, None], SIDE_PX - 1 - side, side)
    if pad_px:  # torch pads the two last axes of a float NCHW tensor only, so reflect the indices instead of the pixels
        rows, cols = _reflect(rows - pad_px), _reflect(cols - pad_px)
    batch = torch.arange(len(images), device=images.device)
    return images[batch[:, None, None], rows[:, :, None], cols[:, None, :]]


def _reflect(index: torch.Tensor) -> torch.Tensor:
    """Mirror out-of-range indices at the image's border, without repeating the border pixel."""
    last = SIDE_PX - 1
    return last - (last - index.abs()).abs()


def normalise(images: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """uint8 [B, 32, 32, 3] -> float32 [B, 3, 32, 32], a channels-last view; mean and std [3] in 0..255 units."""
    return ((images - mean) / std).permute(0, 3, 1, 2)


def cutout(images: torch.Tensor, choices: Choices, side_px: int) -> torch.Tensor:
    """Zero a square of `side_px` that lies wholly inside the image: [B, 3, 32, 32] -> the same."""
    if side_px == 0:
        return images
    position = torch.arange(SIDE_PX, device=images.device)
    rows = (position >= choices.cutout_top[:, None]) & (position < choices.cutout_top[:, None] + side_px)
    cols = (position >= choices.cutout_left[:, None]) & (position < choices.cutout_left[:, None] + side_px)
    return images.masked_fill((rows[:, :, None] & cols[:, None, :])[:, None], 0.0)


def augment(
    images: torch.Tensor, choices: Choices, config: Config, mean: torch.Tensor, std: torch.Tensor
) -> torch.Tensor:
    """The training input for uint8 images [B, 32, 32, 3]: crop, flip, normalise, cutout, in the published order."""
    return cutout(normalise(crop_and_flip(images, choices, config.crop_pad_px), mean, std), choices, config.cutout_px)
