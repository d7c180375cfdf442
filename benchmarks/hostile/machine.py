"""Machines: control groups, cores, users, homes, limits, what Ray and torch read of the environment."""

import json
import shlex
import shutil
import subprocess
from pathlib import Path

from benchmarks.hostile.box import SEARCH, STRANGER, Box, Case, Ended, World, search, train

UNKNOWN = World(user=STRANGER)
ROOT_AS_HOME = {"HOME": "/"}
PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "grpc_proxy")


def groups(files: dict[str, str], own: str = "0::/\n") -> World:
    """A control-group tree of these files, and which groups the command itself is in."""
    lines = ["mount -t tmpfs none /sys/fs/cgroup", "cd /sys/fs/cgroup"]
    for name, content in files.items():
        lines.append(f"mkdir -p {Path(name).parent}; echo {shlex.quote(content)} > {name}")
    lines.append(f"printf %s {shlex.quote(own)} > .own; mount --bind .own /proc/$$/cgroup; cd - > /dev/null")
    return World("\n".join(lines))


def memory(folder: str, limit: str, used: str = "100000000") -> dict[str, str]:
    names = {"memory.max": limit, "memory.current": used, "memory.stat": "inactive_file 1000"}
    return {f"{folder}/{name}": value for name, value in names.items()}


V2 = {"cgroup.controllers": "cpu memory pids", "cpu.max": "max 100000", **memory(".", "max"), "pids.max": "max"}
V2_LIMITLESS = groups(V2)
V1_LIMITLESS = groups(
    {
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "memory/memory.usage_in_bytes": "1000000",
        "memory/memory.stat": "total_inactive_file 0",
        "cpu/cpu.cfs_quota_us": "-1",
        "cpu/cpu.cfs_period_us": "100000",
    },
    own="4:memory:/docker/0123\n1:cpu:/docker/0123\n",
)
V1_LIMITED = groups(
    {
        "memory/docker/0123/memory.limit_in_bytes": "4000000000",
        "memory/docker/0123/memory.usage_in_bytes": "1000000",
        "memory/docker/0123/memory.stat": "total_inactive_file 0",
    },
    own="4:memory:/docker/0123\n",
)


def other_repository(box: Box) -> Ended:
    """GIT_DIR names another repository: its commit is not that of the code."""
    other = box.place / "other"
    git = ["git", "-C", str(other), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "-q", str(other)], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    ended = box.run(*SEARCH, env={"GIT_DIR": str(other / ".git")}).ended(0)
    if commit in (box.folder / "runs/x/run.json").read_text(encoding="utf-8"):
        ended.fault(f"run.json names the commit of another repository, {commit}")
    return ended


def quota_of_half(box: Box) -> Ended:
    """Half a core: one trial at once, with what there is."""
    world = groups({**V2, "cpu.max": "50000 100000"})
    ended = box.run(*SEARCH, world=world).ended(0)
    manifest = json.loads((box.folder / "runs/x/run.json").read_text(encoding="utf-8"))
    if manifest["cpus_per_trial"] > 1:
        ended.fault(f"a trial has {manifest['cpus_per_trial']} CPUs of half a core")
    return ended


def only_bash(box: Box) -> None:
    """A folder of programs with nothing but bash."""
    (box.place / "bin").mkdir()
    (box.place / "bin" / "bash").symlink_to(str(shutil.which("bash")))


def confirmed_by_a_stranger(box: Box) -> Ended:
    box.add_run()
    return box.run("tune.confirm", "runs/x", "--top", "1", "--seeds", "1", world=UNKNOWN, env=ROOT_AS_HOME).ended(0)


CASES: list[Case] = [
    train("control groups v2 without limits, training", world=V2_LIMITLESS),
    search("control groups v2 without limits, search", world=V2_LIMITLESS),
    train("control groups v2 with a limit", world=groups({**V2, **memory(".", "4000000000")})),
    train(
        "control groups v2, nested, the outer limited",
        world=groups({**V2, **memory("a", "4000000000"), **memory("a/b", "max")}, own="0::/a/b\n"),
    ),
    train(
        "control groups v2 with no memory left",
        world=groups({**V2, **memory(".", "110000000")}),
        codes=(2, 0),
        says=["memory"],
    ),
    train("control groups v2 full of nonsense", world=groups({name: "nonsense\n\n" for name in V2})),
    train("control groups v1 without limits", world=V1_LIMITLESS),
    train("control groups v1 with a limit", world=V1_LIMITED),
    train("no control groups", world=groups({}, own="")),
    train("no /proc", world=World("mount -t tmpfs none /proc"), codes=(0, 2)),
    Case("a quota of half a core", quota_of_half, cost=4),
    search("one core of several", shell='taskset -c 0 "$@"', says=["1 core ", "has 1 CPU "]),
    search(
        "more CPUs than the affinity leaves",
        *("--cpus-per-trial", "2"),
        shell='taskset -c 0 "$@"',
        codes=(2,),
        says=["--cpus-per-trial 2"],
    ),
    search(
        "more CPUs than SLURM gave",
        *("--cpus-per-trial", "2"),
        env={"SLURM_CPUS_PER_TASK": "1"},
        codes=(2,),
        says=["--cpus-per-trial 2"],
    ),
    search("a GPU where there is none", "--gpus-per-trial", "1", codes=(2,), says=["gpus-per-trial"]),
    train("an unknown user, HOME=/, training", world=UNKNOWN, env=ROOT_AS_HOME),
    search("an unknown user, HOME=/, search", world=UNKNOWN, env=ROOT_AS_HOME),
    Case("an unknown user, HOME=/, confirmation", confirmed_by_a_stranger, cost=2),
    train("an unknown user without HOME", world=UNKNOWN, env={"HOME": None}),
    search(
        "an unknown user, no git, HOME a file",
        world=UNKNOWN,
        prepare=only_bash,
        env=lambda box: {"HOME": "/etc/passwd", "PATH": str(box.place / "bin")},
    ),
    search("no bash", env={"PATH": "/nowhere"}, codes=(2,), says=["bash"]),
    search("64 MB of /dev/shm", world=World("mount -t tmpfs -o size=64m,mode=1777 none /dev/shm")),
    search(
        "/dev/shm that can't be written",
        world=World("mount -t tmpfs -o ro none /dev/shm", user=STRANGER),
        codes=(0, 2),
        begins=True,
    ),
    search(
        "a TMPDIR of 100 bytes",
        prepare=lambda box: (box.place / ("t" * 100)).mkdir(mode=0o777),
        env=lambda box: {"TMPDIR": str(box.place / ("t" * 100))},
    ),
    train("a TMPDIR that is not there", env={"TMPDIR": "/nowhere"}),
    train(
        "no folder for temporary files can be written",
        world=World("for each in /tmp /var/tmp /dev/shm; do mount -o bind,ro $each $each; done", user=STRANGER),
        env={"TMPDIR": "/nowhere"},
        codes=(0, 2),
    ),
    search(
        "/tmp/ray of another user",
        world=World("mkdir -p /tmp/ray; mount -t tmpfs -o mode=700,uid=54321 none /tmp/ray", user=STRANGER),
    ),
    search(
        "ulimit -u 150",
        world=World(user=STRANGER, limits="ulimit -u 150"),
        codes=(2,),
        says=["ulimit -u"],
    ),
    search("ulimit -n 256", world=World(limits="ulimit -n 256")),
    train("ulimit -v", world=World(limits="ulimit -v 8000000"), codes=(0, 2)),
    train(
        "ulimit -f, files of 1 KB at most",
        *("--out", "o"),
        world=World(limits="ulimit -f 1"),
        codes=(2,),
        begins=True,
    ),
    search(
        "a current folder that can't be written",
        world=World("mount -o bind,ro . ."),
        codes=(2,),
        says=["Read-only"],
    ),
    train("a current folder that can't be written, training", world=World("mount -o bind,ro . .")),
    train("a current folder that was removed", shell='mkdir d; cd d; rmdir ../d; "$@"', codes=(0, 2)),
    Case("GIT_DIR of another repository", other_repository, cost=4),
    search(
        "ulimit -c 0, umask 077, nice 19",
        world=World(user=STRANGER, limits="ulimit -c 0; umask 077; renice -n 19 $$ > /dev/null"),
    ),
    train("umask 0777", "--out", "o", world=World(user=STRANGER, limits="umask 0777"), codes=(0, 2), begins=True),
    search(
        "other users' processes are hidden",
        world=World("mount -t proc -o hidepid=2 none /proc", user=STRANGER),
    ),
    search(
        "a network with loopback only, a host name without an address",
        world=World("ip link set lo up; hostname nowhere.invalid", unshare="--mount --net --uts"),
    ),
    search("no network at all", world=World(unshare="--mount --net"), codes=(0, 2), begins=True),
    search(
        "a RAY_ADDRESS of a cluster that is gone, proxies that are dead",
        env={
            "RAY_ADDRESS": "127.0.0.1:9",
            "RAY_AUTH_MODE": "token",
            **dict.fromkeys(PROXIES, "http://127.0.0.1:9"),
        },
    ),
    search("--address where nobody listens", "--address", "127.0.0.1:1", codes=(2,), says=["--address"]),
    search("--address of no such host", "--address", "no.invalid:6379", codes=(2,), says=["--address"]),
    search(
        "--address auto without a cluster",
        *("--address", "auto"),
        world=World("mount -t proc -o hidepid=2 none /proc", user=STRANGER + 1),  # others' clusters are no cluster
        codes=(2,),
        begins=True,
        says=["auto"],
    ),
    train(
        "PYTHONDONTWRITEBYTECODE, PYTHONOPTIMIZE=2",
        env={"PYTHONDONTWRITEBYTECODE": "1", "PYTHONOPTIMIZE": "2"},
    ),
    train("OMP_NUM_THREADS=abc", env={"OMP_NUM_THREADS": "abc"}),
    train("CUDA_VISIBLE_DEVICES is empty", env={"CUDA_VISIBLE_DEVICES": "", "TZ": "Nowhere/Never"}),
]
