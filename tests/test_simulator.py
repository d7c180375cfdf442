"""The simulation behind benchmarks.search_quality calls searcher and scheduler as Ray Tune does."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from benchmarks.curves import COORDINATES, FIELDS, LCBENCH_DOMAINS, PlainSpace, Point, Task
from benchmarks.search_quality import build
from benchmarks.simulator import History, Simulation
from search_spaces.domains import Domain
from tune.cube import params_at, shares_of

EPOCHS = 9
DOMAINS = {name: LCBENCH_DOMAINS[name] for name in ("learning_rate", "momentum", "num_layers")}


def accuracy(points: list[dict[str, Any]], epochs: list[int]) -> np.ndarray:
    """Best in the middle of the cube, rising with the epochs."""
    far = np.array([np.abs(shares_of(SPACE, params) - 0.5).mean() for params in points])
    return (1 - far[:, None]) * (1 - np.exp(-np.array(epochs) / 3))


SPACE = PlainSpace(Point(epochs=EPOCHS), DOMAINS)
BASE = params_at(SPACE, np.zeros(3))
TASK = Task(
    "toy", PlainSpace(Point(epochs=EPOCHS, **BASE), DOMAINS), EPOCHS, accuracy, 0.004, 0.002, 1, known_base=False
)


class Script(Searcher):
    """Suggests what it is given, then nothing more; keeps what it is told."""

    def __init__(self, *suggestions: dict[str, Any]) -> None:
        super().__init__(metric="acc", mode="max")
        self.left = [{"params": BASE, **suggestion} for suggestion in suggestions]
        self.told: list[tuple[str, str, list[int], bool]] = []
        self.under_way = 0

    def suggest(self, trial_id: str) -> Any:
        if self.left and self.left[0]["number"] == 0 and self.under_way:
            return None  # number 0 goes on where it ended
        self.under_way += bool(self.left)
        return self.left.pop(0) if self.left else Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.told.append(("result", trial_id, [each["epoch"] for each in result["new_epochs"]], result["done"]))

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        self.under_way -= 1
        self.told.append(("complete", trial_id, [each["epoch"] for each in result["new_epochs"]], result["done"]))


def simulate(searcher: Searcher, scheduler: TrialScheduler, *, workers: int = 1, trainings: int = 30) -> History:
    simulation = Simulation(TASK, searcher, scheduler, seed=0, workers=workers, max_pending=workers, noise=1.0)
    return simulation.run(trainings * EPOCHS)


def test_a_training_goes_on_where_its_last_leg_ended() -> None:
    searcher = Script({"number": 0, "until_epoch": 2}, {"number": 0, "until_epoch": 4}, {"number": 0})
    history = simulate(searcher, FIFOScheduler())
    assert searcher.told == [
        ("result", "00000", [1], False),
        ("complete", "00000", [2], True),
        ("result", "00001", [1, 2, 3], False),  # with what was before it, as a worker reports it
        ("complete", "00001", [4], True),
        ("result", "00002", [1, 2, 3, 4, 5], False),
        *[("result", "00002", [epoch], False) for epoch in (6, 7, 8)],
        ("complete", "00002", [9], True),
    ]
    assert history.started == [0] and history.completed == [EPOCHS]


def test_a_stopped_trial_ends_with_its_last_result() -> None:
    class StopAtOnce(FIFOScheduler):
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            return self.STOP

    searcher = Script({"number": 0})
    history = simulate(searcher, StopAtOnce())
    assert searcher.told == [("complete", "00000", [1], True)]
    assert history.incumbents == [(1, 0)] and not history.completed


@pytest.mark.parametrize("number, last", [(0, 2), (1, EPOCHS + 1)])
def test_a_senseless_proposal_is_refused(number: int, last: int) -> None:
    searcher = Script({"number": 0, "until_epoch": 2}, {"number": number, "until_epoch": last})
    with pytest.raises(RuntimeError, match=f"trial {number} was proposed until epoch {last}"):
        simulate(searcher, FIFOScheduler())


@pytest.mark.parametrize("method", ["random+asha", "ray", "tpe-full", "rung-tpe"])
def test_a_search_repeats_and_beats_its_first_trial(method: str) -> None:
    first, again = (simulate(*build(method, TASK, 3, 4, 10), workers=4, trainings=10) for _ in range(2))
    assert first.trainings == again.trainings and first.incumbents == again.incumbents
    trained = sum(training.epoch for training in first.trainings.values())
    assert trained == 10 * EPOCHS
    best = first.trainings[first.incumbents[-1][1]].params
    assert accuracy([best], [EPOCHS]) > accuracy([first.trainings[0].params], [EPOCHS])


@pytest.mark.parametrize("u", [0.0, 0.5, 1.0])
def test_params_and_unit_cube(u: float) -> None:
    space = PlainSpace(Point(epochs=EPOCHS), LCBENCH_DOMAINS)
    expected = np.full(7, u)
    expected[list(LCBENCH_DOMAINS).index("num_layers")] = {0.0: 0.1, 0.5: 0.5, 1.0: 0.9}[u]  # the middle of a fifth
    assert shares_of(space, params_at(space, np.full(7, u))) == pytest.approx(expected)


@pytest.mark.parametrize("axes", [FIELDS, COORDINATES])
def test_a_point_in_other_axes_is_the_training_that_it_stands_for(axes: dict[str, Domain]) -> None:
    """A rate of 0.03, momentum 0.7 and decay 0.002: by hand, 10 / 3 steps, effective rate 0.1, decay rate 0.0002."""
    seen: list[dict[str, Any]] = []

    def accuracy(points: list[dict[str, Any]], epochs: list[int]) -> np.ndarray:
        seen.extend(points)
        return np.zeros((len(points), len(epochs)))

    by_hand = {"learning_rate": 0.03, "momentum_steps": 10 / 3, "weight_decay": 0.002}
    by_hand |= {"effective_lr": 0.1, "decay_rate": 0.0002}
    task = replace(TASK, accuracy=accuracy).with_axes(axes)
    middle = params_at(task.space, np.full(len(task.space.domains), 0.5))
    task.accuracy([{name: by_hand.get(name, value) for name, value in middle.items()}], [1])
    assert seen[0]["learning_rate"] == pytest.approx(0.03)
    assert seen[0]["momentum"] == pytest.approx(0.7)
    assert seen[0]["weight_decay"] == pytest.approx(0.002)
