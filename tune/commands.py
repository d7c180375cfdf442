"""The commands that a user is told to type next: they must work as pasted."""

import shlex
import shutil
import sys
from contextlib import suppress
from pathlib import Path


def python() -> str:
    """What to type for the Python that runs this, also where no environment is active."""
    active = shutil.which("python") == sys.executable
    return "python" if active else shlex.quote(_shortest(Path(sys.executable)))


def quoted(path: Path) -> str:
    """The path for a shell, relative to the current folder where it is below it."""
    return shlex.quote(_shortest(path))


def resume_command(folder: Path | str) -> str:
    """How to go on with the run in this folder, or at this URI."""
    return f"{python()} -m tune.search --resume {quoted(folder) if isinstance(folder, Path) else shlex.quote(folder)}"


def _shortest(path: Path) -> str:
    with suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)
