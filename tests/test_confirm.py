"""Confirmations of a small run, trained for real: what is on record, kills, divergence, more seeds, several devices."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPO
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from rich.console import Console

import tune.claims
import tune.confirm
from model.config import Config, InputError
from model.data import hold_out, to_device
from model.evaluate import evaluate
from model.ranks import Ranks
from model.sources import load
from model.weights import load_weights
from search_spaces.space import LogUniform, SearchSpace
from tune.confirm import Confirmation, Options, confirm_seed
from tune.places import Place
from tune.run import Manifest, Run, create, here

LR = FloatDistribution(1e-3, 1e6, log=True)
BASE = Config(width=2, epochs=1, batch_size=64, cutout_px=0)
LR_SCALES = {0: 1.0, 1: 2.0, 2: 0.5, 3: 1e-3, 4: 4.0}
ACCS = {0: 0.30, 1: 0.45, 2: 0.40, 3: 0.20, 4: 0.35}  # in the search


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A finished search of five trials of one epoch on the digits."""
    space = SearchSpace(BASE, {"lr_scale": LogUniform(1e-3, 1e6)})
    data = hold_out(load("digits"))
    manifest = Manifest(
        space_name="small",
        space=space.to_dict(),
        data="digits",
        dataset=data.name,
        fingerprint=data.fingerprint,
        train_examples=None,
        counts={"train": len(data.train_labels), "val": len(data.eval_labels)},
        trials=5,
        seed=0,
        sampler="random",
        scheduler="none",
        grace_epochs=1,
        reduction_factor=3,
        cpus_per_trial=1,
        gpus_per_trial=0,
        threads=1,
        **here(),
    )
    run = create(tmp_path / "runs", "small", manifest)
    study = run.study()
    for number, lr_scale in LR_SCALES.items():
        trial = create_trial(
            state=TrialState.COMPLETE,
            value=ACCS[number],
            params={"lr_scale": lr_scale},
            distributions={"lr_scale": LR},
            intermediate_values={1: ACCS[number]},
            user_attrs={"seed": number},
        )
        study.add_trial(trial)
    return run


def lines(run: Run) -> list[dict[str, Any]]:
    file = run.path / "confirm" / "runs.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def confirmation(run: Run) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run.path / "confirm" / "confirm.json").read_text())
    return content


def confirmed_rows(run: Run) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = confirmation(run)["rows"]
    return rows


def confirm(run: Run, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tune.confirm", str(run.path), *map(str, args)],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(run: Run, **options: Any) -> str:
    """The output of a confirmation in this process, on one thread."""
    out = io.StringIO()
    with redirect_stdout(out):
        tune.confirm.main(Options(str(run.path), threads=1, **options))
    return out.getvalue()


def test_the_best_and_the_base_on_fresh_seeds(run: Run) -> None:
    out = finished(run, top=2, seeds=3, target_acc=0.2)
    content = confirmation(run)
    rows = {row["trial"]: row for row in content["rows"]}
    assert set(rows) == {0, 1, 2}
    assert content["counts"] == {"train": 1497, "test": 300} and content["classes"] == list("0123456789")
    for row in rows.values():
        assert row["n"] == len(row["accs"]) == len(row["seeds"])
        assert row["seeds"] == [confirm_seed(0, index) for index in range(row["n"])]
        assert row["mean_acc"] == pytest.approx(np.mean(row["accs"])) and row["median_train_s"] > 0
        assert row["search_val_acc"] == ACCS[row["trial"]]
        assert row["target"]["k"] == sum(acc >= 0.2 for acc in row["accs"]) and row["flops"] > 0
        assert row["peak_mib"] > 100
    used = {trial.user_attrs["seed"] for trial in run.study().trials}
    assert not used & set(rows[0]["seeds"])
    assert content["verdict"]["text"] in " ".join(out.split())
    assert sum(row["first_share"] for row in rows.values()) == pytest.approx(1)
    assert confirmed_rows(run)[0]["mean_acc"] == max(row["mean_acc"] for row in rows.values())
    claims = run.path / "claims.json"
    tune.claims.main(tune.claims.Options(runs=(str(run.path),), json=claims))
    claim = json.loads(claims.read_text())[-1]
    best = rows[content["verdict"]["trial"]]["to_base"]
    assert claim["id"] == run.manifest.space_name and claim["kind"] == content["verdict"]["kind"]
    assert claim["estimate"]["n"] == best["n"] and claim["estimate"]["mean"] == best["mean"]
    assert claim["counts"] == content["counts"]  # not those of the search, which held images out


def test_the_weights_of_the_first_seed_give_its_accuracy(run: Run) -> None:
    finished(run, top=1, seeds=2)
    data = load("digits")
    torch.set_num_threads(1)
    for row in confirmed_rows(run):
        net, record = load_weights(run.path / row["weights"])
        assert record.facts["seed"] == row["seeds"][0] and record.config == run.config(run.study().trials[row["trial"]])
        acc, _ = evaluate(net, record.config, to_device(data, torch.device("cpu")))
        assert acc == pytest.approx(row["accs"][0])
        assert list((run.path / "confirm" / f"trial{row['trial']}").glob("events.out.tfevents.*"))


@pytest.mark.slow
def test_killed_at_any_point_no_training_is_repeated_and_the_end_is_the_same(run: Run) -> None:
    options = ("--top", 2, "--seeds", 3, "--practical", 0, "--threads", 1)
    runs_jsonl = run.path / "confirm" / "runs.jsonl"
    before: list[str] = []
    rng = np.random.default_rng(0)
    for _ in range(4):
        process = confirm(run, *options)
        size = runs_jsonl.stat().st_size if runs_jsonl.exists() else 0
        while process.poll() is None and not (runs_jsonl.exists() and runs_jsonl.stat().st_size > size):
            time.sleep(0.02)
        time.sleep(float(rng.uniform(0, 0.3)))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        content = runs_jsonl.read_text()
        after = content[: content.rfind("\n") + 1].splitlines()
        assert after[: len(before)] == before
        before = after
        with runs_jsonl.open("a") as file:
            file.write('{"trial": 1, "se')  # as a kill in the middle of a line leaves it
    assert "repaired" in finished(run, top=2, seeds=3, practical=0)
    found = lines(run)
    assert [json.loads(line) for line in before] == found[: len(before)]
    assert len({(line["trial"], line["seed"]) for line in found}) == len(found)
    content_before = confirmation(run)
    assert {row["n"] for row in content_before["rows"]} <= {2, 3}
    again = finished(run, top=2, seeds=3, practical=0)
    assert lines(run) == found and confirmation(run) == content_before and "seed 1:" not in again


def test_more_seeds_and_a_larger_top_continue_the_sequence(run: Run) -> None:
    finished(run, top=1, seeds=2, practical=0)
    first = lines(run)
    assert {(line["trial"]) for line in first} == {0, 1} and len(first) == 4
    finished(run, top=2, seeds=3, practical=0)
    second = lines(run)
    assert second[:4] == first
    assert {line["trial"] for line in second} == {0, 1, 2}
    finished(run, top=1, seeds=3, practical=0)
    assert {row["trial"] for row in confirmed_rows(run)} == {0, 1, 2}, "who was tried still counts"


def test_a_diverged_training_counts_as_chance(run: Run) -> None:
    study = run.study()
    study.add_trial(
        create_trial(
            state=TrialState.COMPLETE,
            value=0.9,
            params={"lr_scale": 1e6},
            distributions={"lr_scale": LR},
            intermediate_values={1: 0.9},
            user_attrs={"seed": 5},
        )
    )
    out = finished(run, top=1, seeds=2)
    row = next(row for row in confirmed_rows(run) if row["trial"] == 5)
    assert row["accs"] == [0.1, 0.1] and row["diverged"] == 2 and row["weights"] is None
    assert "diverged, counts as chance" in out
    assert "2 of 2 trainings of trial 5 diverged and count as chance." in " ".join(out.split())


def test_a_budget_ends_it_between_trainings(run: Run) -> None:
    out = finished(run, top=4, seeds=16, practical=0, budget_s=0.001)
    assert "--budget-s" in out
    assert len(lines(run)) <= 10


def test_several_devices_train_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two places, each a process of its own, as with two GPUs: the results are those of one place."""
    options = Options(str(run.path), top=2, seeds=3, practical=0, threads=1)
    data = load("digits")
    torch.set_num_threads(1)
    console = Console(file=io.StringIO())
    (run.path / "confirm").mkdir()

    @contextmanager
    def two(dataset: Any, ranks: int) -> Any:
        with Ranks(dataset, 1, threads=1) as a, Ranks(dataset, 1, threads=1) as b:
            yield [Place("cpu:0", dataset, a), Place("cpu:1", dataset, b)]

    monkeypatch.setattr(tune.confirm, "open_places", two)
    Confirmation(run, run.ranking(), data, options, console).train(None)
    together = {(line["trial"], line["seed"]): line["acc"] for line in lines(run)}
    assert {line["device"] for line in lines(run)} == {"cpu:0", "cpu:1"}
    assert all((run.path / row["weights"]).exists() for row in confirmed_rows(run))
    monkeypatch.undo()
    (run.path / "confirm" / "runs.jsonl").unlink()
    Confirmation(run, run.ranking(), data, options, console).train(None)
    assert {(line["trial"], line["seed"]): line["acc"] for line in lines(run)} == together


def test_it_fits_80_columns_and_hostile_texts_are_inert(run: Run) -> None:
    finished(run, top=2, seeds=2)
    content = confirmation(run)
    content["rows"][0]["params"] = {"lr_scale": "[red]\x1b[31mred\x1b[0m[/red]" + "x" * 1000}
    console = Console(width=80, record=True, file=io.StringIO(), force_terminal=False, soft_wrap=True)
    tune.confirm.show("[b]name[/b]\x1b]0;title\x07", content, console)
    text = console.export_text()
    assert "[red]" in text and "[b]name[/b]" in text and "\x1b" not in text and "\x07" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert not re.search(r"\d…", text), "no number is cut"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top": 0}, "--top 0: it must be 1 or more"),
        ({"seeds": 0}, "--seeds 0: it must be 1 or more"),
        ({"target_acc": 94.0}, "--target-acc 94.0: it must be above 0 and at most 1"),
        ({"practical": -1.0}, "--practical -1.0: it must be accuracy points from 0"),
        ({"budget_s": 0.0}, "--budget-s 0.0: it must be above 0"),
    ],
)
def test_bad_options(run: Run, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        finished(run, **options)
    assert not (run.path / "confirm").exists()


def test_a_damaged_record_is_named_and_kept(run: Run) -> None:
    (run.path / "confirm").mkdir()
    file = run.path / "confirm" / "runs.jsonl"
    file.write_text('{"trial": 1, "se\n')
    with pytest.raises(InputError, match=r"runs\.jsonl is damaged"):
        finished(run, top=1, seeds=1)
    assert file.read_text() == '{"trial": 1, "se\n'
