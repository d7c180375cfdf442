"""File systems: without locks or links, full, read-only; names and places of folders."""

import functools
import json
import re
import shlex
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path

from benchmarks.hostile.box import (
    SEARCH,
    TRAIN,
    Box,
    Case,
    Ended,
    Skipped,
    World,
    check_run,
    contents,
    search,
    start,
    train,
)
from benchmarks.hostile.stops import CONFIRM

SHIM = """
#include <errno.h>
#include <sys/types.h>
#ifdef NO_FLOCK
int flock(int file, int operation) { errno = ENOLCK; return -1; }
#endif
#ifdef NO_LINKS
int symlink(const char *target, const char *path) { errno = EPERM; return -1; }
int symlinkat(const char *target, int folder, const char *path) { errno = EPERM; return -1; }
int link(const char *target, const char *path) { errno = EPERM; return -1; }
int linkat(int a, const char *target, int b, const char *path, int flags) { errno = EPERM; return -1; }
#endif
#ifdef NO_CHMOD
int chmod(const char *path, mode_t mode) { errno = EPERM; return -1; }
int fchmod(int file, mode_t mode) { errno = EPERM; return -1; }
int fchmodat(int folder, const char *path, mode_t mode, int flags) { errno = EPERM; return -1; }
#endif
"""


@functools.cache
def _shim(*lacks: str) -> tuple[Path, tempfile.TemporaryDirectory]:
    if not shutil.which("cc"):
        raise Skipped("a C compiler is needed")
    folder = tempfile.TemporaryDirectory(prefix="shim-")
    library = Path(folder.name) / "shim.so"
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-o", str(library), *(f"-D{each}" for each in lacks), "-"]
    subprocess.run(command, input=SHIM, text=True, check=True)
    return library, folder


def lacking(*lacks: str):
    """The environment of a file system that has no locks, no links or no modes."""
    return lambda box: {"LD_PRELOAD": str(_shim(*lacks)[0])}


def full(room_kb: int) -> World:
    """A file system of 4 MB at `full`, with a copy of the run, and with so much room left. What it holds in the end
    is copied to `kept` beside the folder of the case."""
    fill = "dd if=/dev/zero bs=1k of=full/{} count={} 2> /dev/null"
    return World(
        mounts=f"""mkdir full; mount -t tmpfs -o size=4m none full
if [ -e runs/x ]; then cp -a runs/x full/; fi
{fill.format("reserve", room_kb)}; {fill.format("fill", 100000)} || true; rm full/reserve""",
        after="rm full/fill; mkdir ../kept; cp -a full/. ../kept/",
    )


def full_search(box: Box) -> Ended:
    """With room again, the run comes to its end."""
    ended = box.run(*SEARCH, "--runs-dir", "full", world=full(80)).ended(2, says=["go on with|make room"])
    shutil.copytree(box.place / "kept/x", box.folder / "runs/x")
    check_run(box, box.run("tune.search", "--resume", "runs/x").ended(0))
    return ended


def full_start(box: Box) -> Ended:
    return box.run(*SEARCH, "--runs-dir", "full", world=full(0)).ended(2, says=["No space left"])


def full_resume(box: Box) -> Ended:
    box.add_run()
    ended = box.run("tune.search", "--resume", "full/x", "--trials", "3", world=full(24)).ended(2)
    _check_kept(box, ended)
    return ended


def full_resume_at_once(box: Box) -> Ended:
    box.add_run()
    ended = box.run("tune.search", "--resume", "full/x", "--trials", "3", world=full(0)).ended(2)
    _check_kept(box, ended)
    if json.loads((box.place / "kept/x/run.json").read_text(encoding="utf-8"))["trials"] not in (2, 3):
        ended.fault("run.json was damaged")
    return ended


def full_confirmation(box: Box) -> Ended:
    box.add_run()
    command = [word.replace("runs/x", "full/x") for word in CONFIRM]
    ended = box.run(*command, world=full(8)).ended(2)
    _check_kept(box, ended)
    box.run("tune.confirm", "../kept/x", *CONFIRM[2:], "--seeds", "1").ended(0)
    return ended


def full_export(box: Box) -> Ended:
    before = contents(box.add_run("confirmed") / "best")
    ended = box.run("tune.export", "full/x", "--top", "1", "--weights", world=full(4)).ended(2)
    _check_kept(box, ended)
    if contents(box.place / "kept/x/best") != before:
        ended.fault("the earlier export is no longer what it was")
    return ended


def full_training(box: Box) -> Ended:
    ended = box.run(*TRAIN, "--out", "full/o", world=full(12)).ended(2)
    weights = box.place / "kept/o/weights.pt"
    if weights.exists() and not zipfile.is_zipfile(weights):
        ended.fault("weights.pt is torn")
    return ended


def _check_kept(box: Box, ended: Ended) -> None:
    """What the run had on record is there after the disk was full."""
    for name, content in contents(box.folder / "runs/x").items():
        if Path(name).name in ("journal.log", "metrics.jsonl", "config.json", "confirm.json", "runs.jsonl"):
            kept = box.place / "kept/x" / name
            if not kept.exists() or not kept.read_bytes().startswith(content):
                ended.fault(f"{name} is gone or changed after the disk was full")


def read_only(name: str, *command: str, codes: tuple[int, ...] = (0,), says: tuple[str, ...] = ()) -> Case:
    """A command on a run that can only be read."""
    world = World("mount -o bind,ro runs/x runs/x")
    name = f"a run that can only be read, {name}"
    return start(name, *command, prepare=lambda box: box.add_run("confirmed"), world=world, codes=codes, says=says)


def at_once(box: Box) -> Ended:
    """Three searches without a name start in the same second."""
    unnamed = SEARCH[: SEARCH.index("--name")] + SEARCH[SEARCH.index("--name") + 2 :]
    boxes = [box.beside(name) for name in "abc"]
    running = [each.start(*unnamed, "--runs-dir", str(box.folder / "runs")) for each in boxes]
    ended = [each.end().ended(0) for each in running]
    folders = sorted((box.folder / "runs").iterdir())
    if len(folders) != 3:
        ended[0].fault(f"three searches made {len(folders)} run folders")
    for folder in folders:
        check_run(box, ended[0], f"runs/{folder.name}")
    return ended[0]


def odd_name(box: Box) -> Ended:
    """The commands that a search prints for its folder work as pasted."""
    ended = box.run(*SEARCH, "--name", 'it\'s "my" $HOME ü').ended(0)
    printed = re.search(r"^ +(.* -m tune\.report .*)$", ended.out, re.MULTILINE)
    if not printed:
        ended.fault("no command for a report was printed")
    else:
        box.run(*shlex.split(printed[1])[2:]).ended(0)
    return ended


def renamed(name: str, folder: str) -> Case:
    """A run folder of this name: its report is written, an export too."""

    def act(box: Box) -> Ended:
        box.add_run(name=f"runs/{folder}")
        box.run("tune.status", f"runs/{folder}").ended(0)
        box.run("tune.export", f"runs/{folder}", "--top", "1").ended(0)
        return box.run("tune.report", f"runs/{folder}").ended(0)

    return Case(f"a run folder with {name} in its name", act, cost=3)


def at_home(name: str, *command: str, makes: str, **around) -> Case:
    """A path that begins with ~, which the shell leaves as it is after =."""

    def act(box: Box) -> Ended:
        if "runs/x" in command:
            box.add_run()
        ended = box.run(*command).ended(0)
        if not (box.home / makes).exists() or (box.folder / "~").exists():
            ended.fault(f"~/{makes} was not made in the home folder")
        return ended

    return Case(f"~ in {name}", act, **around)


def make_file(name: str):
    return lambda box: (box.folder / name).write_text("mine", encoding="utf-8")


CASES = [
    start("no locks, status", "tune.status", "runs/x", env=lacking("NO_FLOCK"), prepare=lambda box: box.add_run()),
    search(
        "no locks, links or modes, search",
        env=lacking("NO_FLOCK", "NO_LINKS", "NO_CHMOD"),
        says=["warning.*lock"],
    ),
    start(
        "no locks, links or modes, export",
        *("tune.export", "runs/x", "--weights"),
        env=lacking("NO_FLOCK", "NO_LINKS", "NO_CHMOD"),
        prepare=lambda box: box.add_run("confirmed"),
    ),
    Case("a disk that becomes full, search", full_search, cost=8),
    Case("a full disk, search", full_start),
    Case("a disk that becomes full, --resume --trials", full_resume, cost=4),
    Case("a full disk, --resume --trials", full_resume_at_once, cost=2),
    Case("a disk that becomes full, confirmation", full_confirmation, cost=3),
    Case("a full disk, export", full_export),
    Case("a disk that becomes full, training", full_training),
    read_only("status", "tune.status", "runs/x"),
    read_only("report", "tune.report", "runs/x", codes=(2,), says=("--out",)),
    read_only("report --out", "tune.report", "runs/x", "--out", "r.html"),
    read_only("export", "tune.export", "runs/x", codes=(2,), says=("--out",)),
    read_only("export --out", "tune.export", "runs/x", "--weights", "--out", "o"),
    read_only("confirmation", *CONFIRM, codes=(2,), says=("Read-only",)),
    read_only("--resume", "tune.search", "--resume", "runs/x", "--trials", "3", codes=(2,), says=("Read-only",)),
    Case("three searches without a name in the same second", at_once, cost=8),
    Case("a search whose name has spaces, quotes and an umlaut", odd_name, cost=5),
    renamed("a line break", "a\nb"),
    search("--name of 300 letters", "--name", "n" * 300, codes=(2,), says=["--name|too long"]),
    search("--name above the folder of runs", "--name", "../x", codes=(2,), says=["--name"]),
    at_home("--runs-dir=~/x", *SEARCH, "--runs-dir=~/x", makes="x/x/run.json", cost=4),
    at_home("--out=~/o of a training", *TRAIN, "--out=~/o", makes="o/weights.pt"),
    at_home("--out=~/r.html of a report", "tune.report", "runs/x", "--out=~/r.html", makes="r.html"),
    train("--out that is there", "--out", "o", prepare=make_file("o"), codes=(2,), says=["--out o"]),
    search("runs is a file", prepare=make_file("runs"), codes=(2,), says=["runs"]),
    search(
        "runs is a link to nowhere",
        prepare=lambda box: (box.folder / "runs").symlink_to("/nowhere/at/all"),
        codes=(2, 0),
    ),
]
