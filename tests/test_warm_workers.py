"""A worker that trains one trial after another needs no more memory for the last of them than for the first."""

from pathlib import Path
from typing import Any

import pytest
import torch

import tune.search
from benchmarks.scale import EARLY, LATE, resident
from tune.run import Run

GROWTH = 0.02


def search(folder: Path, **options: Any) -> list[dict[str, Any]]:
    """The epochs of a search whose trials have one each."""
    given = {"space": "lr_regimes", "data": "digits", "train_examples": 30, "width": 1, "epochs": 1, **options}
    tune.search.main(
        tune.search.Options(set=(("batch_size=16",),), cpus_per_trial=1, name="warm", runs_dir=folder, **given)
    )
    run = Run(folder / "warm")
    return [epoch for trial in run.study().trials for epoch in run.metrics(trial.number)]


def check_growth(epochs: list[dict[str, Any]], key: str) -> None:
    by_worker = [each for each in resident(epochs, key).values() if len(each) >= LATE]
    assert by_worker, "no worker had so many trials"
    for each in by_worker:
        assert max(each[EARLY - 1 : LATE]) <= (1 + GROWTH) * each[EARLY - 1]


@pytest.mark.slow
def test_resident_memory(tmp_path: Path) -> None:
    check_growth(search(tmp_path, trials=2 * LATE + 40, sampler="random"), "rss_mib")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_memory_of_a_gpu_that_two_trials_share(tmp_path: Path) -> None:
    epochs = search(tmp_path, trials=2 * LATE + 40, sampler="random", gpus_per_trial=0.5)
    check_growth(epochs, "allocated_mib")
    check_growth(epochs, "reserved_mib")
