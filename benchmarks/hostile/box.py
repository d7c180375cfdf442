"""A hostile start: one command of this project as a child process, in an environment that differs in one thing from
what it expects; what is checked after each."""

import functools
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).parent.parent.parent
STRANGER = 12345  # a user id without an entry in /etc/passwd
LEFT_OVER_S = 15.0  # that processes may outlive their command
BREAKDOWN = re.compile(
    r"Traceback \(most|Segmentation fault|Fatal Python error|core dumped|terminate called|\*\*\* SIG"
)
NO_READER = 141  # as the shell shows a program that SIGPIPE ended
GROWING = {"journal.log", "metrics.jsonl", "runs.jsonl"}  # of a run folder: lines are only added
KEPT = {"config.json"}  # of a run folder: written once

SEARCH = ("tune.search", "--space", "lr_regimes", "--data", "digits", "--epochs", "2", "--width", "2", "--name", "x")
SEARCH += ("--train-examples", "256", "--trials", "2")
TRAIN = ("model.train", "--data", "digits", "--train-examples", "128")
TRAIN += ("--set", "width=1", "epochs=1", "batch_size=64")


class Fault(Exception):
    """A start ended as none may."""


class Skipped(Exception):
    """This machine can't make such a start."""


@dataclass(frozen=True)
class World:
    """What a shell changes around a command before it starts. Mounts are those of the command alone: they are made in
    a mount namespace."""

    mounts: str = ""
    """shell lines, run as root of the namespace in the folder of the case"""
    user: int | None = None
    """who runs the command"""
    limits: str = ""
    """shell lines, run by this user right before the command"""
    after: str = ""
    """shell lines, run as root of the namespace when the command has ended"""
    unshare: str = "--mount"
    """which namespaces"""

    def wrapped(self, command: list[str]) -> list[str]:
        """The command as it is started in this world.

        Raises:
            Skipped: this machine doesn't allow it.
        """
        if self.limits:
            command = ["bash", "-c", f'{self.limits}\nexec "$@"', "limits", *command]
        if self.user is not None:
            if os.geteuid() != 0:
                raise Skipped("only root can start a command as another user")
            who = str(self.user)
            command = ["setpriv", "--reuid", who, "--regid", who, "--clear-groups", *command]
        if self.user is None and not (self.mounts or self.after) and self.unshare == "--mount":
            return command
        run = f'code=0; "$@" || code=$?\n{self.after}\nexit $code' if self.after else 'exec "$@"'
        lines = ["set -e", *(readable() if self.user is not None else []), self.mounts, 'cd "$PWD"', run]
        return [*namespace(), *self.unshare.split(), "bash", "-c", "\n".join(lines), "world", *command]


@functools.cache
def namespace() -> list[str]:
    """How namespaces are made here: as root, or as root of a user namespace."""
    for command in (["unshare"], ["unshare", "--user", "--map-root-user"]):
        with suppress(OSError):
            if subprocess.run([*command, "--mount", "true"], capture_output=True).returncode == 0:
                return command
    raise Skipped("mount namespaces are not allowed here (they need Linux, and root or user namespaces)")


def readable() -> list[str]:
    """Shell lines that let every user read Python and this repository, where they lie below a folder that is closed
    to others, such as /root. What else lies there is hidden."""
    places = {str(Path(place).resolve()) for place in (sys.base_prefix, sys.prefix, REPO)}
    closed = {str(above) for place in places for above in Path(place).parents if above.stat().st_mode & 5 != 5}
    lines = []
    for folder in sorted(each for each in closed if not any(Path(each).is_relative_to(o) for o in closed - {each})):
        inside = sorted(shlex.quote(place) for place in places if Path(place).is_relative_to(folder))
        lines.append("kept=$(mktemp -d)")
        lines += [f"mkdir $kept/{n}; mount --bind {place} $kept/{n}" for n, place in enumerate(inside)]
        lines.append(f"mount -t tmpfs -o mode=755 none {shlex.quote(folder)}")
        for n, place in enumerate(inside):
            lines.append(f"mkdir -p {place}; mount --bind $kept/{n} {place}; umount $kept/{n}; rmdir $kept/{n}")
        lines.append("rmdir $kept")
    return lines


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    command: str
    code: int
    """exit code, 128 + n after signal n as a shell shows it"""
    out: str
    err: str

    def ended(self, *codes: int, says: Iterable[str] = ()) -> "Ended":
        """Check how it ended; `says` are patterns of what it has to have printed."""
        if self.code not in codes:
            self.fault(f"expected exit code {' or '.join(map(str, codes))}")
        for pattern in says:
            if not re.search(pattern, self.out + self.err):
                self.fault(f"it doesn't say {pattern!r}")
        return self

    def fault(self, what: str) -> None:
        out, err = _last_lines(self.out, 12), _last_lines(self.err, 25)
        raise Fault(f"{what} (exit code {self.code})\n  $ {self.command}\n{out}\n  stderr:\n{err}")

    @property
    def outcome(self) -> str:
        return {0: "success", 2: "one line"}.get(self.code, "exit code of its signal")


def _last_lines(text: str, count: int) -> str:
    return "\n".join(f"  | {line[:400]}" for line in text.strip().splitlines()[-count:])


class Box:
    """An empty folder in which the commands of a case run, with a home and a folder for temporary files beside it."""

    def __init__(self, place: Path, hang_s: float, shelf: "Shelf") -> None:
        self.place, self.hang_s, self.shelf = place, hang_s, shelf
        self.folder, self.home, self.tmp = (place / name for name in ("work", "home", "tmp"))
        for folder in (place, self.folder, self.home):
            folder.mkdir()
        self.tmp.mkdir()
        self.tmp.chmod(0o1777)
        self.env = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(self.home),
            "TMPDIR": str(self.tmp),
            "PYTHONPATH": str(REPO),
            "OMP_NUM_THREADS": "1",  # nets this small gain nothing from a second
            "HOSTILE_BOX": str(place),
        }

    def run(self, *command: str, **around: Any) -> Ended:
        """Run `python -m COMMAND` to its end. As for `start`."""
        return self.start(*command, **around).end()

    def start(
        self,
        *command: str | bytes,
        world: World | None = None,
        env: Mapping[str, str | None] | None = None,
        shell: str | None = None,
        cwd: Path | None = None,
        codes: Iterable[int] = (),
        begins: bool = False,
    ) -> "Running":
        """Start `python -m COMMAND`.

        Args:
            env: changes to the environment; None removes a variable.
            shell: a line of bash in which "$@" is the command.
            codes: exit codes that are right beside 0 and 2.
            begins: what is refused may have begun a run folder.

        Raises:
            Skipped: this machine can't make such a start.
        """
        whole: list[Any] = [sys.executable, "-m", *command]
        if env:
            gone = [word for name, value in env.items() if value is None for word in ("--unset", name)]
            whole = ["env", *gone, *(f"{name}={value}" for name, value in env.items() if value is not None), *whole]
        if shell:
            whole = ["bash", "-c", shell, "shell", *whole]
        world = world or World()
        if world.user is not None:
            for root, _, files in os.walk(self.place):
                for path in (root, *(os.path.join(root, file) for file in files)):
                    os.chown(path, world.user, world.user, follow_symlinks=False)
        return Running(
            self,
            world.wrapped(whole),
            cwd or self.folder,
            {0, 2, *codes},
            begins,
        )

    def beside(self, name: str) -> "Box":
        """Another empty box, for a command that runs at the same time."""
        return Box(self.place / name, self.hang_s, self.shelf)

    def add_run(self, kind: str = "finished", name: str = "runs/x") -> Path:
        """Put a copy of a run that was made once into the folder."""
        target = self.folder / name
        shutil.copytree(self.shelf.run(kind), target)
        return target


class Running:
    """A command that was started in a box."""

    def __init__(self, box: Box, command: list[Any], cwd: Path, codes: set[int], begins: bool) -> None:
        self._box, self._codes, self._begins = box, codes, begins
        self._shown = " ".join(shlex.quote(os.fsdecode(part)) for part in command)
        self._before = contents(box.folder)
        self._files = [box.place / name for name in ("stdout", "stderr")]
        with self._files[0].open("wb") as out, self._files[1].open("wb") as err:
            self._started_s = time.monotonic()
            self._process = subprocess.Popen(
                command, cwd=cwd, env=box.env, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )

    def wait_until(self, true: Callable[[], object]) -> None:
        """Wait for something that happens while it runs."""
        while not true():
            if self._process.poll() is not None or self._late():
                self.end().fault("it ended before what was waited for")
            time.sleep(0.05)

    def printed(self, text: str) -> bool:
        return text in self._files[0].read_text(encoding="utf-8", errors="replace")

    def signal(self, signum: int, *, group: bool = False) -> None:
        (os.killpg if group else os.kill)(self._process.pid, signum)

    def end(self) -> Ended:
        """Wait for its end, and check what holds for every command.

        Raises:
            Fault: it hangs, broke down, left something behind, or lost something.
        """
        while (hangs := self._process.poll() is None) and not self._late():
            time.sleep(0.05)
        if hangs:
            stack = _stack(self._process.pid)
            kill_below(self._box.place)
        left = _left_over(self._box.place)
        code = self._process.wait()
        out, err = (file.read_text(encoding="utf-8", errors="replace") for file in self._files)
        ended = Ended(self._shown, code if code >= 0 else 128 - code, out, err)
        if hangs:
            ended.fault(f"it hangs: killed after {self._box.hang_s:g} s {stack}")
        if breakdown := BREAKDOWN.search(out + err):
            ended.fault(f"{breakdown[0]!r} in its output")
        ended.ended(*self._codes)
        lines = [line for line in err.splitlines() if line.strip() and not line.startswith("warning: ")]
        if ended.code == 2 and not (len(lines) == 1 and lines[0].startswith("error: ")):
            ended.fault(f"{len(lines)} lines on stderr, expected one that begins with 'error: '")
        if left:
            ended.fault(f"it left processes behind: {left}")
        if folders := [path.name for path in self._box.tmp.glob("ray-*")]:
            ended.fault(f"it left temporary folders behind: {folders}")
        self._check_files(ended)
        return ended

    def _check_files(self, ended: Ended) -> None:
        after = contents(self._box.folder)
        for name, content in self._before.items():
            own = (Path(name).name in GROWING | KEPT and "trials" in name) or Path(name).name in GROWING
            in_run = any(
                (self._box.folder / name).parent.joinpath(up, "run.json").exists() for up in ("", "..", "../..")
            )
            if in_run and not own:
                continue  # written anew by every command
            if name not in after:
                ended.fault(f"{name} is gone")
            grows = in_run and Path(name).name in GROWING
            whole_lines = content[: content.rfind(b"\n") + 1]
            if not (after[name].startswith(whole_lines) if grows else after[name] == content):
                ended.fault(f"{name} was changed")
        new = sorted(set(after) - set(self._before))
        if ended.code == 2 and not self._begins:
            new = [name for name in new if Path(name).name not in ("lock", "status.json")]
            if new:
                ended.fault(f"it was refused, and left {', '.join(new[:5])}")

    def _late(self) -> bool:
        return time.monotonic() - self._started_s > self._box.hang_s


def contents(folder: Path) -> dict[str, bytes]:
    """What each file below a folder holds; of a large one, a hash."""
    found = {}
    for file in folder.rglob("*"):
        with suppress(OSError):
            if file.is_file() and not file.is_symlink():
                content = file.read_bytes()
                large = len(content) > 1_000_000
                found[str(file.relative_to(folder))] = hashlib.sha256(content).digest() if large else content
    return found


def _processes(place: Path) -> list[int]:
    """Processes that were started in this box: its path is in their environment, or they work in its folder (Ray's
    workers write their title over their environment)."""
    mark = f"HOSTILE_BOX={place}\0".encode()
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdecimal():
                works_here = os.readlink(entry / "cwd").startswith(f"{place}/")
                if works_here or mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found


def _left_over(place: Path) -> list[str]:
    """Kill what is left of the processes of a box, after some time, and say what it was."""
    start_s = time.monotonic()
    while _processes(place) and time.monotonic() - start_s < LEFT_OVER_S:
        time.sleep(0.1)
    return kill_below(place)


def kill_below(place: Path) -> list[str]:
    """End every process that was started in the box at this folder; returns their commands."""
    killed = []
    for pid in _processes(place):
        with suppress(OSError):
            killed.append(_command(pid)[:80])
            os.kill(pid, signal.SIGKILL)
    return killed


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def _stack(pid: int) -> str:
    """What the kernel says that a process waits for."""
    with suppress(OSError):
        place = Path(f"/proc/{pid}/wchan").read_text(encoding="utf-8")
        return f"(waiting in {place})"
    return ""


class Shelf:
    """Runs that many cases start from, each made once."""

    def __init__(self, place: Path, hang_s: float) -> None:
        self._place, self._hang_s = place, hang_s
        self._made: dict[str, Path] = {}

    def run(self, kind: str) -> Path:
        """A run folder: 'finished', or 'confirmed', which is exported with its weights as well.

        Raises:
            Fault: it can't be made.
        """
        if kind not in self._made:
            box = Box(self._place / f"shelf-{kind}", 5 * self._hang_s, self)
            if kind == "finished":
                box.run(*SEARCH).ended(0)
            else:
                box.add_run()
                box.run("tune.confirm", "runs/x", "--top", "1", "--seeds", "2").ended(0)
                box.run("tune.export", "runs/x", "--top", "1", "--weights").ended(0)
            self._made[kind] = box.folder / "runs" / "x"
        return self._made[kind]


@dataclass(frozen=True)
class Case:
    """A hostile start."""

    name: str
    """its group, and what is hostile"""
    act: Callable[[Box], Ended]
    """makes the start and checks its end; returns the command in question"""
    cost: int = 1
    """how long it takes, in refused commands"""


def start(
    name: str,
    *command: str,
    codes: tuple[int, ...] = (0,),
    says: Iterable[str] = (),
    prepare: Callable[[Box], object] = lambda box: None,
    env: Mapping[str, str | None] | Callable[[Box], Mapping[str, str | None]] | None = None,
    **around: Any,
) -> Case:
    """The case of one command that has to end with one of these codes. As for `Box.start`."""

    def act(box: Box) -> Ended:
        prepare(box)
        changed = env(box) if callable(env) else env
        ended = box.start(*command, env=changed, codes=codes, **around).end()
        ended.ended(*codes, says=says if ended.code == codes[0] else ())
        if command[0] == "tune.search" and ended.code == 0 and "--resume" not in command:
            check_run(box, ended)
        return ended

    return Case(name, act, cost=4 if command[0] == "tune.search" and codes[0] == 0 else 1)


def search(name: str, *more: str, **around: Any) -> Case:
    """The case of a whole small search."""
    return start(name, *SEARCH, *more, **around)


def train(name: str, *more: str, **around: Any) -> Case:
    """The case of a small training."""
    return start(name, *TRAIN, *more, **around)


def check_run(box: Box, ended: Ended, run: str = "runs/x", trials: int = 2) -> None:
    """A search that ended in success has a run folder with all its trials, and its status is finished."""
    folder = box.folder / run
    status = (folder / "status.json").read_text(encoding="utf-8") if (folder / "status.json").exists() else ""
    if '"state": "finished"' not in status and '"state":"finished"' not in status:
        ended.fault(f"it succeeded, and the status is not finished: {status[:200]}")
    there = sorted(path.parent.name for path in folder.glob("trials/*/metrics.jsonl") if path.stat().st_size)
    if there != [str(number) for number in range(trials)]:
        ended.fault(f"it succeeded, and {folder}/trials has {there}")
