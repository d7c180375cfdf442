"""What a process may use of its machine, for every kind of machine that people have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO

from model import machine

GIB = 2**30


@pytest.fixture
def faked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty tree of control groups; /proc/self/cgroup is absent until a test writes `groups`, and 8 GiB are free."""
    (tmp_path / "meminfo").write_text("MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n")
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(machine, "GROUP_ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    return tmp_path


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_without_control_groups(faked: Path) -> None:
    assert machine.available_memory_bytes() == 8 * GIB
    assert machine.usable_cpus() == 16


def test_version_2_without_limits(faked: Path) -> None:
    """Most desktops and servers."""
    write(faked, groups="0::/user.slice/user-1000.slice/session-2.scope")
    write(faked / "cgroup", cgroup__controllers="cpu memory")
    for group in ("user.slice", "user.slice/user-1000.slice", "user.slice/user-1000.slice/session-2.scope"):
        write(faked / "cgroup" / group, memory__max="max", memory__current="1000", cpu__max="max 100000")
        write(faked / "cgroup" / group, memory__stat="anon 5\ninactive_file 200")
    assert machine.available_memory_bytes() == 8 * GIB
    assert machine.usable_cpus() == 16


def test_version_2_with_limits_at_several_levels(faked: Path) -> None:
    write(faked, groups="0::/job/step")
    stat = f"anon 5\ninactive_file {GIB // 2}"
    write(faked / "cgroup/job", memory__max=str(4 * GIB), memory__current=str(3 * GIB), memory__stat=stat)
    write(faked / "cgroup/job", cpu__max="250000 100000")
    write(faked / "cgroup/job/step", memory__max=str(3 * GIB), memory__current=str(GIB), memory__stat=stat)
    write(faked / "cgroup/job/step", cpu__max="400000 100000")
    assert machine.available_memory_bytes() == 4 * GIB - 3 * GIB + GIB // 2
    assert machine.usable_cpus() == 2.5
    assert machine.usable_cores() == 2


@pytest.mark.parametrize("groups", ["0::/", "0::/../../other", "0::/docker/0123456789ab"])
def test_a_container_sees_its_own_group_as_the_root(faked: Path, groups: str) -> None:
    write(faked, groups=groups)
    write(faked / "cgroup", memory__max=str(2 * GIB), memory__current="0", memory__stat="x 0", cpu__max="50000 100000")
    assert machine.available_memory_bytes() == 2 * GIB
    assert machine.usable_cpus() == 0.5
    assert machine.usable_cores() == 1


def test_version_1(faked: Path) -> None:
    write(faked, groups="5:cpu,cpuacct:/job\n4:memory:/job\n1:name=systemd:/\n0::/")
    write(faked / "cgroup/memory", memory__limit_in_bytes="9223372036854771712", memory__usage_in_bytes="7")
    write(faked / "cgroup/memory", memory__stat="total_inactive_file 0")
    write(faked / "cgroup/memory/job", memory__limit_in_bytes=str(GIB), memory__usage_in_bytes="1000")
    write(faked / "cgroup/memory/job", memory__stat="inactive_file 1\ntotal_inactive_file 200")
    write(faked / "cgroup/cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    write(faked / "cgroup/cpu/job", cpu__cfs_quota_us="300000", cpu__cfs_period_us="100000")
    assert machine.available_memory_bytes() == GIB - 1000 + 200
    assert machine.usable_cpus() == 3


def test_a_group_over_its_limit_leaves_nothing(faked: Path) -> None:
    write(faked, groups="0::/")
    write(faked / "cgroup", memory__max="1000", memory__current="2000", memory__stat="inactive_file 0")
    assert machine.available_memory_bytes() == 0


def test_no_linux(faked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS has neither /proc nor affinity."""
    (faked / "meminfo").unlink()
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 16384, "SC_PHYS_PAGES": 1048576}.__getitem__)
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    assert machine.available_memory_bytes() == 16 * GIB
    assert machine.usable_cpus() == 10


@pytest.mark.parametrize(("given", "cpus"), [("4", 4), ("64", 16), ("", 16), ("0", 16), ("many", 16)])
def test_slurm(faked: Path, monkeypatch: pytest.MonkeyPatch, given: str, cpus: float) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", given)
    assert machine.usable_cpus() == cpus


def test_affinity_of_a_real_process() -> None:
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system has no affinity")
    one = next(iter(os.sched_getaffinity(0)))
    code = f"import os; os.sched_setaffinity(0, {{{one}}}); from model.machine import usable_cpus; print(usable_cpus())"
    answer = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert float(answer.stdout) <= 1
