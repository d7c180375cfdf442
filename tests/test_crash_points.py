"""Searches that die at one exact point of their work: what was on record stays, and a resume brings the rest."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO
from test_search import SMALL, epochs_of

from tune.checkpoint import Checkpoints
from tune.run import Run

# `at(owner, name, nth, half)`: SIGKILL at the nth call; `half` is what is done of it before
LAUNCHER = """
import os, signal, sys
from pathlib import Path
import tune.run, tune.search
from optuna.storages.journal import JournalFileBackend
from tune.model_sampler import ModelSampler
from tune.run import Run
from tune.searcher import StudySearcher

def at(owner, name, nth, half=None):
    whole, calls = getattr(owner, name), 0
    def crashing(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == nth:
            if half:
                half(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*args, **kwargs)
    setattr(owner, name, crashing)

def half_a_line(journal, logs):
    with open(journal._file_path, "ab") as file:
        file.write(b'{"op_code":4,"worker_i')

def half_an_epoch(run, number, epochs):
    with (run.trial_dir(number) / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "train_l')

{"birth": lambda: at(tune.run, "_write_manifest", 1, lambda path, manifest: (path / "run.json.tmp").write_text("{")),
 "start-up": lambda: at(tune.search, "started_ray", 1),
 "proposal": lambda: at(ModelSampler, "choose", 3),
 "journal": lambda: at(JournalFileBackend, "append_logs", 12, half_a_line),
 "epoch": lambda: at(Run, "append_metrics", 4, half_an_epoch),
 "ending": lambda: at(StudySearcher, "_tell", 1),
}[os.environ["CRASH"]]()
tune.search.run_command(tune.search.main, tune.search.Options, prog="x")
"""


def run_search(folder: Path, *args: object, crash: str | None = None) -> tuple[int, str]:
    start = ["-c", LAUNCHER] if crash else ["-m", "tune.search"]
    done = subprocess.run(
        [sys.executable, *start, *map(str, args)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPO), "CRASH": crash or ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    return done.returncode, done.stdout


def records(run: Path) -> dict[int, list[str]]:
    """Whole lines of the epochs on record."""
    return {
        int(file.parent.name): file.read_text().split("\n")[:-1] for file in sorted(run.glob("trials/*/metrics.jsonl"))
    }


@pytest.mark.slow
def test_a_search_that_dies_at_one_point_after_the_other_goes_on(tmp_path: Path) -> None:
    """At `ending` it is killed between a trial's last epoch and what the study is told of it, the second time while it
    catches up on that."""
    run = tmp_path / "runs" / "crashed"
    args = (*SMALL, "--trials", 8, "--epochs", 4, "--name", "crashed")
    before: dict[int, list[str]] = {}
    died_at = None
    for point in ("birth", "start-up", "start-up", "proposal", "journal", "epoch", "ending", "ending", None):
        has_begun = (run / "run.json").exists()
        assert has_begun == (died_at not in (None, "birth"))
        code, out = run_search(tmp_path, *(("--resume", run) if has_begun else args), crash=point)
        assert code == (-signal.SIGKILL if point else 0), out
        assert ("repaired: " in out) == (died_at in ("journal", "epoch"))
        after = records(run)
        assert all(after[number][: len(lines)] == lines for number, lines in before.items())
        before, died_at = after, point
    assert len(before) == 8
    for number, epochs in epochs_of(run).items():
        assert [metrics["epoch"] for metrics in epochs] == list(range(1, len(epochs) + 1)) and len(epochs) in (2, 4)
        assert Run(run).study().trials[number].state.is_finished()
    assert not list(run.glob("trials/*/checkpoint*"))


def test_a_worker_that_dies_while_it_saves_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """Killed with half of the new checkpoint on disk."""
    (tmp_path / "trials").mkdir()
    program = f"""
import os, signal, sys
from pathlib import Path
from tune.checkpoint import Checkpoints
run = Path({str(tmp_path)!r})
checkpoints = Checkpoints(run, run / "scratch")
checkpoints.save(0, {{"state": None, "history": [1]}})
write = Path.write_bytes
def half(path, content):
    write(path, bytes(content)[: len(content) // 2])
    os.kill(os.getpid(), signal.SIGKILL)
Path.write_bytes = half
checkpoints.save(0, {{"state": None, "history": [1, 2]}})
"""
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(REPO)})
    assert done.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "trials" / "0").iterdir())) == 2
    assert Checkpoints(tmp_path, tmp_path / "scratch").load(0) == {"state": None, "history": [1]}
