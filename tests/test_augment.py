from dataclasses import fields, replace

import pytest
import torch
from torch.nn.functional import pad

from model.augment import Choices, augment, crop_and_flip, cutout_, draw, normalise
from model.config import Config


def choices(n: int, **given: list[int]) -> Choices:
    values = {name: torch.tensor(given.get(name, [0] * n)) for name in Choices.__dataclass_fields__}
    values["mirror"] = values["mirror"].bool()
    return Choices(**values)


def test_crops_are_the_81_windows_of_the_reflect_padded_image() -> None:
    image = torch.randint(256, (32, 32, 3), dtype=torch.uint8)
    padded = pad(image.permute(2, 0, 1).float(), (4, 4, 4, 4), mode="reflect").permute(1, 2, 0).to(torch.uint8)
    offsets = [(top, left) for top in range(9) for left in range(9)]
    tops, lefts = [top for top, _ in offsets], [left for _, left in offsets]
    crops = crop_and_flip(image.expand(81, -1, -1, -1), choices(81, crop_top=tops, crop_left=lefts), pad_px=4)
    for crop, (top, left) in zip(crops, offsets, strict=True):
        assert torch.equal(crop, padded[top : top + 32, left : left + 32])
    assert len({tuple(crop.flatten().tolist()) for crop in crops}) == 81


def test_the_middle_crop_is_the_image_and_a_flip_mirrors_it() -> None:
    image = torch.randint(256, (1, 32, 32, 3), dtype=torch.uint8)
    assert torch.equal(crop_and_flip(image, choices(1, crop_top=[4], crop_left=[4]), pad_px=4), image)
    mirrored = crop_and_flip(image, choices(1, crop_top=[4], crop_left=[4], mirror=[1]), pad_px=4)
    assert torch.equal(mirrored, image.flip(2))


def test_cutout_zeroes_exactly_its_square_in_all_channels_and_in_place() -> None:
    images = torch.ones(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    cut = cutout_(images, choices(2, cutout_top=[0, 24], cutout_left=[5, 24]), side_px=8)
    assert cut is images
    for image, (top, left) in zip(cut, [(0, 5), (24, 24)], strict=True):
        assert image[:, top : top + 8, left : left + 8].eq(0).all()
        assert image.eq(0).sum() == 3 * 64


def test_cutout_is_zero_after_normalisation_and_wholly_inside() -> None:
    """White images: whatever is zero was cut, and each image has one whole 8x8 square of it."""
    config = Config(cutout_px=8)
    images = torch.full((500, 32, 32, 3), 255, dtype=torch.uint8)
    drawn = draw(500, config, torch.Generator().manual_seed(0))
    inputs = augment(images, drawn, config, torch.tensor([125.0, 123.0, 114.0]), torch.tensor([63.0, 62.0, 67.0]))
    assert inputs.eq(0).sum(dim=(1, 2, 3)).eq(3 * 64).all()
    torch.testing.assert_close(inputs[:, 0].amax(dim=(1, 2)), torch.full((500,), (255 - 125) / 63))


def test_draws_cover_all_options_evenly() -> None:
    drawn = draw(100_000, Config(), torch.Generator().manual_seed(0))
    crops = torch.bincount(drawn.crop_top * 9 + drawn.crop_left)
    corners = torch.bincount(drawn.cutout_top * 25 + drawn.cutout_left)
    assert len(crops) == 81 and len(corners) == 625
    assert crops.min() > 1000 and crops.max() < 1500
    assert corners.min() > 100
    assert 0.49 < drawn.mirror.float().mean() < 0.51


def test_identity_values_leave_only_the_normalisation() -> None:
    config = Config(crop_pad_px=0, flip=False, cutout_px=0)
    images = torch.randint(256, (4, 32, 32, 3), dtype=torch.uint8)
    mean, std = torch.tensor([125.0, 123.0, 114.0]), torch.tensor([63.0, 62.0, 67.0])
    drawn = draw(4, config, torch.Generator().manual_seed(0))
    assert torch.equal(augment(images, drawn, config, mean, std), normalise(images, mean, std))
    expected = (images.permute(0, 3, 1, 2).float() - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(normalise(images, mean, std), expected)


# --- options dealt to groups


def test_by_group_exactly_half_of_the_images_are_mirrored_and_all_crops_are_used_equally_often() -> None:
    drawn = draw(1000, Config(augment_by="group"), torch.Generator().manual_seed(0))
    assert drawn.mirror.sum() == 500
    crops = torch.bincount(drawn.crop_top * 9 + drawn.crop_left, minlength=81)
    assert len(crops) == 81
    assert set(crops.tolist()) == {12, 13}  # 1000 / 81 = 12.3


def test_by_group_an_epoch_has_200_cutout_places_in_equal_shares_and_the_next_epoch_has_others() -> None:
    config = Config(augment_by="group", cutout_px=8)
    generator = torch.Generator().manual_seed(0)
    places = []
    for _ in range(2):
        drawn = draw(1000, config, generator)
        assert max(drawn.cutout_top.max(), drawn.cutout_left.max()) <= 24
        counts = torch.bincount(drawn.cutout_top * 25 + drawn.cutout_left, minlength=625)
        assert sorted(counts.unique().tolist()) == [0, 5]
        assert counts.count_nonzero() == 200
        places.append(set(counts.nonzero().flatten().tolist()))
    # 200 of 625 drawn twice share 64 on average
    assert 30 < len(places[0] & places[1]) < 100


def test_by_group_few_images_still_get_half_and_half_and_different_options() -> None:
    drawn = draw(20, Config(augment_by="group"), torch.Generator().manual_seed(0))
    assert drawn.mirror.sum() == 10
    assert len((drawn.crop_top * 9 + drawn.crop_left).unique()) == 20
    assert len((drawn.cutout_top * 25 + drawn.cutout_left).unique()) == 20


def test_by_group_the_three_transforms_are_shuffled_apart() -> None:
    """If they shared an order, images with one crop would all be mirrored or none."""
    drawn = draw(8100, Config(augment_by="group"), torch.Generator().manual_seed(0))
    crop = drawn.crop_top * 9 + drawn.crop_left
    mirrored = torch.bincount(crop[drawn.mirror], minlength=81)
    assert mirrored.min() > 25 and mirrored.max() < 75
    halves = drawn.mirror[:4050].sum()
    assert 1900 < halves < 2150


def test_by_image_half_are_mirrored_only_on_average_and_all_places_occur() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = [int(draw(1000, Config(), generator).mirror.sum()) for _ in range(5)]
    assert set(counts) != {500}
    drawn = draw(20_000, Config(), generator)
    assert len((drawn.cutout_top * 25 + drawn.cutout_left).unique()) == 625


@pytest.mark.parametrize("augment_by", ["image", "group"])
def test_the_same_generator_draws_the_same_choices_and_identity_values_draw_none(augment_by: str) -> None:
    config = Config(augment_by=augment_by)
    first, again = (draw(50, config, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(getattr(first, f.name), getattr(again, f.name)) for f in fields(Choices))
    off = replace(config, crop_pad_px=0, flip=False, cutout_px=0)
    drawn = draw(50, off, torch.Generator().manual_seed(3))
    assert not drawn.crop_top.any() and not drawn.crop_left.any() and not drawn.mirror.any()
