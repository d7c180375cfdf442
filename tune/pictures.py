"""Pictures of what a net gets right and wrong, drawn with Pillow: the confusion matrix, and a sheet of its mistakes.

Both take the probabilities [M, classes] of a dataset's evaluation images and return uint8 [H, W, 3].
"""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from model.data import Dataset

FONT_PX, MARGIN_PX = 14, 12
CELL_PX = 52  # of the confusion matrix; counts of up to five digits fit
MATRIX_PX = 1200  # more classes than fit at CELL_PX get smaller cells
SCALE = 3  # an image of 32 pixels is shown with 96
ACROSS, DOWN = 5, 5
NAME_CHARS = 12
INK, PAPER, GREY = (20, 20, 20), (255, 255, 255), (110, 110, 110)
RIGHT, WRONG = (31, 119, 180), (214, 39, 40)  # full colour of a cell on and off the diagonal


def confusion_matrix(probabilities: torch.Tensor, dataset: Dataset) -> np.ndarray:
    """Rows are true classes, columns predicted ones; a cell holds its count, coloured by its share of the row."""
    n = len(dataset.classes)
    labels, predicted = torch.from_numpy(np.array(dataset.eval_labels)), probabilities.argmax(dim=1)
    counts = torch.bincount(labels * n + predicted, minlength=n * n).view(n, n)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    cell = min(CELL_PX, max(2, MATRIX_PX // n))
    font, written = _font(min(FONT_PX, cell)), cell >= 8
    names = [_short(name) for name in dataset.classes] if written else []
    wide = max((int(font.getlength(name)) for name in names), default=0) + MARGIN_PX
    top = 3 * FONT_PX + wide
    right = int(counts.diagonal().sum())
    title = f"{dataset.eval_split}: {right:,} of {len(labels):,} right ({100 * right / len(labels):.2f}%)"
    title += "; rows true, columns predicted"
    width = max(wide + n * cell, int(_font(FONT_PX).getlength(title)) + MARGIN_PX) + MARGIN_PX
    image = Image.new("RGB", (width, top + n * cell + MARGIN_PX), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN_PX, MARGIN_PX), title, INK, _font(FONT_PX))
    for row, column in counts.nonzero().tolist():
        box, share = (wide + column * cell, top + row * cell), float(shares[row, column])
        colour = _tint(RIGHT if row == column else WRONG, share**0.5)  # small shares stay visible
        draw.rectangle((*box, box[0] + cell - 2, box[1] + cell - 2), colour)
        if cell == CELL_PX:
            middle = (box[0] + cell / 2, box[1] + cell / 2)
            draw.text(middle, str(int(counts[row, column])), PAPER if share > 0.4 else INK, font, anchor="mm")
    for index, name in enumerate(names):
        place = index * cell + cell / 2
        draw.text((wide - MARGIN_PX / 2, top + place), name, INK, font, anchor="rm")
        _draw_upright(image, name, font, (int(wide + place), top - MARGIN_PX // 2))
    return np.asarray(image)


def misclassified(probabilities: torch.Tensor, dataset: Dataset) -> np.ndarray:
    """The mistakes of which the net is surest: each image above its true class, the predicted one and its share."""
    surest, predicted = probabilities.max(dim=1)
    wrong = torch.from_numpy(np.array(dataset.eval_labels)) != predicted
    order = torch.where(wrong, surest, -1.0).argsort(descending=True, stable=True)[: int(wrong.sum())].tolist()
    shown = order[: ACROSS * DOWN]
    side, font = 32 * SCALE, _font(FONT_PX)
    wide, high = side + 2 * MARGIN_PX, side + 2 * FONT_PX + 2 * MARGIN_PX
    image = Image.new("RGB", (ACROSS * wide, 3 * FONT_PX + max(1, -(-len(shown) // ACROSS)) * high), PAPER)
    draw = ImageDraw.Draw(image)
    title = f"{dataset.eval_split}: {len(order):,} of {len(wrong):,} wrong"
    title += f"; the {len(shown)} surest, true class above predicted" if order else ""
    draw.text((MARGIN_PX, MARGIN_PX), title, INK, font)
    for place, index in enumerate(shown):
        left, top = MARGIN_PX + place % ACROSS * wide, 3 * FONT_PX + place // ACROSS * high
        pixels = Image.fromarray(dataset.eval_images[index]).resize((side, side), Image.Resampling.NEAREST)
        image.paste(pixels, (left, top))
        true, said = (_short(dataset.classes[int(label)]) for label in (dataset.eval_labels[index], predicted[index]))
        draw.text((left, top + side + 2), true, INK, font)
        draw.text((left, top + side + FONT_PX + 4), f"{said} ({100 * surest[index]:.0f}%)", WRONG, font)
    return np.asarray(image)


def _short(name: str) -> str:
    """A class name that fits: what can't be printed becomes '?', and a long one is cut."""
    text = "".join(c if c.isprintable() else "?" for c in name)
    return text if len(text) <= NAME_CHARS else f"{text[: NAME_CHARS - 1]}…"


def _font(px: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(px)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's own, in every wheel of it
    return font


def _tint(colour: tuple[int, int, int], share: float) -> tuple[int, ...]:
    """White at 0, the colour at 1."""
    return tuple(round(255 + (c - 255) * share) for c in colour)


def _draw_upright(image: Image.Image, text: str, font: ImageFont.FreeTypeFont, foot: tuple[int, int]) -> None:
    """Write upwards; the text's left end stands centred at `foot`."""
    length, height = int(font.getlength(text)) + 1, int(font.size) + 4
    line = Image.new("RGB", (length, height), PAPER)
    ImageDraw.Draw(line).text((0, height / 2), text, INK, font, anchor="lm")
    image.paste(line.rotate(90, expand=True), (foot[0] - height // 2, foot[1] - length))
