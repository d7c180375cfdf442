"""Figures of the parameters: what mattered, and how accuracy responds to each. See `tune.figures`."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from search_spaces.space import Choice, Domain, IntUniform, LogUniform
from tune.drawing import BASE, BEST, FULL, PART, Picture, between, canvas, label, single, some, thinned
from tune.gp import Array
from tune.insights import FEWEST, bucket_edges, importances
from tune.report_data import DONE, RunData, Seen

MOST_POINTS, MOST_TICKS, MOST_LABELS = 800, 200, 7


def importance(data: RunData) -> Picture:
    """What mattered, with its spread."""
    title, (found, n) = "What mattered", importances(data)
    if not found:
        return Picture(
            "importance",
            title,
            f"{n} full-length trials are too few to tell (it takes {FEWEST}), or their parameters don't vary.",
        )
    found = found[::-1]
    figure = canvas("importance, %", "", height=90 + 30 * len(found), margin={"l": 8, "r": 16, "t": 10, "b": 8})
    shares = np.array([100 * each.share for each in found])
    figure.add_scatter(
        x=single(shares),
        y=list(range(len(found))),
        mode="markers",
        marker={"size": 10, "color": FULL},
        error_x={
            **{"type": "data", "symmetric": False, "thickness": 2, "width": 5, "color": FULL},
            "array": single([max(0.0, 100 * each.high - share) for each, share in zip(found, shares, strict=True)]),
            "arrayminus": single([max(0.0, share - 100 * each.low) for each, share in zip(found, shares, strict=True)]),
        },
        hovertemplate="%{x:.0f}%<extra></extra>",
    )
    names = [label(each.name) for each in found]
    figure.update_yaxes(
        tickvals=list(range(len(found))), ticktext=names, range=[-0.6, len(found) - 0.4], showgrid=False
    )
    figure.update_xaxes(rangemode="tozero")
    total, rated = len(data.full), {each.name for each in found}
    unrated = [name for name in data.run.space.domains if name not in rated]
    left_out = f" Not in all of these trials or always the same, so not rated: {', '.join(unrated)}." if unrated else ""
    return Picture(
        "importance",
        title,
        f"The further right, the more the best quarter of the trials agree on that parameter (PED-ANOVA over {n} "
        f"{f'of {total:,} ' if n < total else ''}full-length trials, val accuracy of one seed each); bars hold 90% of "
        f"bootstrap resamples of these trials. Where bars overlap, the order is not known.{left_out}",
        figure,
    )


def response(data: RunData, name: str) -> Picture:
    """Accuracy against one parameter."""
    domain, units = data.run.space.domains[name], data.run.space.base.epochs
    having = [t for t in data.trials if name in t.params and t.accs]
    full = [t for t in having if t.is_full]
    title = name
    if not full:
        return Picture(f"response-{name}", title, "No full-length trial has this parameter yet.")
    figure = canvas(label(name), "val accuracy, %", height=280, showlegend=False)
    shown = some(having, MOST_POINTS)
    stages: dict[tuple[int, str], list[Seen]] = {}
    for trial in shown:
        rung = sum(len(trial.accs) >= pause for pause in trial.pauses)
        stages.setdefault((len(trial.pauses) + 1, DONE) if trial.is_full else (rung, "part"), []).append(trial)
    last = len(data.rungs) + 1
    for (rung, kind), trials in sorted(stages.items()):
        is_full = kind == DONE
        reached = (
            f"full length ({units})" if is_full else f"to epoch {([0, *data.rungs])[rung]}" if rung else "before a rung"
        )
        figure.add_scatter(
            x=single([_place(domain, t.params[name], t.number) for t in trials]),
            y=single([100 * t.accs[-1] for t in trials]),
            customdata=np.array([t.number for t in trials], dtype=np.int32),
            mode="markers",
            marker={
                **{"size": 7 if is_full else 5, "color": FULL if is_full else between(rung / last)},
                **{"opacity": 0.75 if is_full else 0.6, "line": {"width": 0}},
            },
            name=reached,
            hovertemplate="trial %{customdata}: %{y:.2f}%<extra></extra>",
        )
    places = np.array([_place(domain, t.params[name]) for t in full])
    _add_buckets(figure, domain, places, np.array([100 * t.accs[-1] for t in full]))
    marked = [(data.base, BASE, "diamond", "base"), (data.best(), BEST, "star", "best")]
    for seen, colour, symbol, called in marked:
        if seen and seen.accs and name in seen.params:
            figure.add_scatter(
                x=[_place(domain, seen.params[name])],
                y=[100 * seen.accs[-1]],
                mode="markers",
                marker={"size": 13, "color": colour, "symbol": symbol, "line": {"width": 1, "color": "white"}},
                name=called,
                hovertemplate=f"{called} ({seen.number}): %{{y:.2f}}%<extra></extra>",
            )
    below = _focus(figure, domain, name, having, np.array([100 * t.accs[-1] for t in full]))
    _scale(figure, domain)
    under = f" Ticks at the lower edge: {below:,} trials that lie below the figure." if below else ""
    return Picture(
        f"response-{name}",
        title,
        f"{len(having):,} trials, {len(full):,} of full length, whose best in each bucket the line joins."
        f"{under}{thinned(len(shown), len(having), 'points')}",
        figure,
    )


def _focus(figure: go.Figure, domain: Domain, name: str, trials: Sequence[Seen], finals: Array) -> int:
    """Let the figure show the range of most final accuracies [%]; says how many trials lie below it."""
    span = 2 * (finals.max() - np.quantile(finals, 0.25)) or 1.0
    low = max(finals.max() - span, 100 * min(trial.accs[-1] for trial in trials))
    under = [trial for trial in trials if 100 * trial.accs[-1] < low]
    if under:
        ticks = some(under, MOST_TICKS)
        figure.add_scatter(
            x=single([_place(domain, trial.params[name], trial.number) for trial in ticks]),
            y=single(np.full(len(ticks), low)),
            mode="markers",
            marker={"symbol": "line-ns-open", "size": 9, "color": PART, "opacity": 0.7},
            name="below the figure",
            hoverinfo="skip",
        )
    figure.update_yaxes(range=[low - 0.06 * span, finals.max() + 0.12 * span])
    return len(under)


def _place(domain: Domain, value: Any, jitter: int = 0) -> float:
    """Where a value stands on its axis; choices stand at 0, 1, 2 ..., spread a little by `jitter`."""
    if not isinstance(domain, Choice):
        return float(value)
    spread = ((jitter * 0.618) % 1 - 0.5) * 0.3 if jitter else 0.0
    return domain.choices.index(value) + spread if value in domain.choices else math.nan


def _add_buckets(figure: go.Figure, domain: Domain, places: Array, accs: Array) -> None:
    """A line through the best of each bucket, or a bar across each choice at its best."""
    edges = bucket_edges(domain)
    bucket = np.clip(np.searchsorted(edges, places, side="right") - 1, 0, len(edges) - 2)
    best = [index[accs[index].argmax()] for at in np.unique(bucket) if len(index := np.flatnonzero(bucket == at))]
    figure.add_scatter(
        x=single(places[best]),
        y=single(accs[best]),
        mode="markers" if isinstance(domain, Choice) else "lines",
        marker={"symbol": "line-ew-open", "size": 26, "color": FULL, "line": {"width": 2}},
        line={"color": FULL, "width": 1.5},
        name="best in bucket",
        hovertemplate="%{y:.2f}%<extra>best in bucket</extra>",
    )


def _scale(figure: go.Figure, domain: Domain) -> None:
    if isinstance(domain, LogUniform):
        steps = ((1, 2, 5), (1, 3), (1,))
        low, high = math.floor(math.log10(domain.low)), math.ceil(math.log10(domain.high))
        ticks = [[m * 10.0**power for power in range(low, high + 1) for m in step] for step in steps]
        ticks = [[tick for tick in some_ticks if domain.low <= tick <= domain.high] for some_ticks in ticks]
        chosen = next((some_ticks for some_ticks in ticks if len(some_ticks) <= MOST_LABELS), ticks[-1])
        figure.update_xaxes(type="log", tickvals=chosen, ticktext=[f"{tick:g}" for tick in chosen])
    elif isinstance(domain, IntUniform):
        figure.update_xaxes(dtick=max(1, round((domain.high - domain.low) / MOST_LABELS)))
    elif isinstance(domain, Choice):
        count = len(domain.choices)
        texts = [label(choice, 14) for choice in domain.choices]
        figure.update_xaxes(tickvals=list(range(count)), ticktext=texts, range=[-0.6, count - 0.4])
