"""A worker that trains one trial after another needs no more memory for the last of them than for the first."""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.scale import EARLY, LATE, near_empty_search, resident

GROWTH = 0.02


def check_growth(epochs: list[dict[str, Any]], key: str) -> None:
    by_worker = [each for each in resident(epochs, key).values() if len(each) >= LATE]
    assert by_worker, "no worker had so many trials"
    for each in by_worker:
        assert max(each[EARLY - 1 : LATE]) <= (1 + GROWTH) * each[EARLY - 1]


@pytest.mark.slow
def test_resident_memory(tmp_path: Path) -> None:
    check_growth(near_empty_search(tmp_path / "warm", trials=2 * LATE + 40, sampler="random"), "rss_mib")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_memory_of_a_gpu_that_two_trials_share(tmp_path: Path) -> None:
    epochs = near_empty_search(tmp_path / "warm", trials=2 * LATE + 40, sampler="random", gpus_per_trial=0.5)
    check_growth(epochs, "allocated_mib")
    check_growth(epochs, "reserved_mib")
