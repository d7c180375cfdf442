"""What a trial gets of a machine, and how many run at once."""

from pathlib import Path

import pytest
import torch

from model.config import InputError
from tune import resources
from tune.resources import choose, count_slots
from tune.run import Resources


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> "Machine":
    return Machine(monkeypatch)


class Machine:
    """Pretends that this process may use so many cores and GPUs, and start so many threads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.has(2, 0)

    def has(self, cores: int, gpus: int, threads: float = float("inf")) -> None:
        self._monkeypatch.setattr(resources, "usable_cores", lambda: cores)
        self._monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        self._monkeypatch.setattr(resources, "startable_threads", lambda: threads)

    @staticmethod
    def slots(cores: int, gpus: int, chosen: Resources) -> int:
        return count_slots([{"Alive": True, "Resources": {"CPU": float(cores), "GPU": float(gpus)}}], chosen)


@pytest.mark.parametrize(
    ("cores", "gpus", "asked", "cpus", "share", "slots"),
    [
        (2, 0, {}, 1, 0, 2),
        (1, 0, {}, 1, 0, 1),
        (2, 0, {"slots": 1}, 2, 0, 1),
        (2, 0, {"slots": 4}, 0.5, 0, 4),
        (8, 0, {"cpus": 2.0}, 2, 0, 4),
        (8, 0, {"cpus": 2.0, "slots": 3}, 2, 0, 3),
        (64, 8, {}, 8, 1, 8),
        (4, 8, {}, 0.5, 1, 8),  # a container with fewer cores than GPUs: none is idle for that
        (1, 1, {}, 1, 1, 1),
        (16, 1, {"slots": 4}, 4, 0.25, 4),
        (16, 2, {"slots": 3}, 5, 0.5, 3),
        (16, 8, {"slots": 4}, 4, 1, 4),
        (16, 1, {"gpus": 0.5}, 8, 0.5, 2),
        (64, 8, {"gpus": 2.0}, 16, 2, 4),
        (16, 8, {"gpus": 0.0}, 1, 0, 16),
    ],
)
def test_a_trial_has_its_share_of_the_machine(
    machine: Machine, cores: int, gpus: int, asked: dict[str, float], cpus: float, share: float, slots: int
) -> None:
    machine.has(cores, gpus)
    none = dict.fromkeys(("cpus", "gpus", "ranks", "slots"))
    chosen = choose(**{**none, **asked}, joins=False)
    assert (chosen.cpus, chosen.gpus) == (cpus, share)
    assert machine.slots(cores, gpus, chosen) == slots


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "slots"),
    [
        ([{"CPU": 2.0}], 1, 0, 2),
        ([{"CPU": 2.0}], 0.5, 0, 4),
        ([{"CPU": 64.0, "GPU": 8.0}], 1, 1, 8),
        ([{"CPU": 64.0, "GPU": 8.0}], 1, 0.15, 48),  # six to a GPU, not 53 in all
        ([{"CPU": 64.0, "GPU": 8.0}], 1, 2, 4),
        ([{"CPU": 4.0, "GPU": 8.0}], 1, 0.5, 4),  # the cores run out first
        ([{"CPU": 3.0}, {"CPU": 3.0}], 2, 0, 2),  # a trial stays on one node
        ([{"CPU": 2.0}], 4, 0, 0),
    ],
)
def test_slots_of_a_cluster(nodes: list[dict[str, float]], cpus: float, gpus: float, slots: int) -> None:
    described = [{"Alive": True, "Resources": node} for node in nodes]
    dead = {"Alive": False, "Resources": {"CPU": 99.0, "GPU": 9.0}}
    assert count_slots([*described, dead], Resources(cpus, gpus, 1, None)) == slots
    assert count_slots([*described, dead], Resources(cpus, gpus, 1, 2)) == min(slots, 2)


BEFORE = Resources(cpus=8, gpus=1, ranks=1, slots=None)


@pytest.mark.parametrize(
    ("before", "had_gpus", "cores", "gpus", "cpus", "share"),
    [
        (Resources(2, 0, 1, None), False, 8, 0, 2, 0),  # as it was, also where there is room for more at once
        (Resources(4, 0, 1, None), False, 2, 0, 1, 0),  # a smaller machine
        (Resources(1, 0, 1, 1), False, 2, 0, 1, 0),
        (BEFORE, True, 8, 1, 8, 1),
        (BEFORE, True, 4, 1, 4, 1),
        (BEFORE, True, 32, 8, 4, 1),  # a larger machine: no GPU is idle for want of cores
        (BEFORE, True, 2, 0, 1, 0),  # a machine without GPUs
        (Resources(8, 0.25, 1, None), True, 16, 1, 4, 0.25),
        (Resources(1, 0, 1, None), False, 16, 1, 1, 1),  # from a laptop to a GPU
        (Resources(1, 0, 1, None), True, 16, 1, 1, 0),  # who wanted no GPU gets none
    ],
)
def test_a_run_goes_on_on_another_machine(
    machine: Machine, before: Resources, had_gpus: bool, cores: int, gpus: int, cpus: float, share: float
) -> None:
    machine.has(cores, gpus)
    chosen = choose(None, None, None, None, joins=False, before=before, had_gpus=had_gpus)
    assert (chosen.cpus, chosen.gpus, chosen.ranks, chosen.slots) == (cpus, share, 1, before.slots)


def test_what_was_asked_for_is_checked_against_what_this_process_may_use(machine: Machine) -> None:
    machine.has(4, 1)
    for asked, line in [
        ((5.0, None, None, None), "--cpus-per-trial 5: this machine has 4 for this process"),
        ((None, 2.0, None, None), "--gpus-per-trial 2: this machine has 1"),
        ((2.0, None, None, 3), "--slots 3 with --cpus-per-trial 2: this machine has 4"),
        ((None, 1.0, None, 2), "--slots 2 with --gpus-per-trial 1: this machine has 1"),
    ]:
        with pytest.raises(InputError, match=line):
            choose(*asked, joins=False)
    assert choose(64.0, 8.0, None, None, joins=True) == Resources(64, 8, 8, None)  # of a cluster nobody knows yet


def test_threads_that_cannot_be_started_are_said_before_anything_is_made(machine: Machine) -> None:
    machine.has(2, 0, threads=250)
    with pytest.raises(InputError, match=r"about 280 processes and threads .* may start 250 more: raise the limit"):
        choose(None, None, None, None, joins=False)
    assert choose(None, None, None, 1, joins=False).slots == 1


def test_without_bash_there_are_no_workers(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="Ray starts its workers with bash, and there is none"):
        choose(None, None, None, None, joins=False)


def test_without_a_loopback_device_there_is_no_ray(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(resources.socket, "create_connection", unreachable)
    with pytest.raises(InputError, match=r"127\.0\.0\.1, which can't be used here \(Network is unreachable\)"):
        choose(None, None, None, None, joins=False)
