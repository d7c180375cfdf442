"""`python -m tune.status RUN`: how a search stands, from another terminal or machine, also when it is dead or finished.

It reads the small records that a search and tune.confirm leave in the run folder, and asks the kernel who holds the
folder's lock. Nothing of what makes a search is loaded, and nothing is written.
"""

import math
import os
import platform
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from model.command import Stopped, run_command
from model.config import InputError
from model.files import parse_json
from tune.commands import python, quoted, resume_command
from tune.lines import duration, inert, percent
from tune.lock import NoLocks, Owner, owner
from tune.panel import View, draws, new_console, summary
from tune.snapshot import FILE, Snapshot, parse

SILENT_S = 60.0  # a search elsewhere that has given no sign of life for so long is taken for dead
WATCH_EVERY_S, SAY_EVERY_S = 1.0, 10.0

SEARCH = "tune.search"
ENDS = {
    "finished": "finished",
    "stopped": "stopped, by --time-budget-s or a signal,",
    "interrupted": "interrupted with Ctrl-C",
    "failed": "broke down; its own terminal says why;",
}

Read = Callable[[str], bytes | None]
"""a file of the run by its relative path; None where there is none; raises OSError"""


@dataclass(frozen=True)
class Options:
    """Show how a search stands: whether it runs, was killed or has finished, and what it found so far."""

    run: Annotated[str, tyro.conf.Positional]
    """the run folder, or the URI of a run in an object store"""
    watch: bool = False
    """show it anew every second until the search, or tune.confirm, ends; or Ctrl-C"""


@dataclass
class Status:
    """What there is to say about a run."""

    name: str
    state: str = "unknown"
    """of its search, in a word or two"""
    alive: bool = False
    """whether the search, or tune.confirm, is at work"""
    said: list[str] = field(default_factory=list)
    next: list[str] = field(default_factory=list)
    """a command and what it is for"""
    snapshot: Snapshot | None = None
    confirmed: list[str] = field(default_factory=list)
    """what tune.confirm has found: a title and paragraphs"""


def main(options: Options) -> None:
    console = new_console()
    status = look(options.run)
    try:
        if options.watch:
            status = _watch(options.run, status, console)
        else:
            console.print(_drawn(status, whole=True))
    except Stopped:
        raise
    except KeyboardInterrupt:  # the way to end --watch
        return
    for line in status.next:
        console.print(line)


def _watch(run: str, status: Status, console: Console) -> Status:
    """Show it until the search is no longer at work; the last that was found."""
    live = Live(_drawn(status), console=console, auto_refresh=False) if draws(console) else None
    said_s = -math.inf
    with live or nullcontext():
        if live:
            live.refresh()
        while status.alive:
            if not live and time.monotonic() - said_s >= SAY_EVERY_S:
                console.print(f"{status.state}: {summary(status.snapshot) if status.snapshot else status.said[0]}")
                said_s = time.monotonic()
            time.sleep(WATCH_EVERY_S)
            status = look(run)
            if live:
                live.update(_drawn(status), refresh=True)
    if not live:
        console.print(_drawn(status, whole=True))
    return status


def _drawn(status: Status, whole: bool = False) -> RenderableType:
    if not status.snapshot:
        texts = [f"{status.name}: {status.state}", *status.said, *status.confirmed]
        return Group(*(Text(text) for text in texts))
    as_of = f"as of {_clock(status.snapshot.written_s)}"
    return View(status.snapshot, state=status.state, said=status.said, note=as_of, more=status.confirmed, whole=whole)


def look(run: str) -> Status:
    """What there is to say about a run now.

    Raises:
        InputError: it is none, or it can't be read.
    """
    folder = None if "://" in run else Path(run).absolute()
    try:
        read = _reader(run, folder)
        manifest, manifest_fault = _parsed(read, "run.json", parse_json)
        snapshot, fault = _parsed(read, FILE, parse)
        confirmed = confirm_lines(read)
        holder, local = None, folder is not None
        try:
            holder = owner(folder) if folder else None
        except NoLocks:
            local = False  # then it is judged as a run elsewhere: by its last sign of life
    except OSError as error:
        raise InputError(f"{run} can't be read: {error.strerror or error}") from error
    if manifest is None and snapshot is None and not manifest_fault:
        raise InputError(f"{run} is not a run: it has no run.json; name a folder that tune.search made, or its URI")
    status = Status(inert(folder.name if folder else run), snapshot=snapshot, confirmed=confirmed)
    if snapshot:
        _judge(status, snapshot, holder, local)
    else:
        _guess(status, holder, folder)
        status.said += [f"{fault or f'{FILE} is missing'}: what it would tell is unknown", *_asked(manifest)]
    if manifest_fault or manifest is None:
        status.said.append(f"{manifest_fault or 'run.json is missing'}: restore it from a copy, to go on with this run")
    if holder and not status.alive:
        status.alive = True
        status.said.append(f"{holder.module or 'another process'} is at work: {inert(holder.text)}")
    if not status.alive:
        is_experiment = isinstance(manifest, dict) and bool(manifest.get("scale"))
        status.next = _next(status, folder or run, is_experiment)
    return status


def _reader(run: str, folder: Path | None) -> Read:
    """Raises InputError where `run` is a URI of no known kind."""
    if folder is None:
        from pyarrow import ArrowException  # what a URI needs takes as long to load as all the rest

        from tune.storage import Storage, first_line

        storage = Storage(run)

        def read(name: str) -> bytes | None:
            try:
                return storage.read(name)
            except (OSError, ArrowException) as error:
                raise OSError(first_line(error)) from error
    else:

        def read(name: str) -> bytes | None:
            try:
                return (folder / name).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    return read


def _parsed(read: Read, name: str, parser: Callable[[bytes], Any]) -> tuple[Any, str]:
    """What a file holds, and what is wrong with it; None where it is missing or damaged."""
    content = read(name)
    try:
        return (None if content is None else parser(content)), ""
    except ValueError as error:
        return None, f"{name} is damaged ({inert(error)})"


def _judge(status: Status, snapshot: Snapshot, holder: Owner | None, local: bool) -> None:
    """Whether the search that left this snapshot is at work, what became of it otherwise."""
    ago = duration(time.time() - snapshot.written_s)
    who = f"process {snapshot.pid} on {inert(snapshot.host)}"
    ended = snapshot.state not in ("starting", "running")
    if holder and holder.pid == snapshot.pid and not ended:
        status.state, status.alive = snapshot.state, True
        status.said.append(f"{who}, last sign of life {ago} ago")
    elif holder and holder.module == SEARCH and not ended:
        status.state, status.alive = "starting", True
        status.said.append(f"{inert(holder.text)} is taking it up; shown is how an earlier process left it")
    elif ended:
        status.state = snapshot.state
        status.said.append(f"{ENDS[snapshot.state]} {ago} ago ({who})")
    elif local and snapshot.host == platform.node():
        status.state = "killed"
        status.said.append(f"{who} ended without a word, {ago} ago or a little less; every epoch on record is kept")
    elif time.time() - snapshot.written_s < SILENT_S:
        status.state, status.alive = snapshot.state, True
        status.said.append(f"{who}, by its last sign of life {ago} ago")
    else:
        status.state = "silent"
        status.said.append(
            f"no sign of life from {who} for {ago}: killed or cut off; make sure that it is gone before going on"
        )


def _guess(status: Status, holder: Owner | None, folder: Path | None) -> None:
    """The same without a snapshot: what can be counted at once."""
    begun, changed_s = _counted(folder) if folder else (0, None)
    if holder and (holder.module or SEARCH) == SEARCH:
        status.state, status.alive = "starting, or of an older version", True
        status.said.append(f"in use by {inert(holder.text)}")
    elif not folder:
        status.state = "unknown"
    elif not begun:
        status.state = "never started"
    else:
        status.state = "not running"
    if begun:
        status.said.append(f"trials begun: {begun:,}; which of them ended, and how, is in the journal only")
    if changed_s:
        status.said.append(f"last change {duration(time.time() - changed_s)} ago, at {_clock(changed_s)}")


def _counted(folder: Path) -> tuple[int, float | None]:
    """Trials begun, and when the run changed last."""
    trials = folder / "trials"
    count = sum(entry.name.isdecimal() for entry in os.scandir(trials)) if trials.is_dir() else 0
    times = [path.stat().st_mtime for path in (folder / "journal.log", folder / "run.json", trials) if path.exists()]
    return count, max(times, default=None)


def _asked(manifest: Any) -> list[str]:
    """What was asked for, as far as run.json tells."""
    if not isinstance(manifest, dict):
        return []
    named = [
        ("space", "space_name"),
        ("data", "dataset"),
        ("trials", "trials"),
        ("budget", "budget"),
        ("made", "created"),
    ]
    return [", ".join(f"{name} {inert(manifest[key])}" for name, key in named if manifest.get(key) is not None)]


def _next(status: Status, run: Path | str, is_experiment: bool) -> list[str]:
    """The command with which to go on."""
    if status.state == "finished":
        if is_experiment and isinstance(run, Path):
            return ["what was found:", f"  {python()} -m tune.report {quoted(run)}"]
        nothing_ended = status.snapshot is not None and not status.snapshot.counts.get("done")
        if status.confirmed or nothing_ended or not isinstance(run, Path):
            return []
        return ["which is really better:", f"  {python()} -m tune.confirm {quoted(run)} --top 3 --seeds 4"]
    return ["go on with:", f"  {resume_command(run)}"]


def confirm_lines(read: Read) -> list[str]:
    """What tune.confirm has found so far: a title, a line for each config, the verdict. Empty before it has run."""
    content, fault = _parsed(read, "confirm/confirm.json", parse_json)
    lines, seen = [fault] if fault else [], 0
    content = content if isinstance(content, dict) else {}
    rows = content.get("rows")
    for row in rows if isinstance(rows, list) else []:
        try:
            sd, interval = row.get("sd_acc"), row.get("ci95_acc")
            said = (
                f"trial {row['trial']:d}: mean {percent(row['mean_acc'])}, n = {row['n']:d} seed{'s' * (row['n'] != 1)}"
            )
            said += f", SD {100 * sd:.2f} points" if sd is not None else ""
            said += f", 95% interval {100 * interval[0]:.2f} to {percent(interval[1])}" if interval else ""
            seen += row["n"]
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError):
            said = "a row of confirm.json that can't be read"
        lines.append(said)
    more = (read("confirm/runs.jsonl") or b"").count(b"\n") - seen
    if more > 0:
        lines.append(f"trainings on record but not yet summed up: {more}")
    verdict = content.get("verdict")
    if isinstance(verdict, dict):
        lines.append(inert(verdict.get("text", ""), 1000))
    counts = content.get("counts")
    images = counts.get("test") if isinstance(counts, dict) else None
    on = f", {images:,} test images" if isinstance(images, int) else ""
    return [f"confirmed on fresh seeds: test accuracy{on}", *lines] if lines else []


def _clock(seconds: float) -> str:
    """Local time, with the day unless it is today's."""
    try:
        at = datetime.fromtimestamp(seconds)
    except (ValueError, OverflowError, OSError):
        return "an unknown time"
    return f"{at:%H:%M:%S}" if at.date() == datetime.now().date() else f"{at:%Y-%m-%d %H:%M:%S}"


if __name__ == "__main__":
    run_command(main, Options, prog="python -m tune.status")
