"""The lock of a run folder: one process at a time writes into it, and anybody may ask which one."""

import fcntl
import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from model.config import InputError

FILE = "lock"
TRIES, PAUSE_S = 40, 0.01  # whoever asks for the owner holds the lock for a moment, which must not stop a writer


@dataclass(frozen=True)
class Owner:
    """Who holds a lock: what its file says, and the parts of it that could be read."""

    text: str
    pid: int | None = None
    host: str | None = None
    module: str | None = None
    """such as tune.search or tune.confirm"""


class NoLocks(OSError):
    """The file system has no locks, as some network file systems."""


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Be the folder's only writer.

    Raises:
        InputError: somebody else is.
    """
    try:
        file = (folder / FILE).open("a+", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder} can't be written: {error.strerror}") from error
    with file:
        tries = 1
        try:
            while not _locked(file, fcntl.LOCK_EX):  # the kernel frees it when this process dies
                if tries == TRIES:
                    file.seek(0)
                    raise InputError(f"{folder} is in use by {_owner(file).text}: wait for it or stop it")
                tries += 1
                time.sleep(PAUSE_S)
        except NoLocks as error:
            sys.stderr.write(
                f"warning: the file system of {folder} has no locks ({error.strerror}): make sure that no other "
                f"command writes there\n"
            )
        file.truncate(0)
        spec = getattr(sys.modules["__main__"], "__spec__", None)  # None where Python was not started with -m
        file.write(f"process {os.getpid()} on {platform.node()}{f' ({spec.name})' if spec else ''}")
        file.flush()
        yield


def owner(folder: Path) -> Owner | None:
    """The folder's writer; None where there is none that this machine knows of.

    Raises:
        NoLocks: nobody can tell.
        OSError: it can't be read.
    """
    try:
        with (folder / FILE).open(encoding="utf-8", errors="replace") as file:
            return None if _locked(file, fcntl.LOCK_SH) else _owner(file)  # closing the file frees it
    except FileNotFoundError:
        return None


def _locked(file: IO[str], how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise NoLocks(error.errno, error.strerror) from error
    return True


def _owner(file: IO[str]) -> Owner:
    text = file.read(1000).strip()
    parts = re.fullmatch(r"process (\d{1,10}) on (.*?)(?: \(([\w.]+)\))?", text)
    return Owner(text, int(parts[1]), parts[2], parts[3]) if parts else Owner(text or "another process")
