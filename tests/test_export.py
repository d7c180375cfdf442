"""`python -m tune.export`: order, provenance, weights with their card, the base of the next search."""

import errno
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import markdown
import numpy as np
import pytest
import torch
import tyro
import yaml
from conftest import REPO
from optuna.trial import TrialState, create_trial
from PIL import Image
from rich.console import Console

import tune.export
import tune.plan
from model.command import run_command
from model.config import load_config
from model.data import Dataset, to_device
from model.train import init_state
from model.weights import load_weights, save_weights
from tune import model_card
from tune.run import Run
from tune.samplers import distribution

ACCS = {0: 0.5, 1: 0.6, 2: 0.8, 3: 0.7}  # in the search
Export = Callable[..., tuple[int, str, str]]


def make_run(folder: Path, name: str = "small", fields: tuple[str, ...] = (), **options: Any) -> Run:
    """A finished search of four full-length trials and one that stopped early, on the digits, without training any."""
    asked = {"space": "lr_regimes", "data": "digits", "width": 1, "epochs": 2, "train_examples": 200, **options}
    asked |= {"set": (("batch_size=20", *fields),), "name": name, "runs_dir": folder}
    run, _ = tune.plan.new_run(tune.plan.Options(**asked), Console(quiet=True))
    base = run.space.params_of(run.space.base)
    for number in range(5):
        params = {**base, "lr_scale": 1.0 + number}
        done = number in ACCS
        acc = ACCS.get(number, 0.9)
        trial = create_trial(
            state=TrialState.COMPLETE if done else TrialState.PRUNED,
            value=acc if done else None,
            params=params,
            distributions={key: distribution(run.space.domains[key]) for key in params},
            intermediate_values={1: acc / 2, 2: acc} if done else {1: acc},
            user_attrs={"seed": 100 + number, "cost": 1.0},
        )
        run.study().add_trial(trial)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "runs")


def confirm(run: Run, rows: dict[int, dict[str, Any]], recommended: int, **changes: Any) -> dict[str, Any]:
    """Write a confirm.json with rows of these trials, in this order."""
    content = {
        "version": 1,
        "run": run.name,
        "dataset": "digits",
        "counts": {"train": 200, "test": 300},
        "machine": {"cpu": "a CPU", "cores": 2, "gpus": []},
        "versions": {"torch": "2.9"},
        "threads": 2,
        "target_acc": 0.9,
        "rows": [
            {
                "trial": number,
                "params": {"lr_scale": 1.0 + number},
                "n": 4,
                "mean_acc": 0.91,
                "sd_acc": 0.012,
                "ci95_acc": [0.89, 0.93],
                "accs": [0.873, 0.92, 0.92, 0.927],
                "seeds": [31, 32, 33, 34],
                "target": {"k": 3, "n": 4, "ci95": [0.2, 0.99]},
                "median_train_s": 12.5,
                "worst_train_s": 14.0,
                "flops": 3.5e12,
                "peak_mib": 321.0,
                "epochs": 2,
                "search_val_acc": ACCS[number],
                "weights": None,
                **row,
            }
            for number, row in rows.items()
        ],
        "verdict": {"kind": "tie", "trial": 2, "recommended": recommended, "text": "Trial 2 ties with the base."},
        **changes,
    }
    (run.path / "confirm" / "weights").mkdir(parents=True, exist_ok=True)
    (run.path / "confirm" / "confirm.json").write_text(json.dumps(content))
    return content


def write_weights(run: Run, number: int, dataset: Dataset | None = None, **facts: Any) -> str:
    """Weights of a trial's net as tune.confirm leaves them; returns their path in the run folder."""
    dataset = dataset or run.dataset()
    config = run.config(run.study().trials[number])
    net = init_state(config, to_device(dataset, torch.device("cpu")), seed=0).scored_net
    name = f"confirm/weights/trial{number}.safetensors"
    (run.path / name).parent.mkdir(parents=True, exist_ok=True)
    save_weights(run.path / name, net.state_dict(), config, dataset, trial=number, seed=31, test_acc=0.873, **facts)
    return name


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Export:
    """Run the command in `tmp_path`; returns its exit code and what it wrote to stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["export", *map(str, args)])
        code = 0
        try:
            run_command(tune.export.main, tune.export.Options, prog="python -m tune.export")
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return run


def files(run: Run) -> list[str]:
    return sorted(file.name for file in (run.path / "best").glob("*"))


def provenance(run: Run, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run.path / "best" / name).read_text())["provenance"]
    return content


# --- configs


def test_before_confirm_the_searchs_order_counts_and_is_called_unconfirmed(run: Run, export: Export) -> None:
    code, out, err = export(run.path, "--top", 2)
    assert code == 0, err
    assert files(run) == ["1-trial2.json", "2-trial3.json"]
    assert out.count("not confirmed") == 2 and "val acc 80.00% (n = 1)" in out
    assert "test acc" not in out
    found = provenance(run, "1-trial2.json")
    assert (found["confirmed"], found["verdict"], found["val_acc"]) == (None, None, 0.8)


def test_the_recommended_config_is_first_then_confirmed_ones_then_the_rest(run: Run, export: Export) -> None:
    confirm(run, {3: {}, 1: {"mean_acc": 0.90}, 0: {"mean_acc": 0.89}}, recommended=1)
    code, out, err = export(run.path, "--top", 9)
    assert code == 0, err
    assert files(run) == ["1-trial1.json", "2-trial3.json", "3-trial0.json", "4-trial2.json"]
    assert "trial 1, test acc 90.00% (mean of n = 4 fresh seeds, SD 1.20), in the search val acc 60.00% (n = 1)" in out
    assert "test acc: 300 test images; val acc: " in out and "Trial 2 ties with the base." in out


def test_a_trial_that_the_search_did_not_finish_is_exported_once_confirmed(run: Run, export: Export) -> None:
    content = confirm(run, {2: {}}, recommended=2)
    content["rows"].append({"trial": 4, "n": 2, "mean_acc": 0.95})  # as older files are: little in a row
    (run.path / "confirm" / "confirm.json").write_text(json.dumps(content))
    code, out, err = export(run.path, "--top", 2)
    assert code == 0, err
    assert files(run) == ["1-trial2.json", "2-trial4.json"]
    assert "test acc 95.00% (mean of n = 2 fresh seeds)" in out


def test_provenance_holds_the_whole_confirmation(run: Run, export: Export) -> None:
    content = confirm(run, {2: {}, 0: {}}, recommended=2)
    export(run.path)
    found = provenance(run, "1-trial2.json")
    assert found["confirmed"] == content["rows"][0] and found["verdict"] == content["verdict"]
    for key in ("counts", "machine", "versions", "threads", "target_acc"):
        assert found["confirm"][key] == content[key]
    assert found["fingerprint"] == run.manifest.fingerprint and found["machine"] == run.manifest.machine
    assert found["versions"] == run.manifest.versions and found["seed"] == 102
    assert load_config(run.path / "best" / "1-trial2.json") == run.config(run.study().trials[2])


def test_an_earlier_export_leaves_nothing_behind_but_the_base(run: Run, export: Export) -> None:
    confirm(run, {2: {"weights": write_weights(run, 2)}, 0: {}}, recommended=2)
    export(run.path, "--weights", "--as-base")
    first = ["1-trial2.json", "1-trial2.md", "1-trial2.safetensors"]
    assert files(run) == [*first, "2-trial0.json", "3-trial3.json", "base.json"]
    (run.path / "best" / "notes.txt").write_text("mine")
    confirm(run, {3: {}}, recommended=3)
    export(run.path, "--top", 1)
    assert files(run) == ["1-trial3.json", "base.json", "notes.txt"]


def test_an_export_into_another_folder(run: Run, export: Export, tmp_path: Path) -> None:
    """All that is said of it leads there; files that are no export's stay."""
    (tmp_path / "out").mkdir()
    for name in ("2-trial9.json", "my-trial.json", "notes.txt"):
        (tmp_path / "out" / name).write_text("earlier")
    confirm(run, {2: {"weights": write_weights(run, 2)}}, recommended=2)
    code, out, err = export(run.path, "--top", 1, "--weights", "--as-base", "--out", "out")
    assert code == 0, err
    mine = ["1-trial2.json", "1-trial2.md", "1-trial2.safetensors", "base.json"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [*mine, "my-trial.json", "notes.txt"]
    assert not (run.path / "best").exists() and "small/best" not in out
    again = json.loads((tmp_path / "out" / "1-trial2.json").read_text())["provenance"]["same_again"]
    assert f"--config {tmp_path / 'out' / '1-trial2.json'}" in again
    assert pasted(out).base == ("out/base.json",)


def test_an_export_that_cant_be_written_leaves_the_earlier_one(
    run: Run, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export(run.path)[0] == 0
    before = {file.name: file.read_bytes() for file in (run.path / "best").iterdir()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    confirm(run, {0: {"weights": write_weights(run, 0)}}, recommended=0)
    monkeypatch.setattr(shutil, "copyfile", full)
    code, out, err = export(run.path, "--weights")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "small/best can't be written (No space left on device)" in err and "give --out FOLDER" in err
    assert {file.name: file.read_bytes() for file in (run.path / "best").iterdir()} == before


# --- weights


def test_weights_come_with_their_config_and_card(run: Run, export: Export) -> None:
    confirm(run, {2: {"weights": write_weights(run, 2)}, 0: {}}, recommended=2)
    code, out, err = export(run.path, "--top", 2, "--weights")
    assert code == 0, err
    assert "the net of its first fresh seed, test acc 87.30%; model card: 1-trial2.md" in out
    assert "no confirmed weights of trial 0" in out
    _, record = load_weights(run.path / "best" / "1-trial2.safetensors")
    assert record.config == load_config(run.path / "best" / "1-trial2.json")
    commands = [shlex.split(line) for line in out.splitlines() if line.startswith("  ")]
    (predict,) = (words for words in commands if "model.predict" in words)
    assert Path(predict[3]).exists()


def front_matter(card: str) -> dict[str, Any]:
    _, front, _ = card.split("---\n", 2)
    content: dict[str, Any] = yaml.safe_load(front)
    return content


def test_the_cards_front_matter_is_what_hugging_face_reads(run: Run, export: Export) -> None:
    confirm(run, {2: {"weights": write_weights(run, 2)}, 0: {}}, recommended=2)
    export(run.path, "--weights")
    front = front_matter((run.path / "best" / "1-trial2.md").read_text())
    assert (front["license"], front["library_name"]) == ("mit", "resnet9-tune")
    assert (front["pipeline_tag"], front["metrics"]) == ("image-classification", ["accuracy"])
    assert front["datasets"] == ["digits"]
    (model,) = front["model-index"]
    (result,) = model["results"]
    assert model["name"] == "small-1-trial2"
    assert result["task"]["type"] == "image-classification"
    assert result["dataset"] == {"type": "digits", "name": "digits", "split": "test"}
    assert [(metric["type"], metric["value"]) for metric in result["metrics"]] == [
        ("accuracy", 0.873),
        ("accuracy", 0.91),
    ]
    assert "this file" in result["metrics"][0]["name"] and "n = 4" in result["metrics"][1]["name"]


def test_the_card_says_what_the_file_is_and_is_not(run: Run, export: Export) -> None:
    confirm(run, {2: {"weights": write_weights(run, 2)}, 0: {}}, recommended=2)
    export(run.path, "--weights")
    card = " ".join((run.path / "best" / "1-trial2.md").read_text().split())
    for fact in [
        "| this file (seed 31) | 87.30% | 1 |",
        "91.00% (SD 1.20, 95% interval 89.00% to 93.00%) | 4 |",
        "reach 90% | 3 of 4 (95% interval of the share 20.00% to 99.00%)",
        "the net of the first fresh seed, not of the best one",
        "80.00%, is of other images and one seed",
        "Trained on 200 training images of `digits`",
        "scored on 300 test images. The search never saw the test set: it scored on",
        run.manifest.fingerprint,
        "2 epochs, 3.5e+12 floating-point operations, 12 s alone on the machine (median, n = 4, worst 14 s), 321 MiB",
        "Machine: `2 threads of a CPU`",
        "Trial 2 ties with the base.",
        "2 configs were compared on this test set",
        "MIT",
    ]:
        assert fact in card, fact


@pytest.mark.parametrize(
    ("net", "kind"),
    [
        ("resnet9", "ResNet-9"),
        ("dawn", "The DAWN net"),
        ("resnet110", "ResNet-110"),
        ("pooled", "The backbone `pooled`"),
    ],
)
def test_a_card_names_its_net(net: str, kind: str) -> None:
    assert model_card._kind(net) == kind


def test_the_card_counts_the_images_that_the_config_takes(tmp_path: Path, export: Export) -> None:
    run = make_run(tmp_path / "runs", fields=("train_frac=0.5",))
    confirm(run, {2: {"weights": write_weights(run, 2)}, 0: {}}, recommended=2)
    export(run.path, "--weights")
    assert "Trained on 100 training images of `digits`" in (run.path / "best" / "1-trial2.md").read_text()


def test_a_card_of_a_row_with_little_in_it(run: Run, export: Export) -> None:
    content = {"rows": [{"trial": 2, "n": 1, "mean_acc": 0.9, "sd_acc": None, "weights": write_weights(run, 2)}]}
    (run.path / "confirm" / "confirm.json").write_text(json.dumps(content))
    code, _, err = export(run.path, "--weights")
    assert code == 0, err
    card = (run.path / "best" / "1-trial2.md").read_text()
    assert front_matter(card)["model-index"] and "None |" not in card and "| 90.00% | 1 |" in card


def test_the_cards_lines_of_python_and_command_work_as_pasted(run: Run, export: Export) -> None:
    confirm(run, {2: {"weights": write_weights(run, 2)}, 0: {}}, recommended=2)
    export(run.path, "--weights")
    folder = run.path / "best"
    Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(folder / "picture.png")
    card = (folder / "1-trial2.md").read_text()
    code, command = (re.search(f"```{kind}\n(.*?)```", card, re.DOTALL) for kind in ("python", "sh"))
    assert code and command and code[1].count("\n") == 5
    script = f"{code[1]}\nimport sys, runpy\nsys.argv = {shlex.split(command[1])[2:]!r}\n"
    script += "runpy.run_module('model.predict', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    shares, _, resized, answer = done.stdout.splitlines()
    assert resized == "images of 30x40 resized to 32x32"
    assert len(re.findall(r"'\d': ", shares)) == 10
    assert answer.startswith("picture.png: ")


@pytest.mark.parametrize("confirmed", [False, True])
def test_without_confirmed_weights_nothing_is_written(run: Run, export: Export, confirmed: bool) -> None:
    if confirmed:
        confirm(run, {2: {}, 0: {}}, recommended=2)
    code, out, err = export(run.path, "--weights")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "no confirmed weights" in err and "-m tune.confirm runs/small first" in err
    assert not (run.path / "best").exists()


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/hostname", "confirm/link", "confirm/../../other", 7])
def test_weights_outside_of_the_run_folder_are_refused(run: Run, export: Export, name: Any) -> None:
    inside = run.path / write_weights(run, 2)
    for outside in ("outside.safetensors", "other"):
        (run.path.parent / outside).write_bytes(inside.read_bytes())
    (run.path / "confirm" / "link").symlink_to(run.path.parent / "other")
    confirm(run, {2: {"weights": name}}, recommended=2)
    code, out, err = export(run.path, "--weights")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert ("outside of" in err) == isinstance(name, str)
    assert not (run.path / "best").exists()


def test_weights_that_are_no_weights_or_of_another_trial_are_refused(run: Run, export: Export) -> None:
    file = run.path / write_weights(run, 3)
    confirm(run, {2: {"weights": str(file.relative_to(run.path))}}, recommended=2)
    assert "of another config than trial 2" in export(run.path, "--weights")[2]
    torch.save({}, file)
    assert "are a pickle" in export(run.path, "--weights")[2]
    file.unlink()
    assert "can't be read" in export(run.path, "--weights")[2]
    assert not (run.path / "best").exists()


@pytest.mark.parametrize(
    "content",
    [
        *("{", "[]", "[" * 100_000, '{"rows": 3}', '{"rows": [{"trial": 1}]}', '{"rows": [3]}'),
        '{"rows": [{"trial": 1, "n": 1, "mean_acc": "high"}]}',
        '{"rows": [{"trial": 1, "n": 1, "mean_acc": 0.9, "ci95_acc": [0.8]}]}',
        '{"rows": [], "verdict": {"text": 7}}',
    ],
    ids=range(9),
)
def test_a_damaged_confirmation_is_said(run: Run, export: Export, content: str) -> None:
    (run.path / "confirm").mkdir()
    (run.path / "confirm" / "confirm.json").write_text(content)
    code, _, err = export(run.path)
    assert code == 2 and err.count("\n") == 1 and "confirm.json is damaged" in err


# --- the base of the next search


def pasted(out: str) -> tune.plan.Options:
    """The options of the search command that was printed."""
    (line,) = (line for line in out.splitlines() if " -m tune.search " in line)
    return tyro.cli(tune.plan.Options, args=shlex.split(line)[3:])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"train_examples": None},
        {"objective": "flops-to-target", "target_acc": 0.9},
        {"limit": (("params=1e6", "memory_bytes=1e10"),)},
    ],
)
def test_the_next_search_starts_from_the_recommended_config(tmp_path: Path, export: Export, options: Any) -> None:
    run = make_run(tmp_path / "it's here", **options)
    confirm(run, {2: {}, 3: {}}, recommended=3)
    code, out, err = export(run.path, "--as-base")
    assert code == 0, err
    following, _ = tune.plan.new_run(pasted(out), Console(quiet=True))
    assert following.space.base == run.config(run.study().trials[3]) == load_config(run.path / "best" / "base.json")
    assert dict(following.space.domains) == dict(run.space.domains)
    for same in ("space_name", "data", "train_examples", "counts", "fingerprint", "objective", "target_acc"):
        assert getattr(following.manifest, same) == getattr(run.manifest, same)
    assert following.space.limits == run.space.limits


def test_a_space_of_ones_own_is_written_beside_the_base(tmp_path: Path, export: Export) -> None:
    """Its file may be gone; so may the coordinates and conditions that only it said."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from model.config import Config\n"
        "from search_spaces.space import Choice, IntUniform, LogUniform, SearchSpace\n"
        "SPACE = SearchSpace(Config(), {'lr_scale': LogUniform(0.1, 10), 'ema_decay': Choice((0.0, 0.9)),\n"
        "    'ema_every_steps': IntUniform(1, 5, only_if={'ema_decay': (0.9,)})})\n"
    )
    run = make_run(tmp_path / "runs", space=str(file))
    file.unlink()
    code, out, err = export(run.path, "--as-base")
    assert code == 0, err
    assert "runs/small/best/mine.py: the space, which was a file elsewhere" in out
    following, _ = tune.plan.new_run(pasted(out), Console(quiet=True))
    assert following.space == replace(run.space, base=run.config(run.study().trials[2]))
    assert following.manifest.space_name == "mine"


def test_a_space_with_the_name_of_another_file_is_not_run(run: Run, export: Export, tmp_path: Path) -> None:
    """run.json may come from anywhere; only its content counts, not a file that its space's name points to."""
    (tmp_path / "trap.py").write_text("raise SystemExit('sprung')\n")
    manifest = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({**manifest, "space_name": "./trap.py"}))
    code, out, err = export(run.path, "--as-base")
    assert code == 0 and "sprung" not in out + err
    assert pasted(out).space == "runs/small/best/space.py"


def test_a_config_outside_of_its_space_cant_be_a_base(tmp_path: Path, export: Export) -> None:
    """A knob that has no effect in the trial stands at its default there, which the space may leave out."""
    (tmp_path / "mine.py").write_text(
        "from model.config import Config\nfrom search_spaces.space import Choice, LogUniform, SearchSpace, Uniform\n"
        "SPACE = SearchSpace(Config(momentum=0.95), {'lr_scale': LogUniform(0.1, 10),\n"
        "    'momentum': Uniform(0.93, 0.99), 'solver': Choice(('sgd', 'adam'))})\n"
    )
    run = make_run(tmp_path / "runs", space="mine.py")
    params = {"lr_scale": 1.0, "momentum": 0.95, "solver": "adam"}
    run.study().add_trial(
        create_trial(
            value=0.99,
            params=params,
            distributions={key: distribution(run.space.domains[key]) for key in params},
            intermediate_values={2: 0.99},
            user_attrs={"seed": 1},
        )
    )
    code, out, err = export(run.path, "--as-base")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "trial 5 can't be a base of this space" in err and "momentum = 0.9" in err
    assert not (run.path / "best").exists()
    assert export(run.path)[0] == 0


@pytest.mark.slow
def test_the_printed_search_runs_as_pasted(run: Run, export: Export, tmp_path: Path) -> None:
    _, out, _ = export(run.path, "--as-base")
    (line,) = (line for line in out.splitlines() if " -m tune.search " in line)
    done = subprocess.run(
        f"{line} --trials 2 --name next",
        shell=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "runs" / "next").space.base == load_config(run.path / "best" / "base.json")


# --- names that mean something elsewhere

NASTY = "\"]: <script>alert(1)</script> ``` | [a](http://b.c) <img src=x> ' \\ # {x} é 猫 \x7f"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.found.add(tag)


def test_hostile_names_are_inert_in_the_card_and_on_the_terminal(tmp_path: Path, export: Export) -> None:
    name = NASTY.replace("/", "").replace("\n", "")
    run = make_run(tmp_path / "runs", name)
    dataset = replace(run.dataset(), name=f"\x1b[31m{NASTY}\n---\n", classes=(NASTY, "`", "``", "", *"456789"))
    machine = {"cpu": NASTY, "cores": 1, "gpus": []}
    changes = {"machine": machine, "versions": {NASTY: NASTY}, "counts": {"train": 1, "test": 1}}
    text = {"kind": "tie", "trial": 2, "recommended": 2, "text": NASTY}
    confirm(run, {2: {"weights": write_weights(run, 2, dataset), "params": {"a": NASTY}}}, 2, verdict=text, **changes)
    code, out, err = export(run.path, "--weights", "--as-base")
    assert code == 0, err
    assert all(c.isprintable() for c in out.replace("\n", ""))
    card = (run.path / "best" / "1-trial2.md").read_text()
    front = front_matter(card)
    assert front["model-index"][0]["name"] == f"{name}-1-trial2".replace("\x7f", "\\x7f")
    assert front["datasets"][0].startswith('\\x1b[31m"]: <script>') and set(front) >= {"license", "model-index"}
    body = card.split("---\n", 2)[2]
    tags = Tags()
    tags.feed(markdown.markdown(body, extensions=["tables", "fenced_code"]))
    assert tags.found <= {"h1", "h2", "p", "code", "pre", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
    assert pasted(out).base == (f"runs/{name}/best/base.json",) or "\\x7f" in out
