"""One run over several processes: the same as one process, and nothing left over when a process dies."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import REPO, noise

from model.config import Config, InputError
from model.data import to_device
from model.ranks import RankError, Ranks
from model.train import init_state, train

CONFIG = Config(width=2, epochs=2, batch_size=32, peak_lr=0.02, ema_decay=0.9, tta="flip")


DATA = noise(96, 21)


@pytest.fixture(scope="module")
def two_ranks() -> Iterator[Ranks]:
    with Ranks(DATA, 2, threads=1) as ranks:
        yield ranks


@pytest.mark.parametrize(("config", "as_one"), [(CONFIG, 16), (replace(CONFIG, ghost_batch=8, whiten=True), 8)])
def test_two_ranks_train_as_one_process_with_ghost_groups(two_ranks: Ranks, config: Config, as_one: int) -> None:
    """Each rank normalises its half of a batch of 32 on its own: groups of 16, or its own ghost groups of 8."""
    data = to_device(DATA, torch.device("cpu"))
    single = replace(config, ghost_batch=as_one)
    state = init_state(single, data, seed=1)
    expected = list(train(single, data, seed=1, state=state))
    metrics = list(two_ranks.train(config, seed=1))
    for mine, other in zip(metrics, expected, strict=True):
        assert mine.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        assert mine.loss == pytest.approx(other.loss, rel=1e-4)
        assert mine.acc == pytest.approx(other.acc, abs=1.01 / 21)
    assert two_ranks.state is not None
    for part in ("net", "ema"):
        values = two_ranks.state[part].values()
        for value, reference in zip(values, state.state_dict()[part].values(), strict=True):
            if value.is_floating_point():  # not the count of batches, which nothing uses
                torch.testing.assert_close(value, reference, rtol=1e-3, atol=1e-4)


def test_a_run_over_ranks_goes_on_from_its_saved_state(two_ranks: Ranks) -> None:
    whole = [metrics.train_loss for metrics in two_ranks.train(CONFIG, seed=2)]
    epochs = two_ranks.train(CONFIG, seed=2)
    first = next(epochs)
    rest = [metrics.train_loss for metrics in two_ranks.train(CONFIG, seed=2, state=two_ranks.state)]
    assert [first.train_loss, *rest] == whole


def test_a_batch_that_ranks_cannot_share_is_refused(two_ranks: Ranks) -> None:
    with pytest.raises(InputError, match="batch_size = 33 can't be shared evenly by 2 ranks"):
        next(two_ranks.train(replace(CONFIG, batch_size=33)))
    with pytest.raises(InputError, match="2 ranks in groups of ghost_batch = 32: make it a multiple of 64"):
        next(two_ranks.train(replace(CONFIG, ghost_batch=32)))


def test_a_dead_rank_ends_the_run_with_its_name_and_leaves_no_process() -> None:
    before = set(multiprocessing.active_children())
    with Ranks(DATA, 2, threads=1) as ranks:
        epochs = ranks.train(CONFIG, seed=0)
        next(epochs)
        started = sorted(set(multiprocessing.active_children()) - before, key=lambda process: process.name)
        assert len(started) == 2
        started[1].kill()
        with pytest.raises(RankError, match=r"rank 1 of 2 died \(exit code -9\)"):
            next(epochs)
        assert not any(process.is_alive() for process in started)


def test_a_rank_that_fails_as_it_starts_says_why() -> None:
    """What it raised, rather than the exit code of its process."""
    with (
        Ranks(replace(DATA, mean=("grey",) * 3), 2, threads=1) as ranks,  # type: ignore[arg-type]
        pytest.raises(RankError, match=r"^rank \d of 2: (Type|Value)Error: .*"),
    ):
        next(ranks.train(CONFIG))


def test_a_config_that_ranks_refuse_is_refused_as_by_one_process(two_ranks: Ranks) -> None:
    with (
        Ranks(DATA, 2, threads=1) as ranks,
        pytest.raises(InputError, match=r"rank 0 of 2: compile = true needs a CUDA device"),
    ):
        next(ranks.train(replace(CONFIG, compile=True)))


def test_ranks_die_with_the_process_that_made_them(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, time\n"
        "from model.data import take\n"
        "from model.ranks import Ranks\n"
        "from model.sources import load\n"
        "if __name__ == '__main__':\n"
        "    ranks = Ranks(take(load('digits'), 50), 2, threads=1)\n"
        "    print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
        "    time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(children) == 2
    time.sleep(4)  # long enough to be up and waiting
    assert all(alive(pid) for pid in children)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in children)


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie, which only waits for somebody to read its exit code, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
