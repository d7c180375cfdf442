"""The copy of a run folder in an object store: kept up to date during a search, fetched to go on elsewhere.

The search always writes to a folder of this machine, because appending and locking need a real file system. `Mirror`
copies what changed to URI/NAME from a thread of its own; `fetch` brings a run from there to another machine.

A copy taken at any moment can be resumed, whether taken from a mirror that is being written or from one whose search
was killed. A resumed search takes states from journal.log and epochs from metrics.jsonl, and it must find each epoch
of a trial that the journal calls finished. A search writes a trial's last epoch before its final state, so the mirror
reads the journal first, then uploads what changed, and then that reading of the journal; `fetch` too takes the journal
before the rest. Metrics are thus never older than the journal. Where they are newer nothing is lost: a trial that the
journal says is running is settled by its metrics, and the folder of one that the journal doesn't know yet is left out.
A checkpoint may be older or newer than the metrics: epochs trained again are not recorded twice, and a checkpoint
brings its own history. Half-written lines are cut off by `repair`. run.json makes a folder a run, so it comes last.
"""

import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Self

from pyarrow import ArrowException, fs
from rich.console import Console

from model.config import InputError
from model.files import parse_json, typed
from tune.checkpoint import CHECKPOINT
from tune.run import Run
from tune.storage import Storage, first_line

EVERY_S = 3.0  # between two looks at the run folder
JOURNAL, MANIFEST = "journal.log", "run.json"
LOCAL_ONLY = {"lock", "ray"}


class Mirror:
    """Keeps the copy of a run folder in its storage up to date. Use as a context manager, holding the run's lock.

    Without a storage it does nothing. A store that fails is warned about once and tried again; the search goes on.

    Raises:
        InputError: on entering, when the storage holds another run or more than the folder.
    """

    def __init__(self, run: Run, console: Console) -> None:
        self._run, self._console = run, console
        uri = run.manifest.storage
        self.storage = Storage(uri) / run.name if uri else None
        self._there: dict[str, tuple[int, int]] | None = None  # path -> (mtime_ns, bytes) of what was uploaded
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_up, name="mirror", daemon=True)
        self._failing = False
        self._finished: list[int] = []

    def __enter__(self) -> Self:
        if self.storage:
            try:
                self._sync()
            except (OSError, ArrowException) as error:
                self._warn(error)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.storage:
            return
        self._stop.set()
        self._thread.join()
        if self._attempt():
            self._console.print(f"storage: {self.storage.uri} holds all of the run")
        else:
            self._console.print(
                f"warning: {self.storage.uri} lacks the latest of the run; all of it is in {self._run.path}, and "
                f"--resume from there completes the copy",
                style="yellow",
            )

    def finished(self, number: int) -> None:
        """A trial has ended: a checkpoint that a worker put into the storage is not needed again."""
        self._finished.append(number)

    def _keep_up(self) -> None:
        while not self._stop.wait(EVERY_S):
            self._attempt()

    def _attempt(self) -> bool:
        """Bring the copy up to date, if the store lets us."""
        try:
            self._sync()
        except (OSError, ArrowException, InputError) as error:
            self._warn(error)
            return False
        self._failing = False
        return True

    def _warn(self, error: Exception) -> None:
        if not self._failing:
            assert self.storage
            self._console.print(
                f"warning: no copy in {self.storage.uri} ({first_line(error)}); it goes on without and tries again",
                style="yellow",
            )
        self._failing = True

    def _sync(self) -> None:
        if self._there is None:
            self._there = self._compare()
        self._upload(self._there)

    def _compare(self) -> dict[str, tuple[int, int]]:
        """What of the folder is in the store already, left by an earlier search.

        Checkpoints of unfinished trials that only the store has, put there by workers that don't see the run folder,
        are fetched; what else only the store has is deleted.
        """
        assert self.storage
        check_copy(self._run, self.storage)
        stored = self.storage.files()  # before the study is read: no trial in it can be unknown
        here, same = dict(self._scan()), {}
        running = {t.number for t in self._run.study().get_trials(deepcopy=False) if not t.state.is_finished()}
        checkpoints = {f"trials/{number}/{CHECKPOINT}" for number in running}
        for name, info in stored.items():
            if name in here and here[name][1] == info.size and here[name][0] <= info.mtime_ns and name != MANIFEST:
                same[name] = here[name]
            elif name in checkpoints - here.keys():
                _bring(self.storage, name, info, self._run.path)
            elif name not in here:
                self.storage.delete(name)
        return same

    def _upload(self, there: dict[str, tuple[int, int]]) -> None:
        assert self.storage
        journal = self._run.path / JOURNAL
        journal_stat = _stat(journal)
        read_journal = journal.read_bytes()
        here = dict(self._scan())
        changed = [name for name in here if here[name] != there.get(name) and name not in (JOURNAL, MANIFEST)]
        for name in changed:
            try:
                content = (self._run.path / name).read_bytes()
            except FileNotFoundError:  # a checkpoint whose trial has ended
                continue
            self.storage.write(name, content)
            there[name] = here[name]
        if there.get(JOURNAL) != journal_stat:
            self.storage.write(JOURNAL, read_journal)
            there[JOURNAL] = journal_stat
        if there.get(MANIFEST) != here[MANIFEST]:
            self.storage.write(MANIFEST, (self._run.path / MANIFEST).read_bytes())
            there[MANIFEST] = here[MANIFEST]
        for name in there.keys() - here.keys():
            self.storage.delete(name)
            del there[name]
        while self._finished:
            self.storage.delete(f"trials/{self._finished[-1]}/{CHECKPOINT}")
            self._finished.pop()

    def _scan(self) -> Iterator[tuple[str, tuple[int, int]]]:
        for folder, folders, files in os.walk(self._run.path):
            if Path(folder) == self._run.path:
                folders[:] = [name for name in folders if name not in LOCAL_ONLY]
            for name in files:
                file = Path(folder, name)
                temporary = name.startswith((f"{CHECKPOINT}.", "journal.log.lock")) or name.endswith(".tmp")
                if name in LOCAL_ONLY or temporary or file.is_symlink():
                    continue
                try:
                    yield file.relative_to(self._run.path).as_posix(), _stat(file)
                except FileNotFoundError:
                    continue


def fetch(uri: str, runs_dir: Path, console: Console) -> Path:
    """Bring the run at `uri` to a folder of its name in `runs_dir`; a folder that is there is never changed.

    Raises:
        InputError: there is no run, the store fails, the folder is of another run, or it lacks what the store has.
    """
    storage = Storage(uri)
    parent, name = storage.split()
    path = runs_dir / name
    try:
        journal, manifest = storage.read(JOURNAL), storage.read(MANIFEST)  # the journal first, see above
        if journal is None or manifest is None:
            raise InputError(f"{uri} holds no run: give the URI of one, such as s3://bucket/prefix/name")
        if path.exists():
            _check_same(Run(path), manifest, journal, uri)
            console.print(f"{path} is used: it has all that {uri} has")
            return path
        partial = runs_dir / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)  # of a download that was killed
        partial.mkdir(parents=True)
        for file, info in storage.files().items():
            if file not in (JOURNAL, MANIFEST):
                _bring(storage, file, info, partial)
    except (OSError, ArrowException) as error:
        raise InputError(f"{uri} can't be fetched to {runs_dir}: {first_line(error)}") from error
    (partial / "trials").mkdir(exist_ok=True)
    (partial / JOURNAL).write_bytes(journal[: journal.rfind(b"\n") + 1])
    (partial / MANIFEST).write_bytes(manifest)
    run = Run(partial)
    known = {str(trial.number) for trial in run.study().get_trials(deepcopy=False)}
    for folder in (partial / "trials").iterdir():
        if folder.name not in known:
            shutil.rmtree(folder)
    run.write_manifest(replace(run.manifest, storage=parent.uri))
    partial.rename(path)
    console.print(f"fetched {uri} to {path}")
    return path


def check_copy(run: Run, storage: Storage) -> None:
    """That the storage, a folder of the run's own, holds no other run and nothing that the run folder lacks.

    Raises:
        InputError: it does.
        OSError: the store can't be reached or forbids it.
    """
    journal, manifest = storage.read(JOURNAL), storage.read(MANIFEST)
    if manifest is not None:
        _check_same(run, manifest, journal or b"", storage.uri)


def _check_same(run: Run, manifest: bytes, journal: bytes, uri: str) -> None:
    here = vars(run.manifest)
    try:
        there: dict[str, Any] = typed(dict[str, Any], parse_json(manifest))
    except ValueError as error:
        raise InputError(f"{uri} is damaged: its run.json is no JSON object ({error})") from error
    if any(here[key] != there.get(key) for key in ("created", "space", "fingerprint", "seed")):
        raise InputError(f"{uri} is another run than {run.path}: give another --storage, --name or --runs-dir")
    if not (run.path / JOURNAL).read_bytes().startswith(journal[: journal.rfind(b"\n") + 1]):
        raise InputError(
            f"{run.path} lacks what {uri} has, where the run went on: move the folder away and fetch it with --resume "
            f"{uri}, or go on apart from it with another --storage"
        )


def _bring(storage: Storage, name: str, info: fs.FileInfo, folder: Path) -> None:
    """Copy a file of the store to the same place below a folder."""
    parts = PurePosixPath(name).parts
    if ".." in parts or PurePosixPath(name).is_absolute():
        raise InputError(f"{storage.uri} holds {name!r}, which is no file of a run")
    content = storage.read(name)
    if content is not None:
        target = folder.joinpath(*parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        os.utime(target, ns=(info.mtime_ns, info.mtime_ns))  # as old as the copy, so that it isn't uploaded again


def check_storage(uri: str, name: str, run: Run | None = None) -> None:
    """That a copy of a new run of this name, or of `run`, can be kept below `uri`.

    Raises:
        InputError: it can't.
    """
    storage = Storage(uri) / name
    storage.check()
    if run:
        check_copy(run, storage)
    elif storage.read(MANIFEST) is not None:
        raise InputError(f"{storage.uri} holds a run already: choose another --name, or --resume {storage.uri}")


def run_folder(given: str, runs_dir: Path, console: Console) -> Path:
    """The folder of a run that was given by its path, or by its URI in a store, from where it is then fetched."""
    return fetch(given, runs_dir, console) if "://" in given else Path(given)


def _stat(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_mtime_ns, stat.st_size
