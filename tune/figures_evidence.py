"""Figures of what confirm found, and of what accuracy costs. Each function makes one, see `tune.figures`."""

import numpy as np
import plotly.graph_objects as go

from tune.drawing import BAND, BASE, BEST, FULL, LOST, PART, Picture, canvas, label, name_of, single, some, thinned
from tune.limits import FREE
from tune.objective import front
from tune.report_data import RunData

MOST_POINTS = 800
MOST_NETS = 60  # shapes of net that are counted, 0.1 s each


def confirm_means(data: RunData) -> Picture:
    """Every candidate's test accuracies, their mean and its interval."""
    title, rows = "Confirmed test accuracy", list(reversed(data.rows))
    if not rows:
        return Picture("confirm", title, "Nothing is confirmed yet.")
    figure = canvas("test accuracy, %", "", height=110 + 42 * len(rows))
    for index, row in enumerate(rows):
        accs = row.get("accs") or []
        figure.add_scatter(
            x=single([100 * acc for acc in accs]),
            y=[index - 0.2] * len(accs),
            mode="markers",
            marker={"symbol": "circle-open", "size": 7, "color": PART},
            name="single seeds",
            showlegend=index == 0,
            hovertemplate="%{x:.2f}%<extra>one seed</extra>",
        )
    means = np.array([100 * row["mean_acc"] for row in rows])
    reach = [row.get("ci95_acc") or [row["mean_acc"]] * 2 for row in rows]
    best = data.best()
    colours = [BASE if row["trial"] == 0 else BEST if best and row["trial"] == best.number else FULL for row in rows]
    for index, (mean, (low, high), colour) in enumerate(zip(means, reach, colours, strict=True)):
        hover = f"%{{x:.2f}}%<extra>mean of {rows[index]['n']}</extra>"
        _dot(figure, mean, (100 * low, 100 * high), index + 0.1, colour, hover)
    names = [f"{name_of(row['trial'])} (n = {row['n']})" for row in rows]
    figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=names, range=[-0.7, len(rows) - 0.3], showgrid=False)
    without = " A mean without a bar has too few seeds for one." if any(not row.get("ci95_acc") for row in rows) else ""
    images = (data.confirm or {}).get("counts", {}).get("test")
    return Picture(
        "confirm",
        title,
        f"Each large dot is the mean of n fresh seeds with its 95% interval, each small circle one seed, on "
        f"{f'the {images:,} test images' if images else 'the test images'}; the further right, the better.{without}",
        figure,
    )


def _dot(figure: go.Figure, mean: float, interval: tuple[float, float], y: float, colour: str, hover: str) -> None:
    """A mean with its interval, on the same axis."""
    low, high = interval
    figure.add_scatter(
        x=[mean],
        y=[y],
        mode="markers",
        error_x={
            **{"type": "data", "symmetric": False, "array": [high - mean], "arrayminus": [mean - low]},
            **{"thickness": 2, "width": 5, "color": colour},
        },
        marker={"size": 10, "color": colour},
        showlegend=False,
        hovertemplate=hover,
    )


def confirm_differences(data: RunData) -> Picture:
    """Differences to the base, with what counts as none."""
    title = "Difference to the base"
    rows = [row for row in reversed(data.rows) if row.get("to_base")]
    if not rows:
        return Picture("difference", title, "No difference to the base has been measured.")
    practical = 100 * (data.confirm or {}).get("practical_acc", 0.0)
    figure = canvas("difference to the base, points", "", height=100 + 38 * len(rows))
    if practical:
        figure.add_vrect(x0=-practical, x1=practical, fillcolor=BAND, line_width=0)
    figure.add_vline(x=0, line_width=1, line_color=BASE)
    colours = {"better": BEST, "worse": LOST}
    for index, row in enumerate(rows):
        found = row["to_base"]
        mean, (low, high) = 100 * found["mean"], found.get("ci95") or [found["mean"]] * 2
        colour = colours.get(found.get("kind"), PART)
        hover = f"%{{x:+.2f}} points<extra>{found.get('n')} seeds</extra>"
        _dot(figure, mean, (100 * low, 100 * high), index, colour, hover)
    names = [f"{name_of(row['trial'])}: {label(row['to_base'].get('kind', ''))}" for row in rows]
    figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=names, range=[-0.7, len(rows) - 0.3], showgrid=False)
    band = f"; the grey band of ±{practical:g} points counts as no difference" if practical else ""
    return Picture(
        "difference",
        title,
        f"An interval wholly right of the line says better than the base, wholly left of it worse{band}. A dot without "
        f"a bar has too few seeds for an interval.",
        figure,
    )


def pareto_flops(data: RunData) -> Picture:
    """Val accuracy of the search against arithmetic."""
    title, full = "Accuracy against arithmetic", data.ranking()
    if not full:
        return Picture("pareto-flops", title, "No trial ran to full length yet.")
    shown = some(full, MOST_NETS if _shapes_vary(data) else MOST_POINTS)
    if all(name in FREE and name != "epochs" for name in data.run.space.domains):
        shown = full[:1]
    points = [(t.accs[-1], data.flops(t.params)) for t in shown]
    if len({cost for _, cost in points}) == 1:
        return Picture(
            "pareto-flops",
            title,
            f"All {len(full):,} full-length trials cost the same {points[0][1]:.3g} FLOPs in the search: there is "
            f"nothing to trade accuracy for.",
        )
    best = front(points)
    figure = canvas("FLOPs of a full training in the search", "val accuracy, %")
    figure.add_scatter(
        x=single([cost for _, cost in points]), y=single([100 * acc for acc, _ in points]), mode="markers",
        customdata=[t.number for t in shown], marker={"size": 7, "color": FULL, "opacity": 0.7},
        name="full-length trials", hovertemplate="trial %{customdata}: %{y:.2f}%<extra></extra>",
    )  # fmt: skip
    line = sorted((cost, 100 * acc) for (acc, cost), first in zip(points, best, strict=True) if first)
    figure.add_scatter(
        x=single([cost for cost, _ in line]), y=single([acc for _, acc in line]), mode="lines+markers",
        line={"color": BEST, "width": 2, "shape": "hv"}, marker={"size": 8}, name="beaten by none", hoverinfo="skip",
    )  # fmt: skip
    figure.update_xaxes(type="log", nticks=6, exponentformat="power")
    return Picture(
        "pareto-flops",
        title,
        f"Up and to the left is better; no trial beats those on the line in both (one seed each, held-out training "
        f"images).{thinned(len(shown), len(full), 'trials')}",
        figure,
    )


def _shapes_vary(data: RunData) -> bool:
    return any(name not in FREE for name in data.run.space.domains)


def pareto_time(data: RunData) -> Picture:
    """Test accuracy against time, of what confirm trained alone on the device."""
    title = "Accuracy against time"
    rows = [row for row in data.rows if row.get("median_train_s")]
    if len(rows) < 2:
        return Picture(
            "pareto-time",
            title,
            "Needs two confirmed configs: trials of a search share the machine, so that their times are not shown.",
        )
    figure = canvas("median training time alone, s", "test accuracy, %", showlegend=False)
    for row in rows:
        low, high = row.get("ci95_acc") or [row["mean_acc"]] * 2
        best = data.best()
        colour = BASE if row["trial"] == 0 else BEST if best and row["trial"] == best.number else FULL
        mean = 100 * row["mean_acc"]
        figure.add_scatter(
            x=[row["median_train_s"]],
            y=[mean],
            mode="markers+text",
            text=[name_of(row["trial"])],
            textposition="bottom right",
            marker={"size": 10, "color": colour},
            error_y={
                **{"type": "data", "symmetric": False, "array": [100 * high - mean], "arrayminus": [mean - 100 * low]},
                **{"thickness": 1.5, "width": 4, "color": colour},
            },
            cliponaxis=False,
            hovertemplate=f"%{{x:.1f}} s, %{{y:.2f}}%<extra>{name_of(row['trial'])}, n = {row['n']}</extra>",
        )
    times_s = [row["median_train_s"] for row in rows]
    room = 0.15 * (max(times_s) - min(times_s)) or 0.1 * max(times_s)
    figure.update_xaxes(range=[min(times_s) - room, max(times_s) + 2 * room])
    return Picture(
        "pareto-time",
        title,
        "Up and to the left is better: means of fresh seeds with 95% intervals, each training alone on the device.",
        figure,
    )
