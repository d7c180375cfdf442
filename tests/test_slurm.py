"""The job script of the docs, run as SLURM does, with a `scontrol` that only notes what it is asked."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO
from test_search import epochs_of, epochs_or_none, wait_for

from tune.run import Run


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_the_job_stops_before_its_limit_queues_again_and_goes_on(tmp_path: Path) -> None:
    script = (REPO / "docs" / "slurm.sh").read_text()
    search = "--space lr_regimes --data digits --width 2 --epochs 3 --trials 6"
    given = "--space lr_regimes --data cifar10 --trials 200"
    assert given in script
    (tmp_path / "job.sh").write_text(script.replace(given, search))
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, content in [("scontrol", 'echo "$@" >> asked'), ("python", f'exec {sys.executable} "$@"')]:
        (tools / name).write_text(f"#!/bin/sh\n{content}\n")
        (tools / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPO),
        "SLURM_JOB_NAME": "job",
        "SLURM_JOB_ID": "17",
        "SLURM_CPUS_PER_TASK": "1",
    }
    run = tmp_path / "runs" / "job-17"

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "job.sh"],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    job = start()
    wait_for(lambda: run.exists() and any(epochs_or_none(run).values()))
    job.send_signal(signal.SIGUSR1)
    out, _ = job.communicate(timeout=60)
    assert job.returncode == 0 and (tmp_path / "asked").read_text() == "requeue 17\n", out
    assert "1 core of" in out and "stopped; every finished epoch is kept" in out
    before = epochs_of(run)
    job = start()
    out, _ = job.communicate(timeout=240)
    assert job.returncode == 0, out
    after = epochs_of(run)
    assert len(after) == 6 and all(trial.state.is_finished() for trial in Run(run).study().trials)
    assert all(after[number][: len(epochs)] == epochs for number, epochs in before.items())
    assert (tmp_path / "asked").read_text() == "requeue 17\n"
