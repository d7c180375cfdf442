"""What the figures of a report share: their look, and how texts and numbers get into them.

Colours and their meaning are the same everywhere. Text and lines of the frame take the page's colours, see report.css.
Plotly reads texts as a small HTML: everything that a user may have named goes through `label`.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from tune.lines import inert
from tune.report_data import DONE, FAILED, RUNNING, STOPPED, Seen

INK, GRID = "#33373d", "#e3e5e8"
FULL, BEST, BASE, LOST, PART, BAND = "#3b7dbd", "#168a5f", "#c2690f", "#c8475a", "#8d939b", "rgba(120,130,145,0.22)"
STATE_COLOURS = {DONE: FULL, STOPPED: PART, FAILED: LOST, RUNNING: BASE}
RUN_COLOURS = (FULL, BASE, BEST, LOST, "#8a63b8", "#6f7a2a", "#2b8f9b", PART)
LEGEND = {
    "orientation": "h",
    "y": 1.0,
    "yanchor": "bottom",
    "x": 0,
    "bgcolor": "rgba(0,0,0,0)",
    "itemsizing": "constant",
}
AXIS = {
    **{"gridcolor": GRID, "linecolor": GRID, "zeroline": False, "automargin": True, "ticks": "", "showline": False},
    **{"title": {"standoff": 8, "font": {"size": 13}}},
}


@dataclass(frozen=True)
class Picture:
    """A figure, or why there is none."""

    name: str
    """of its file, too"""
    title: str
    caption: str
    """how to read it, with n"""
    figure: go.Figure | None = None


def label(text: Any, most: int = 28) -> str:
    """A text of others for plotly: short, on one line, and no markup."""
    return html.escape(inert(text, most), quote=False)


def name_of(number: int) -> str:
    return "base" if number == 0 else f"trial {number}"


def canvas(x: str, y: str, height: int = 340, **layout: Any) -> go.Figure:
    """An empty figure, with the titles of its axes and its height in pixels."""
    return go.Figure(
        layout={
            "template": {"layout": {"xaxis": AXIS, "yaxis": AXIS}},
            "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
            **{"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "height": height},
            **{"margin": {"l": 8, "r": 16, "t": 34, "b": 8}, "legend": LEGEND, "hovermode": "closest"},
            **{"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}},
            **layout,
        }
    )


def single(values: Sequence[float] | NDArray[Any]) -> NDArray[np.float32]:
    """Half the size in the page, and exact enough to draw."""
    return np.asarray(values, dtype=np.float32)


def some(trials: Sequence[Seen], most: int) -> list[Seen]:
    """At most so many, evenly over the run; the best ten and the base stay."""
    if len(trials) <= most:
        return list(trials)
    best = sorted((t for t in trials if t.is_full), key=lambda t: -t.accs[-1])[:10]
    kept = {t.number for t in best} | {0}
    kept |= {trials[round(i)].number for i in np.linspace(0, len(trials) - 1, most - len(kept))}
    return [t for t in trials if t.number in kept]


def thinned(shown: int, of: int, what: str) -> str:
    return f" {shown:,} of {of:,} {what} are drawn." if shown < of else ""


def between(share: float) -> str:
    """A colour from that of the least trained (0) to that of full length (1)."""
    low, high = (0xB5, 0xBA, 0xC2), (0x3B, 0x7D, 0xBD)
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(low, high, strict=True))
