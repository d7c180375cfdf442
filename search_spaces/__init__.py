"""Search spaces and experiments, one per file: a file NAME.py here that defines SPACE is the space NAME."""

import runpy
import traceback
from pathlib import Path

from model.config import InputError, nearest
from search_spaces.experiment import Experiment
from search_spaces.space import SearchSpace

_FOLDER = Path(__file__).parent
_NO_SPACES = {"__init__", "coordinates", "domains", "experiment", "ridge", "space"}


def names() -> list[str]:
    """The spaces that come with the project."""
    return sorted(file.stem for file in _FOLDER.glob("*.py") if file.stem not in _NO_SPACES)


def load(name: str, scale: str | None = None) -> SearchSpace:
    """The space of that name, or of the file at that path (recognised by '/' or '.py').

    Args:
        scale: of an experiment, one of `search_spaces.experiment.SCALES`.

    Raises:
        InputError: unknown name, a file that is missing, not Python, fails, or defines no SPACE, or a scale that is
            missing or doesn't apply.
    """
    return at_scale(definition(name), name, scale)


def at_scale(found: SearchSpace | Experiment, name: str, scale: str | None) -> SearchSpace:
    """The space that a definition of this name is at a scale, see `load`."""
    if isinstance(found, Experiment):
        if scale is None:
            raise InputError(f"--space {name} is an experiment: say how large, --scale {', '.join(found.scales)}")
        return found.space(scale)
    if scale is not None:
        raise InputError(f"--scale {scale}: {name} is a space to search, only experiments have scales; leave it out")
    return found


def definition(name: str) -> SearchSpace | Experiment:
    """What the file of that name, or at that path, defines; raises as `load` does."""
    if "/" not in name and not name.endswith(".py"):
        if name not in names():
            raise InputError(
                f"unknown space {name!r}{nearest(name, names())}: there are {', '.join(names())}; "
                f"a space of your own is given by its path, such as --space my_space.py"
            )
        return _load_file(_FOLDER / f"{name}.py")
    path = Path(name)
    if not path.exists():
        raise InputError(f"space file {path} doesn't exist: --space takes a name ({', '.join(names())}) or a path")
    if path.suffix != ".py" or not path.is_file():
        raise InputError(f"space file {path} is not a Python file: give a .py file that defines SPACE")
    return _load_file(path)


def _load_file(path: Path) -> SearchSpace | Experiment:
    try:
        # Run, not imported: an edited file is read anew, two files may have one name, and no cache is left beside it.
        space = runpy.run_path(str(path), run_name=f"space file {path}").get("SPACE")
    except (Exception, SystemExit) as error:
        line = _line(path, error)
        where = f", line {line}" if line else ""
        raise InputError(f"space file {path}{where}: {_reason(error)}") from error
    if not isinstance(space, SearchSpace | Experiment):
        found = "no SPACE" if space is None else f"a SPACE of type {type(space).__name__}"
        raise InputError(f"space file {path} has {found}: it must define SPACE = SearchSpace(base, domains)")
    return space


def _line(path: Path, error: BaseException) -> int | None:
    """The line of the file itself at which it failed, however deep in a library the error was raised."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return lines[-1] if lines else None


def _reason(error: BaseException) -> str:
    """The error on one line; our own messages need no type before them."""
    text = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    if isinstance(error, InputError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
