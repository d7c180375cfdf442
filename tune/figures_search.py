"""Figures of how the search went: its best so far, its rungs, its slots, its learning curves. See `tune.figures`."""

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from tune.drawing import (
    BAND,
    BASE,
    BEST,
    FULL,
    LOST,
    PART,
    RUN_COLOURS,
    STATE_COLOURS,
    Picture,
    canvas,
    label,
    name_of,
    single,
    some,
    thinned,
)
from tune.gp import Array
from tune.insights import FEWEST, agreements, clock, legs, random_order, rung_counts
from tune.report_data import RunData

MOST_CURVES, MOST_LEGS = 300, 2000


def history(runs: Sequence[RunData], by: str) -> Picture:
    """The best so far against epochs trained ("epochs") or hours of searching ("time"); several runs together."""
    titles = {"epochs": "Best so far, by epochs trained", "time": "Best so far, by time"}
    lowest: list[float] = []  # without the first few results, which may be very low
    highest: list[float] = []
    figure, n = canvas("epochs trained, all trials", "best val accuracy so far, %"), 0
    scale, unit = _unit(max((at for data in runs for at, _ in _finals(data, by)), default=0.0))
    if by == "time":
        figure.update_xaxes(title_text=f"{unit} of searching")
    for index, data in enumerate(runs):
        points = _finals(data, by)
        if not points:
            continue
        colour = RUN_COLOURS[index % len(RUN_COLOURS)] if len(runs) > 1 else FULL
        n += len(points)
        xs = np.array([at for at, _ in points]) * (scale if by == "time" else 1.0)
        accs = np.array([100 * acc for _, acc in points])
        best = np.maximum.accumulate(accs)
        kept, settled = _thin_steps(best), min(len(best) - 1, 1 + len(best) // 20)
        lowest.append(best[settled])
        highest.append(best[-1])
        if len(runs) == 1 and len(points) > 1:
            lowest.append(_add_random(figure, xs, accs)[settled])
        figure.add_scatter(
            x=single(xs[kept]),
            y=single(best[kept]),
            mode="lines",
            line={"color": colour, "width": 2.5, "shape": "hv"},
            name=label(data.run.name) if len(runs) > 1 else "this search",
            hovertemplate="%{y:.2f}%<extra></extra>",
        )
    name = f"history-{by}"
    if not n:
        return Picture(name, titles[by], "No trial ran to full length with its times on record.")
    room = 0.08 * (max(highest) - min(lowest)) or 0.5
    figure.update_yaxes(range=[min(lowest) - room, max(highest) + room])
    if by == "time":
        figure.update_xaxes(rangemode="tozero")
    chance = (
        " The grey line is the mean, the band 90%, of 400 random orders of the same results, each arriving when one of "
        "these did: above the band, good configs were found early for more than luck."
    )
    how = f"Each step is a new best among {n:,} full-length trials, one seed each, on held-out training images."
    return Picture(name, titles[by], how + (chance if len(runs) == 1 and n > 1 else ""), figure)


def _unit(hours: float) -> tuple[float, str]:
    """What to multiply hours by, and what that is, so that a span of so many has a readable axis."""
    return (1.0, "hours") if hours >= 3 else (60.0, "minutes") if hours >= 0.05 else (3600.0, "seconds")


def _finals(data: RunData, by: str) -> list[tuple[float, float]]:
    """(where, accuracy) of each full-length trial, in the order in which they ended."""
    full = sorted((t for t in data.full if t.ended_s), key=lambda t: t.ended_s[-1])
    if by == "time":
        hours = clock(data)
        return [(hours(t.ended_s[-1]), t.accs[-1]) for t in full]
    ends = np.sort([at for t in data.trials for at in t.ended_s])
    return [(float(np.searchsorted(ends, t.ended_s[-1], side="right")), t.accs[-1]) for t in full]


def _thin_steps(best: Array) -> list[int]:
    """Where the best so far changes, and the ends."""
    return [i for i in range(len(best)) if i in (0, len(best) - 1) or best[i] > best[i - 1]]


def _add_random(figure: go.Figure, xs: Array, accs: Array) -> Array:
    """Draw what random orders would have reached; returns the lower edge of the band."""
    mean, low, high = random_order(accs.tolist())
    kept = np.unique(np.geomspace(1, len(xs), min(len(xs), 300)).round().astype(int)) - 1
    for values, fill in [(high, None), (low, "tonexty")]:
        figure.add_scatter(
            x=single(xs[kept]),
            y=single(values[kept]),
            mode="lines",
            line={"width": 0, "shape": "hv"},
            fill=fill,
            fillcolor=BAND,
            showlegend=False,
            hoverinfo="skip",
        )
    figure.add_scatter(
        x=single(xs[kept]),
        y=single(mean[kept]),
        mode="lines",
        line={"color": PART, "width": 1.5, "dash": "dot", "shape": "hv"},
        name="random order",
        hovertemplate="%{y:.2f}%<extra>random order</extra>",
    )
    return low


def rungs(data: RunData) -> Picture:
    """Who went on at each rung and who was stopped."""
    title, counts = "What became of the trials at each rung", rung_counts(data)
    if not counts or not any(count.reached for count in counts):
        return Picture("rungs", title, "The search has no rung (scheduler none), or none has been reached.")
    figure = canvas("trials", "", height=120 + 40 * len(counts), barmode="stack", showlegend=True)
    names = [f"epoch {count.epoch}" for count in counts][::-1]
    parts = [("went on", FULL, "went_on"), ("stopped", PART, "stopped"), ("waiting", BASE, "waiting")]
    for called, colour, key in [*parts, ("diverged later", LOST, "failed")]:
        values = [getattr(count, key) for count in counts][::-1]
        if any(values):
            figure.add_bar(
                x=values, y=names, orientation="h", name=called, marker={"color": colour}, width=0.55,
                hovertemplate=f"%{{x}} {called}<extra></extra>",
            )  # fmt: skip
    figure.update_yaxes(type="category", showgrid=False)
    return Picture(
        "rungs",
        title,
        "A bar counts the trials that reached that rung, by what became of them before the next one; the base does not "
        "pause.",
        figure,
    )


def agreement(data: RunData) -> Picture:
    """Rank correlation of early and final accuracies."""
    title, found = "Do early ranks agree with the end?", agreements(data)
    if not found:
        return Picture(
            "agreement",
            title,
            f"{len(data.full)} full-length trials are too few to tell: it takes {FEWEST}, and more than one epoch.",
        )
    figure = canvas("epoch (of the base's training)", "rank correlation with the end")
    xs = [each.epoch for each in found]
    for key, fill in [("high", None), ("low", "tonexty")]:
        figure.add_scatter(
            x=xs, y=single([getattr(each, key) for each in found]), mode="lines", line={"width": 0}, fill=fill,
            fillcolor=BAND, showlegend=False, hoverinfo="skip",
        )  # fmt: skip
    figure.add_scatter(
        x=xs, y=single([each.rho for each in found]), mode="lines", line={"color": FULL, "width": 2},
        name="Spearman's rho", hovertemplate="epoch %{x}: %{y:.2f}<extra></extra>",
    )  # fmt: skip
    at = [each for each in found if each.is_rung]
    if at:
        figure.add_scatter(
            x=[each.epoch for each in at], y=single([each.rho for each in at]), mode="markers", name="rungs",
            marker={"size": 11, "color": BASE, "symbol": "diamond"}, hovertemplate="rung: %{y:.2f}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(dtick=max(1, round(data.run.space.base.epochs / 10)))
    figure.update_yaxes(range=[min(-0.1, min(each.low for each in found)) - 0.05, 1.05])
    stops = " Trials that were stopped are not among them, so that the true agreement is rather higher." if at else ""
    return Picture(
        "agreement",
        title,
        f"At 1 the ranking after that epoch is the final one, at 0 it says nothing about it; {found[0].n} full-length "
        f"trials, the band is a 95% bootstrap interval.{stops}",
        figure,
    )


def timeline(data: RunData) -> Picture:
    """What each slot did when."""
    title, (found, slots) = "Timeline of the slots", legs(data)
    if not found:
        return Picture("timeline", title, "No epoch with its times is on record.")
    span = max(leg.ended_h for leg in found) or 1.0
    scale, unit = _unit(span)
    figure = canvas(f"{unit} of searching", "", height=110 + 26 * min(len(slots), 24))
    for state, colour in STATE_COLOURS.items():
        xs: list[float] = []
        ys: list[float] = []
        for leg in found:
            if leg.state != state:
                continue
            close = bool(xs) and ys[-2] == leg.slot and scale * leg.began_h - xs[-2] < scale * span / 1000
            if close and len(found) > MOST_LEGS:
                xs[-2] = scale * leg.ended_h
            else:
                xs += [scale * leg.began_h, scale * leg.ended_h, math.nan]
                ys += [leg.slot, leg.slot, math.nan]
        if xs:
            figure.add_scatter(
                x=single(xs), y=single(ys), mode="lines", line={"color": colour, "width": 12}, name=state,
                hoverinfo="skip",
            )  # fmt: skip
    step = max(1, len(slots) // 24)
    figure.update_yaxes(
        tickvals=list(range(0, len(slots), step)),
        ticktext=[label(name, 24) for name in slots[::step]],
        range=[len(slots) - 0.4, -0.6],
        showgrid=False,
    )
    busy = sum(leg.ended_h - leg.began_h for leg in found) / (len(slots) * span)
    merged = " Legs that lie close together are drawn as one." if len(found) > MOST_LEGS else ""
    return Picture(
        "timeline",
        title,
        f"A bar is a stretch of training by the outcome of its trial, a gap an idle slot; slots trained "
        f"{100 * busy:.0f}% of the time. Pauses of the whole search are cut out.{merged}",
        figure,
    )


def curves(data: RunData) -> Picture:
    """Learning curves, best and base in front."""
    title, having = "Learning curves", [t for t in data.trials if t.accs]
    if not having:
        return Picture("curves", title, "No epoch is on record yet.")
    figure, shown, best = canvas("epoch", "val accuracy, %", height=380), some(having, MOST_CURVES), data.best()
    front_numbers = {0, best.number if best else 0}
    for state, colour in STATE_COLOURS.items():
        xs: list[float] = []
        ys: list[float] = []
        for trial in shown:
            if trial.state == state and trial.number not in front_numbers:
                xs += [*range(1, len(trial.accs) + 1), math.nan]
                ys += [*(100 * acc for acc in trial.accs), math.nan]
        if xs:
            figure.add_scatter(
                x=single(xs), y=single(ys), mode="lines", line={"color": colour, "width": 1}, opacity=0.45,
                name=state, hoverinfo="skip",
            )  # fmt: skip
    for front_trial, colour, called in [(data.base, BASE, "base"), (best, BEST, "best")]:
        if front_trial and front_trial.accs and not (called == "best" and front_trial.number == 0):
            figure.add_scatter(
                x=list(range(1, len(front_trial.accs) + 1)), y=single([100 * acc for acc in front_trial.accs]),
                mode="lines+markers", line={"color": colour, "width": 2.5}, marker={"size": 5},
                name=called if called == "base" else f"best ({name_of(front_trial.number)})",
                hovertemplate=f"{called}, epoch %{{x}}: %{{y:.2f}}%<extra></extra>",
            )  # fmt: skip
    return Picture(
        "curves",
        title,
        f"Val accuracy after each epoch, one seed, a line for each trial, coloured by what became of it."
        f"{thinned(len(shown), len(having), 'trials')}",
        figure,
    )
