"""The panel of a search, drawn from its snapshot: live in tune.search, from elsewhere in tune.status.

Every line is made to fit: where a terminal is narrow a shorter form is taken, where it is low whole parts are left out.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.panel import Panel
from rich.text import Text

from tune.lines import ASCII, BLOCKS, Glyphs, bar, duration, fitting, inert, packed, percent, short, spark, wrapped
from tune.snapshot import Row, Snapshot

WIDEST = 130
LABEL = 10  # columns for what a line is about
STYLES = {"done": "green", "running": "cyan", "paused": "yellow", "stopped": "bright_black", "failed": "red"}
STATE_STYLES = {"starting": "cyan", "running": "cyan", "finished": "green"}


def new_console() -> Console:
    """A console on which texts are no markup. With NO_COLOR it has no styles either."""
    return Console(
        soft_wrap=True,
        highlight=False,
        markup=False,
        emoji=False,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
    )


def draws(console: Console) -> bool:
    """Whether it can redraw a panel; else plain lines are what its reader wants."""
    return console.is_terminal and not console.is_dumb_terminal and not os.environ.get("NO_COLOR")


def summary(snapshot: Snapshot) -> str:
    """All of it that fits on a plain line."""
    return f"{_counts(snapshot)} | {_best(snapshot)} | ETA {_eta(snapshot)}"


def _counts(snapshot: Snapshot) -> str:
    counts = ", ".join(f"{count} {inert(state, 20)}" for state, count in snapshot.counts.items() if count)
    return f"{counts or 'none started'} of {inert(snapshot.extent)}"


def _best(snapshot: Snapshot) -> str:
    if not snapshot.curve or not snapshot.best:
        return "no full-length trial yet"
    return f"best val acc {percent(snapshot.curve[-1][1])} (trial {snapshot.best[0].trial}, n = 1 seed)"


def _eta(snapshot: Snapshot) -> str:
    basis = inert(snapshot.eta_basis, 200)
    return basis if snapshot.eta_s is None else f"{duration(snapshot.eta_s)}, {basis}"


@dataclass
class Part:
    """Lines that belong together. The lower its rank the longer it stays; its last lines may go, but for the first
    `least`."""

    rank: int
    lines: list[Text]
    least: int = 1


class View:
    """The panel, as something that rich draws.

    Args:
        state: stands in the title; by default the snapshot's own.
        said: sentences about it, first of all.
        note: stands in the lower edge.
        more: a part below, such as what tune.confirm found: its title and paragraphs.
        whole: show all parts, however low the terminal is.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        state: str = "",
        said: Sequence[str] = (),
        note: str = "",
        more: Sequence[str] = (),
        whole: bool = False,
    ) -> None:
        self._snapshot, self._state, self._note = snapshot, state or snapshot.state, note
        self._said, self._more, self._whole = said, more, whole

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(10, min(options.max_width, WIDEST) - 4)
        parts = self._parts(width, ASCII if options.ascii_only else BLOCKS)
        left = sum(len(part.lines) for part in parts) if self._whole else options.size.height - 3
        for part in sorted(parts, key=lambda part: part.rank):
            part.lines = part.lines[:left] if left >= part.least else []
            left -= len(part.lines)
        title = Text(inert(self._snapshot.run, max(8, width - len(self._state) - 4)), "bold")
        title.append(f": {self._state}", STATE_STYLES.get(self._state, "yellow"))
        note = Text(self._note, "dim") if len(self._note) < width else None
        lines = Text("\n").join(line for part in parts for line in part.lines)
        if not console.is_terminal:  # a frame is in the way of whoever reads a pipe
            yield from [title, lines, *([note] if note else [])]
            return
        yield Panel(lines, title=title, title_align="left", subtitle=note, subtitle_align="left", width=width + 4)

    def _parts(self, width: int, glyphs: Glyphs) -> list[Part]:
        """In the order in which they are shown."""
        s, live = self._snapshot, self._state in ("starting", "running")
        parts = [Part(0, [line for said in self._said for line in wrapped(Text(said), width)])]
        parts += [Part(0, _trials(s, width, glyphs, live)), Part(1, _training(s, width, glyphs))]
        if live:
            parts.append(Part(2, _labelled(width, "ETA", Text(_eta(s)))))
        if self._state == "running":
            parts.append(Part(5, _labelled(width, "slots", Text(f"{s.busy} of {s.slots} busy"))))
        parts += [Part(4, _incumbent(s, width, glyphs)), Part(7, _saved(s, width)), *_tables(s, width, live)]
        if self._more:
            title, *paragraphs = self._more
            lines = [line for paragraph in paragraphs for line in wrapped(Text(paragraph), width)]
            parts.append(Part(3, [Text(), *wrapped(Text(title, "bold"), width), *lines], 3))
        return parts


def _labelled(width: int, label: str, *forms: Text) -> list[Text]:
    """Behind the label the first form that fits."""
    lines = fitting(width - LABEL, forms)
    return [Text.assemble((f"{'' if index else label:{LABEL}}", "dim"), line) for index, line in enumerate(lines)]


def _trials(s: Snapshot, width: int, glyphs: Glyphs, live: bool) -> list[Text]:
    """A bar in pieces, and below it what each means."""
    names = {state: state for state in STYLES} | ({} if live else {"running": "cut off"})
    counts = {state: max(s.counts.get(state, 0), 0) for state in STYLES}
    pieces = [(float(counts[state]), style) for state, style in STYLES.items()]
    drawn = bar(min(60, width - LABEL), pieces, s.most_trials or 1, glyphs)
    named = zip(STYLES.items(), glyphs.pieces, strict=True)
    items = [Text(f"{glyph} {counts[state]} {names[state]}", style) for (state, style), glyph in named if counts[state]]
    items += wrapped(Text(f"{'' if items else 'none started '}of {inert(s.extent)}"), width - LABEL)
    return _labelled(width, "trials", drawn) + [
        Text.assemble(" " * LABEL, line) for line in packed(items, width - LABEL, Text("  "))
    ]


def _training(s: Snapshot, width: int, glyphs: Glyphs) -> list[Text]:
    full = max(s.base_epochs, 1)
    spent, budget = f"{s.spent_epochs / full:.1f}", f"{s.budget_epochs / full:.1f}"
    about, circa = ("", "") if s.budget_given else ("about ", "~")
    said = f"{spent} of {about}{budget} full trainings"
    if s.state == "finished" and not s.budget_given:
        said = f"{spent} full trainings"
    drawn = [bar(columns, [(s.spent_epochs, "cyan")], s.budget_epochs, glyphs) for columns in (20, 10)]
    forms = [Text.assemble(each, f"  {said}{more}") for each in drawn for more in (f" of {full} epochs", "")]
    return _labelled(width, "training", *forms, Text(said), Text(f"{spent} of {circa}{budget} trainings"))


def _incumbent(s: Snapshot, width: int, glyphs: Glyphs) -> list[Text]:
    if not s.curve or not s.best:
        return _labelled(width, "best", Text("no full-length trial yet"))
    said = f"  {percent(s.curve[-1][1])} (trial {s.best[0].trial}, n = 1 seed)"
    drawn = [spark(s.curve, s.spent_epochs, columns, glyphs) for columns in (20, 10)]
    over = f", over epochs trained {s.curve[0][0]:.0f} to {s.spent_epochs:.0f}"
    forms = [Text.assemble(each, said, more) for each in drawn for more in (over, "")]
    return _labelled(width, "best", *forms, Text(f"{percent(s.curve[-1][1])} (trial {s.best[0].trial}, n = 1)"))


def _saved(s: Snapshot, width: int) -> list[Text]:
    """What the scheduler spared, against training every started trial to its end."""
    saved, wait = s.stopped_epochs + s.paused_epochs, f"{s.paused_epochs:.0f}"
    if saved <= 0 or s.started_epochs <= 0:
        return []
    share = f"{100 * saved / s.started_epochs:.0f}%"
    short_form = f"{saved:.0f} of {s.started_epochs:.0f} epochs ({share})"
    forms = [f"{saved:.0f} of the {s.started_epochs:.0f} epochs of all started trials ({share})", short_form]
    if s.paused_epochs:
        forms = [
            f"{forms[0]}; {wait} of them at waiting trials, which may go on",
            f"{forms[1]}, {wait} at waiting trials",
        ]
    return _labelled(width, "saved", *(Text(form) for form in [*forms, short_form]))


def _tables(s: Snapshot, width: int, live: bool) -> list[Part]:
    """Trials in columns common to all: the best, those that wait and those under way."""
    groups = [(6, s.best), (9, s.waiting), (8, s.under_way)]
    (header, *lines), left_out = _columns([row for _, group in groups for row in group], s.bases, width)
    titles = [
        _best_titles(s, left_out),
        ["waiting at a rung, not ranked", "waiting, not ranked"],
        ["under way" if live else "cut off, to go on from the last epoch"],
    ]
    parts: list[Part] = []
    for (rank, group), forms in zip(groups, titles, strict=True):
        if group:
            head = fitting(width, [Text(form, "bold") for form in forms])
            head = head if parts else [Text(), *head, header]
            parts.append(Part(rank, [*head, *lines[: len(group)]], len(head) + 1))
            lines = lines[len(group) :]
    return parts


def _best_titles(s: Snapshot, left_out: int) -> list[str]:
    more = f" (+ {left_out} params)" if left_out else ""
    acc = s.curve[-1][1] if s.curve else 0.0
    error = 100 * math.sqrt(min(max(acc * (1 - acc), 0.0), 1.0) / max(s.val_images, 1))
    on = f"{s.val_images:,} held-out images"
    return [
        f"best at full length: val acc of one seed on {on}, standard error {error:.2f} points{more}",
        f"best at full length: n = 1 seed, {on}{more}",
        f"best at full length, n = 1{more}",
        f"best, n = 1{more}",
    ]


def _columns(rows: list[Row], bases: int, width: int) -> tuple[list[Text], int]:
    """The header and a line for each trial, with as many columns as fit; and how many params were left out."""
    names = list(dict.fromkeys(name for row in rows for name in row.params))
    table = [["trial", "epoch", "val acc", *(inert(name, 30) for name in names)]]
    for row in rows:
        acc = percent(row.acc) if row.acc is not None else "-"
        values = [inert(short(row.params[name]), 12) if name in row.params else "" for name in names]
        table.append(
            [f"{row.trial} (base)" if row.trial < bases else str(row.trial), f"{row.epoch}/{row.epochs}", acc, *values]
        )
    widths = [max(cell_len(line[column]) for line in table) for column in range(len(table[0]))]
    ends = list(accumulate(widths, lambda end, columns: end + 2 + columns))
    shown = sum(end <= width for end in ends)
    lines = [
        Text("  ".join(" " * (w - cell_len(cell)) + cell for cell, w in zip(line[:shown], widths, strict=False)))
        for line in table
    ]
    lines[0].stylize("dim")
    return lines, len(widths) - max(shown, 3)
