"""How a run goes on: what was given again must agree with it, what may change changes."""

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import torch
from rich.console import Console

import search_spaces
from model.config import InputError, with_assignments
from model.data import Dataset
from model.sources import resolve
from model.train import check_device
from tune import warm_start
from tune.limits import parse_limits
from tune.mirror import check_storage, run_folder
from tune.plan import Options
from tune.resources import choose
from tune.run import Run, here

MAY_CHANGE = {
    "resume",
    "runs_dir",
    "data",
    "trials",
    "budget",
    "storage",
    "time_budget_s",
    "address",
    "slots",
    "cpus_per_trial",
    "gpus_per_trial",
    "nice",
}
"""options that are of a leg, or may grow; the others are of the run"""


def resumed_run(options: Options, console: Console) -> tuple[Run, Dataset]:
    """Open the run to continue, fetched if it lies in a store, and check that what was given beside it agrees.

    Raises:
        InputError: there is no such run, an option that can't change has another value, or its data are others.
    """
    assert options.resume is not None
    path = run_folder(str(options.resume), options.runs_dir, console)
    if not path.exists():
        raise InputError(f"--resume {options.resume}: there is no such folder; give the path of a run folder")
    run = Run(path)
    for name, given, had in _given_again(run, options):
        if given != had:
            raise InputError(
                f"--{name} {given} can't change on --resume: run {run.name} has {had}; leave the option out, or start "
                f"a new run"
            )
    dataset = run.search_dataset(options.data)
    if options.storage is not None:
        check_storage(options.storage, run.name, run)
    return run, dataset


def extend(run: Run, options: Options, console: Console) -> None:
    """Take over what may change: trials, budget, storage, where the data are, and this machine with its resources.

    Raises:
        InputError: trials or budget would shrink, or this machine can't train what the run trains.
    """
    manifest = run.manifest
    started = len(run.study().get_trials(deepcopy=False))
    if options.trials is not None and options.trials < started:
        raise InputError(f"--trials {options.trials}: {run.name} has started {started}; give {started} or more")
    if options.budget is not None and options.budget < (manifest.budget or 0):
        raise InputError(f"--budget {options.budget}: {run.name} has {manifest.budget}; it can only grow")
    leg = here()
    facts = ("machine", "versions", "git_commit")
    moved = {name: leg[name] for name in facts} != {name: manifest.last_leg[name] for name in facts}
    resources = choose(
        options.cpus_per_trial,
        options.gpus_per_trial,
        options.ranks_per_trial,
        options.slots,
        joins=options.address is not None,
        before=manifest.resources,
        had_gpus=bool(manifest.last_leg["machine"]["gpus"]),
    )
    if options.address is None:
        check_device(run.space.base, torch.device("cuda" if resources.gpus else "cpu"))
    extended = replace(
        manifest,
        trials=options.trials or manifest.trials,
        budget=options.budget or manifest.budget,
        storage=options.storage or manifest.storage,
        data=resolve(options.data) if options.data else manifest.data,
        cpus_per_trial=resources.cpus,
        gpus_per_trial=resources.gpus,
        ranks=resources.ranks,
        slots=resources.slots,
        threads=resources.threads,
        legs=[*manifest.legs, leg] if moved else manifest.legs,
    )
    if resources.cpus != manifest.cpus_per_trial or resources.gpus != manifest.gpus_per_trial:
        console.print(
            f"a trial has {resources.cpus:g} CPUs and {resources.gpus:g} GPUs from now on, "
            f"{manifest.cpus_per_trial:g} and {manifest.gpus_per_trial:g} before"
        )
    if extended != manifest:
        run.write_manifest(extended)


def _given_again(run: Run, options: Options) -> Iterator[tuple[str, Any, Any]]:
    """(option, its value now, the run's value) of each option that was given and belongs to the run."""
    manifest, base = run.manifest, run.space.base
    for option in fields(options):
        given = getattr(options, option.name)
        if option.name in MAY_CHANGE or given == option.default:
            continue
        if option.name == "space":
            _check_space(run, given)
        elif option.name == "set":
            texts = [text for texts in given for text in texts]
            changed = with_assignments(base, texts)
            for field in dict.fromkeys(text.partition("=")[0] for text in texts):
                yield "set", f"{field}={getattr(changed, field)}", f"{field}={getattr(base, field)}"
        elif option.name == "limit":
            for name, value in parse_limits(text for texts in given for text in texts).items():
                had = run.space.limits.get(name)
                yield "limit", f"{name}={value:g}", "no such limit" if had is None else f"{name}={had:g}"
        elif option.name == "base":
            had_bases = manifest.given_bases
            yield "base", ", ".join(given), "others" if had_bases is None else ", ".join(had_bases) or "its space's"
        elif option.name == "warm_start":
            yield "warm-start", ", ".join(path.name for path in given), ", ".join(warm_start.names(run)) or "none"
        else:
            own = {"name": run.name, "epochs": base.epochs, "width": base.width, "ranks_per_trial": manifest.ranks}
            name = option.name
            yield name.replace("_", "-"), given, own[name] if name in own else getattr(manifest, name)


def _check_space(run: Run, given: str) -> None:
    space = search_spaces.load(given, run.manifest.scale)
    if dict(space.domains) != dict(run.space.domains):
        raise InputError(
            f"--space {given} is not the space of run {run.name} ({run.manifest.space_name}, domains "
            f"{', '.join(run.space.domains)}): leave --space out, or start a new run"
        )
