"""Signals and pipes: who stops a command finds everything kept, and the command that goes on."""

import json
import os
import re
import shlex
import signal
import time

from benchmarks.hostile.box import NO_READER, SEARCH, TRAIN, Box, Case, Ended, check_run, start

LONG = (*SEARCH, "--trials", "12", "--epochs", "200")
CONFIRM = ("tune.confirm", "runs/x", "--top", "1", "--seeds", "2")


def check_stopped(box: Box, ended: Ended) -> None:
    """The run is not finished, and the command that was printed goes on with it."""
    run = box.folder / "runs" / "x"
    if not (run / "run.json").exists():
        return  # it was stopped before it had begun
    status = box.run("tune.status", "runs/x").ended(0)
    if "finished" in status.out:
        status.fault("a search that was stopped is called finished")
    printed = re.search(r"^ +(.* -m tune\.search --resume (.*))$", ended.err + status.out, re.MULTILINE)
    if not printed:
        ended.fault("no command that goes on was printed, nor by tune.status")
    elif not (box.folder / shlex.split(printed[2])[0] / "run.json").exists():
        ended.fault(f"the command that was printed names no run: {printed[1]}")


def search_stopped(signum: int, *, group: bool) -> Case:
    """A search is stopped after its first epochs."""

    def act(box: Box) -> Ended:
        running = box.start(*LONG, codes=(128 + signum,))
        running.wait_until(lambda: list(box.folder.glob("runs/x/trials/1/metrics.jsonl")))
        running.signal(signum, group=group)
        ended = running.end().ended(128 + signum, says=["every finished epoch is kept"])
        check_stopped(box, ended)
        return ended

    whom = "all of a search's processes" if group else "a search"
    return Case(f"signals: {signal.Signals(signum).name} to {whom}", act, cost=3)


def search_starting(signum: int, *, group: bool, seconds: float | None) -> Case:
    """A search is stopped some seconds after its start, or as Ray starts."""

    def act(box: Box) -> Ended:
        running = box.start(*LONG, codes=(128 + signum,))
        if seconds is None:
            running.wait_until(lambda: running.printed("starting Ray"))
            time.sleep(0.3)
        else:
            time.sleep(seconds)
        running.signal(signum, group=group)
        ended = running.end().ended(128 + signum)
        check_stopped(box, ended)
        return ended

    moment = "as Ray starts" if seconds is None else f"after {seconds} s"
    whom = "all of a search's processes" if group else "a search"
    return Case(f"signals: {signal.Signals(signum).name} to {whom} {moment}", act, cost=2)


def training_stopped(signum: int) -> Case:
    def act(box: Box) -> Ended:
        long = [word.replace("epochs=1", "epochs=1000") for word in TRAIN]
        running = box.start(*long, codes=(128 + signum,))
        running.wait_until(lambda: running.printed("epoch   2/"))
        running.signal(signum)
        return running.end().ended(128 + signum)

    return Case(f"signals: {signal.Signals(signum).name} to a training", act)


def confirmation_stopped(signum: int) -> Case:
    """A confirmation is stopped between two trainings; the same command goes on."""

    def act(box: Box) -> Ended:
        box.add_run()
        running = box.start(*CONFIRM, "--seeds", "64", codes=(128 + signum,))
        running.wait_until(lambda: running.printed("seed 1:"))
        running.signal(signum)
        ended = running.end().ended(128 + signum)
        box.run(*CONFIRM).ended(0)
        return ended

    return Case(f"signals: {signal.Signals(signum).name} to a confirmation", act, cost=3)


def deaf_to_hang_up(box: Box) -> Ended:
    """nohup: the terminal closes, and the search goes on to its end."""
    running = box.start(*SEARCH, shell='exec nohup "$@"')
    running.wait_until(lambda: list(box.folder.glob("runs/x/trials/*/metrics.jsonl")))
    running.signal(signal.SIGHUP, group=True)
    return running.end().ended(0)


def worker_killed(box: Box) -> Ended:
    """A worker dies, as of the kernel where memory runs out: its trial is taken up again."""
    running = box.start(*SEARCH, "--epochs", "200")
    running.wait_until(lambda: list(box.folder.glob("runs/x/trials/1/metrics.jsonl")))
    for file in box.folder.glob("runs/x/trials/*/metrics.jsonl"):
        os.kill(json.loads(file.read_text(encoding="utf-8").splitlines()[0])["pid"], signal.SIGKILL)
    ended = running.end().ended(0)
    check_run(box, ended)
    return ended


def piped(name: str, *command: str, codes: tuple[int, ...] = (NO_READER, 0), run: str = "") -> Case:
    """A command whose output only one line is read of."""
    return start(
        f"pipes: {name} | head -1",
        *command,
        codes=codes,
        shell='set -o pipefail; "$@" | head -1',
        prepare=(lambda box: box.add_run(run)) if run else (lambda box: None),
    )


CASES = [
    *(search_stopped(signum, group=False) for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)),
    *(search_stopped(signum, group=True) for signum in (signal.SIGTERM, signal.SIGINT)),
    search_starting(signal.SIGTERM, group=False, seconds=0.3),
    search_starting(signal.SIGINT, group=False, seconds=1.0),
    search_starting(signal.SIGTERM, group=True, seconds=None),
    search_starting(signal.SIGINT, group=True, seconds=None),
    training_stopped(signal.SIGTERM),
    training_stopped(signal.SIGINT),
    confirmation_stopped(signal.SIGTERM),
    Case("signals: SIGHUP under nohup", deaf_to_hang_up, cost=4),
    Case("signals: SIGKILL to the workers", worker_killed, cost=5),
    piped("a training", *TRAIN),
    piped("spaces", "tune.spaces"),
    piped("a report", "tune.report", "runs/x", run="finished"),
    start("pipes: a training, stdout closed", *TRAIN, shell='"$@" >&-'),
    start("pipes: a training, all streams closed", *TRAIN, shell='"$@" <&- >&- 2>&-'),
    start("pipes: a training, stdout full", *TRAIN, shell='"$@" > /dev/full', codes=(2,)),
    start("pipes: spaces, stdout and stderr full", "tune.spaces", shell='"$@" > /dev/full 2>&1; test $? = 2'),
]
