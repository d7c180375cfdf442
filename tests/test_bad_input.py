"""What a user can get wrong: one line on stderr, exit code 2, nothing written, no Ray started."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import Refused, contents

import model.train_command
import tune.confirm
import tune.export
import tune.search

SEARCH = ("--space", "lr_regimes", "--data", "digits")


@pytest.mark.parametrize(
    ("args", "facts"),
    [
        ((), ["--space", "lr_regimes"]),
        ((*SEARCH, "--limit", "params"), ["--limit 'params'", "params=7e6"]),
        ((*SEARCH, "--limit", "params=0"), ["limit params = 0.0 is not allowed"]),
        ((*SEARCH, "--limit", "params=10"), ["the base", "params = ", "times the limit of 10"]),
        ((*SEARCH, "--base", "s0", "--base", "s1"), ["a further base has pool_place", "make it a domain"]),
        (("--space", "lr_regime"), ["unknown space 'lr_regime'", "did you mean lr_regimes?"]),
        (("--space", "nowhere.py"), ["nowhere.py", "doesn't exist"]),
        ((*SEARCH, "--trials", 0), ["--trials 0", "1 or more"]),
        ((*SEARCH, "--trials", -3), ["--trials -3", "1 or more"]),
        ((*SEARCH, "--trials", "nan"), ["--trials", "'nan'", "INT"]),
        ((*SEARCH, "--trials", "many"), ["--trials", "'many'", "INT"]),
        ((*SEARCH, "--epochs", 0), ["epochs = 0", "from 1"]),
        ((*SEARCH, "--epochs", -1), ["epochs = -1", "from 1"]),
        ((*SEARCH, "--epochs", "nan"), ["--epochs", "'nan'", "INT"]),
        ((*SEARCH, "--width", 0), ["width = 0", "from 1"]),
        ((*SEARCH, "--width", "wide"), ["--width", "'wide'", "INT"]),
        ((*SEARCH, "--set", "batch_size=0"), ["batch_size = 0", "from 1"]),
        ((*SEARCH, "--set", "batch_size=-5"), ["batch_size = -5", "from 1"]),
        ((*SEARCH, "--set", "batch_size=nan"), ["batch_size = 'nan'", "an integer"]),
        ((*SEARCH, "--set", "batch_size=5000"), ["batch_size = 5000", "1348 training images"]),
        ((*SEARCH, "--set", "peak_lr=nan"), ["peak_lr = nan", "a number above 0"]),
        ((*SEARCH, "--set", "cutout=3"), ["unknown field 'cutout'", "did you mean cutout_px?"]),
        ((*SEARCH, "--set", "cutout_px=big"), ["cutout_px = 'big'", "an integer from 0 to 32"]),
        ((*SEARCH, "--set", "cutout_px=20"), ["cutout_px = 20", "domain"]),
        ((*SEARCH, "--set", "cutout_px"), ["field=value"]),
        ((*SEARCH, "--train-examples", 5), ["--train-examples 5", "10 classes", "from 10 to 1348"]),
        ((*SEARCH, "--train-examples", 2000), ["--train-examples 2000", "1348 training images", "beside 149 held out"]),
        ((*SEARCH, "--grace-epochs", 9, "--epochs", 8), ["--grace-epochs 9", "8 epochs"]),
        ((*SEARCH, "--grace-epochs", 0), ["--grace-epochs 0", "1 or more"]),
        ((*SEARCH, "--reduction-factor", 1), ["--reduction-factor 1", "2 or more"]),
        ((*SEARCH, "--ranks-per-trial", 0), ["--ranks-per-trial 0", "1 or more"]),
        ((*SEARCH, "--ranks-per-trial", 2), ["--ranks-per-trial 2", "1 CPUs", "--cpus-per-trial to 2"]),
        ((*SEARCH, "--set", "precision=fp16"), ["precision = 'fp16' needs a CUDA device"]),
        ((*SEARCH, "--set", "solver=adam", "momentum=0.8"), ["momentum = 0.8 has no effect"]),
        ((*SEARCH, "--base", "s9"), ["s9", "can't be read"]),
        ((*SEARCH, "--gpus-per-trial", 64), ["--gpus-per-trial 64", "this machine has"]),
        ((*SEARCH, "--gpus-per-trial", 1.5), ["--gpus-per-trial 1.5", "whole number"]),
        ((*SEARCH, "--gpus-per-trial", -1), ["--gpus-per-trial -1", "0"]),
        ((*SEARCH, "--cpus-per-trial", 4096), ["--cpus-per-trial 4096", "this machine has"]),
        ((*SEARCH, "--cpus-per-trial", 0), ["--cpus-per-trial 0", "above 0"]),
        ((*SEARCH, "--slots", 0), ["--slots 0", "1 or more"]),
        (
            (*SEARCH, "--slots", 4096, "--cpus-per-trial", 1),
            ["--slots 4096 with --cpus-per-trial 1", "this machine has"],
        ),
        ((*SEARCH, "--nice", 20), ["--nice 20", "from 0 to 19"]),
        ((*SEARCH, "--cpus-per-trial", "nan"), ["--cpus-per-trial nan", "above 0"]),
        ((*SEARCH, "--seed", -1), ["--seed -1", "0 or more"]),
        ((*SEARCH, "--budget", 0), ["--budget 0.0", "above 0"]),
        ((*SEARCH, "--budget", "nan"), ["--budget nan", "above 0"]),
        ((*SEARCH, "--objective", "flops-to-target"), ["--objective flops-to-target needs --target-acc", "0.94"]),
        ((*SEARCH, "--target-acc", 0.9), ["--objective accuracy has no --target-acc"]),
        ((*SEARCH, "--objective", "time-to-target", "--target-acc", 94), ["--target-acc 94", "at most 1"]),
        ((*SEARCH, "--objective", "speed"), ["--objective", "speed", "pareto"]),
        ((*SEARCH, "--time-budget-s", 0), ["--time-budget-s 0", "above 0"]),
        ((*SEARCH, "--sampler", "bayes"), ["--sampler", "bayes", "tpe"]),
        ((*SEARCH, "--name", "a/b"), ["--name 'a/b'", "path parts"]),
        ((*SEARCH, "--name", ".."), ["--name '..'", "path parts"]),
        ((*SEARCH, "--trails", 3), ["--trails"]),
        (("--space", "lr_regimes", "--data", "nowhere"), ["--data nowhere", "no such folder"]),
        (("--resume", "runs/nowhere"), ["--resume runs/nowhere", "no such folder"]),
    ],
)
def test_search_refuses(refused: Refused, args: tuple[object, ...], facts: list[str]) -> None:
    line = refused(tune.search, *args)
    for fact in facts:
        assert fact in line


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ("SPACE = 3\n", ["SPACE"]),
        ("x = 1\n", ["SPACE"]),
        ("a = 1\nb = (\n", ["line"]),
        ("a = 1\nb = 1 / 0\n", ["line 2", "ZeroDivisionError"]),
    ],
)
def test_search_refuses_a_space_file(refused: Refused, tmp_path: Path, content: str, facts: list[str]) -> None:
    (tmp_path / "mine.py").write_text(content)
    line = refused(tune.search, "--space", "mine.py", "--data", "digits")
    assert "mine.py" in line
    for fact in facts:
        assert fact in line


def test_search_refuses_a_space_that_is_not_python(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("hello")
    assert "not a Python file" in refused(tune.search, "--space", "./mine.txt")


def test_search_refuses_an_unusable_runs_folder(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file stands in the way")
    assert "can't be written" in refused(tune.search, *SEARCH)


def test_search_refuses_a_taken_name(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "notes.txt").write_text("mine")
    assert "exists already" in refused(tune.search, *SEARCH, "--name", "mine")
    assert (tmp_path / "runs" / "mine" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("args", "facts"),
    [
        (("--recipe", "s00"), ["--recipe 's00'", "did you mean s0?"]),
        (("--set", "widht=3"), ["unknown field 'widht'", "did you mean width?"]),
        (("--seed", -1), ["--seed -1", "0 or more"]),
        (("--threads", 0), ["--threads 0", "1 or more"]),
        (("--config", "none.json"), ["none.json", "can't be read"]),
        (("--data", "nowhere"), ["--data nowhere"]),
        (("--set", "batch_size=4096"), ["batch_size = 4096", "1497 training images"]),
        (("--set", "train_frac=0.1"), ["batch_size = 512", "150 training images that train_frac = 0.1 leaves of 1497"]),
        (("--train-examples", 100_000), ["--train-examples 100000", "1497"]),
        (("--split", "validation"), ["--split", "validation"]),
        (("--ranks", 0), ["--ranks 0", "1 or more"]),
        (("--ranks", 3, "--set", "batch_size=64"), ["batch_size = 64", "3 ranks", "a multiple of 3"]),
        (("--target-acc", 94), ["--target-acc 94", "up to 1"]),
        (("--set", "precision=fp16"), ["precision = 'fp16' needs a CUDA device"]),
        (("--set", "compile=true"), ["compile = true needs a CUDA device"]),
        (("--recipe", "s4", "--set", "batch_size=100"), ["ghost_batch = 32", "batch_size = 100"]),
        (("--set", "norm=none", "bn_bias_lr_mult=2"), ["bn_bias_lr_mult = 2.0 has no effect with norm = none"]),
    ],
)
def test_train_refuses(refused: Refused, args: tuple[object, ...], facts: list[str]) -> None:
    line = refused(model.train_command, "--data", "digits", *args)
    for fact in facts:
        assert fact in line


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ("{", ["not JSON"]),
        ("[" * 100_000, ["not JSON", "nested too deeply"]),
        ('\ufeff{"version": 7, "config": {}}', ["version 7"]),
        ('{"version": 1, "config": {"width": ' + "9" * 400 + "}}", ["width"]),
        ('{"version": 1, "config": {"peak_lr": ' + "9" * 400 + "}}", ["peak_lr"]),
        ('{"version": 7, "config": {}}', ["version 7"]),
        ('{"version": 1, "config": {"widht": 3}}', ["widht", "did you mean width?"]),
    ],
)
def test_config_files_are_refused(refused: Refused, tmp_path: Path, content: str, facts: list[str]) -> None:
    (tmp_path / "c.json").write_text(content)
    for command, args in [(model.train_command, ("--config", "c.json")), (tune.search, (*SEARCH, "--base", "c.json"))]:
        line = refused(command, *args)
        for fact in ["c.json", *facts]:
            assert fact in line


# --- commands on a run folder


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished search of digits, two trials of one epoch."""
    folder = tmp_path_factory.mktemp("finished")
    options = tune.search.Options(
        space="lr_regimes",
        data="digits",
        trials=2,
        epochs=1,
        width=1,
        train_examples=100,
        set=(("batch_size=16",),),
        name="done",
        runs_dir=folder,
    )
    tune.search.main(options)
    yield folder / "done"


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished_run, tmp_path / "done")


@pytest.mark.parametrize("command", [tune.export, tune.confirm, tune.search])
def test_a_folder_that_is_no_run(refused: Refused, tmp_path: Path, command: ModuleType) -> None:
    (tmp_path / "folder").mkdir()
    args = ["--resume", "folder"] if command is tune.search else ["folder"]
    assert "is not a run folder" in refused(command, *args)


@pytest.mark.parametrize("command", [tune.export, tune.confirm, tune.search])
@pytest.mark.parametrize(
    ("manifest", "fact"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ("[" * 100_000, "nested too deeply"),
        ('{"version": 1}', "is damaged"),
        ('{"version": 99}', "version 99"),
        ('{"version": 1, "telepathy": true}', "a newer version made it"),
    ],
)
def test_a_corrupt_manifest(refused: Refused, run_copy: Path, command: ModuleType, manifest: str, fact: str) -> None:
    (run_copy / "run.json").write_text(manifest)
    args = ["--resume", "done"] if command is tune.search else ["done"]
    assert fact in refused(command, *args)


@pytest.mark.parametrize("command", [tune.export, tune.confirm])
def test_a_run_without_a_finished_trial(refused: Refused, run_copy: Path, command: ModuleType) -> None:
    journal = (run_copy / "journal.log").read_text().splitlines(keepends=True)
    (run_copy / "journal.log").write_text(journal[0])
    assert "no trial ran to its end" in refused(command, "done")


@pytest.mark.parametrize(
    ("command", "option"), [(tune.export, "--top"), (tune.confirm, "--top"), (tune.confirm, "--seeds")]
)
def test_zero_configs_or_seeds(refused: Refused, run_copy: Path, command: ModuleType, option: str) -> None:
    assert f"{option} 0" in refused(command, "done", option, 0)


def test_resume_of_another_space(refused: Refused, run_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(
        "from model.recipes import s0\nfrom search_spaces.space import Choice, SearchSpace\n"
        "SPACE = SearchSpace(s0(), {'flip': Choice((True, False))})\n"
    )
    line = refused(tune.search, "--resume", "done", "--space", "other.py")
    assert "is not the space of run done" in line and "lr_regimes" in line


def test_resume_of_a_search_that_held_out_other_images(refused: Refused, run_copy: Path) -> None:
    manifest = json.loads((run_copy / "run.json").read_text())
    assert manifest["counts"] == {"train": 100, "val": 50}
    (run_copy / "run.json").write_text(json.dumps(manifest | {"counts": {"train": 90, "val": 10}}))
    line = refused(tune.search, "--resume", "done")
    assert "trained on 90 images and scored on 10, where this version takes 100 and 50" in line


def test_resume_with_the_whole_first_command(
    run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = contents(run_copy)
    first = {"space": "lr_regimes", "data": "digits", "trials": 2, "epochs": 1, "width": 1, "train_examples": 100}
    tune.search.main(tune.search.Options(**first, set=(("batch_size=16",),), name="done", resume="done"))
    assert "2 trials are done" in capsys.readouterr().out
    assert {k: v for k, v in contents(run_copy).items() if k != "status.json"} == {
        k: v for k, v in before.items() if k != "status.json"
    }


def test_a_run_goes_on_with_other_resources_and_elsewhere(
    run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made = json.loads((run_copy / "run.json").read_text())
    elsewhere = made | {"machine": {"cpu": "another", "cores": 64, "gpus": []}, "cpus_per_trial": 32.0, "threads": 32}
    (run_copy / "run.json").write_text(json.dumps(elsewhere))
    tune.search.main(tune.search.Options(resume="done", slots=1))
    now = json.loads((run_copy / "run.json").read_text())
    assert now["slots"] == 1 and now["cpus_per_trial"] <= made["machine"]["cores"]
    assert (now["machine"]["cpu"], now["legs"][0]["machine"]) == ("another", made["machine"])
    out = capsys.readouterr().out
    assert "0 GPUs from now on, 32 and 0 before" in out and f"{made['machine']['cores']} core" in out


@pytest.mark.parametrize("command", [tune.confirm, tune.search])
def test_another_data_set(refused: Refused, run_copy: Path, command: ModuleType) -> None:
    manifest = json.loads((run_copy / "run.json").read_text())
    (run_copy / "run.json").write_text(json.dumps({**manifest, "fingerprint": "0123456789ab"}))
    args: list[Any] = ["--resume", "done"] if command is tune.search else ["done"]
    line = refused(command, *args, "--data", "digits")
    assert "other data" in line and "0123456789ab" in line


def test_resume_with_fewer_trials_or_other_settings(refused: Refused, run_copy: Path) -> None:
    assert "has started 2" in refused(tune.search, "--resume", "done", "--trials", 1)
    for args, line in [
        (("--sampler", "qmc"), "--sampler qmc can't change on --resume: run done has gp"),
        (("--epochs", 3), "--epochs 3 can't change on --resume: run done has 1"),
        (("--width", 2), "--width 2 can't change on --resume: run done has 1"),
        (("--set", "momentum=0.5"), "--set momentum=0.5 can't change on --resume: run done has momentum=0.9"),
        (("--name", "other"), "--name other can't change on --resume: run done has done"),
        (("--seed", 3), "--seed 3 can't change on --resume: run done has 0"),
        (("--base", "s1"), "--base s1 can't change on --resume: run done has its space's"),
        (("--limit", "params=7e6"), "--limit params=7e+06 can't change on --resume: run done has no such limit"),
        (("--train-examples", 200), "--train-examples 200 can't change on --resume: run done has 100"),
        (("--ranks-per-trial", 2), "--ranks-per-trial 2 can't change on --resume: run done has 1"),
        (("--cpus-per-trial", 4096), "--cpus-per-trial 4096: this machine has"),
        (("--slots", 0), "--slots 0: it must be 1 or more"),
    ]:
        assert line in refused(tune.search, "--resume", "done", *args)


@pytest.mark.parametrize("command", [tune.confirm, tune.search])
def test_a_second_writer(refused: Refused, run_copy: Path, command: ModuleType) -> None:
    from tune.run import Run

    args = ["--resume", "done", "--trials", 5] if command is tune.search else ["done"]
    with Run(run_copy).lock():
        assert "is in use by process" in refused(command, *args)


def test_a_truncated_last_line_is_repaired_and_said(
    run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = {name: content for name, content in contents(run_copy).items() if name != "status.json"}
    for name in ("journal.log", "trials/1/metrics.jsonl"):
        with (run_copy / name).open("a") as file:
            file.write('{"half a li')
    tune.search.main(tune.search.Options(resume=Path("done")))
    out = capsys.readouterr().out
    assert "repaired: journal.log: cut off a half-written last line" in out
    assert "repaired: trials/1/metrics.jsonl: cut off a half-written last line" in out
    assert {name: contents(run_copy)[name] for name in whole} == whole
