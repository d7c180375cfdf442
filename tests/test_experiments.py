"""Experiments: what they declare, how claims are judged, and each of them run at its smallest scale."""

import json
import logging
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import ray
from conftest import REPO, Refused
from driver import Lab, new_study, searcher_of

import search_spaces
import tune.claims
import tune.confirm
import tune.report
import tune.search
import tune.spaces
from model.config import Config, InputError
from model.diagnostics import MEASURED
from model.recipes import s8
from search_spaces.experiment import (
    Claim,
    Estimate,
    Experiment,
    Figure,
    Finding,
    Scale,
    alike,
    higher,
    reaches,
    spreads,
)
from search_spaces.flat_directions import slice_of
from search_spaces.ridge import ridge_angle, ridge_interval
from search_spaces.space import SearchSpace
from tune.limits import epoch_flops
from tune.report_data import RunData, read
from tune.results import RunResults, experiments
from tune.run import Run

Command = Callable[..., "CompletedProcess[str]"]
CELLS = {"short": Config(epochs=2), "long": Config(epochs=4), "smooth": Config(epochs=4, label_smoothing=0.2)}


class Table:
    """Results that are given, with intervals of two standard errors."""

    scale = "small"

    def __init__(self, accs: Mapping[str, list[float]]) -> None:
        self._accs = accs
        self.cells = dict.fromkeys(accs, Config())

    def values(self, cell: str, what: str = "acc") -> list[float]:
        return self._accs[cell]

    def mean(self, cell: str, what: str = "acc") -> Estimate | None:
        return estimate(self._accs[cell])

    def difference(self, a: str, b: str, what: str = "acc", of_b: str | None = None) -> Estimate | None:
        return estimate([x - y for x, y in zip(self._accs[a], self._accs[b], strict=False)])

    def series(self, cell: str, name: str) -> Mapping[float | str, str]:
        return {}

    def spread(self, cell: str) -> Estimate | None:
        n = len(self._accs[cell])
        return Estimate(n, 0.002, 0.002 - 0.01 / n, 0.002 + 0.01 / n) if n > 1 else None

    def share(self, cell: str, target_acc: float) -> Estimate | None:
        n = len(self._accs[cell])
        share = sum(acc >= target_acc for acc in self._accs[cell]) / max(1, n)
        return Estimate(n, share, share - 1 / n, share + 1 / n) if n else None

    def diverged(self, cell: str) -> int:
        return 0


def estimate(values: list[float]) -> Estimate | None:
    if not values:
        return None
    n, mean = len(values), sum(values) / len(values)
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / max(1, n - 1) / n) if n > 1 else math.inf
    return Estimate(n, mean, mean - 2 * error, mean + 2 * error)


@pytest.mark.parametrize(
    ("a", "kind"),
    [
        ([0.91, 0.92, 0.93], "reproduced"),
        ([0.71, 0.72, 0.73], "contradicted"),
        ([0.80, 0.86, 0.83], "undecided"),
        ([0.91], "undecided"),
        ([], "undecided"),
    ],
)
def test_a_claim_of_more(a: list[float], kind: str) -> None:
    finding = higher("a", "b")(Table({"a": a, "b": [0.81, 0.82, 0.83]}))
    assert finding.kind == kind
    assert "a" in finding.text and "b" in finding.text
    if len(a) == 3:
        assert finding.estimate and f"{100 * finding.estimate.mean:+.2f} points" in finding.text


def test_a_claim_of_more_may_leave_a_margin() -> None:
    table = Table({"a": [0.808, 0.818, 0.828], "b": [0.81, 0.82, 0.83]})  # 0.2 points below, without spread
    assert higher("a", "b", by=-0.005)(table).kind == "reproduced"
    assert higher("a", "b", by=-0.001)(table).kind == "contradicted"


@pytest.mark.parametrize(
    ("a", "kind"),
    [
        ([0.811, 0.821, 0.831], "reproduced"),
        ([0.85, 0.86, 0.87], "contradicted"),
        ([0.80, 0.83, 0.85], "undecided"),
    ],
)
def test_a_claim_of_being_alike(a: list[float], kind: str) -> None:
    assert alike("a", "b", within=0.005)(Table({"a": a, "b": [0.81, 0.82, 0.83]})).kind == kind


@pytest.mark.parametrize(
    ("reached", "kind"), [(10, "reproduced"), (0, "contradicted"), (5, "undecided"), (None, "undecided")]
)
def test_a_claim_of_reaching(reached: int | None, kind: str) -> None:
    accs = [] if reached is None else [0.95] * reached + [0.9] * (10 - reached)
    assert reaches("a", 0.94, share=0.5)(Table({"a": accs})).kind == kind


@pytest.mark.parametrize(("n", "low", "kind"), [(50, 0.001, "reproduced"), (50, 0.005, "contradicted")])
def test_a_claim_of_spread(n: int, low: float, kind: str) -> None:
    assert spreads("a", low, low + 0.002)(Table({"a": [0.9] * n})).kind == kind


def test_spread_is_undecided_with_few_seeds() -> None:
    assert spreads("a", 0.001, 0.003)(Table({"a": [0.9] * 5})).kind == "undecided"


def test_what_a_scale_cannot_test_is_said() -> None:
    claim = Claim(id="X", sentence="", published="", judge=higher("a", "b"), not_at={"small": "too small a net"})
    table = Table({"a": [0.9] * 3, "b": [0.8] * 3})
    assert claim.judged(table) == Finding("not testable", "too small a net")
    table.scale = "full"
    assert claim.judged(table).kind == "reproduced"


def experiment(cells: Mapping[str, Config] = CELLS, seeds: int = 2) -> Experiment:
    scale = Scale(cells=cells, data="digits", seeds=seeds, why="")
    return Experiment(
        question="?", scales=dict.fromkeys(("tiny", "small", "full"), scale), figures=[Figure()], claims=[]
    )


def test_the_space_of_an_experiment_has_its_cells_and_nothing_else() -> None:
    space = experiment().space("tiny")
    assert list(space.bases) == list(CELLS.values())
    assert set(space.domains) == {"epochs", "label_smoothing"}
    assert SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space


def test_what_is_no_experiment_is_refused() -> None:
    with pytest.raises(InputError, match="two cells or more, all of them different"):
        experiment({"a": Config(), "b": Config()})
    with pytest.raises(InputError, match="two cells or more"):
        experiment({"a": Config()})
    with pytest.raises(InputError, match="tiny, small, full"):
        replace(experiment(), scales={})
    with pytest.raises(InputError, match="--scale 'huge' is unknown"):
        experiment().space("huge")


def test_every_cell_has_the_same_seeds_and_all_its_epochs() -> None:
    space = experiment().space("tiny")
    searcher = searcher_of(new_study(), space, sampler="cells", scheduler="none", most_trials=7, slots=2)
    lab = Lab(lambda params, epoch: 0.5).run(searcher)
    configs = [suggestion["config"] for suggestion in lab.suggestions]
    assert configs == [list(CELLS.values())[number % 3].to_dict() for number in range(7)]
    assert [len(lab.history[number]) for number in range(7)] == [2, 4, 4, 2, 4, 4, 2]
    seeds = [suggestion["seed"] for suggestion in lab.suggestions]
    assert len({*seeds[:3]}) == len({*seeds[3:6]}) == 1 and len({*seeds}) == 3


def test_what_is_expected_of_it_counts_each_cell_at_its_cost() -> None:
    """Cells of 2, 4 and 4 epochs, of which those of the longer ones take twice as long: 18 for one seed of each."""
    given = {"most_trials": 6, "cost": lambda config: config.epochs / 2}
    searcher = searcher_of(new_study(), experiment().space("tiny"), sampler="cells", scheduler="none", **given)
    Lab(lambda params, epoch: 0.5).run(searcher)
    assert searcher.budget == searcher.trials.spent == 36


def test_scales_and_spaces_are_told_apart() -> None:
    with pytest.raises(InputError, match="is an experiment: say how large, --scale tiny, small, full"):
        search_spaces.load("noise")
    with pytest.raises(InputError, match="only experiments have scales"):
        search_spaces.load("lr_regimes", "small")


@pytest.mark.parametrize("name", experiments())
def test_every_experiment_is_whole(name: str) -> None:
    found = experiments()[name]
    ids = [claim.id for claim in found.claims]
    assert ids and len(ids) == len({*ids}) and found.question.endswith("?")
    for scale_name, scale in found.scales.items():
        assert list(found.space(scale_name).bases) == list(scale.cells.values()) and scale.why
        for claim in found.claims:  # cells are named as they are
            finding = claim.judged(Table({cell: [] for cell in scale.cells}))
            assert finding.kind in ("undecided", "not testable")


def test_no_claim_is_made_twice() -> None:
    ids = [claim.id for each in experiments().values() for claim in each.claims]
    assert len(ids) == len({*ids})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("--epochs", 3), "--epochs doesn't go with --scale tiny"),
        (("--sampler", "tpe"), "--sampler doesn't go with --scale tiny"),
        (("--set", "label_smoothing=0.1"), "this is what the cells of the experiment differ in"),
        (
            ("--space", "coordinate_search", "--set", "peak_lr=0.1"),
            "this is what the cells of the experiment differ in",
        ),
    ],
)
def test_bad_options_of_an_experiment_are_named(refused: Refused, wrong: tuple[object, ...], said: str) -> None:
    assert said in refused(tune.search, "--space", "noise", "--scale", "tiny", *wrong)


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    """A Ray of one slot for several searches: to start one for each takes longer than their trainings."""
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "shutdown", lambda: None)
        yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in experiments() if name != "noise"])
def test_at_the_tiny_scale_every_cell_is_trained(name: str, one_ray: None, tmp_path: Path) -> None:
    tune.search.main(tune.search.Options(space=name, scale="tiny", name="tried", runs_dir=tmp_path))
    check_trained(experiments()[name], read(tmp_path / "tried"))


def check_trained(found: Experiment, data: RunData) -> RunResults:
    """What is to be seen of a run at the tiny scale that came to its end."""
    results, scale = RunResults(data, found), found.scales["tiny"]
    trained = [len(results.values(cell)) for cell in results.cells]
    assert [results.cells[cell] for cell in scale.cells] == list(scale.cells.values())
    measured = [any(key.startswith(MEASURED) for key in trial.last) for trial in data.trials]
    assert measured == [found.measure is not None] * len(data.trials)
    if scale.search:
        assert sum(trained) == scale.trials and min(trained) == 1
    else:
        assert trained == [scale.seeds] * len(scale.cells)
        same = [results.difference(cell, cell) for cell in scale.cells]
        assert all(each and each.mean == 0 for each in same)
    return results


def test_an_experiment_runs_to_its_claims(
    command: Command,
    refused: Refused,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = command("tune.search", "--space", "noise", "--scale", "tiny", "--name", "tried", timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    found = experiments()["noise"]
    results = check_trained(found, read(tmp_path / "runs" / "tried"))

    monkeypatch.chdir(tmp_path)
    tune.claims.main(tune.claims.Options(json=Path("claims.json"), html=Path("claims.html"), markdown=Path("c.md")))
    told = capsys.readouterr().out
    rows = {row["id"]: row for row in json.loads((tmp_path / "claims.json").read_text())}
    for claim in found.claims:
        row = rows[claim.id]
        assert row["run"] == "tried" and row["scale"] == "tiny" and row["counts"]["val"] > 0
        assert row["kind"] == claim.judged(results).kind and claim.id in told
        assert claim.sentence in (tmp_path / "claims.html").read_text()
        line = next(line for line in (tmp_path / "c.md").read_text().splitlines() if line.startswith(f"| {claim.id} |"))
        assert claim.published in line and f"| {row['kind']} |" in line
    others = [row for id, row in rows.items() if id not in {claim.id for claim in found.claims}]
    assert {row["kind"] for row in others} <= {"not run"}

    tune.report.main(tune.report.Options(("runs/tried",)))
    page = (tmp_path / "runs" / "tried" / "report.html").read_text()
    assert "python -m tune.claims" in page and "python -m tune.confirm" not in page
    assert found.question in page and all(f">{cell}</th>" in page for cell in results.cells)

    assert "is an experiment, whose cells share their seeds" in refused(tune.confirm, "runs/tried")


@pytest.mark.slow
def test_an_experiment_goes_on_with_more_seeds(one_ray: None, tmp_path: Path) -> None:
    """Of each cell, in the same order."""
    tune.search.main(tune.search.Options(space="noise", scale="tiny", name="tried", runs_dir=tmp_path))
    found = experiments()["noise"]
    before = check_trained(found, read(tmp_path / "tried")).values("baseline")
    tune.search.main(tune.search.Options(resume=tmp_path / "tried", trials=8))
    after = RunResults(read(tmp_path / "tried"), found).values("baseline")
    assert len(before) == 3 and len(after) == 4 and after[:3] == before


@pytest.mark.slow
def test_speedrun_searches_for_the_least_arithmetic(one_ray: None, tmp_path: Path) -> None:
    """On the digits, from its four bases, with nobody much dearer than S8."""
    s8_flops = 6 * epoch_flops(replace(s8(), width=8, batch_size=32), num_classes=10, train_examples=320)
    options = tune.search.Options(
        space="speedrun",
        data="digits",
        train_examples=320,
        set=(("width=8", "epochs=6", "batch_size=32", "lr_scale=0.25"),),
        objective="flops-to-target",
        target_acc=0.3,
        limit=((f"train_flops={1.2 * s8_flops}",),),
        trials=6,
        name="tried",
        runs_dir=tmp_path,
    )
    tune.search.main(options)
    run = Run(tmp_path / "tried")
    trials = run.study().trials
    assert len(trials) == 6 and all(trial.state.is_finished() for trial in trials)
    for trial in trials:
        config = run.config(trial)
        assert config.epochs * epoch_flops(config, num_classes=10, train_examples=320) <= 1.2 * s8_flops
    solvers = [run.config(trial).solver for trial in trials[:4]]
    assert solvers == ["sgd", "sgd", "muon", "muon"]
    costs = [trial.user_attrs["cost"] for trial in run.ranking() if max(trial.intermediate_values.values()) >= 0.3]
    assert costs and costs == sorted(costs) and run.ranking()[0].user_attrs["cost"] == costs[0]


def test_the_example_of_the_docs_is_an_experiment(tmp_path: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", (REPO / "docs" / "experiments.md").read_text(), re.DOTALL)
    (tmp_path / "flip.py").write_text(code[0])
    assert isinstance(search_spaces.definition(str(tmp_path / "flip.py")), Experiment)


def test_the_docs_tell_every_experiment_with_its_claims_and_its_figures() -> None:
    text = (REPO / "docs" / "experiments.md").read_text()
    for name, found in experiments().items():
        section = text.partition(f"### `{name}`: {found.question}\n")[2].partition("\n#")[0]
        ids = sorted(claim.id for claim in found.claims)
        assert re.search(rf"\b{ids[0]}\b", section) and re.search(rf"\b{ids[-1]}\b", section), name
        assert all((REPO / "docs" / figure).is_file() for figure in re.findall(r"!\[.*\]\((.*)\)", section))


@pytest.mark.parametrize("degrees", [45, -45, 20, 0, 80])
def test_a_ridge_is_found(degrees: float) -> None:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    grid = [(x, y) for x in range(-2, 3) for y in range(-2, 3)]
    surface = {(x, y): 0.9 - 0.02 * (y * c - x * s - 0.3) ** 2 - 0.001 * (x * c + y * s) ** 2 for x, y in grid}
    assert ridge_angle(list(surface), list(surface.values())) == pytest.approx(degrees, abs=1e-6)
    noisy = {at: [z - 0.001, z, z + 0.001] for at, z in surface.items()}
    angle, low, high = ridge_interval(noisy, degrees)
    assert low <= angle <= high and angle == pytest.approx(degrees, abs=1e-6) and high - low < 10


def test_one_seed_of_each_point_is_enough_for_an_interval_of_a_ridge() -> None:
    """Of 95% intervals over 20 noisy surfaces, 16 or more hold the truth, and none is a point."""
    grid = [(x, y) for x in range(-2, 3) for y in range(-2, 3)]
    rng = random.Random(0)
    found = []
    for _ in range(20):
        seeds = {(x, y): [0.9 - 0.01 * (y - x) ** 2 + rng.gauss(0, 0.01)] for x, y in grid}
        found.append(ridge_interval(seeds, 45))
    assert sum(low <= 45 <= high for _, low, high in found) >= 16
    assert all(1 < high - low < 30 for _, low, high in found)


def test_a_slice_takes_in_what_differs_in_two_fields_only() -> None:
    cells = experiments()["flat_directions"].scales["small"].cells
    accs = {name: [0.5] for name in cells}
    table = Table(accs)
    table.cells = dict(cells)
    for axis in ("batch", "damping", "decay"):
        assert len(slice_of(table, axis)) == 25


STEPS = [0.559, 0.560, 0.856, 0.897, 0.907, 0.911]  # as published


@pytest.mark.parametrize(
    ("step", "acc", "kind"),
    [
        (0, 0.700, "reproduced"),  # the first and the last step are not part of the claim
        (5, 0.800, "reproduced"),
        (3, 0.800, "contradicted"),
        (4, 0.898, "undecided"),
    ],
)
def test_the_backbone_gains_at_each_of_three_steps(step: int, acc: float, kind: str) -> None:
    claim = next(claim for claim in experiments()["width_depth"].claims if claim.id == "C11")
    cells = list(experiments()["width_depth"].scales["small"].cells)[:6]
    means = [*STEPS[:step], acc, *STEPS[step + 1 :]]
    noises = [1e-3, 2e-3] * 3
    accs = {cell: [mean - e, mean, mean + e] for cell, mean, e in zip(cells, means, noises, strict=True)}
    finding = claim.judged(Table(accs))
    assert finding.kind == kind
    assert all(f"{cell} {100 * mean:.1f}%" in finding.text for cell, mean in zip(cells, means, strict=True))
    assert finding.estimate and finding.estimate.mean == pytest.approx(
        min(means[place + 1] - means[place] for place in (1, 2, 3))
    )


NORM_IN, NORM_AFTER, NO_ACT = (
    "norm in the branch, activation after the sum",
    "norm after the sum, activation after the sum",
    "norm in the branch, activation none",
)


@pytest.mark.parametrize(
    ("id", "cell", "acc", "kind"),
    [
        ("C38", NORM_AFTER, 0.86, "reproduced"),
        ("C38", NORM_AFTER, 0.95, "contradicted"),
        ("C38", NORM_AFTER, 0.93, "undecided"),
        ("C39", NO_ACT, 0.94, "reproduced"),
        ("C39", NO_ACT, 0.92, "contradicted"),
        ("C39", NO_ACT, 0.93, "undecided"),
    ],
)
@pytest.mark.parametrize("shallow_acc", [0.5, 0.99])
def test_residual_pairs_are_judged_in_the_deepest_net(
    id: str, cell: str, acc: float, kind: str, shallow_acc: float
) -> None:
    found = experiments()["torch_ablations"]
    claim = next(claim for claim in found.claims if claim.id == id)
    accs = {name: [0.91, 0.914, 0.918] for name in found.scales["full"].cells}
    accs[f"resnet110, {NORM_IN}"] = [0.928, 0.93, 0.932]
    accs[f"resnet110, {cell}"] = [acc - 0.001, acc, acc + 0.001]
    accs[f"resnet20, {cell}"] = [shallow_acc - 0.001, shallow_acc, shallow_acc + 0.001]
    table = Table(accs)
    table.scale = "full"
    finding = claim.judged(table)
    assert finding.kind == kind and finding.estimate
    difference = 0.93 - acc if id == "C38" else acc - 0.93
    assert finding.estimate.mean == pytest.approx(difference)
    beside = 0.914 - shallow_acc if id == "C38" else shallow_acc - 0.914
    assert f"{100 * difference:+.2f} points" in finding.text and f"{100 * beside:+.2f} points" in finding.text
    table.scale = "tiny"
    assert claim.judged(table).kind == "not testable"


@pytest.mark.parametrize(("rival", "kind"), [(0.80, "reproduced"), (0.93, "contradicted"), (0.91, "undecided")])
def test_each_solver_is_judged_at_its_best_rate(rival: float, kind: str) -> None:
    found = experiments()["torch_ablations"]
    accs = {name: [0.1, 0.1, 0.1] for name in found.scales["small"].cells}
    accs["resnet20, " + NO_ACT] = [0.99, 0.99, 0.99]  # no solver
    accs["sgd, rate 0.8"] = [0.908, 0.91, 0.912]
    accs["adam, rate 0.002"] = [rival - 0.001, rival, rival + 0.001]
    finding = next(claim for claim in found.claims if claim.id == "C40").judged(Table(accs))
    assert finding.kind == kind and "sgd, rate 0.8 against adam, rate 0.002" in finding.text


def test_the_list_of_spaces_names_them_all(refused: Refused, capsys: pytest.CaptureFixture[str]) -> None:
    tune.spaces.main(tune.spaces.Options())
    listed = capsys.readouterr().out
    for name in search_spaces.names():
        assert name in listed
    tune.spaces.main(tune.spaces.Options("bag_of_tricks"))
    one = capsys.readouterr().out
    assert "C33" in one and "--scale full" in one
    assert "did you mean bag_of_tricks?" in refused(tune.spaces, "bag_of_trick")
