"""`python -m tune.status`: what it says of runs in every condition, how fast, and that it disturbs nobody."""

import json
import os
import platform
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import REPO
from rich.console import Console
from test_progress import HOSTILE, new_run, snapshot

from model.config import InputError
from tune.lock import hold, owner
from tune.mirror import Mirror
from tune.run import Run
from tune.snapshot import FILE, Snapshot
from tune.status import look

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run without trials or status.json."""
    return new_run(tmp_path)


def mine(**given: Any) -> Snapshot:
    """What this process would have written five seconds ago, were it a search."""
    return snapshot(**({"pid": os.getpid(), "host": platform.node(), "written_s": time.time() - 5} | given))


def started_as(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", SimpleNamespace(name=module), raising=False)


def test_a_search_at_work(run: Run) -> None:
    mine().write(run.path)
    with run.lock():
        status = look(str(run.path))
    assert (status.state, status.alive, status.next) == ("running", True, [])
    assert status.said == [f"process {os.getpid()} on {platform.node()}, last sign of life 5 s ago"]


def test_a_killed_search(run: Run) -> None:
    with run.lock():
        pass
    mine().write(run.path)
    status = look(str(run.path))
    assert (status.state, status.alive) == ("killed", False)
    assert "ended without a word, 5 s ago" in status.said[0]
    assert status.next[1].endswith(f" -m tune.search --resume {run.path}")


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("finished", "finished 5 s ago"),
        ("interrupted", "interrupted with Ctrl-C 5 s ago"),
        ("stopped", "--time-budget-s or a signal, 5 s ago"),
        ("failed", "broke down"),
    ],
)
def test_a_search_that_ended(run: Run, state: str, said: str) -> None:
    mine(state=state).write(run.path)
    status = look(str(run.path))
    assert (status.state, status.alive) == (state, False) and said in status.said[0]
    assert ("tune.confirm" if state == "finished" else "--resume") in status.next[1]


def test_a_search_of_which_no_trial_ran_to_its_end_leaves_nothing_to_confirm(run: Run) -> None:
    mine(state="finished", counts={"failed": 12}).write(run.path)
    assert look(str(run.path)).next == []


def test_a_search_that_is_being_resumed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    mine(pid=1).write(run.path)
    started_as(monkeypatch, "tune.search")
    with run.lock():
        status = look(str(run.path))
    assert (status.state, status.alive) == ("starting", True)
    assert f"process {os.getpid()} on {platform.node()} (tune.search) is taking it up" in status.said[0]


@pytest.mark.parametrize(("state", "shown"), [("finished", "finished"), ("running", "killed")])
def test_a_confirmation_at_work_is_not_taken_for_the_search(
    run: Run, monkeypatch: pytest.MonkeyPatch, state: str, shown: str
) -> None:
    mine(pid=1, state=state).write(run.path)
    started_as(monkeypatch, "tune.confirm")
    with run.lock():
        status = look(str(run.path))
    assert (status.state, status.alive, status.next) == (shown, True, [])
    assert any(said.startswith("tune.confirm is at work: process ") for said in status.said)


def test_a_search_on_another_machine(run: Run) -> None:
    mine(host="elsewhere").write(run.path)
    status = look(str(run.path))
    assert (status.state, status.alive) == ("running", True) and "5 s ago" in status.said[0]
    mine(host="elsewhere", written_s=time.time() - 300).write(run.path)
    status = look(str(run.path))
    assert (status.state, status.alive) == ("silent", False)
    assert "no sign of life from process" in status.said[0] and "elsewhere for 5 min" in status.said[0]


def test_a_run_without_a_record(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert look(str(run.path)).state == "never started"
    for number in range(12):
        (run.path / "trials" / str(number)).mkdir()
    status = look(str(run.path))
    assert (status.state, status.alive) == ("not running", False)
    text = "\n".join(status.said)
    assert "trials begun: 12" in text and "last change 0 s ago" in text and "space own, data noise, trials 12" in text
    assert "status.json is missing" in text
    started_as(monkeypatch, "tune.search")
    with run.lock():
        status = look(str(run.path))
    assert status.alive and status.state.startswith("starting")
    (run.path / "lock").write_text("process 12 on node")  # as older versions wrote it
    with hold(run.path):
        (run.path / "lock").write_text("process 12 on node")
        assert look(str(run.path)).alive


@pytest.mark.parametrize("damage", ["", "{", '{"version": 9}', "\x00\xff", "[]"])
def test_a_damaged_record_is_named_and_the_rest_is_shown(run: Run, damage: str, command: Command) -> None:
    (run.path / "trials" / "0").mkdir()
    (run.path / FILE).write_text(damage, encoding="latin-1")
    done = command("tune.status", run.path)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert "status.json is damaged (" in done.stdout and "trials begun: 1" in done.stdout and "--resume" in done.stdout


def test_a_damaged_manifest_is_named_and_the_rest_is_shown(run: Run) -> None:
    mine().write(run.path)
    (run.path / "run.json").write_text("{")
    status = look(str(run.path))
    assert status.state == "killed" and "run.json is damaged" in status.said[-1]
    (run.path / "run.json").unlink()
    assert "run.json is missing" in look(str(run.path)).said[-1]


def test_what_is_no_run_is_refused_in_one_line(tmp_path: Path, command: Command) -> None:
    (tmp_path / "file").touch()
    for given in (tmp_path, tmp_path / "nowhere", tmp_path / "file", f"file://{tmp_path}/nowhere", "no://x/y"):
        done = command("tune.status", given)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and not done.stdout, given
        assert done.stderr.startswith("error: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_status_never_makes_a_starting_search_fail(tmp_path: Path) -> None:
    """Many look while one starts and ends over and over."""
    over, seen = threading.Event(), set()

    def watch() -> None:
        while not over.is_set():
            seen.add(owner(tmp_path) is None)
            time.sleep(0.0001)

    watchers = [threading.Thread(target=watch) for _ in range(4)]
    for watcher in watchers:
        watcher.start()
    try:
        for _ in range(30):
            with hold(tmp_path):
                time.sleep(0.0005)
    finally:
        over.set()
        for watcher in watchers:
            watcher.join()
    assert seen == {True, False}


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with hold(tmp_path):
        text = (tmp_path / "lock").read_text()
        with (
            pytest.raises(InputError, match=rf"in use by process {os.getpid()} on .*: wait for it or stop it"),
            hold(tmp_path),
        ):
            pass
        assert (tmp_path / "lock").read_text() == text
    with hold(tmp_path):
        pass


STAND_IN = """
import json, os, sys, time
from pathlib import Path
from tune.lock import hold
folder, record = Path(sys.argv[1]), json.loads(sys.argv[2])
with hold(folder):
    while True:
        (folder / "new").write_text(json.dumps(record | {"pid": os.getpid(), "written_s": time.time()}))
        (folder / "new").replace(folder / "status.json")
        print("written", flush=True)
        time.sleep(0.2)
"""


def stand_in(folder: Path) -> subprocess.Popen[str]:
    """A process that locks and writes as a search does."""
    process = subprocess.Popen(
        [sys.executable, "-c", STAND_IN, str(folder), json.dumps(asdict(mine()))],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "written\n"
    return process


def test_watching_a_search_until_it_is_killed(run: Run, command: Command) -> None:
    search = stand_in(run.path)
    try:
        assert look(str(run.path)).alive
        threading.Timer(2.0, search.kill).start()
        done = command("tune.status", run.path, "--watch", timeout=60)
    finally:
        search.kill()
        search.communicate()
    assert done.returncode == 0 and not done.stderr
    assert done.stdout.startswith("running: 1111 done, 64 running") and "\x1b" not in done.stdout
    assert f"process {search.pid} on {platform.node()} ended without a word" in done.stdout
    assert "--resume first" in done.stdout.splitlines()[-1]


def test_ctrl_c_ends_watching_quietly_and_not_the_search(run: Run) -> None:
    search = stand_in(run.path)
    try:
        watcher = subprocess.Popen(
            [sys.executable, "-m", "tune.status", str(run.path), "--watch"],
            env={**os.environ, "PYTHONPATH": str(REPO)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background may ignore it
        )
        assert watcher.stdout and watcher.stdout.readline()
        watcher.send_signal(signal.SIGINT)
        _, error = watcher.communicate(timeout=30)
        assert watcher.returncode == 0 and not error
        assert search.poll() is None
    finally:
        search.kill()
        search.communicate()


def test_a_run_in_a_store(run: Run, tmp_path: Path) -> None:
    """The mirror copies the record; its age tells whether the search is alive."""
    uri = f"file://{tmp_path}/store"
    run.write_manifest(replace(run.manifest, storage=uri))
    mine().write(run.path)
    with Mirror(run, Console(quiet=True)):
        pass
    status = look(f"{uri}/first")
    assert status.name.startswith("file://") and (status.state, status.alive) == ("running", True)
    mine(written_s=time.time() - 3600).write(run.path)
    with Mirror(run, Console(quiet=True)):
        pass
    status = look(f"{uri}/first")
    assert status.state == "silent" and status.next[1].endswith(f"--resume {uri}/first")


def test_what_confirm_found_is_shown(run: Run) -> None:
    mine(state="finished").write(run.path)
    assert look(str(run.path)).confirmed == []
    (run.path / "confirm").mkdir()
    (run.path / "confirm" / "runs.jsonl").write_text('{"trial": 7}\n' * 21)
    assert look(str(run.path)).confirmed[1:] == ["trainings on record but not yet summed up: 21"]
    rows = [
        {"trial": 7, "n": 16, "mean_acc": 0.9412, "sd_acc": 0.0015, "ci95_acc": [0.9405, 0.942]},
        {"trial": 0, "n": 3, "mean_acc": 0.9311, "sd_acc": None, "ci95_acc": None},
    ]
    content = {"rows": rows, "counts": {"test": 10_000}, "verdict": {"text": "Trial 7 is better.\x1b[2J"}}
    (run.path / "confirm" / "confirm.json").write_text(json.dumps(content))
    assert look(str(run.path)).confirmed == [
        "confirmed on fresh seeds: test accuracy, 10,000 test images",
        "trial 7: mean 94.12%, n = 16 seeds, SD 0.15 points, 95% interval 94.05 to 94.20%",
        "trial 0: mean 93.11%, n = 3 seeds",
        "trainings on record but not yet summed up: 2",
        "Trial 7 is better.?[2J",
    ]
    assert look(str(run.path)).next == []


@pytest.mark.parametrize(
    "content", ["{", "[]", "3", '{"rows": 3}', '{"rows": [3, {}, {"trial": "x"}]}', '{"rows": [{"n": 1e999}]}']
)
def test_a_damaged_confirm_json_does_no_harm(run: Run, content: str) -> None:
    mine().write(run.path)
    (run.path / "confirm").mkdir()
    (run.path / "confirm" / "confirm.json").write_text(content)
    assert look(str(run.path)).state == "killed"


def test_hostile_texts_reach_the_terminal_as_text(tmp_path: Path, command: Command) -> None:
    run = new_run(tmp_path)
    folder = run.path.rename(tmp_path / "[red]x[red]\x1b[2Jü")
    mine(run=HOSTILE, host=HOSTILE, extent=HOSTILE).write(folder)
    (folder / "lock").write_text(HOSTILE)
    done = command("tune.status", folder)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout.split("go on with")[0] and "[red]x[/red]?[2J" in done.stdout


@pytest.mark.parametrize("with_record", [True, False])
def test_a_run_of_10_000_trials_is_shown_within_a_second(tmp_path: Path, with_record: bool) -> None:
    """Of processor time, which a busy machine doesn't change; nothing heavy is loaded."""
    run = new_run(tmp_path, trials=10_000)
    for number in range(10_000):
        (run.path / "trials" / str(number)).mkdir()
    if with_record:
        mine().write(run.path)
    code = (
        "import runpy, sys; sys.argv[1:] = [sys.argv[1]]\n"
        "try: runpy.run_module('tune.status', run_name='__main__', alter_sys=True)\n"
        "finally: print({'torch', 'ray', 'optuna', 'numpy', 'pyarrow'} & {*sys.modules})"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, str(run.path)], cwd=REPO, capture_output=True, text=True, timeout=60
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ("of 10000 trials" if with_record else "trials begun: 10,000") in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "set()"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
