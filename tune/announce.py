"""What a search says before it begins and when it has ended: the plan, the best configs, the commands to go on with."""

import math
from collections import Counter

from optuna.trial import FrozenTrial, TrialState
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from model.data import Dataset, describe
from tune.commands import python, quoted, resume_command
from tune.lines import inert, percent, short
from tune.plan import highest
from tune.report_data import read
from tune.results import experiment_named
from tune.run import Run, final_acc
from tune.samplers import CELLS_AFTER_SEARCH

BEST = 5  # the most trials that are shown, and the most reasons of failures
RATES = ("peak_lr", "lr_scale")


def extent(run: Run) -> str:
    """How much the search is asked to do."""
    parts = [f"{run.manifest.trials} trials"] if run.manifest.trials is not None else []
    parts += [f"{run.manifest.budget:g} full trainings"] if run.manifest.budget is not None else []
    return " and ".join(parts)


def announce(run: Run, dataset: Dataset, console: Console) -> None:
    """What the search is about to do."""
    manifest, base, rungs = run.manifest, run.space.base, run.trials().rungs
    console.print(describe(dataset), style="bold")
    here = manifest.last_leg["machine"]
    if here["gpus"]:
        machine = f"{len(here['gpus'])} x {here['gpus'][0]}"
    else:
        machine = f"{here['cores']} core{'s' * (here['cores'] != 1)} of {here['cpu']}, no GPU"
    cpus, gpus = manifest.cpus_per_trial, manifest.gpus_per_trial
    share = f"{gpus:g} GPU{'s' * (gpus > 1)}" if gpus else "no GPU"
    most = f"; at most {manifest.slots} at once" if manifest.slots else ""
    console.print(f"machine: {machine}; a trial has {cpus:g} CPU{'s' * (cpus != 1)} and {share}{most}")
    if manifest.scale:
        _announce_experiment(run, console)
        return
    console.print(f"space: {inert(manifest.space_name)}, varying {', '.join(run.space.domains)}")
    console.print(f"base: {base.describe()}")
    stops = f"asha, rungs at epochs {rungs}" if rungs else "none"
    if run.objective.kind != "accuracy":
        target = f" of {100 * manifest.target_acc:g}% val acc" if manifest.target_acc else ""
        console.print(f"objective: {manifest.objective}{target}")
    console.print(
        f"search: {extent(run)} of {base.epochs} epochs, sampler {manifest.sampler}, scheduler {stops}, "
        f"seed {manifest.seed}"
    )
    longest_epochs = highest(run.space, "warmup_frac") * base.epochs
    if rungs and rungs[0] < longest_epochs:
        console.print(
            f"warning: the grace period of {rungs[0]} epochs is shorter than the longest warm-up of the space, "
            f"{longest_epochs:g} epochs: early rungs favour short warm-ups (--grace-epochs "
            f"{min(math.ceil(longest_epochs), base.epochs)} avoids it)",
            style="yellow",
        )
    _say_where(run, console)


def _announce_experiment(run: Run, console: Console) -> None:
    manifest, cells = run.manifest, run.space.bases
    experiment = experiment_named(manifest.space_name)
    if experiment:
        console.print(experiment.question, style="bold")
    trials = manifest.trials or 0
    epochs = sum(cells[number % len(cells)].epochs for number in range(trials))
    what = f"{len(cells)} cells"
    if manifest.sampler == CELLS_AFTER_SEARCH:
        what += f", a search of {', '.join(run.space.domains)}, and what it finds"
    console.print(
        f"experiment: {inert(manifest.space_name)} at scale {manifest.scale}, {what} on common seeds, "
        f"{trials} trainings, {epochs:,} epochs; search seed {manifest.seed}"
    )
    _say_where(run, console)


def _say_where(run: Run, console: Console) -> None:
    console.print(f"run folder: {run.path}  (tensorboard --logdir {run.path.parent})")


def summarise(run: Run, console: Console) -> None:
    """The best configs, what they show, and the commands that come next; of an experiment, what its claims came to."""
    ranking = run.ranking()
    started = len(run.study().get_trials(deepcopy=False))
    if not ranking:
        console.print("\n".join(why_none_ended(run)))
        return
    if run.manifest.scale:
        _summarise_experiment(run, console)
        return
    columns, lines = _best_configs(run, ranking)
    title = f"{inert(run.name)}: best of {len(ranking)} full-length trials ({started} started)"
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*map(Text, line))
    if console.measure(table, options=console.options.update(width=1000)).maximum <= console.width:
        console.print(table)
    else:
        console.print(title)
        for line in lines:
            console.print(", ".join(f"{name} {value}" for name, value in zip(columns, line, strict=True) if value))
    best, val = final_acc(ranking[0]), run.manifest.counts["val"]
    error = 100 * math.sqrt(best * (1 - best) / val)
    console.print(
        f"What this shows: one seed each, {val:,} held-out images (standard error {error:.2f} points), and the best of "
        f"{len(ranking)} is partly luck. What it doesn't show: test accuracy, time, or that the first beats the second."
    )
    path = quoted(run.path)
    console.print("Next:")
    for purpose, command in [
        (
            "which is really better: fresh seeds, the test set, alone on the device",
            f"tune.confirm {path} --top 3 --seeds 4",
        ),
        ("what mattered and why, as one HTML file", f"tune.report {path}"),
        ("the configs as files, with trained weights", f"tune.export {path} --top 3 --weights"),
        ("learning curves, images and hyperparameters in a browser", f"tensorboard.main --logdir {path}"),
    ]:
        console.print(f"  {purpose}:\n    {python()} -m {command}")


def why_none_ended(run: Run) -> list[str]:
    """That no trial ran to its end, of what they failed, and what to do about it, on a line each."""
    trials = run.study().get_trials(deepcopy=False)
    reasons = Counter(
        "diverged" if reason.startswith("diverged at ") else f"failed ({inert(reason, 300)})"
        for reason in (trial.user_attrs.get("reason", "") for trial in trials if trial.state == TrialState.FAIL)
    )
    said = ", ".join(f"{count} of {len(trials)} {reason}" for reason, count in reasons.most_common(BEST))
    lines = [f"no trial ran to its end{': ' if said else ''}{said}"]
    if "diverged" in reasons:
        base, varied = run.space.base, {*run.space.domains, *(each.field for each in run.space.coordinates)}
        advice = [
            f"--set {name}={short(getattr(base, name) / 4)} (the base has {short(getattr(base, name))})"
            for name in RATES
            if name not in varied
        ][:1]
        advice.append("a space that reaches to lower rates")
        lines.append(f"lower the learning rate in a new run: {', or '.join(advice)}")
    if not all(trial.state.is_finished() for trial in trials) or not reasons:
        lines.append(f"continue with: {resume_command(run.path)}")
    return lines


def _summarise_experiment(run: Run, console: Console) -> None:
    from tune.claims import collect, show_claims  # takes a second to load, and only experiments have claims

    show_claims([verdict for verdict in collect([read(run.path)]) if verdict.data], console)
    path = quoted(run.path)
    console.print("Next:")
    more = f"tune.search --resume {path} --trials {2 * (run.manifest.trials or 0)}"
    for purpose, command in [
        ("the figure, every cell, how to repeat it, as one HTML file", f"tune.report {path}"),
        ("all claims of all experiments", f"tune.claims --runs-dir {quoted(run.path.parent)}"),
        ("more seeds", more),
    ]:
        console.print(f"  {purpose}:\n    {python()} -m {command}")


def _best_configs(run: Run, ranking: list[FrozenTrial]) -> tuple[list[str], list[list[str]]]:
    """Names of columns, and lines of the best trials and of the base."""
    cost = {"time-to-target": "seconds", "accuracy": ""}.get(run.objective.kind, "FLOPs")
    lines = []
    for rank, trial in enumerate(ranking, start=1):
        if rank > BEST and trial.number != 0:
            continue
        line = [str(rank), "0 (base)" if trial.number == 0 else str(trial.number), percent(final_acc(trial))]
        if cost == "FLOPs":
            line.append(f"{trial.user_attrs['cost'] / run.space.base.epochs:.2f} x base")
        elif cost:
            line.append(f"{trial.user_attrs['cost']:.1f}")
        lines.append(
            [*line, *(inert(short(trial.params[key])) if key in trial.params else "" for key in run.space.domains)]
        )
    return ["rank", "trial", "val acc", *([cost] if cost else []), *run.space.domains], lines
