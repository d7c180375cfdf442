"""Lines for a terminal: texts of others made harmless, numbers in words, bars and sparklines, and what fits a width."""

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.text import Text


@dataclass(frozen=True)
class Glyphs:
    pieces: str
    """of a bar, one for each kind"""
    rest: str
    levels: str
    """of a sparkline, from low to high"""


BLOCKS = Glyphs("█▓▒░x", "·", "▁▂▃▄▅▆▇█")
ASCII = Glyphs("#>=-x", ".", "_.-~=+*#")


def inert(text: Any, most: int = 80) -> str:
    """A text of others on one line of at most so many columns. Control characters, line ends and those that turn the
    direction of writing become ?."""
    kept = "".join("?" if unicodedata.category(each)[0] in "CZ" and each != " " else each for each in str(text)[:1000])
    return set_cell_size(kept, most - 1) + "…" if cell_len(kept) > most else kept


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def percent(acc: float) -> str:
    return f"{100 * acc:.2f}%"


def duration(seconds: float) -> str:
    """In two units at most."""
    s = round(min(max(seconds, 0.0), 1e10))
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s" if s < 600 else f"{s // 60} min"
    return f"{s // 3600} h {s % 3600 // 60:02d} min" if s < 86_400 else f"{s // 86_400} d {s % 86_400 // 3600} h"


def bar(width: int, pieces: Sequence[tuple[float, str]], total: float, glyphs: Glyphs) -> Text:
    """(amount, style) of each piece in columns, one at least for what is there; the rest up to `total` stays empty."""
    amounts = [max(amount, 0.0) for amount, _ in pieces]
    total = max(total, sum(amounts)) or 1.0
    ends = [round(width * end / total) for end in accumulate(amounts)]
    text, at = Text(), 0
    for (_, style), amount, end, glyph in zip(pieces, amounts, ends, glyphs.pieces, strict=False):
        columns = min(max(end - at, 1 if amount else 0), width - at)
        text.append(glyph * columns, style)
        at += columns
    return text.append(glyphs.rest * (width - at), "bright_black")


def spark(curve: Sequence[Sequence[float]], until: float, width: int, glyphs: Glyphs) -> Text:
    """A step function from its first step (x, y) to x = `until`; the last column shows the last step."""
    first, low, high = curve[0][0], min(y for _, y in curve), max(y for _, y in curve)
    text = ""
    for column in range(1, width + 1):
        x_end = first + (until - first) * column / width
        ys = [y for x, y in curve if x <= x_end or column == width] or [curve[0][1]]
        level = (ys[-1] - low) / (high - low) if high > low else 0.5
        text += glyphs.levels[math.floor(level * (len(glyphs.levels) - 1) + 0.5)]
    return Text(text, "green")


def fitting(width: int, forms: Sequence[Text]) -> list[Text]:
    """The first of these forms that fits on a line; else the last one, broken between words."""
    for form in forms:
        if form.cell_len <= width:
            return [form]
    return wrapped(forms[-1], width) if forms else []


def wrapped(text: Text, width: int) -> list[Text]:
    return packed(text.split(" "), width, Text(" "))


def packed(items: Iterable[Text], width: int, between: Text) -> list[Text]:
    """As many items to a line as fit; a single one that doesn't is cut."""
    lines: list[Text] = []
    for item in items:
        if lines and lines[-1].cell_len + between.cell_len + item.cell_len <= width:
            lines[-1] = Text.assemble(lines[-1], between, item)
        else:
            item = item.copy()
            item.truncate(width, overflow="ellipsis")
            lines.append(item)
    return lines
