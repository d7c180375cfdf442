"""What earlier runs know of a space, for the sampler `gp` of a new one.

The observations are copied into the new run folder (warm_start.json), which so stays whole when the earlier runs go.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import TrialState
from rich.console import Console

from model.config import InputError
from model.files import read_json, write_whole
from search_spaces.space import SearchSpace
from tune.cube import shares_of
from tune.gp import how_far
from tune.model_sampler import Earlier
from tune.run import Run

FILE = "warm_start.json"
AT_LEAST = 2  # observations of a run: fewer teach nothing


def collect(paths: tuple[Path, ...], space: SearchSpace, fingerprint: str, console: Console) -> list[dict[str, Any]]:
    """The observations of earlier runs: accuracy where each trial ended, or paused, as JSON. Says what they are, and
    where they come from other data.

    Raises:
        InputError: a path is no run, its run varies nothing that the space varies, or it has too few trials.
    """
    found = []
    for path in paths:
        run = Run(path)
        shared = [name for name in space.domains if name in run.space.domains]
        if not shared:
            raise InputError(
                f"--warm-start {path}: it varied {', '.join(run.space.domains)}, none of which this space varies "
                f"({', '.join(space.domains)}): leave it out"
            )
        observations = []
        for trial in run.study().get_trials(deepcopy=False):
            if trial.intermediate_values and trial.state != TrialState.FAIL:
                config, epoch = run.config(trial), max(trial.intermediate_values)
                acc = trial.intermediate_values[epoch]
                observations.append({"params": space.params_of(config), "share": epoch / config.epochs, "acc": acc})
        if len(observations) < AT_LEAST:
            raise InputError(f"--warm-start {path}: it has {len(observations)} trials with a result: run it further")
        console.print(f"warm start: {len(observations)} trials of {run.name}, sharing {', '.join(shared)}")
        if run.manifest.fingerprint != fingerprint:
            console.print(
                f"warning: {run.name} was searched on other data ({run.manifest.dataset}, fingerprint "
                f"{run.manifest.fingerprint}): its accuracies are never compared with those of this run, and the model "
                f"learns how far they carry over",
                style="yellow",
            )
        found.append({"run": run.name, "fingerprint": run.manifest.fingerprint, "observations": observations})
    return found


def save(folder: Path, runs: list[dict[str, Any]]) -> None:
    write_whole(folder / FILE, json.dumps(runs, indent=1) + "\n")


def names(run: Run) -> list[str]:
    """The runs that the run began with."""
    file = run.path / FILE
    return [earlier["run"] for earlier in read_json(file)] if file.is_file() else []


def load(run: Run) -> list[Earlier]:
    """What `save` wrote, as the model takes it; empty if the run began without.

    Raises:
        InputError: the file is damaged.
    """
    file = run.path / FILE
    if not file.is_file():
        return []
    found = []
    try:
        for earlier in read_json(file):
            observations = earlier["observations"]
            s = how_far(np.array([each["share"] for each in observations]), run.space.base.epochs)
            shares = [shares_of(run.space, each["params"]) for each in observations]
            found.append(list(zip(shares, s, [float(each["acc"]) for each in observations], strict=True)))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{file} is damaged ({error}): restore it from a copy, or start a new run") from error
    return found
