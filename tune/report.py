"""`python -m tune.report RUN [RUN...]`: what runs found, as one HTML file that needs no network."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from model.command import printable, run_command
from model.config import InputError
from model.files import write_whole
from tune import report_words as words
from tune.claims import claims_table, collect
from tune.drawing import BASE, BEST, FULL, Picture, between, name_of
from tune.figures import common_pictures, run_pictures, save
from tune.lines import inert, percent, short
from tune.page import Content, Page, commands, facts, table, tag
from tune.panel import new_console
from tune.report_data import RunData, Seen, read
from tune.results import RunResults, experiment_of

SHOWN = 8  # trials in the table of the best
DIVERGE = 0.01  # of the base's value: a parameter that differs by less counts as the same


@dataclass(frozen=True)
class Options:
    """Write RUN/report.html: the verdict, the best configs, what mattered, how the search went, and how to repeat it.
    Several runs are compared first. Nothing else is written, and a search may go on meanwhile."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """run folders, or URIs of runs in a store, which are then fetched into runs/"""
    figures: Path | None = None
    """write the figures there as well, as SVG and PNG"""
    out: Path | None = None
    """the file to write (default: report.html in the folder of the first run)"""


def main(options: Options) -> None:
    if not options.runs:
        raise InputError("name a run folder, or several")
    runs = [read(_folder(run)) for run in options.runs]
    out = options.out or runs[0].run.path / "report.html"
    page = Page(f"{runs[0].run.name}: what the search found" if len(runs) == 1 else "Searches compared")
    drawn: list[tuple[str, Picture]] = []
    if len(runs) > 1:
        drawn += _compare(page, runs)
    for number, data in enumerate(runs, start=1):
        pictures = run_pictures(data)
        stem = f"run{number}-" if len(runs) > 1 else ""
        drawn += [(stem + re.sub(r"\W+", "-", each.name), each) for part in pictures.values() for each in part]
        if len(runs) > 1:
            page.heading(2, f"Run {number}: {data.run.name}")
        _section(page, data, pictures, level=2 if len(runs) == 1 else 3)
    content = page.html()
    try:
        write_whole(out, content)
    except OSError as error:
        raise InputError(f"{out} can't be written ({error.strerror}): give --out FILE") from error
    for data in runs:
        for line in data.missing:
            print(f"{inert(data.run.name)}: {inert(line, 400)}")
    print(f"{printable(str(out))}: {len(content.encode()) / 1e6:.1f} MB, opens in any browser, offline")
    if options.figures:
        count = save(drawn, options.figures)
        print(f"{printable(str(options.figures))}: {count} figures, each as SVG and PNG")


def _folder(given: str) -> Path:
    if "://" not in given:
        return Path(given)
    from tune.mirror import run_folder  # pyarrow takes 30 MB

    return run_folder(given, Path("runs"), new_console())


def _section(page: Page, data: RunData, pictures: dict[str, list[Picture]], level: int) -> None:
    """All about one run, below headings of this level."""
    draw = page.picture
    if data.run.manifest.scale:
        _experiment_section(page, data, pictures, level)
        return
    page.heading(level, "Verdict")
    (first, *rest), command = words.verdict(data)
    page.add(tag("p", first, class_="lead"), *(tag("p", sentence) for sentence in rest))
    page.add(*([commands([command])] if command else []), _facts(data))
    warnings = [words.running(data), *data.missing, *words.warnings(data)]
    if any(warnings):
        page.heading(level, "Warnings")
        page.add(tag("ul", *(tag("li", warning) for warning in warnings if warning), class_="warnings"))
    page.heading(level, "The best")
    page.add(*_best(data))
    page.heading(level, "Confirmation")
    page.add(*map(draw, pictures["confirm"]))
    page.heading(level, "What mattered")
    page.add(*map(draw, pictures["mattered"]))
    page.heading(level, "Response of each parameter")
    page.add(
        tag("p", "Accuracies of trials that were stopped are those of their last epoch.", class_="soft"), _key(data)
    )
    page.add(tag("div", *map(draw, pictures["response"]), class_="pair"))
    page.heading(level, "How the search went")
    page.add(*map(draw, pictures["history"]))
    page.heading(level, "What stopping early was worth")
    page.add(*(tag("p", sentence) for sentence in words.rungs(data)), *map(draw, pictures["rungs"]))
    page.heading(level, "Accuracy against cost")
    page.add(*map(draw, pictures["cost"]))
    page.heading(level, "Slots and learning curves")
    page.add(*map(draw, pictures["timeline"]), *map(draw, pictures["curves"]))
    page.heading(level, "How to reproduce it")
    page.add(*_reproduce(data))


def _experiment_section(page: Page, data: RunData, pictures: dict[str, list[Picture]], level: int) -> None:
    """All about a run of an experiment: its question, what was found, and what that says of the claims."""
    experiment, draw = experiment_of(data), page.picture
    page.heading(level, "What was asked, and found")
    if experiment is None:
        text = "The project has no such experiment, or one with other cells: its claims can't be judged."
        page.add(tag("p", text, class_="empty"))
    else:
        page.add(tag("p", experiment.question, class_="lead"), *map(draw, pictures["experiment"]))
        page.add(claims_table([each for each in collect([data]) if each.data]), _cells(RunResults(data, experiment)))
    page.add(_facts(data))
    warnings = [words.running(data), *data.missing]
    if any(warnings):
        page.heading(level, "Warnings")
        page.add(tag("ul", *(tag("li", warning) for warning in warnings if warning), class_="warnings"))
    page.heading(level, "Slots and learning curves")
    page.add(*map(draw, pictures["timeline"]), *map(draw, pictures["curves"]))
    page.heading(level, "How to reproduce it")
    page.add(*_reproduce(data))


def _cells(results: RunResults) -> Any:
    """Every cell in numbers."""
    rows: list[list[Content]] = []
    for cell in results.cells:
        found, spread = results.mean(cell), results.spread(cell)
        if found is None:
            rows.append([cell, "0", "", "", "", ""])
            continue
        interval = (
            f"{100 * found.low:.2f} to {100 * found.high:.2f}" if math.isfinite(found.high) else "needs more seeds"
        )
        sd = f"{100 * spread.mean:.2f}" if spread else ""
        rows.append([cell, str(found.n), f"{100 * found.mean:.2f}", sd, interval, str(results.diverged(cell))])
    caption = "Accuracy on held-out training images, mean of n seeds that are common to all cells."
    return table(caption, ["cell", "n", "val acc, %", "SD", "95% interval", "diverged"], rows)


def _key(data: RunData) -> Any:
    """What the marks of the responses mean."""
    parts = [f"stopped at epoch {epoch}" for epoch in data.rungs]
    last = len(data.rungs) + 1
    marks = [("\u25cf", between((index + 1) / last), text) for index, text in enumerate(parts)]
    marks += [("\u25cf", FULL, "full length"), ("\u2014", FULL, "best in bucket")]
    marks += [("\u25c6", BASE, "base"), ("\u2605", BEST, "best")]
    spans = [tag("span", tag("b", mark, style=f"color:{colour}"), f" {text} ") for mark, colour, text in marks]
    return tag("p", *spans, class_="soft key")


def _facts(data: RunData) -> Any:
    manifest, confirm = data.run.manifest, data.confirm or {}
    images = f"{manifest.counts['train']:,} trained on and {manifest.counts['val']:,} held out in the search"
    test = confirm.get("counts", {}).get("test")
    images += f"; {confirm['counts']['train']:,} and {test:,} test images in the confirmation" if test else ""
    epochs = sum(len(trial.accs) for trial in data.trials)
    full = data.run.space.base.epochs
    return facts(
        [
            ("Data", f"{manifest.dataset} (fingerprint {manifest.fingerprint}), {images}"),
            ("Machine", words.machine(confirm["machine"]) if confirm.get("machine") else words.machines(manifest)),
            ("Trials", words.counts(data)),
            (
                "Training",
                f"{epochs:,} epochs, as many as {epochs / full:,.1f} full trainings of the base ({full} epochs)",
            ),
        ]
    )


def _best(data: RunData) -> list[Any]:
    """Results and settings of the best, confirmed ones first."""
    ranking = data.ranking()
    confirmed = [seen for row in data.rows if (seen := data.of(row["trial"]))]
    rest = [trial for trial in ranking if trial not in confirmed]
    shown = confirmed + rest[: max(0, SHOWN - len(confirmed))]
    if data.base and data.base not in shown and data.base.is_full:
        shown.append(data.base)
    if not shown:
        return [tag("p", "No trial has run to full length yet.", class_="empty")]
    images = data.run.manifest.counts["val"]
    val = f"Val accuracy: of the search, one seed, {images:,} held-out images. FLOPs: of a full training in the search."
    columns = ["trial", "n", "test acc, %", "SD", "95% interval", "to base, points", "val acc, %", "FLOPs", "time, s"]
    rows = [_result(data, trial) for trial in shown]
    if data.confirm:
        caption = (
            f"Test accuracy: mean of n fresh seeds on all training images, with SD and the mean's interval. To base: "
            f"the difference with its interval. {val} Time: median of trainings alone on the device."
        )
    else:
        caption, columns = val, [columns[0], *columns[6:8]]
        rows = [[row[0], *row[6:8]] for row in rows]
    results = table(caption, columns, rows)
    base = data.base.params if data.base else {}
    settings = table(
        "Their settings; those that differ from the base's stand out.",
        ["trial", *data.run.space.domains],
        [
            [name_of(t.number), *(_setting(t.params.get(name), base.get(name)) for name in data.run.space.domains)]
            for t in shown
        ],
    )
    return [results, *_curse(data), settings]


def _result(data: RunData, trial: Seen) -> list[Content]:
    row = data.row(trial.number) or {}
    val = percent(trial.accs[-1])[:-1] if trial.is_full else "stopped"
    flops = f"{data.flops(trial.params):.3g}"
    if not row:
        return [name_of(trial.number), "0", "", "", "", "", val, flops, ""]
    spread = f"{100 * row['sd_acc']:.2f}" if row.get("sd_acc") is not None else ""
    reach = row.get("ci95_acc")
    interval = f"{100 * reach[0]:.2f} to {100 * reach[1]:.2f}" if reach else "needs more seeds"
    difference = row.get("to_base") or {}
    found = difference.get("ci95")
    to_base = words.points(difference["mean"]) if difference else ""
    to_base += f" ({words.points(found[0])} to {words.points(found[1])})" if found else ""
    time = f"{row['median_train_s']:.1f}" if row.get("median_train_s") else ""
    n, mean = str(row["n"]), f"{100 * row['mean_acc']:.2f}"
    return [name_of(trial.number), n, mean, spread, interval, to_base, val, flops, time]


def _curse(data: RunData) -> list[Any]:
    """The winner's curse, where both numbers are known."""
    ranking = data.ranking()
    row = data.row(ranking[0].number) if ranking else None
    if not row or not row["trial"]:
        return []
    val = ranking[0].accs[-1]
    text = (
        f"In the search trial {row['trial']} came first of {len(ranking):,} with {percent(val)} (val, n = 1); on fresh "
        f"seeds it has {percent(row['mean_acc'])} (test, n = {row['n']}). The two differ in images and in how many are "
        f"trained on, and the first was chosen for being high."
    )
    return [tag("p", text, class_="soft")]


def _setting(value: Any, base: Any) -> Content:
    if value is None:
        return ""
    if isinstance(value, float) and isinstance(base, int | float):
        same = abs(value - base) <= DIVERGE * abs(base)
    else:
        same = value == base
    return short(value) if same else tag("span", short(value), class_="changed")


def _reproduce(data: RunData) -> list[Any]:
    manifest, confirm = data.run.manifest, data.confirm or {}
    lines, notes = words.reproduce(data)
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    known = [
        ("Data", f"{manifest.dataset}, fingerprint {manifest.fingerprint}, from {manifest.data}"),
        ("Machine of the search", f"{words.machines(manifest)}; CPU threads per trial: {manifest.threads}"),
        ("Versions", versions),
        ("Git commit", manifest.git_commit or "unknown"),
        ("Begun", manifest.created),
    ]
    if confirm.get("machine"):
        known.insert(2, ("… of the confirmation", words.machine(confirm["machine"])))
    return [commands(lines), *(tag("p", note, class_="soft") for note in notes), facts(known)]


def _compare(page: Page, runs: Sequence[RunData]) -> list[tuple[str, Picture]]:
    """Several runs side by side; says which figures it drew."""
    page.heading(2, "Side by side")
    if len({data.run.manifest.fingerprint for data in runs}) > 1:
        page.add(_warning("These runs used different data: their accuracies can't be compared."))
    elif len({str(data.run.manifest.counts) for data in runs}) > 1:
        page.add(_warning("These runs trained on or held out different numbers of images."))
    if len({data.run.space.base.epochs for data in runs}) > 1:
        page.add(_warning("A full training has different lengths in these runs."))
    rows = [_compared(data) for data in runs]
    columns = [
        "run",
        "trials",
        "full length",
        "epochs",
        "best val acc, %",
        "confirmed",
        "n",
        "test acc, %",
        "95% interval",
    ]
    caption = (
        "Val accuracies are of one seed, the best of many; confirmed is what tune.confirm recommends, on fresh seeds."
    )
    page.add(table(caption, columns, rows))
    names = {name: None for data in runs for name in words.settings(data)}
    given = [(name, [words.settings(data).get(name, "default") for data in runs]) for name in names]
    given += [("data fingerprint", [data.run.manifest.fingerprint for data in runs])]
    given += [("machine", [words.machines(data.run.manifest) for data in runs])]
    different = [[name, *values] for name, values in given if len(set(values)) > 1]
    if different:
        headings = ["setting", *(inert(data.run.name, 40) for data in runs)]
        page.add(table("Where their settings differ.", headings, different, text_columns=len(headings)))
    pictures = common_pictures(runs)
    page.add(*map(page.picture, pictures))
    return [(f"common-{picture.name}", picture) for picture in pictures]


def _warning(text: str) -> Any:
    return tag("ul", tag("li", text), class_="warnings")


def _compared(data: RunData) -> list[Content]:
    ranking, best = data.ranking(), data.best()
    row = data.row(best.number) if best else None
    epochs = sum(len(trial.accs) for trial in data.trials)
    val = percent(ranking[0].accs[-1])[:-1] if ranking else ""
    start: list[Content] = [data.run.name, f"{len(data.trials):,}", f"{len(data.full):,}", f"{epochs:,}", val]
    if not row:
        return [*start, "nothing yet", "0", "", ""]
    reach = row.get("ci95_acc")
    interval = f"{100 * reach[0]:.2f} to {100 * reach[1]:.2f}" if reach else ""
    return [*start, name_of(row["trial"]), str(row["n"]), f"{100 * row['mean_acc']:.2f}", interval]


if __name__ == "__main__":
    run_command(main, Options, prog="python -m tune.report")
