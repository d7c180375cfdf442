"""The figure of an experiment, drawn as the experiment declares it: means over seeds with intervals, and every seed."""

import math
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from model.config import Config
from search_spaces.experiment import Experiment
from search_spaces.experiment import Figure as Declared
from tune.drawing import AXIS, PART, RUN_COLOURS, Picture, canvas, label, single
from tune.lines import short
from tune.results import RunResults

UNITS = {
    "acc": ("val accuracy, %", 100.0),
    "loss": ("val loss, nats", 1.0),
    "train_loss": ("training loss, nats", 1.0),
    "train_s": ("training time beside other trials, s", 1.0),
}
PANEL_PX = 300
TITLE_PX = 26  # above the first panel, below the legend
BY_NAME_PX = 34  # of a cell that has a line of its own
ABOVE_GUESSING = 1.2  # times the loss of guessing: where the axis of a loss ends, since broken trainings have any loss


def found(experiment: Experiment, results: RunResults) -> list[Picture]:
    """What the experiment found, in the figures that it declares."""
    several = len(experiment.figures) > 1
    return [
        _picture(f"experiment-{number}" if several else "experiment", declared, results)
        for number, declared in enumerate(experiment.figures, start=1)
    ]


def _picture(name: str, declared: Declared, results: RunResults) -> Picture:
    cells = [cell for cell in results.cells if declared.where(cell)]
    y, x = _axis(declared.y)[0], declared.x
    title = f"{y.split(',')[0].capitalize()} over {x.split(',')[0]}"
    title += f", by {declared.colour}" if declared.colour else ""
    points = {cell: _points(declared, results, cell) for cell in cells}
    done = {len(results.values(cell, what)) for cell in cells for what in points[cell].values() or [declared.y]}
    if not any(done):
        return Picture(name, title, "No training has ended yet.")
    figure = _by_name(declared, results) if x == "cell" and not declared.series else _by_field(declared, results)
    seeds = f"{min(done)} to {max(done)}" if len(done) > 1 else f"{max(done)}"
    measured = declared.y not in UNITS
    how = "measured at the end of training" if measured else "scored on held-out training images"
    if declared.level:
        how += f"; dashed: {_axis(declared.level)[0].split(',')[0]}"
    diverged = sum(results.diverged(cell) for cell in cells)
    lost = f" {diverged} trainings diverged and {'are left out' if measured else 'count as guessing'}." * bool(diverged)
    if declared.x != "cell" and declared.y in ("loss", "train_loss"):
        guessing = math.log(results.classes)
        means = [found.mean for cell in cells if (found := results.mean(cell, declared.y))]
        if max(means) > ABOVE_GUESSING * guessing:
            figure.update_yaxes(range=[0, ABOVE_GUESSING * guessing])
            lost += f" The axis ends at {ABOVE_GUESSING * guessing:.1f}: the loss of guessing is {guessing:.1f}."
    return Picture(
        name,
        title,
        f"Large marks are means over {seeds} seeds with 95% intervals, small ones single seeds, {how}.{lost}",
        figure,
    )


def _axis(y: str) -> tuple[str, float]:
    """Title and factor of what is drawn; what is measured has its own name, as it is."""
    return UNITS.get(y, (y, 1.0))


def _points(declared: Declared, results: RunResults, cell: str) -> dict[Any, str]:
    """What is drawn of a cell, by x."""
    if declared.series:
        return dict(results.series(cell, declared.series))
    return {"cell" if declared.x == "cell" else _of(results.cells[cell], declared.x): declared.y}


def _by_name(declared: Declared, results: RunResults) -> go.Figure:
    """A line for each cell, the first on top."""
    names = [cell for cell in results.cells if declared.where(cell)][::-1]
    title, factor = _axis(declared.y)
    figure = canvas(title, "", height=110 + BY_NAME_PX * len(names), showlegend=False)
    for y, cell in enumerate(names):
        values = single([factor * value for value in results.values(cell, declared.y)])
        figure.add_scatter(
            x=values, y=[y - 0.2] * len(values), mode="markers", marker={"size": 5, "color": PART}, hoverinfo="x"
        )
        found = results.mean(cell, declared.y)
        if found:
            mean, half = factor * found.mean, factor * (found.high - found.mean)
            figure.add_scatter(
                x=[mean],
                y=[y + 0.1],
                mode="markers",
                marker={"size": 10, "color": RUN_COLOURS[0]},
                error_x={"type": "data", "array": [half if math.isfinite(half) else 0.0], "thickness": 2, "width": 5},
                hovertemplate=f"%{{x:.4g}}<extra>{label(cell)}, n = {found.n}</extra>",
            )
    ticks = {"tickvals": list(range(len(names))), "ticktext": [label(cell, 40) for cell in names]}
    return figure.update_yaxes(**ticks, range=[-0.7, len(names) - 0.3], showgrid=False)


def _by_field(declared: Declared, results: RunResults) -> go.Figure:
    """Lines over a field or a series, one for each colour, in a panel for each value of another field."""
    cells = {cell: config for cell, config in results.cells.items() if declared.where(cell)}
    panels, lines = _values(declared.panel, list(cells.values())), _lines(declared, cells)
    title, factor = _axis(declared.y)
    figure = make_subplots(
        rows=len(panels),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.35 / max(2, len(panels)) / 2,
        subplot_titles=[f"{declared.panel} = {short(value)}" if declared.panel else "" for value in panels],
    )
    look = canvas("", "", height=60 + PANEL_PX * len(panels)).layout
    figure.update_layout(look)
    if declared.panel:
        figure.update_layout(legend_y=1 + TITLE_PX / (PANEL_PX * len(panels)))
    named = {""}  # in the legend, or in need of no place there
    for row, panel in enumerate(panels, start=1):
        for number, (name, members) in enumerate(lines.items()):
            inside = [cell for cell in members if _of(cells[cell], declared.panel) == panel]
            points = [(x, cell, what) for cell in inside for x, what in _points(declared, results, cell).items()]
            colour = RUN_COLOURS[number % len(RUN_COLOURS)]
            if points:
                _line(figure, results, points, factor, row, label(name, 40), colour, name not in named)
                named.add(name)
            for cell in inside:
                if declared.level and (level := results.mean(cell, declared.level)):
                    figure.add_hline(factor * level.mean, line={"color": colour, "dash": "dash", "width": 1}, row=row)
    figure.update_xaxes(AXIS).update_yaxes(AXIS).update_yaxes(title_text=title)
    figure.update_xaxes(type="log" if declared.log_x else "-")
    return figure.update_xaxes(title_text=declared.x, row=len(panels), col=1)


def _lines(declared: Declared, cells: Mapping[str, Config]) -> dict[str, list[str]]:
    """Names of lines, each with the cells that it joins."""
    if declared.series and not declared.colour:
        return {cell: [cell] for cell in cells}
    colours = _values(declared.colour, list(cells.values()))
    return {
        f"{declared.colour} = {short(colour)}" if declared.colour else "": [
            cell for cell, config in cells.items() if _of(config, declared.colour) == colour
        ]
        for colour in colours
    }


def _line(
    figure: go.Figure,
    results: RunResults,
    points: list[tuple[Any, str, str]],
    factor: float,
    row: int,
    name: str,
    colour: str,
    in_legend: bool,
) -> None:
    """Means with intervals, joined, and every seed, of points (x, cell, what)."""
    if all(isinstance(x, int | float) for x, _, _ in points):
        points = sorted(points)
    xs, means, halves, seeds_x, seeds_y = [], [], [], [], []
    for x, cell, what in points:
        found = results.mean(cell, what)
        if found is None:
            continue
        half = factor * (found.high - found.mean)
        xs.append(x)
        means.append(factor * found.mean)
        halves.append(half if math.isfinite(half) else 0.0)
        values = results.values(cell, what)
        seeds_x += [x] * len(values)
        seeds_y += [factor * value for value in values]
    figure.add_scatter(
        **{"x": seeds_x, "y": single(seeds_y), "mode": "markers", "marker": {"size": 4, "color": colour}},
        **{"opacity": 0.5, "showlegend": False, "hoverinfo": "skip", "row": row, "col": 1},
    )
    mode = "markers" if any(isinstance(x, str) for x in xs) else "lines+markers"  # nothing lies between two layers
    figure.add_scatter(
        **{
            "x": xs,
            "y": single(means),
            "mode": mode,
            "marker": {"size": 8, "color": colour},
            "line": {"color": colour},
        },
        **{"error_y": {"type": "data", "array": single(halves), "thickness": 1.5, "width": 4}},
        **{"name": name, "legendgroup": name, "showlegend": in_legend, "row": row, "col": 1},
    )


def _values(name: str | None, configs: list[Config]) -> list[Any]:
    found = {_of(config, name): None for config in configs}
    return sorted(found) if all(isinstance(value, int | float) for value in found) else list(found)


def _of(config: Config, name: str | None) -> Any:
    return 0 if name is None else getattr(config, name)
