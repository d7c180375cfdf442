"""What a search shows of itself, as one record. Its panel is drawn from it, and RUN/status.json holds the latest for
whoever looks from elsewhere: it is small and read at once, where the study of a large run takes minutes to load."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.files import parse_json, typed, write_whole

FILE = "status.json"
VERSION = 1
STATES = ("starting", "running", "finished", "stopped", "interrupted", "failed")
"""of a search; stopped: by --time-budget-s or a signal, interrupted: by Ctrl-C, failed: by an error. One that was
killed had no time to say so."""


@dataclass(frozen=True)
class Row:
    """A trial."""

    trial: int
    epoch: int
    """epochs trained"""
    epochs: int
    """length of its full training"""
    acc: float | None
    """val accuracy after `epoch`, 0..1, of one seed; None: it has none, or none that is finite"""
    params: dict[str, Any]


@dataclass(frozen=True)
class Snapshot:
    """A search at one moment. Epochs without further word are in epochs of the base, a costlier config's count more."""

    run: str
    state: str
    """one of STATES"""
    pid: int
    host: str
    written_s: float
    """seconds since 1970 by the clock of `host`"""
    extent: str
    """how much the search is asked to do, in words"""
    most_trials: int | None
    counts: dict[str, int]
    """trials by state"""
    bases: int
    """the first so many trials are the bases"""
    base_epochs: int
    """length of a full training of the base"""
    spent_epochs: float
    budget_epochs: float
    """what is trained in all"""
    budget_given: bool
    """else it is what is expected"""
    eta_s: float | None
    eta_basis: str
    """what the ETA rests on; without one, what it waits for"""
    busy: int
    slots: int
    curve: list[list[float]]
    """[spent_epochs, val accuracy] each time that there was a new best full-length trial"""
    best: list[Row]
    """full-length trials, best first"""
    waiting: list[Row]
    """paused trials, the highest rung first"""
    under_way: list[Row]
    stopped_epochs: float
    """what trials that were stopped at a rung did not train to their ends"""
    paused_epochs: float
    """the same of those that wait there, which may still go on"""
    started_epochs: float
    """what all started trials would train to their ends, failed ones as far as they came"""
    val_images: int
    version: int = VERSION

    def write(self, folder: Path) -> None:
        """Replace the record in a run folder, whole or not at all.

        Raises:
            OSError: it can't be written.
        """
        write_whole(folder / FILE, json.dumps(asdict(self)) + "\n")


def parse(text: str | bytes) -> Snapshot:
    """The record in this JSON.

    Raises:
        ValueError: it is none, or one of another version.
    """
    content = parse_json(text, constant=_refuse)
    version = content.get("version") if isinstance(content, dict) else None
    if isinstance(version, int) and version != VERSION:
        raise ValueError(f"it has version {version}: this program reads {VERSION}")
    snapshot: Snapshot = typed(Snapshot, content)
    if snapshot.state not in STATES:
        raise ValueError("its state is unknown")
    if any(len(point) != 2 for point in snapshot.curve):
        raise ValueError("its curve is not one of pairs")
    return snapshot


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number")
