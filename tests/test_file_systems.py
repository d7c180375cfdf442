"""Full disks, read-only folders, names and locales that aren't UTF-8, signals: the commands on real ones, each in a
mount namespace of its own where it takes a mount."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import REPO
from test_export import make_run

from model.weights import load_weights
from tune.run import Run

PYTHON = f"{sys.executable} -m"
TRAIN = f"{PYTHON} model.train --data digits --train-examples 100 --set width=1 batch_size=16 epochs=2"
CONFIRM = f"{PYTHON} tune.confirm small --top 1 --seeds 2"
Shell = Callable[..., subprocess.CompletedProcess[str]]


def environment(**changed: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPO), **changed}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Of tiny nets, nothing of which was trained."""
    return make_run(tmp_path)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Run a script in a folder on a small disk of its own, which it may mount anew, `mount -o remount,ro .`; what it
    copies to `$KEPT` is left in `tmp_path / "kept"`."""
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    kept.mkdir()

    def sh(script: str, size_kib: int = 10_000) -> subprocess.CompletedProcess[str]:
        mount = f"mount -t tmpfs -o size={size_kib}k none '{disk}' && cd '{disk}'"
        return subprocess.run(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", f"{mount}\n{script}"],
            encoding="utf-8",
            capture_output=True,
            env=environment(KEPT=str(kept), RUN=str(tmp_path / "small")),
            timeout=240,
        )

    try:
        able = sh("true").returncode == 0
    except OSError:
        able = False
    if not able:
        pytest.skip("this system lets us mount nothing")
    return sh


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ")
    return done.stderr


def test_training_on_a_full_disk_leaves_whole_files(shell: Shell, tmp_path: Path) -> None:
    done = shell(f"{TRAIN} --out out || code=$?; cp -r out $KEPT; exit $code", size_kib=36)
    assert "--out out: No space left on device" in one_line(done)
    left = tmp_path / "kept" / "out"  # weights.pt takes 25 kB, and as much again while it is replaced
    assert {file.name for file in left.iterdir()} == {"config.json", "metrics.jsonl", "weights.pt"}
    assert torch.load(left / "weights.pt", weights_only=True)
    (line,) = (left / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["epoch"] == 1


@pytest.mark.slow
def test_a_confirmation_on_a_full_disk_goes_on_by_the_same_command(shell: Shell, run: Run, tmp_path: Path) -> None:
    script = f"""
        cp -r $RUN small
        {CONFIRM} && exit 99 || test $? = 2
        mkdir $KEPT/then; cp -r small/confirm $KEPT/then
        mount -o remount,size=10m .
        {CONFIRM} >&2 && cp -r small/confirm $KEPT
    """
    done = shell(script, size_kib=140)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("error: ") and "make room, then give the same command again\n" in done.stderr
    assert "Traceback" not in done.stderr
    then = (tmp_path / "kept" / "then" / "confirm" / "runs.jsonl").read_text(encoding="utf-8").splitlines(True)
    whole = [line for line in then if line.endswith("\n")]
    after = (tmp_path / "kept" / "confirm" / "runs.jsonl").read_text(encoding="utf-8").splitlines(True)
    assert whole and len(after) == 4 and after[: len(whole)] == whole
    for trial in (0, 2):
        load_weights(tmp_path / "kept" / "confirm" / "weights" / f"trial{trial}.safetensors")
    assert not list((tmp_path / "kept").rglob("*.tmp"))


@pytest.mark.slow
def test_an_export_and_a_report_on_a_full_disk_leave_the_earlier_ones(shell: Shell, run: Run) -> None:
    script = f"""
        cp -r $RUN small
        {PYTHON} tune.export small --top 1 > said; echo earlier > small/report.html
        cp -r small before; cat /dev/zero > fill 2> /dev/null || true
        {PYTHON} tune.export small && exit 99 || test $? = 2
        {PYTHON} tune.report small && exit 99 || test $? = 2
        diff -r before small
    """
    done = shell(script, size_kib=300)
    assert done.returncode == 0 and done.stdout == "", done.stdout + done.stderr
    export, report = done.stderr.splitlines()
    assert "small/best can't be written (No space left on device)" in export and "an earlier export is kept" in export
    assert "small/report.html can't be written (No space left on device)" in report


@pytest.mark.slow
def test_a_read_only_run_can_be_exported_elsewhere(shell: Shell, run: Run) -> None:
    script = f"""
        cp -r $RUN small; mount -o remount,ro .
        {PYTHON} tune.confirm small && exit 99 || test $? = 2
        {PYTHON} tune.export small && exit 99 || test $? = 2
        {PYTHON} tune.export small --top 1 --as-base --out $KEPT/best; ls $KEPT/best >&2
    """
    done = shell(script)
    assert done.returncode == 0, done.stderr
    confirm, export, *files = done.stderr.splitlines()
    assert "small can't be written: Read-only file system" in confirm
    assert "small/best can't be written (Read-only file system)" in export and "give --out FOLDER" in export
    assert files == ["1-trial2.json", "base.json"]
    assert "/small/best" not in done.stdout and done.stdout.count("/kept/best/") == 4


# --- signals


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    processes = []

    def start(command: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        words = command.split()
        process = subprocess.Popen(
            words, cwd=tmp_path, encoding="utf-8", stdout=pipe, stderr=pipe, env=environment(PYTHONUNBUFFERED="1")
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_sigterm_ends_a_training_like_ctrl_c(started: Callable[[str], subprocess.Popen[str]], tmp_path: Path) -> None:
    process = started(f"{TRAIN} epochs=1000 --out out")
    weights = tmp_path / "out" / "weights.pt"
    while process.poll() is None and not weights.exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (143, "\ninterrupted\n"), out + err
    assert not list(weights.parent.glob("*.tmp"))


def test_sigterm_ends_a_confirmation_with_what_it_has(
    run: Run, started: Callable[[str], subprocess.Popen[str]]
) -> None:
    process = started(CONFIRM.replace("--seeds 2", "--seeds 5000"))
    file = run.path / "confirm" / "confirm.json"
    while process.poll() is None and not file.exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (143, "\ninterrupted; the same command goes on\n"), out + err
    lines = (run.path / "confirm" / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) >= 2 and sum(row["n"] for row in json.loads(file.read_text(encoding="utf-8"))["rows"]) >= 2


# --- text


@pytest.mark.slow
@pytest.mark.parametrize(
    "locale",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}],
    ids=["ascii", "C"],
)
def test_a_run_in_a_folder_whose_name_is_no_utf_8(run: Run, tmp_path: Path, locale: dict[str, str]) -> None:
    """Whatever the locale: confirmed, exported with its weights and cards, and used."""
    path = os.fsencode(tmp_path) + b"/caf\xe9 \xe7\x8c\xab"
    shutil.move(run.path, os.fsdecode(path))
    for module, *args in [
        (b"tune.confirm", path, b"--top", b"1", b"--seeds", b"1"),
        (b"tune.export", path, b"--weights", b"--as-base"),
        (b"tune.report", path),
        (b"tune.status", path),
        (b"model.predict", path + b"/confirm/weights/trial0.safetensors", b"none.png"),
    ]:
        done = subprocess.run(
            [sys.executable, b"-m", module, *args], cwd=tmp_path, capture_output=True, env=environment(**locale)
        )
        if module == b"model.predict":
            assert done.stderr == b"error: none.png can't be read: No such file or directory\n"
        else:
            assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
    (first, *_) = Path(os.fsdecode(path), "best").glob("*.md")
    card = first.read_text(encoding="utf-8")
    assert "caf\\udce9" in card and card.endswith("terms of their own.\n")
