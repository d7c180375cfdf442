"""What an experiment measures, from the worker that takes it to results, figures and TensorBoard."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import noise
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import search_spaces
from model.config import Config, InputError
from model.data import hold_out, to_device
from model.diagnostics import MEASURED, recency
from model.sources import load
from model.train import init_state, train
from search_spaces.experiment import Estimate, Experiment, Figure, Finding, Scale
from tune.figures_experiment import found as pictures
from tune.plan import Options, new_run
from tune.report_data import DONE, FAILED, Seen
from tune.results import RunResults
from tune.tensorboard import TrialEvents

CELLS = {"short": Config(epochs=2, peak_lr=0.1), "long": Config(epochs=4, peak_lr=0.4)}
SCALE = Scale(cells=CELLS, data="digits", seeds=3, why="")


def experiment(*figures: Figure, **given: Any) -> Experiment:
    scales = dict.fromkeys(("tiny", "small", "full"), SCALE)
    return Experiment(question="?", scales=scales, figures=figures, claims=[], **given)


def seen(number: int, state: str = DONE, **measured: float | None) -> Seen:
    names = {f"{MEASURED}{name.replace('_at_', ' ')}": value for name, value in measured.items()}
    return Seen(number, {}, state, 2, [], last={"acc": 0.5, "loss": 1.5, **names})


def results_of(*trials: Seen) -> RunResults:
    """Of two cells in turn."""
    manifest = SimpleNamespace(scale="small", counts={"val": 100})
    run = SimpleNamespace(manifest=manifest, space=SimpleNamespace(bases=tuple(CELLS.values())))
    data: Any = SimpleNamespace(run=run, trials=trials, confirm=None)
    return RunResults(data, experiment())


def test_what_is_measured_is_found_by_its_name_and_what_is_missing_left_out() -> None:
    """Three seeds: the short cell's second has no finite value, the long cell's third diverged."""
    results = results_of(
        *(seen(0, drift=1.0), seen(1, drift=5.0)),
        *(seen(2, drift=None), seen(3, drift=6.0)),
        *(seen(4, drift=2.0), seen(5, FAILED)),
    )
    assert results.values("short", "drift") == [1.0, 2.0]
    assert results.values("long", "drift") == [5.0, 6.0]
    assert results.values("long", "loss") == [1.5, 1.5, pytest.approx(math.log(10))]
    assert results.values("short", "unheard of") == [] and results.mean("short", "unheard of") is None
    apart = results.difference("short", "long", "drift")
    assert apart and (apart.n, apart.mean) == (1, -4.0)  # the first seed alone has both
    beside = results.difference("short", "short", "loss", "drift")
    assert beside and (beside.n, beside.mean) == (2, 0.0)  # 1.5 - 1 and 1.5 - 2


def test_a_series_is_sorted_by_number_and_layers_stay_in_order() -> None:
    results = results_of(seen(0, loss_at_10=1.0, loss_at_9=2.0, lossy_at_1=3.0, step_at_prep=1.0, step_at_layer1=2.0))
    assert results.series("short", "loss") == {9.0: "loss 9", 10.0: "loss 10"}
    assert list(results.series("short", "loss")) == [9.0, 10.0]
    assert list(results.series("short", "step").items()) == [("prep", "step prep"), ("layer1", "step layer1")]
    assert results.series("long", "loss") == results.series("short", "los") == {}


def test_a_series_is_drawn_over_its_places_a_line_for_each_cell() -> None:
    results = results_of(
        *(seen(0, loss_at_2=1.0, loss_at_1=3.0), seen(1, loss_at_1=7.0, loss_at_2=9.0)),
        *(seen(2, loss_at_2=2.0, loss_at_1=5.0), seen(3, FAILED)),
    )
    figure = Figure(series="loss", x="age, epochs", y="loss, nats", panel="peak_lr", level="loss")
    (picture,) = pictures(experiment(figure), results)
    assert picture.title == "Loss over age" and picture.figure
    assert "1 to 2 seeds" in picture.caption and "1 trainings diverged and are left out" in picture.caption
    assert "dashed: val loss" in picture.caption and "scored" not in picture.caption
    lines = {trace.name: trace for trace in picture.figure.data if trace.name}
    assert {name: (list(line.x), list(line.y)) for name, line in lines.items()} == {
        "short": ([1.0, 2.0], [4.0, 1.5]),
        "long": ([1.0, 2.0], [7.0, 9.0]),
    }
    assert lines["short"].yaxis != lines["long"].yaxis  # in a panel each
    shown = picture.figure.layout
    assert [note.text for note in shown.annotations] == ["peak_lr = 0.1", "peak_lr = 0.4"]
    assert shown.xaxis2.title.text == "age, epochs" and shown.yaxis.title.text == "loss, nats"
    dashed = [shape.y0 for shape in shown.shapes]
    assert dashed == [1.5, pytest.approx((1.5 + math.log(10)) / 2)]


def test_a_series_of_layers_and_a_single_number_are_drawn() -> None:
    results = results_of(seen(0, step_at_prep=1.0, step_at_layer1=2.0, drift=1.0), seen(1, drift=2.0))
    layers, single = pictures(
        experiment(Figure(series="step", x="layer", y="step"), Figure(x="epochs", y="drift")), results
    )
    assert layers.figure and list(layers.figure.data[-1].x) == ["prep", "layer1"]
    assert single.figure and [*single.figure.data[-1].x, *single.figure.data[-1].y] == [2, 4, 1.0, 2.0]
    assert single.title == "Drift over epochs" and "measured at the end of training" in single.caption
    (empty,) = pictures(experiment(Figure(series="none", x="layer", y="step")), results_of(seen(0)))
    assert empty.figure is None


def test_tensorboard_has_what_is_measured(tiny: Config, tmp_path: Path) -> None:
    events = TrialEvents(tmp_path, tiny, {}, noise(64, 20), seed=0)
    metrics = {"split": "val", "epoch": 1, "acc": 0.5, "loss": 1.0, "train_loss": 1.0, "lr": 0.1, "train_s": 1.0}
    events.epoch(metrics)
    events.epoch({**metrics, "epoch": 2, f"{MEASURED}recency 0.05": 0.25, f"{MEASURED}old_loss": None})
    events.close(None, complete=True)
    written = EventAccumulator(str(tmp_path))
    written.Reload()
    (scalar,) = written.Scalars("measured/recency 0.05")
    assert (scalar.step, scalar.value) == (2, 0.25)
    assert "measured/old_loss" not in written.Tags()["scalars"]


def test_a_measure_needs_a_trial_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    asked = Options(space="forgetting", scale="tiny", gpus_per_trial=2.0, cpus_per_trial=1.0, runs_dir=tmp_path)
    with pytest.raises(InputError, match="--gpus-per-trial 2: forgetting measures recency"):
        new_run(replace(asked, cpus_per_trial=2.0), Console(quiet=True))
    assert not any(tmp_path.iterdir())


def test_an_unknown_measure_is_refused() -> None:
    with pytest.raises(InputError, match="measure = 'weight' is unknown: there are recency, layer_times"):
        experiment(measure="weight")


# --- the experiments that measure


class Told:
    """Results that are given: the mean of each quantity of each cell, with the same half-width for all differences."""

    scale = "small"

    def __init__(self, means: dict[str, dict[str, float]], half: float = 0.05, diverged: str = "") -> None:
        self.cells = dict.fromkeys(means, Config())
        self._means, self._half, self._diverged = means, half, diverged

    def mean(self, cell: str, what: str = "acc") -> Estimate | None:
        found = self._means.get(cell, {}).get(what)
        return None if found is None else Estimate(4, found, found - self._half, found + self._half)

    def difference(self, a: str, b: str, what: str = "acc", of_b: str | None = None) -> Estimate | None:
        left, right = self.mean(a, what), self.mean(b, of_b or what)
        return (
            left
            and right
            and replace(left, **{name: value - right.mean for name, value in vars(left).items() if name != "n"})
        )

    def series(self, cell: str, name: str) -> dict[float | str, str]:
        return {float(key.split()[1]): key for key in self._means.get(cell, {}) if key.startswith(f"{name} ")}

    def diverged(self, cell: str) -> int:
        return int(cell == self._diverged)


def judged(experiment: str, id: str, results: Any) -> Finding:
    found = search_spaces.definition(experiment)
    assert isinstance(found, Experiment)
    (claim,) = (claim for claim in found.claims if claim.id == id)
    return claim.judged(results)


def gains(high: float, low: float, **given: Any) -> Told:
    return Told(
        {
            "high rate, half": {"loss": 1.0 + high},
            "high rate, all, augmented": {"loss": 1.0},
            "low rate, half": {"loss": 0.8 + low},
            "low rate, all, augmented": {"loss": 0.8},
        },
        **given,
    )


@pytest.mark.parametrize(
    ("high", "low", "kind"),
    [
        (0.02, 0.3, "reproduced"),
        (-0.04, 0.3, "reproduced"),
        (0.3, 0.5, "contradicted"),  # more data pay at the high rate, too
        (0.02, 0.03, "contradicted"),  # nor do they at the low one
        (0.08, 0.3, "undecided"),
        (0.02, 0.12, "undecided"),
    ],
)
def test_the_claim_that_a_high_rate_wastes_data(high: float, low: float, kind: str) -> None:
    finding = judged("forgetting", "C06", gains(high, low))
    assert finding.kind == kind
    assert f"{high:.2f} (95% interval" in finding.text and f"{low:.2f} (95% interval" in finding.text


def test_nothing_is_said_of_data_where_a_training_diverged_or_a_cell_is_missing() -> None:
    assert "diverged" in judged("forgetting", "C06", gains(0.02, 0.3, diverged="low rate, half")).text
    assert judged("forgetting", "C06", Told({"high rate, all": {}})).kind == "undecided"


@pytest.mark.parametrize(
    ("new", "old", "held_out", "kind"),
    [
        (0.5, 0.9, 0.92, "reproduced"),
        (0.75, 0.9, 0.92, "reproduced"),
        (1.0, 0.9, 0.92, "contradicted"),  # what was just seen is no better known
        (0.88, 0.9, 0.92, "undecided"),
        (0.8, 0.9, 0.94, "undecided"),  # half of it may be left
        (0.5, 0.9, 1.4, "contradicted"),  # old batches are still known
        (0.5, 0.9, 0.98, "undecided"),
    ],
)
def test_the_claim_of_forgetting(new: float, old: float, held_out: float, kind: str) -> None:
    known = {"recency 0.05": new, "recency 0.95": 0.7, "old_loss": old, "loss": held_out}
    finding = judged("forgetting", "C07", Told({"high rate, all": known}))
    assert finding.kind == kind and f"{old - new:.2f}" in finding.text and f"{held_out - old:.2f}" in finding.text


@pytest.mark.parametrize(("share", "kind"), [(0.13, "reproduced"), (0.36, "contradicted"), (0.18, "undecided")])
def test_the_claim_of_the_norms_share(share: float, kind: str) -> None:
    finding = judged("profile", "C08", Told({"batches of 512": {"share norm": share}}))
    assert finding.kind == kind and f"takes {100 * share:.1f}% of a step" in finding.text


MEASURED_RUN = """
from model.config import Config
from search_spaces.experiment import Experiment, Scale

CELLS = {str(epochs): Config(epochs=epochs, width=2, batch_size=32) for epochs in (1, 2)}
SCALE = Scale(cells=CELLS, data="digits", train_examples=200, seeds=1, why="")
SPACE = Experiment(
    question="?", scales={"tiny": SCALE, "small": SCALE, "full": SCALE}, figures=[], claims=[], measure="recency"
)
"""


@pytest.mark.slow
def test_a_search_measures_every_net_at_its_end(command: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    """As it is measured after the same training in this process."""
    (tmp_path / "own.py").write_text(MEASURED_RUN)
    done = command(
        "tune.search", "--space", "own.py", "--scale", "tiny", "--name", "own", "--cpus-per-trial", 1, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / "runs" / "own" / "trials" / "1" / "metrics.jsonl").read_text().splitlines()
    first, last = ({k: v for k, v in json.loads(line).items() if k.startswith(MEASURED)} for line in lines)
    assert not first
    provenance = json.loads((tmp_path / "runs" / "own" / "trials" / "1" / "config.json").read_text())["provenance"]
    config, data = (
        Config(epochs=2, width=2, batch_size=32),
        to_device(hold_out(load("digits"), 200), torch.device("cpu")),
    )
    state = init_state(config, data, provenance["seed"])
    list(train(config, data, seed=provenance["seed"], state=state))
    expected = recency(config, data, state, provenance["seed"])
    assert last == {f"{MEASURED}{name}": value for name, value in expected.items()}
