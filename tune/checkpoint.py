"""Where the workers keep the checkpoint of a trial, so that any later worker on any node can go on from it.

A worker that sees the search's run folder keeps it there. One on a node that doesn't puts it into the storage of
`--storage`, straight from its node, or else hands it to `Keeper`, a process beside the search that writes it into the
run folder. Either way the checkpoint is in its place before the epoch is reported.

The keeper is one process and one network card: 100 workers with checkpoints of 50 MB are 5 GB per epoch, 4 s of a
10 Gbit/s link. Where epochs are that short, a storage or a shared disk takes the load off it. The search's own process
never touches the bytes.
"""

import io
import os
import uuid
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
import torch
from pyarrow import ArrowException
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from model.config import InputError
from tune.storage import Storage

CHECKPOINT = "checkpoint.pt"
TOKEN = "token"


class Checkpoints:
    """The checkpoints of a run, as one worker reaches them. It travels from the search to the workers.

    Args:
        run_dir: the run folder on the search's machine.
        scratch: a folder in it that lives as long as the search. A file of random content tells whether a path on
            another node is the same folder and not one of the same name, such as an earlier copy of the run.
        storage: URI of the run's folder in an object store; a node that can't reach it turns to the keeper.
        keeper: who writes into the run folder for workers that don't see it; None where all of them do.
    """

    def __init__(
        self, run_dir: Path, scratch: Path, storage: str | None = None, keeper: ActorHandle | None = None
    ) -> None:
        self._run_dir, self._scratch, self._uri, self._keeper = run_dir, scratch, storage, keeper
        self._token = uuid.uuid4().hex
        scratch.mkdir(exist_ok=True)
        (scratch / TOKEN).write_text(self._token, encoding="utf-8")

    def load(self, number: int) -> dict[str, Any] | None:
        """The trial's checkpoint with the most epochs, tensors on the CPU; None where there is none."""
        contents = [_read(self._run_dir, number) if self._seen() else self._ask_keeper("read", number)]
        if self._storage:
            with suppress(OSError, ArrowException):  # the store is away: an older checkpoint costs epochs, not results
                contents.append(self._storage.read(f"trials/{number}/{CHECKPOINT}"))
        found = [torch.load(io.BytesIO(c), map_location="cpu", weights_only=True) for c in contents if c is not None]
        return max(found, key=lambda saved: len(saved["history"]), default=None)

    def save(self, number: int, checkpoint: dict[str, Any]) -> None:
        """Replace the trial's checkpoint; it is whole and in its place on return.

        Raises:
            OSError: the run folder can't be written.
        """
        content = io.BytesIO()
        torch.save(checkpoint, content)
        if self._seen():
            _write(self._run_dir, number, content.getbuffer())
            return
        if self._storage:
            with suppress(OSError, ArrowException):
                self._storage.write(f"trials/{number}/{CHECKPOINT}", content.getbuffer())
                return
        self._ask_keeper("write", number, content.getvalue())

    @cached_property
    def _storage(self) -> Storage | None:
        """Opened on the worker's node, with the credentials that are there."""
        with suppress(InputError):
            return Storage(self._uri) if self._uri else None
        return None

    def _seen(self) -> bool:
        if self._keeper is None:
            return True
        try:
            return (self._scratch / TOKEN).read_text(encoding="utf-8") == self._token
        except OSError:
            return False

    def _ask_keeper(self, method: str, *args: Any) -> Any:
        return ray.get(getattr(self._keeper, method).remote(*args))


class Keeper:
    """Reads and writes the run folder on behalf of workers that don't see it."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    def read(self, number: int) -> bytes | None:
        return _read(self._run_dir, number)

    def write(self, number: int, content: bytes) -> None:
        _write(self._run_dir, number, content)


def start_keeper(run_dir: Path) -> ActorHandle:
    """A keeper on this node; it ends with the search."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    keeper: Any = ray.remote(Keeper)  # ray's types don't know that a class has become an actor
    return keeper.options(num_cpus=0, scheduling_strategy=here).remote(run_dir)


def _read(run_dir: Path, number: int) -> bytes | None:
    try:
        return (run_dir / "trials" / str(number) / CHECKPOINT).read_bytes()
    except FileNotFoundError:
        return None


def _write(run_dir: Path, number: int, content: bytes | memoryview) -> None:
    folder = run_dir / "trials" / str(number)
    folder.mkdir(exist_ok=True)
    temporary = folder / f"{CHECKPOINT}.{os.getpid()}"
    temporary.write_bytes(content)
    temporary.replace(folder / CHECKPOINT)  # atomic: there is always one whole checkpoint
