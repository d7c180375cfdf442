"""Batched augmentation: pure functions of images and of the choices drawn for them.

The choices of a whole epoch are drawn at once, on the CPU, so that every device trains on the same images.
"""

from dataclasses import dataclass

import torch

from model.config import Config

SIDE_PX = 32
CHANNELS = 3
MAX_OPTIONS = 200  # of one transform in an epoch that deals options to groups (post 8)


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
    """Uniform choices for each of `examples` images: 81 crops at padding 4, 625 squares at side 8.

    By image, each is drawn on its own. By group (post 8), the images are shuffled for each transform and each option
    is dealt to an equal number of them, so that exactly half are mirrored; of more than 200 options a random 200 are
    used in the epoch.
    """

    def one_of(options: int) -> torch.Tensor:
        if config.augment_by == "image":
            return torch.randint(options, (examples,), generator=generator).int()
        kept = torch.randperm(options, generator=generator)[:MAX_OPTIONS]
        group = torch.arange(examples) * len(kept) // examples
        return kept[group][torch.randperm(examples, generator=generator)].int()

    def corner(options: int) -> tuple[torch.Tensor, torch.Tensor]:
        if config.augment_by == "image":
            return one_of(options), one_of(options)
        place = one_of(options * options)  # a place is one option, not two
        return place // options, place % options

    crop_top, crop_left = corner(2 * config.crop_pad_px + 1)
    mirror = one_of(2).bool() if config.flip else torch.zeros(examples, dtype=torch.bool)
    cutout_top, cutout_left = corner(SIDE_PX - config.cutout_px + 1)
    return Choices(crop_top, crop_left, mirror, cutout_top, cutout_left)


def crop_and_flip(images: torch.Tensor, choices: Choices, pad_px: int) -> torch.Tensor:
    """Crop 32x32 out of the reflect-padded image, then mirror: [B, 32, 32, 3] -> [B, 32, 32, 3], any dtype.

    Nothing is padded: the border is reflected in the pixels' indices, and one gather moves whole pixels.
    """
    side = torch.arange(SIDE_PX, dtype=torch.int32, device=images.device)
    rows = _reflect(choices.crop_top[:, None] + side - pad_px)
    cols = _reflect(choices.crop_left[:, None] + torch.where(choices.mirror[:, None], side.flip(0), side) - pad_px)
    return images.reshape(-1, CHANNELS).index_select(0, _pixels(rows, cols)).view(images.shape)


def _pixels(rows: torch.Tensor, cols: torch.Tensor) -> torch.Tensor:
    """Places in a batch [B * 32 * 32] of the pixels at rows [B, h] times cols [B, w] of each image: [B * h * w]."""
    image = torch.arange(len(rows), dtype=torch.int32, device=rows.device)
    return ((image[:, None] * SIDE_PX + rows)[:, :, None] * SIDE_PX + cols[:, None, :]).flatten()


def _reflect(index: torch.Tensor) -> torch.Tensor:
    """Mirror out-of-range indices at the image's border, without repeating the border pixel."""
    last = SIDE_PX - 1
    return last - (last - index.abs()).abs()


def normalise(images: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """uint8 [B, 32, 32, 3] -> float32 [B, 3, 32, 32], a channels-last view; mean and std [3] in 0..255 units."""
    rows = images.reshape(-1, SIDE_PX * CHANNELS)  # long rows vectorise: 6x as fast as over the 3 channels
    return (rows - mean.repeat(SIDE_PX)).div_(std.repeat(SIDE_PX)).view(images.shape).permute(0, 3, 1, 2)


def cutout_(images: torch.Tensor, choices: Choices, side_px: int) -> torch.Tensor:
    """Zero, in place, a square of `side_px` that lies wholly inside the image: [B, 3, 32, 32], channels-last."""
    if side_px:
        square = torch.arange(side_px, device=images.device)
        pixels = _pixels(choices.cutout_top[:, None] + square, choices.cutout_left[:, None] + square)
        images.permute(0, 2, 3, 1).view(-1, CHANNELS).index_fill_(0, pixels.long(), 0.0)
    return images


def augment(
    images: torch.Tensor, choices: Choices, config: Config, mean: torch.Tensor, std: torch.Tensor
) -> torch.Tensor:
    """The training input for uint8 images [B, 32, 32, 3]: crop, flip, normalise, cutout, in the published order."""
    return cutout_(normalise(crop_and_flip(images, choices, config.crop_pad_px), mean, std), choices, config.cutout_px)
