"""Runs that go on: with the whole command given again, on another machine, with data that moved, with damaged files."""

import shutil
from collections.abc import Callable

from benchmarks.hostile import data
from benchmarks.hostile.box import SEARCH, Box, Case, Ended, check_run

MORE = ("--trials", "3")
GO_ON = ("tune.search", "--resume", "runs/x")


def again(name: str, *more: str, trials: int = 3, shell: str | None = None) -> Case:
    """The whole command given again, for one more trial."""

    def act(box: Box) -> Ended:
        box.add_run()
        ended = box.run(*SEARCH, "--resume", "runs/x", "--trials", str(trials), *more, shell=shell).ended(0)
        if trials > 2:
            check_run(box, ended, trials=trials)
        return ended

    return Case(f"{name}", act, cost=4 if trials > 2 else 1)


def refused(name: str, *more: str, says: tuple[str, ...]) -> Case:
    """The whole command given again, with something that can't change."""

    def act(box: Box) -> Ended:
        box.add_run()
        return box.run(*SEARCH, "--resume", "runs/x", *more).ended(2, says=says)

    return Case(f"{name}", act)


def damaged(name: str, file: str, change: Callable[[bytes], bytes], *codes: int) -> Case:
    """A file of the run is changed, then status and search look at it."""

    def act(box: Box) -> Ended:
        path = box.add_run() / file
        path.write_bytes(change(path.read_bytes()))
        box.run("tune.status", "runs/x").ended(0)
        return box.run(*GO_ON).ended(*codes)

    return Case(f"{name}", act, cost=2)


def moved_data(box: Box) -> Ended:
    """Data that were renamed: refused with what to say, then found there."""
    data.image_folder(box.folder / "data", classes=4, train=24)
    command = ("tune.search", "--space", "lr_regimes", "--data", "data", "--epochs", "1", "--width", "1", "--name", "m")
    command += ("--set", "batch_size=16")
    box.run(*command, "--trials", "1").ended(0)
    (box.folder / "data").rename(box.folder / "elsewhere")
    resumed = ("tune.search", "--resume", "runs/m", "--trials", "2")
    box.run(*resumed).ended(2, says=["--data"])
    data.image_folder(box.folder / "other", classes=4, train=24, seed=1)
    box.run(*resumed, "--data", "other").ended(2, says=["--data"])
    ended = box.run(*resumed, "--data", "elsewhere").ended(0)
    check_run(box, ended, "runs/m", trials=2)
    return ended


def moved_run(box: Box) -> Ended:
    box.add_run(name="kept here/a run")
    box.run("tune.status", "kept here/a run").ended(0, says=["finished"])
    return box.run("tune.search", "--resume", "kept here/a run").ended(0, says=["done"])


def no_such_run(box: Box) -> Ended:
    (box.folder / "empty").mkdir()
    (box.folder / "file").write_text("x", encoding="utf-8")
    for run in ("empty", "file", "nothing"):
        ended = box.run("tune.search", "--resume", run).ended(2)
    return ended


def in_use(box: Box) -> Ended:
    """A second search in the same folder is refused, and the first goes on."""
    first = box.start(*SEARCH)
    first.wait_until(lambda: first.printed("starting Ray"))
    second = box.beside("second").run("tune.search", "--resume", str(box.folder / "runs/x"))
    second.ended(2, says=["in use by process"])
    ended = first.end().ended(0)
    check_run(box, ended)
    return second


def missing_trial(box: Box) -> Ended:
    """A trial's folder was deleted by hand."""
    run = box.add_run()
    shutil.rmtree(run / "trials" / "1")
    box.run("tune.status", "runs/x").ended(0)
    return box.run(*GO_ON).ended(0, 2)


CASES = [
    again("the whole command"),
    again("the whole command, on one core", shell='taskset -c 0 "$@"'),
    again("the whole command, with other slots and CPUs", "--slots", "3", "--cpus-per-trial", "0.5"),
    again("the whole command, of a run that is done", "--cpus-per-trial", "1", trials=2),
    refused("a changed --seed", "--seed", "5", says=("--seed 5", "has 0")),
    refused("another --space", "--space", "speedrun", says=("--space speedrun", "lr_regimes")),
    refused("fewer --trials", "--trials", "1", says=("--trials 1", "2")),
    Case("data that moved", moved_data, cost=8),
    Case("a run folder that moved", moved_run, cost=2),
    Case("no such run", no_such_run, cost=3),
    Case("a run that is in use", in_use, cost=5),
    damaged("run.json with a byte-order mark", "run.json", lambda old: b"\xef\xbb\xbf" + old, 0, 2),
    damaged("run.json of 100,000 brackets", "run.json", lambda old: b"[" * 100_000, 2),
    damaged("run.json that is cut off", "run.json", lambda old: old[: len(old) // 2], 2),
    damaged("a journal that is cut off", "journal.log", lambda old: old[:-20], 0, 2),
    damaged("a trial's metrics that are cut off", "trials/0/metrics.jsonl", lambda old: old[:-20], 0, 2),
    damaged("status.json that is no JSON", "status.json", lambda old: b"\xff\xfe{", 0),
    Case("a trial's folder is gone", missing_trial),
]
