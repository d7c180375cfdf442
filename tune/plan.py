"""What `tune.search` is asked to do: its options, checked, with defaults that suit the machine and the data."""

import itertools
import math
from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console

import search_spaces
from model.config import Config, InputError, load_config, with_assignments
from model.data import Dataset, hold_out
from model.meter import slow_precision
from model.recipes import RECIPES
from model.sources import load, resolve
from model.train import check_batch, check_device
from search_spaces.domains import ends
from search_spaces.experiment import Experiment, Scale
from search_spaces.space import SearchSpace
from tune import warm_start
from tune.limits import epoch_flops, parse_limits, refusal
from tune.mirror import check_storage
from tune.resources import choose
from tune.run import Manifest, NameTaken, Run, create, here
from tune.samplers import CELLS, CELLS_AFTER_SEARCH, COORDINATE

CPU_WIDTH, CPU_EPOCHS = 16, 8
GRACE_FRAC = 0.5
"""of the epochs before asha's first rung. Before the learning rate has come down, ranks say little: over 72 configs of
lr_regimes (benchmarks/lr_regimes_curves.json) the rank correlation with the final accuracy is 0.31 after a quarter of
the epochs, 0.56 after half and 0.61 after three quarters; an earlier rung made searches worse, see search_quality."""
MIN_STEPS = 16  # per epoch


@dataclass(frozen=True)
class Options:
    """Search a space. Options that are not given come from the space, then from the machine and the data."""

    space: str | None = None
    """name of a search space, or path of a file that defines one"""
    scale: Literal["tiny", "small", "full"] | None = None
    """how large an experiment is run: digits in seconds, CIFAR-10 on a laptop, or as published; it sets cells, epochs,
    width, images and seeds, and nothing is searched or stopped"""
    data: str | None = None
    """auto, digits, cifar10 (downloads into data/), or the path of a data folder (default: auto)"""
    trials: int | None = None
    """configs to try at most; may grow with --resume (default: 24, or as many as --budget pays for)"""
    budget: float | None = None
    """what to train in all, in full trainings of the base; may grow with --resume (default: as much as ASHA would train
    for --trials)"""
    objective: Literal["accuracy", "time-to-target", "flops-to-target", "pareto"] | None = None
    """what the best trial is: the one with the highest accuracy, with the least training time or FLOPs to reach
    --target-acc, or one that none beats in both accuracy and FLOPs (default: accuracy)"""
    target_acc: float | None = None
    """validation accuracy to reach, as in 0.94"""
    epochs: int | None = None
    """length of a full trial"""
    width: int | None = None
    """width of the net; 64 is the published one"""
    train_examples: int | None = None
    """train on so many images only; a tenth of all is held out, but no more than half of what is trained on"""
    gpus_per_trial: float | None = None
    """share of a GPU, or number of GPUs, of one trial (default: 1 with a GPU, else 0)"""
    cpus_per_trial: float | None = None
    """CPU cores of one trial (default: the cores shared out over the GPUs; 1 without a GPU)"""
    slots: int | None = None
    """how many trials run at once at most (default: as many as GPUs, or cores, there are)"""
    ranks_per_trial: int | None = None
    """processes that share each batch of a trial, each on one of its GPUs or on its share of the CPU cores
    (default: one per GPU)"""
    sampler: Literal["gp", "tpe", "qmc", "random", "grid", "coordinate"] | None = None
    """who proposes configs (default: gp); coordinate varies one parameter at a time, with one trial at a time"""
    scheduler: Literal["asha", "none"] | None = None
    """asha pauses trials at rungs and goes on with the promising ones, none runs all to the end (default: asha, but for
    the sampler coordinate, which compares full trainings, none)"""
    grace_epochs: int | None = None
    """first epoch at which asha pauses a trial (default: half of the base's)"""
    reduction_factor: int | None = None
    """from one rung of asha to the next, epochs are multiplied and trials divided by it (default: 3)"""
    seed: int | None = None
    """fixes the proposals and each trial's seed (default: 0)"""
    name: str | None = None
    """name of the run's folder (default: the space and the time)"""
    runs_dir: Path = Path("runs")
    """where run folders are made"""
    base: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """start from this recipe (s0 .. s8), or from this exported config, instead of the space's bases; give it again for
    more starts, which may differ from the first in what the space varies"""
    set: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FIELD=VALUE")] = ()
    """change fields of the base config"""
    warm_start: tuple[Path, ...] = ()
    """run folders of earlier searches of this space, or of one that shares parameters with it: their trials teach the
    sampler gp where to begin"""
    limit: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """try no config above this limit: params, train_flops (of a whole training) or memory_bytes, as in params=7e6"""
    storage: str | None = None
    """keep a copy of the run folder below this URI, such as s3://bucket/prefix (credentials: from the environment)"""
    resume: str | None = None
    """continue this run folder, or the run at this URI"""
    time_budget_s: float | None = None
    """end the search after so many seconds; it can be resumed"""
    address: str | None = None
    """join the Ray cluster at this address instead of using this machine alone"""
    nice: int = 0
    """lower the search's priority beside other work, from 1 to 19"""


def new_run(options: Options, console: Console) -> tuple[Run, Dataset]:
    """Check everything that was asked, then make the run folder."""
    if options.space is None:
        raise InputError(f"--space NAME is missing: choose one of {', '.join(search_spaces.names())}, or give a path")
    stem = Path(options.space).stem
    found = search_spaces.definition(options.space)
    space = search_spaces.at_scale(found, options.space, options.scale)
    _check_numbers(options)
    experiment = found if isinstance(found, Experiment) else None
    scale = experiment.scales[options.scale] if experiment and options.scale else None
    if scale is not None:
        options = _sized(options, scale)
    dataset = hold_out(load(options.data or "auto"), options.train_examples)

    resources = choose(
        options.cpus_per_trial,
        options.gpus_per_trial,
        options.ranks_per_trial,
        options.slots,
        joins=options.address is not None,
    )
    gpus, ranks = resources.gpus, resources.ranks
    device = torch.device("cuda" if gpus else "cpu")
    space = _started(space, options, dataset, device, console) if scale is None else _set(space, options.set)
    base = space.base
    measure = experiment.measure if experiment else None
    if measure and ranks > 1:
        raise InputError(
            f"--gpus-per-trial {gpus:g}: {stem} measures {measure} on its nets, for which a trial must be one process; "
            f"give 1 or a share of a GPU"
        )
    worst = replace(base, batch_size=int(highest(space, "batch_size")), train_frac=lowest(space, "train_frac"))
    check_batch(worst, len(dataset.train_labels), ranks)
    if options.address is None:
        check_device(base, device)
        if warning := slow_precision(base, device):
            console.print(warning)
    grace = options.grace_epochs or math.ceil(GRACE_FRAC * base.epochs)
    if grace > base.epochs:
        raise InputError(f"--grace-epochs {grace}: it must be at most the {base.epochs} epochs of a trial (--epochs)")
    manifest = Manifest(
        space_name=stem,
        space=space.to_dict(),
        data=resolve(options.data or "auto"),
        dataset=dataset.name,
        fingerprint=dataset.fingerprint,
        train_examples=options.train_examples,
        counts={"train": len(dataset.train_labels), "val": len(dataset.eval_labels)},
        trials=options.trials or (None if options.budget else 24),
        budget=options.budget,
        objective=options.objective or "accuracy",
        target_acc=options.target_acc,
        seed=options.seed or 0,
        sampler=options.sampler or ("gp" if scale is None else CELLS_AFTER_SEARCH if scale.search else CELLS),
        scheduler=options.scheduler or ("none" if scale or options.sampler == COORDINATE else "asha"),
        scale=options.scale,
        measure=measure,
        epoch_flops=epoch_flops(base, len(dataset.classes), len(dataset.train_labels)),
        grace_epochs=grace,
        reduction_factor=options.reduction_factor or 3,
        cpus_per_trial=resources.cpus,
        gpus_per_trial=gpus,
        threads=resources.threads,
        ranks=ranks,
        slots=resources.slots,
        storage=options.storage,
        given_bases=list(options.base),
        **here(),
    )
    if options.warm_start and manifest.sampler != "gp":
        raise InputError(f"--warm-start: only the sampler gp learns from earlier runs, not {manifest.sampler}")
    earlier = warm_start.collect(options.warm_start, space, dataset.fingerprint, console)
    run = _created(options, stem, manifest)
    if earlier:
        warm_start.save(run.path, earlier)
    return run, dataset


def _created(options: Options, stem: str, manifest: Manifest) -> Run:
    """The run folder, under the name that was given, else under one of its own, also beside searches that start in the
    same second."""
    first = options.name if options.name is not None else f"{stem}-{datetime.now():%Y%m%d-%H%M%S}"
    for number in itertools.count(1):
        name = first if number == 1 else f"{first}-{number}"
        if options.storage is not None:
            check_storage(options.storage, name)
        try:
            return create(options.runs_dir, name, manifest)
        except NameTaken:
            if options.name is not None:
                raise
    raise AssertionError("unreachable")


def _sized(options: Options, scale: Scale) -> Options:
    """The options of an experiment, where they are not given: those of its scale.

    Raises:
        InputError: an option that an experiment doesn't have.
    """
    allowed = {"space", "data", "trials", "time_budget_s", "address", "runs_dir", "storage", "nice"}
    allowed |= {"scale", "train_examples", "seed", "name", "set", "gpus_per_trial", "cpus_per_trial", "slots"}
    for option in fields(options):
        if option.name not in allowed and getattr(options, option.name) != option.default:
            raise InputError(
                f"--{option.name.replace('_', '-')} doesn't go with --scale {options.scale}: an experiment "
                f"says itself what it trains, and trains it to the end; leave it out"
            )
    return replace(
        options,
        data=options.data or scale.data,
        trials=options.trials or scale.trials,
        train_examples=options.train_examples or scale.train_examples,
    )


def _set(space: SearchSpace, assignments: tuple[tuple[str, ...], ...]) -> SearchSpace:
    """The experiment with these fields changed in every cell.

    Raises:
        InputError: a field that the cells differ in, or an unknown one, or a bad value.
    """
    given = [text for texts in assignments for text in texts]
    vary = {*space.domains, *(coordinate.field for coordinate in space.coordinates)}
    for text in given:
        if text.partition("=")[0] in vary:
            raise InputError(f"--set {text}: this is what the cells of the experiment differ in; leave it out")
    return space.with_base(with_assignments(space.base, given))


def _check_numbers(options: Options) -> None:
    for name, value, least in [
        ("trials", options.trials, 1),
        ("train-examples", options.train_examples, 1),
        ("grace-epochs", options.grace_epochs, 1),
        ("reduction-factor", options.reduction_factor, 2),
        ("seed", options.seed, 0),
    ]:
        if value is not None and value < least:
            raise InputError(f"--{name} {value}: it must be {least} or more")
    kind, target = options.objective or "accuracy", options.target_acc
    if options.budget is not None and not (options.budget > 0 and math.isfinite(options.budget)):
        raise InputError(f"--budget {options.budget}: it must be a number of full trainings above 0")
    if kind.endswith("-to-target") != (target is not None):
        raise InputError(
            f"--objective {kind} {'needs' if target is None else 'has no'} --target-acc"
            f"{' A, the validation accuracy to reach, as in 0.94' if target is None else ': leave it out'}"
        )
    if options.sampler == COORDINATE and options.scheduler == "asha":
        raise InputError(
            "--scheduler asha doesn't go with --sampler coordinate, which compares full trainings: leave it out"
        )
    if target is not None and not 0 < target <= 1:
        raise InputError(f"--target-acc {target}: it must be a share above 0 and at most 1, as in 0.94 for 94%")


def _started(
    space: SearchSpace, options: Options, dataset: Dataset, device: torch.device, console: Console
) -> SearchSpace:
    """The space with the bases and limits that were asked for, the bases fitted to machine and data.

    Raises:
        InputError: a base that can't be read, lies outside of the space or exceeds a limit, or a bad limit.
    """
    given = [text for texts in options.set for text in texts]
    given += [f"{name}={value}" for name in ("epochs", "width") if (value := getattr(options, name)) is not None]
    keep = {*space.domains, *(text.partition("=")[0] for text in given)}
    if options.base:
        bases = []
        for name in options.base:
            if name in RECIPES:
                bases.append(fitted(with_assignments(RECIPES[name].config(), given), dataset, keep, device, console))
            else:
                bases.append(with_assignments(load_config(Path(name)), given))
        space = replace(space, base=bases[0], more_bases=tuple(bases[1:]))
    else:
        space = space.with_base(fitted(with_assignments(space.base, given), dataset, keep, device, console))
    space = replace(space, limits={**space.limits, **parse_limits(text for texts in options.limit for text in texts)})
    for base in space.bases:
        reason = refusal(base, len(dataset.classes), len(dataset.train_labels), space.limits)
        if reason:
            raise InputError(
                f"the base ({base.describe()}) can't be tried: {reason}; raise --limit, or change the base"
            )
    return space


def fitted(base: Config, dataset: Dataset, keep: set[str], device: torch.device, console: Console) -> Config:
    """The space's base made to fit the trials' device and these data, but for the `keep` fields; says what it
    changes."""
    changes: dict[str, Any] = {}
    if device.type == "cuda":
        changes["precision"] = "bf16"
    else:
        changes["width"] = min(base.width, CPU_WIDTH)
        changes["epochs"] = min(base.epochs, CPU_EPOCHS)
    batch = base.batch_size
    while batch > 1 and base.trained_images(len(dataset.train_labels)) // batch < MIN_STEPS:
        batch //= 2
    changes["batch_size"] = batch
    changes["ghost_batch"] = min(base.ghost_batch, batch)
    changes = {name: value for name, value in changes.items() if name not in keep and value != getattr(base, name)}
    for name, value in changes.items():
        console.print(f"fitted to this machine and data: {name} = {value} (the space has {getattr(base, name)})")
    return replace(base, **changes)


def highest(space: SearchSpace, name: str) -> float:
    """The largest value of a numeric knob in the space: the end of its domain, or the base's."""
    value = getattr(space.base, name)  # also what a trial has where the domain is not active
    return max(value, *ends(space.domains[name])) if name in space.domains else value


def lowest(space: SearchSpace, name: str) -> float:
    """The smallest, as above."""
    value = getattr(space.base, name)
    return min(value, *ends(space.domains[name])) if name in space.domains else value
