"""Start the commands of this project as users' machines start them: odd environments, signals, file systems, data.

    python -m benchmarks.hostile

Each start must end in success, in one line on stderr with exit code 2, or with the exit code of its signal: without a
traceback, within --hang-s seconds, with every file as it was and nothing left out in silence. What a machine doesn't
allow (namespaces, other users) is skipped, and said so.
"""

import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from benchmarks.hostile import container, data, files, machine, resume, stops, text
from benchmarks.hostile.box import Box, Case, Fault, Shelf, Skipped, kill_below

GROUPS = {"machine": machine, "resume": resume, "stops": stops, "files": files, "text": text, "data": data}
CASES = [replace(case, name=f"{group}: {case.name}") for group, cases in GROUPS.items() for case in cases.CASES]


@dataclass(frozen=True)
class Options:
    """Make hostile starts, and check how each ends."""

    only: str = ""
    """those whose name contains this"""
    hang_s: float = 60.0
    """a command that takes longer hangs"""
    list: bool = False
    """print their names instead"""
    container: bool = False
    """instead of these, run the README's two commands as a container would: a fresh clone, control groups without
    limits, an unknown user, HOME=/, 64 MB of /dev/shm"""
    targets: tuple[str, ...] = ("search", "test")
    """of make, with --container"""
    args: str = ""
    """options of tune.search, with --container"""
    place: Path | None = None
    """where folders are made (default: the folder of temporary files)"""


def attempt(case: Case, place: Path, hang_s: float, shelf: Shelf) -> tuple[str, str]:
    """Make a start; returns its outcome and what was wrong."""
    try:
        return case.act(Box(place, hang_s, shelf)).outcome, ""
    except Skipped as reason:
        return "skipped", str(reason)
    except Fault as fault:
        return "FAULT", str(fault)
    except Exception:  # of the case itself: the others go on
        return "FAULT", traceback.format_exc()
    finally:
        kill_below(place)  # what a case that failed midway has left running


def main(options: Options) -> int:
    if options.container:
        return container.run(options.place, options.targets, options.args)
    cases = [case for case in CASES if options.only in case.name]
    if options.list:
        print("\n".join(case.name for case in cases))
        return 0
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it, for children too, after &
    counts: Counter[str] = Counter()
    faults, skipped = [], []
    start_s, cost_done, cost_all = time.monotonic(), 0, sum(case.cost for case in cases)
    with tempfile.TemporaryDirectory(prefix="hs-", dir=options.place, ignore_cleanup_errors=True) as folder:
        place = Path(folder)
        place.chmod(0o755)
        shelf = Shelf(place, options.hang_s)
        for number, case in enumerate(cases, start=1):
            case_s = time.monotonic()
            outcome, why = attempt(case, place / str(number), options.hang_s, shelf)
            now_s = time.monotonic()
            cost_done += case.cost
            eta_min = (now_s - start_s) / cost_done * (cost_all - cost_done) / 60
            print(f"[{number}/{len(cases)}] {case.name}: {outcome}, {now_s - case_s:.1f} s (ETA {eta_min:.0f} min)")
            if why:
                print(f"  {why}")
            sys.stdout.flush()
            counts[outcome] += 1
            if outcome == "FAULT":
                faults.append(case.name)
            if outcome == "skipped":
                skipped.append(f"{case.name}: {why}")
    for line in skipped:
        print(f"skipped: {line}")
    for name in faults:
        print(f"fault: {name}")
    minutes = (time.monotonic() - start_s) / 60
    print(
        f"{len(cases) - len(skipped)} hostile starts in {minutes:.1f} min: {counts['success']} ended in success, "
        f"{counts['one line']} in one line, {counts['exit code of its signal']} with the exit code of their signal; "
        f"{len(faults)} faults{f'; {len(skipped)} skipped' if skipped else ''}"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
