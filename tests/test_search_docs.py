"""The commands of docs/search.md work, in their order; with fewer and shorter trials here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO

from tune.run import Run

SHORT = "--trials 3 --epochs 2 --cpus-per-trial 1"
BLOCKS = re.findall(r"```sh\n(.*?)```", (REPO / "docs" / "search.md").read_text(), re.DOTALL)


@pytest.mark.slow
def test_the_examples(tmp_path: Path) -> None:
    commands = [line for block in BLOCKS for line in block.splitlines()]
    assert len(commands) >= 8
    for index, command in enumerate(commands):
        shorter = re.sub(r"^(python -m tune.search)( .*)", rf"\1\2 {SHORT}", command)
        if "--name" not in command:
            shorter = re.sub(r"^(python -m tune.search)", rf"\1 --name run{index}", shorter)
        done = subprocess.run(
            shorter.replace("python", sys.executable, 1),
            shell=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPO)},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    runs = {run.name: Run(run) for run in (tmp_path / "runs").iterdir()}
    assert {run.manifest.objective for run in runs.values()} == {
        "accuracy", "time-to-target", "flops-to-target", "pareto"
    }  # fmt: skip
    assert any((run.path / "warm_start.json").exists() for run in runs.values())
    assert any(run.space.limits for run in runs.values())
