"""What a confirmation shows in the terminal: fits 80 columns."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tune.lines import inert, percent, short


def show(name: str, content: dict[str, Any], console: Console) -> None:
    """Accuracy, cost and params of every candidate and the verdict, from the content of confirm.json."""
    target = f"{percent(content['target_acc'])}" if content["target_acc"] is not None else None
    accuracy = _table(f"{inert(name, 40)}: test accuracy on fresh seeds, in %")
    for column in ["trial", "n", "mean", "SD", "to the base", "", "first", "in search"]:
        accuracy.add_column(column, justify="right", no_wrap=True)
    cost = _table("a training, alone on its device")
    for column in ["trial", "median s", "longest s", "FLOP", "peak MiB", *([f"reached {target}"] if target else [])]:
        cost.add_column(column, justify="right", no_wrap=True)
    for row in content["rows"]:
        trial = "0 base" if row["trial"] == 0 else str(row["trial"])
        accuracy.add_row(trial, *_accuracy(row))
        cells = [f"{row['median_train_s']:.1f}", f"{row['worst_train_s']:.1f}"]
        cells += [f"{row['flops']:.3g}" if row["flops"] else "", f"{row['peak_mib']:,.0f}" if row["peak_mib"] else ""]
        cost.add_row(trial, *cells, *([_reached(row["target"])] if target else []))
    console.print(accuracy)
    console.print(cost)
    for row in content["rows"]:
        params = ", ".join(f"{key}={short(value)}" for key, value in row["params"].items())
        console.print(Text(f"trial {row['trial']}: {inert(params, 400)}"), soft_wrap=False)
    console.print(Text(_notes(content), style="dim"), soft_wrap=False)
    console.print()
    console.print(Text(content["verdict"]["text"], style="bold"), soft_wrap=False)


def _table(title: str) -> Table:
    return Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)


def _notes(content: dict[str, Any]) -> str:
    counts, machine, n = content["counts"], content["machine"], len(content["rows"]) - 1
    threads = content["threads"]
    devices = ", ".join(machine["gpus"]) or f"{threads} thread{'s' if threads > 1 else ''} of {machine['cpu']}"
    return (
        f"{content['dataset']}, {counts['train']:,} training and {counts['test']:,} test images; {devices}. Seeds are "
        f"common to all rows and were not used in the search. 95% intervals hold however often one looks; "
        f"{f'the {n} to the base hold all at once' if n > 1 else 'so does that to the base'}. first: how often "
        f"its mean is the best in resamples of the seeds. in search: one seed, held-out images."
    )


def _accuracy(row: dict[str, Any]) -> list[str]:
    found, mean = row["to_base"], 100 * row["mean_acc"]
    half = 100 * max(abs(end - row["mean_acc"]) for end in row["ci95_acc"]) if row["ci95_acc"] else None
    cells = [str(row["n"]), f"{mean:.2f} {_half(half)}"]
    cells.append(f"{100 * row['sd_acc']:.2f}" if row["sd_acc"] is not None else "-")
    if found:
        half = 100 * (found["ci95"][1] - found["mean"]) if found["ci95"] else None
        cells += [f"{100 * found['mean']:+.2f} {_half(half)}", found["kind"]]
    else:
        cells += ["", ""]
    cells.append(f"{100 * row['first_share']:.0f}%")
    return [*cells, f"{100 * row['search_val_acc']:.2f}" if row["search_val_acc"] is not None else "stopped"]


def _half(half: float | None) -> str:
    """Half the width of an interval that is its mean plus or minus as much."""
    return f"± {half:.2f}" if half is not None else "± ∞"


def _reached(target: dict[str, Any]) -> str:
    low, high = target["ci95"]
    return f"{target['k']} of {target['n']} ({100 * low:.0f} to {100 * high:.0f}%)"
