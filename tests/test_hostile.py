"""Hostile starts, a few of those that `python -m benchmarks.hostile` makes: real commands on odd machines."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.hostile.__main__ import CASES, attempt
from benchmarks.hostile.box import Shelf

HANG_S = 240  # beside other tests all takes longer
CHEAP = [
    "machine: control groups v2 without limits, training",
    "machine: more CPUs than SLURM gave",
    "machine: an unknown user, HOME=/, training",
    "stops: pipes: a training, stdout full",
    "data: batches with a copy, data_batch_1.bak",
    "data: .tif files",
]
SEARCHES = [
    "machine: control groups v2 without limits, search",
    "machine: a quota of half a core",
    "machine: an unknown user, HOME=/, search",
    "machine: 64 MB of /dev/shm",
    "machine: other users' processes are hidden",
    "stops: signals: SIGTERM to all of a search's processes as Ray starts",
    "stops: signals: SIGKILL to the workers",
    "files: no locks, links or modes, search",
]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that other users can enter, with a short path: those of pytest are closed, and too long for sockets."""
    with tempfile.TemporaryDirectory(prefix="hs-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.parametrize("name", [*CHEAP, *(pytest.param(name, marks=pytest.mark.slow) for name in SEARCHES)])
def test_start(place: Path, name: str) -> None:
    numbers = {case.name: number for number, case in enumerate(CASES)}
    number = numbers[name]
    outcome, why = attempt(CASES[number], place / str(number), HANG_S, Shelf(place, HANG_S))
    if outcome == "skipped":
        pytest.skip(why)
    assert outcome != "FAULT", why


def test_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 100
