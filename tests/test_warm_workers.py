"""A worker that trains one trial after another: its memory doesn't grow, and it is replaced once it may be broken."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tune.search
from benchmarks.scale import EARLY, LATE, near_empty_search, resident
from model.config import InputError
from model.train import EpochMetrics
from tune.run import Run
from tune.trial import Worker

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


def failing_search(
    path: Path, monkeypatch: pytest.MonkeyPatch, errors: dict[int, Callable[[], None]], **options: Any
) -> tuple[dict[int, int], dict[int, str]]:
    """A search with one slot in which a trial first calls what `errors` has for it; (pid by trial, reason by trial)."""

    class FailingWorker(Worker):  # pickled by value, so the workers needn't find this file
        def setup(self, config: dict[str, Any], **given: Any) -> None:  # type: ignore[override]
            if given["gpus"] == 0:
                torch.cuda.is_available = lambda: True  # as where Ray lets a worker without a GPU see them all
            super().setup(config, **given)

        def _next_epoch(self) -> EpochMetrics | None:
            if self._number in errors:
                errors[self._number]()
            return super()._next_epoch()

    monkeypatch.setattr(tune.search, "Worker", FailingWorker)
    near_empty_search(path, cpus_per_trial=os.cpu_count(), sampler="random", **options)
    run = Run(path)
    trials = run.study().trials
    pids = {trial.number: epochs[0]["pid"] for trial in trials if (epochs := run.metrics(trial.number))}
    reasons = {trial.number: trial.user_attrs["reason"] for trial in trials if "reason" in trial.user_attrs}
    return pids, reasons


def raising(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def test_a_worker_is_replaced_after_an_error_that_may_have_broken_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Trials 1 and 2 fail of their config and of a lack of memory, 4 of something else."""
    errors = {
        1: raising(InputError("batch_size = 9 is not allowed")),
        2: raising(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")),
        4: raising(RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be ...")),
    }
    pids, reasons = failing_search(tmp_path / "failing", monkeypatch, errors, trials=7)
    assert reasons == {
        1: "batch_size = 9 is not allowed",
        2: "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
        4: "RuntimeError: CUDA error: device-side assert triggered",
    }
    assert list(pids) == [0, 3, 5, 6] and pids[0] == pids[3] != pids[5] == pids[6]
    said = capfd.readouterr()
    assert "ERROR" not in said.out + said.err  # Ray's own words


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_trials_after_a_failed_assertion_on_the_gpu_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def beyond_the_end() -> None:
        torch.zeros(3, device="cuda")[torch.tensor([7], device="cuda")].tolist()

    errors = {1: beyond_the_end}
    pids, reasons = failing_search(tmp_path / "failing", monkeypatch, errors, trials=4, gpus_per_trial=1)
    assert list(reasons) == [1] and "assert" in reasons[1]
    assert list(pids) == [0, 2, 3] and pids[0] != pids[2] == pids[3]
