"""What this process may use of its machine: the CPU cores and the memory that affinity, control groups and SLURM leave
it. The machine itself often has more, in a container or in a job of a cluster."""

import math
import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

GROUPS = Path("/proc/self/cgroup")  # which control groups this process is in
GROUP_ROOT = Path("/sys/fs/cgroup")  # where they are mounted
MEMINFO = Path("/proc/meminfo")


def usable_cpus() -> float:
    """CPU cores that this process may keep busy: those of its affinity, no more than the CPU quota of its control
    groups and than SLURM_CPUS_PER_TASK. A quota may be a fraction of a core."""
    limits = [float(_cpus_of_affinity()), *_quotas()]
    with suppress(ValueError):
        limits.append(float(int(os.environ.get("SLURM_CPUS_PER_TASK", ""))))
    return min(limit for limit in limits if limit > 0)


def usable_cores() -> int:
    """The same in whole cores, at least one."""
    return max(1, math.floor(usable_cpus()))


def available_memory_bytes() -> int:
    """Memory that is free now, on the machine and within the limit of each control group of this process."""
    return max(0, min([_machine_bytes(), *_left_in_groups()]))


def startable_threads() -> float:
    """How many threads, each process counting as one at least, may still be started: by this user (`ulimit -u`, which
    doesn't bind root) and in the control groups of this process. Infinite where nothing limits them."""
    left = [math.inf]
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if limit != resource.RLIM_INFINITY and os.geteuid() != 0:
        left.append(limit - _threads_of_user(os.getuid()))
    for folder, _ in _groups("pids"):
        with suppress(OSError, ValueError):
            most, now = (int((folder / f"pids.{name}").read_text(encoding="ascii")) for name in ("max", "current"))
            left.append(most - now)
    return max(0, min(left))


def _threads_of_user(user: int) -> int:
    count = 0
    with suppress(OSError):  # no /proc
        for entry in os.scandir("/proc"):
            with suppress(OSError):  # it has just ended
                if entry.name.isdecimal() and entry.stat().st_uid == user:
                    count += len(os.listdir(f"/proc/{entry.name}/task"))
    return count


def _cpus_of_affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS has no affinity


def _quotas() -> Iterator[float]:
    """CPU quotas of the control groups, in cores."""
    for folder, version in _groups("cpu"):
        with suppress(OSError, ValueError):
            if version == 2:
                quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()  # "max" without a quota
            else:
                quota, period = (
                    (folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period")
                )
            yield int(quota) / int(period)  # v1 has -1 without a quota


def _machine_bytes() -> int:
    with suppress(OSError):
        for line in MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # macOS: all there is, free or not


def _left_in_groups() -> Iterator[int]:
    """What each control group with a limit leaves of it. Cached files don't count as used: they make room."""
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }
    for folder, version in _groups("memory"):
        limit, used, cache = names[version]
        with suppress(OSError, ValueError):
            limit_bytes = int((folder / limit).read_text(encoding="ascii"))  # "max" without a limit
            used_bytes = int((folder / used).read_text(encoding="ascii"))
            lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
            yield limit_bytes - used_bytes + int(dict(line.split() for line in lines).get(cache, 0))


def _groups(controller: str) -> Iterator[tuple[Path, int]]:
    """The folders of the control groups around this process that may limit `controller`, from the innermost to the
    root, each with its version: 2, or 1 where the controller has a hierarchy of its own."""
    try:
        lines = GROUPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = GROUP_ROOT / controller if controllers else GROUP_ROOT
        # A container sees its own group as the root of the mount, whatever path the host has for it, and ".." in the
        # path of a group outside of its namespace.
        group = Path(*(part for part in path.split("/") if part not in ("", "..")))
        for folder in (group, *group.parents):
            yield root / folder, 1 if controllers else 2
