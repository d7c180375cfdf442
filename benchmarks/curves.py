"""Tasks for `benchmarks.search_quality`: spaces whose learning curves are known, so that no net is trained.

LCBench: curves of MLPs on 34 OpenML tasks, as YAHPO Gym's surrogate gives them (Apache-2.0, slds-lmu/yahpo_data;
Zimmer et al. 2021, Pfisterer et al. 2022). Its epoch 1 is the untrained net, where early stopping would judge noise;
so our epoch e is its epoch e + 1, and a full training has 51.

Own curves: real trainings of this project, in benchmarks/lr_regimes_curves.json, interpolated. The file comes from

    python -m tune.search --space lr_regimes --sampler qmc --scheduler none --name curves ...
    python -m benchmarks.curves runs/curves

in which quasi-random trials, all trained to the end, cover the space evenly.
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import tyro
from optuna.trial import TrialState
from scipy.stats import qmc, spearmanr
from sklearn.ensemble import ExtraTreesRegressor

from model.command import run_command
from model.config import InputError
from search_spaces.space import Domain, IntUniform, LogUniform, SearchSpace, Uniform
from tune.cube import params_at, shares_of
from tune.plan import GRACE_FRAC
from tune.run import Run

REPO = Path(__file__).parent.parent
DATA = Path(os.environ.get("RESNET9_DATA", REPO.parent / "shared" / "data"))
OWN_CURVES = REPO / "benchmarks" / "lr_regimes_curves.json"

LCBENCH_EPOCHS = 51
LCBENCH_DOMAINS: dict[str, Domain] = {
    "batch_size": LogUniform(16, 512),
    "learning_rate": LogUniform(1e-4, 0.1),
    "momentum": Uniform(0.1, 0.99),
    "weight_decay": Uniform(1e-5, 0.1),
    "num_layers": IntUniform(1, 5),
    "max_units": LogUniform(64, 1024),
    "max_dropout": Uniform(0, 1),
}
"""LCBench's own space, in the order of the surrogate's input; the log integers are drawn as reals and rounded"""

RATE, STEPS, DECAY = LogUniform(1e-4, 0.1), LogUniform(1 / 0.9, 100), LogUniform(1e-5, 0.1)
FIELDS: dict[str, Domain] = {"learning_rate": RATE, "momentum_steps": STEPS, "weight_decay": DECAY}
COORDINATES: dict[str, Domain] = {
    "effective_lr": LogUniform(1e-3, 1),
    "momentum_steps": STEPS,
    "decay_rate": LogUniform(3e-7, 3e-3),
}
"""what FIELDS reach, about: their middle, and the width of their first and last axis"""

TRIAL_SD, EPOCH_SD = 0.004, 0.002  # seed noise: of a trial as a whole, and of each of its epochs on top
FULL_VAL = 5000  # held-out images for which these hold on CIFAR-10, roughly


@dataclass(frozen=True)
class Task:
    """A search problem with known answers. Accuracies are in 0..1."""

    name: str
    space: Any
    """a SearchSpace, or what has its `base`, `domains`, `config` and `params_of`"""
    epochs: int
    accuracy: Callable[[list[dict[str, Any]], list[int]], np.ndarray]
    """noise-free accuracies [points, epochs] of params at these epochs (1 is the first)"""
    trial_sd: float
    epoch_sd: float
    grace_epochs: int
    """the first rung of this project's search"""
    known_base: bool
    """whether the base is known to be good, so that everybody would try it first"""
    note: str = ""

    def observed(self, params: dict[str, Any], rng: np.random.Generator, noise: float) -> np.ndarray:
        """One training's accuracies [epochs]; `noise` multiplies the SDs."""
        curve = self.accuracy([params], list(range(1, self.epochs + 1)))[0]
        wiggle = self.trial_sd * rng.standard_normal() + self.epoch_sd * rng.standard_normal(self.epochs)
        return np.clip(curve + noise * wiggle, 0, 1)

    def best_known(self) -> float:
        """About the best final accuracy there is: of 2**14 scrambled Sobol points and three rounds of 4,000 steps from
        the best twenty."""
        domains = list(self.space.domains.values())
        rng = np.random.default_rng(0)
        points, best = qmc.Sobol(len(domains), scramble=True, rng=0).random_base2(14), 0.0
        for sd in (0.1, 0.05, 0.02, 0.0):
            params = [params_at(self.space, point) for point in points]
            finals = self.accuracy(params, [self.epochs])[:, 0]
            best = max(best, float(finals.max()))
            top = points[np.argsort(-finals)[:20]]
            points = np.clip(np.repeat(top, 200, axis=0) + rng.normal(0, sd, (4000, len(domains))), 0, 1)
        return best

    def with_prior(self, *, good: bool) -> "Task":
        """The same task in a space that declares its best (or worst) of 4,096 points as the prior."""
        points = qmc.Sobol(len(self.space.domains), scramble=True, rng=0).random_base2(12)
        params = [params_at(self.space, point) for point in points]
        finals = self.accuracy(params, [self.epochs])[:, 0]
        believed = params[int(finals.argmax() if good else finals.argmin())]
        domains = {name: replace(domain, prior=believed[name]) for name, domain in self.space.domains.items()}
        return replace(self, space=replace(self.space, domains=domains))

    def with_axes(self, axes: dict[str, Domain]) -> "Task":
        """The same LCBench task with FIELDS or COORDINATES, all logarithmic, for rate, momentum and decay. Values that
        LCBench lacks are moved to the nearest that it has (momentum_steps is 1 / (1 - momentum))."""
        others = {name: domain for name, domain in LCBENCH_DOMAINS.items() if name not in (*FIELDS, "momentum")}

        def accuracy(points: list[dict[str, Any]], epochs: list[int]) -> np.ndarray:
            return self.accuracy([_to_fields(params) for params in points], epochs)

        return replace(self, space=_from_its_middle({**others, **axes}, self.epochs), accuracy=accuracy)


def _to_fields(params: dict[str, Any]) -> dict[str, Any]:
    """LCBench's fields from FIELDS or COORDINATES, see `search_spaces.coordinates`."""
    damping, fields = 1 / params["momentum_steps"], dict(params)
    if "effective_lr" in params:
        fields["learning_rate"] = params["effective_lr"] * damping
        fields["weight_decay"] = params["decay_rate"] / params["effective_lr"]
    fields["momentum"] = 1 - damping
    fields["learning_rate"] = min(max(fields["learning_rate"], RATE.low), RATE.high)
    fields["weight_decay"] = min(max(fields["weight_decay"], DECAY.low), DECAY.high)
    return fields


class Point(SimpleNamespace):
    """A config of a task that has no `Config`: fields, and all of them as a dict."""

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class PlainSpace:
    """What a searcher uses of a SearchSpace, for fields that a Config doesn't have."""

    base: Point
    domains: dict[str, Domain]
    known_base: bool = True
    """whether the base is known to be good"""

    @property
    def bases(self) -> tuple[Point, ...]:
        return (self.base,) if self.known_base else ()

    def active(self, params: dict[str, Any]) -> tuple[str, ...]:
        return tuple(self.domains)

    def config(self, params: dict[str, Any]) -> Point:
        return Point(**{**vars(self.base), **params})

    def params_of(self, config: Point) -> dict[str, Any]:
        return {name: getattr(config, name) for name in self.domains}


def _from_its_middle(domains: dict[str, Domain], epochs: int) -> PlainSpace:
    """A space whose base is just its middle, which knows nothing."""
    space = PlainSpace(Point(epochs=epochs), domains, known_base=False)
    return replace(space, base=Point(epochs=epochs, **params_at(space, np.full(len(domains), 0.5))))


@cache
def _surrogate() -> Any:
    import onnxruntime  # only the LCBench tasks need it

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(DATA / "lcbench" / "model.onnx", options)


def lcbench_tasks() -> list[Task]:
    """All 34 LCBench tasks in the order of their codes. The base is the middle of the space, which knows nothing.

    Raises:
        InputError: the surrogate isn't there.
    """
    folder = DATA / "lcbench"
    if not (folder / "model.onnx").is_file():
        raise InputError(
            f"the LCBench surrogate is not in {folder}: set RESNET9_DATA to the folder that holds lcbench/"
        )
    codes = json.loads((folder / "encoding.json").read_text(encoding="utf-8"))["OpenML_task_id"]
    knobs = json.loads((folder / "config_space.json").read_text(encoding="utf-8"))["hyperparameters"]
    names = next(knob["choices"] for knob in knobs if knob["name"] == "OpenML_task_id")
    space = _from_its_middle(LCBENCH_DOMAINS, LCBENCH_EPOCHS)

    def accuracy_of(code: int) -> Callable[[list[dict[str, Any]], list[int]], np.ndarray]:
        def accuracy(points: list[dict[str, Any]], epochs: list[int]) -> np.ndarray:
            knobs = np.array([[params[name] for name in LCBENCH_DOMAINS] for params in points])
            for column in (0, 5):
                knobs[:, column] = np.round(knobs[:, column])
            inputs = np.empty((len(points), len(epochs), 8), np.float32)
            inputs[:, :, 0] = np.array(epochs) + 1
            inputs[:, :, 1:] = knobs[:, None]
            codes = np.full((len(points) * len(epochs), 1), code, np.int32)
            (output,) = _surrogate().run(None, {"x_cat": codes, "x_cont": inputs.reshape(-1, 8)})
            return np.clip(output[:, 1].reshape(len(points), len(epochs)).astype(float), 0, 100) / 100

        return accuracy

    return [
        Task(f"lcbench-{name}", space, LCBENCH_EPOCHS, accuracy_of(code), TRIAL_SD, EPOCH_SD, 3, known_base=False)
        for code, name in sorted((codes[name], name) for name in names)
    ]


def own_task(file: Path = OWN_CURVES) -> Task:
    """The real curves in `file`, made into a function of the params.

    Raises:
        InputError: there is no such file.
    """
    if not file.is_file():
        raise InputError(f"{file} does not exist: make it from a run with python -m benchmarks.curves RUN")
    content = json.loads(file.read_text(encoding="utf-8"))
    space = SearchSpace.from_dict(content["space"])
    trees = _fit(content)

    def accuracy(points: list[dict[str, Any]], epochs: list[int]) -> np.ndarray:
        x = np.array([shares_of(space, params) for params in points], np.float32)
        # the same as trees.predict(x), which takes ten times as long for one point
        curves = np.mean([tree.tree_.predict(x)[:, :, 0] for tree in trees.estimators_], axis=0)
        return curves[:, np.array(epochs) - 1]

    noise = content["noise"]
    return Task(
        "own", space, space.base.epochs, accuracy, noise["trial_sd"], noise["epoch_sd"],
        math.ceil(GRACE_FRAC * space.base.epochs), known_base=True,
        note=f"own curves: {len(content['trials'])} trainings on {content['provenance']['dataset']}, interpolated by "
        f"extremely randomised trees; left out one by one, final value: R2 {content['fit']['r2']:.2f}, rank "
        f"correlation {content['fit']['rank_correlation']:.2f}; noise SD {100 * noise['trial_sd']:.2f} points per "
        f"trial, {100 * noise['epoch_sd']:.2f} per epoch ({noise['source']})",
    )  # fmt: skip


def _fit(content: dict[str, Any], leave_out: int | None = None) -> ExtraTreesRegressor:
    """Trees through all curves at once. No relative of a Gaussian process, which would find itself in its own task;
    they pass through every curve, and are steps in between."""
    space = SearchSpace.from_dict(content["space"])
    kept = [trial for index, trial in enumerate(content["trials"]) if index != leave_out]
    x = np.array([shares_of(space, trial["params"]) for trial in kept])
    return ExtraTreesRegressor(100, random_state=0).fit(x, np.array([trial["acc"] for trial in kept]))


def curves_of(run: Run, trial_sd: float | None, epoch_sd: float | None) -> dict[str, Any]:
    """All finished trainings of a run, with what they were made on and how well they can be interpolated.

    A diverged trial stays at the lowest accuracy of the run from the epoch of its end. Without measured noise, the SDs
    are those of the LCBench tasks times sqrt(5000 / held-out images): scoring on fewer images is as much noisier.
    """
    epochs, manifest = run.space.base.epochs, run.manifest
    trials = []
    for trial in run.study().get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL)):
        metrics = run.metrics(trial.number)
        acc = [None if epoch["diverged"] else round(epoch["acc"], 5) for epoch in metrics]
        if len(acc) == epochs or (acc and acc[-1] is None):
            trials.append({"params": trial.params, "acc": acc + [None] * (epochs - len(acc))})
    if len(trials) < 10:
        raise InputError(f"{run.name} has {len(trials)} finished trials: at least 10 are needed to interpolate")
    lowest = min(value for trial in trials for value in trial["acc"] if value is not None)
    for trial in trials:
        trial["acc"] = [lowest if value is None else value for value in trial["acc"]]
    scale = (FULL_VAL / manifest.counts["val"]) ** 0.5
    measured = trial_sd is not None and epoch_sd is not None
    noise = {
        "trial_sd": trial_sd if measured else round(TRIAL_SD * scale, 5),
        "epoch_sd": epoch_sd if measured else round(EPOCH_SD * scale, 5),
        "source": "measured" if measured else f"assumed, for {manifest.counts['val']:,} held-out images",
    }
    kept = ("space_name", "dataset", "fingerprint", "counts", "created", "machine", "versions", "git_commit", "seed")
    content = {
        "provenance": {name: getattr(manifest, name) for name in kept},
        "space": manifest.space,
        "noise": noise,
        "trials": trials,
    }
    finals = np.array([trial["acc"][-1] for trial in trials])
    points = np.array([shares_of(run.space, trial["params"]) for trial in trials])
    guesses = np.array([_fit(content, index).predict(points[[index]])[0, -1] for index in range(len(trials))])
    r2 = 1 - ((finals - guesses) ** 2).sum() / ((finals - finals.mean()) ** 2).sum()
    content["fit"] = {"r2": round(float(r2), 3), "rank_correlation": round(float(spearmanr(finals, guesses)[0]), 3)}
    return content


@dataclass(frozen=True)
class Options:
    """Write the learning curves of a run of quasi-random, full-length trials as a task for search_quality."""

    run: Annotated[Path, tyro.conf.Positional]
    """run folder, made with --sampler qmc --scheduler none; only its finished trials are taken"""
    out: Path = OWN_CURVES
    """JSON file to write"""
    trial_sd: float | None = None
    """measured seed noise of a trial as a whole, in 0..1 (assumed if not given)"""
    epoch_sd: float | None = None
    """measured noise of an epoch on top of it, in 0..1"""


def main(options: Options) -> None:
    content = curves_of(Run(options.run), options.trial_sd, options.epoch_sd)
    options.out.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"wrote {options.out}; {own_task(options.out).note}")


if __name__ == "__main__":
    run_command(main, Options, prog="python -m benchmarks.curves")
