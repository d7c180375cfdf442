"""What the tests share: small data, and the commands run as a user runs them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

# Nets this small gain nothing from a second thread, and lose much where cores are busy; read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import ray
import torch

from model.command import run_command
from model.config import Config
from model.data import Dataset, DeviceData, to_device

REPO = Path(__file__).parent.parent
REAL_DATA = Path(os.environ.get("RESNET9_DATA", REPO.parent / "shared" / "data"))


@pytest.fixture
def tiny() -> Config:
    """A config that trains an epoch of `tiny_data` in milliseconds."""
    return Config(width=2, epochs=3, batch_size=16, cutout_px=8)


def noise(train_images: int, eval_images: int) -> Dataset:
    """Images of noise in 4 classes."""
    rng = np.random.default_rng(0)
    return Dataset(
        name="noise",
        train_images=rng.integers(256, size=(train_images, 32, 32, 3), dtype=np.uint8),
        train_labels=np.arange(train_images) % 4,
        eval_images=rng.integers(256, size=(eval_images, 32, 32, 3), dtype=np.uint8),
        eval_labels=np.arange(eval_images) % 4,
        eval_split="test",
        mean=(127.5, 127.5, 127.5),
        std=(73.9, 73.9, 73.9),
        classes=("a", "b", "c", "d"),
        fingerprint="0" * 12,
        note="",
    )


@pytest.fixture
def tiny_data() -> DeviceData:
    """64 training and 20 test images of noise in 4 classes, on the CPU."""
    return to_device(noise(64, 20), torch.device("cpu"))


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python -m MODULE ARGS` in an empty folder, as a user would."""

    def run(module: str, *args: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", module, *map(str, args)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "PYTHONPATH": str(REPO), "XDG_CACHE_HOME": str(tmp_path / "cache")},
        )

    return run


Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command in `tmp_path` that must be refused; returns its one line."""
    monkeypatch.chdir(tmp_path)

    def run(command: ModuleType, *args: object) -> str:
        before = contents(tmp_path)
        monkeypatch.setattr(sys, "argv", ["command", *map(str, args)])
        with pytest.raises(SystemExit) as exit:
            run_command(command.main, command.Options, prog=f"python -m {command.__name__}")
        err = capsys.readouterr().err
        assert exit.value.code == 2, err
        assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
        assert contents(tmp_path) == before
        assert not ray.is_initialized()
        return err

    return run


def contents(folder: Path) -> dict[str, bytes]:
    skipped = {"lock"}  # the lock file is no data
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name not in skipped
    }
