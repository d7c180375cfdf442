"""What a search shows of itself, as one record. Its panel is drawn from it, and RUN/status.json holds the latest for
whoever looks from elsewhere: it is small and read at once, where the study of a large run takes minutes to load."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

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
        temporary = folder / f"{FILE}.tmp"
        temporary.write_text(json.dumps(asdict(self)) + "\n")
        temporary.replace(folder / FILE)


def parse(text: str | bytes) -> Snapshot:
    """The record in this JSON.

    Raises:
        ValueError: it is none, or one of another version.
    """
    try:
        content = json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    version = content.get("version") if isinstance(content, dict) else None
    if isinstance(version, int) and version != VERSION:
        raise ValueError(f"it has version {version}: this program reads {VERSION}")
    try:
        snapshot: Snapshot = _as(Snapshot, content)
    except OverflowError as error:
        raise ValueError("a number in it is too large") from error
    if snapshot.state not in STATES:
        raise ValueError("its state is unknown")
    if any(len(point) != 2 for point in snapshot.curve):
        raise ValueError("its curve is not one of pairs")
    return snapshot


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number")


def _as(kind: Any, value: Any, name: str = "it") -> Any:
    """A value from JSON as a field's type: one of ours, list, dict, `X | None` or a plain type."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any or (origin is UnionType and value is None):
        return value
    if origin is UnionType:
        return _as(inner[0], value, name)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not (dict if kind in (Snapshot, Row) else origin or kind):
        raise ValueError(f"{name} is missing or of another type")
    if kind in (Snapshot, Row):
        return kind(**{each.name: _as(each.type, value.get(each.name), each.name) for each in fields(kind)})
    if origin is list:
        return [_as(inner[0], each, name) for each in value]
    if origin is dict:
        return {key: _as(inner[1], each, name) for key, each in value.items()}
    return value
