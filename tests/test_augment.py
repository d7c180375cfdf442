import torch
from torch.nn.functional import pad

from model.augment import Choices, augment, crop_and_flip, cutout, draw, normalise
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


def test_cutout_zeroes_exactly_its_square_in_all_channels() -> None:
    images = torch.ones(2, 3, 32, 32)
    cut = cutout(images, choices(2, cutout_top=[0, 24], cutout_left=[5, 24]), side_px=8)
    for image, (top, left) in zip(cut, [(0, 5), (24, 24)], strict=True):
        assert image[:, top : top + 8, left : left + 8].eq(0).all()
        assert image.eq(0).sum() == 3 * 64
    assert images.eq(1).all()


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
