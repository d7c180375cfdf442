"""Where data come from: the source that was named, the folder it means, and the reader for what lies there."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from model.command import printable
from model.config import InputError, nearest
from model.data import Dataset
from model.images import listed
from model.readers import CIFAR_FOLDERS, batches, digits, image_folder, is_cifar100, noted, parquet, visible

WORDS = ("digits", "cifar10", "auto")
ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")


def load(source: str = "auto") -> Dataset:
    """All training images and the official test set.

    Args:
        source: 'digits' (scikit-learn's, needs no files), 'cifar10' (downloads into data/ if it isn't there), the path
            of a folder (parquet files in the Hugging Face layout, CIFAR-10's python or binary version, CIFAR-100's
            python version, or train/CLASS/* and test/CLASS/*), or 'auto': CIFAR-10 if it lies under data/, else digits.

    Raises:
        InputError: there are no data there, or they can't be read.
    """
    try:
        dataset = _loaded(source)
    except (InputError, OSError) as error:  # a library's message or a file's name may hold line breaks
        raise InputError(" ".join(f"--data {source}: {error}".split())) from error
    # names of folders may hold anything: as text that can be shown and stored everywhere
    return replace(dataset, name=printable(dataset.name), classes=tuple(map(printable, dataset.classes)))


def resolve(source: str) -> str:
    """The source that 'auto' means here, CIFAR-10 under data/ or digits; a path made absolute; else as it is."""
    if source == "auto":
        here = [Path("data"), Path("data/cifar10"), Path("data/cifar10/plain_text")]
        cifar10 = (path for path in here if path.is_dir() and _layout(path) in (parquet, batches))
        source = str(next(cifar10, "digits"))
    return source if source in ("digits", "cifar10") else str(Path(os.path.expanduser(source)).absolute())


def _loaded(source: str) -> Dataset:
    found = resolve(source)
    hints = []
    if source == "auto" and found == "digits":
        hints.append("the default where data/ has no CIFAR-10: --data cifar10 downloads it, --data PATH reads a folder")
    if source in WORDS and Path(source).is_dir() and _layout(Path(source)):
        hints.append(f"not the folder of that name here: --data ./{source} reads it")
    if found == "digits":
        dataset = digits()
    elif found == "cifar10":
        dataset = batches(_downloaded())
    else:
        path, read = _data_folder(Path(found))
        dataset = read(path)
        if read is not batches:
            dataset = replace(dataset, name=Path(found).name)
    return noted(dataset, *hints)


def _data_folder(path: Path) -> tuple[Path, Callable[[Path], Dataset]]:
    """The folder that holds the data set, and its reader: `path`, or else the only such folder at most two levels
    below, as in a Hugging Face repository.

    Raises:
        InputError: there is none, or there are several.
    """
    if path.is_file():
        archive = path.name.endswith(ARCHIVES)
        advice = "it is an archive: unpack it, and give" if archive else f"it is a file: give {path.parent} or"
        raise InputError(f"{advice} the folder that holds the data set")
    if not path.exists():
        raise InputError(
            f"there is no such folder{nearest(path.name, WORDS)}; allowed are digits, cifar10, auto or a path: if the "
            f"data moved, give --data PATH"
        )
    level = [path]
    for _ in range(3):
        found = [(folder, read) for folder in level if (read := _layout(folder))]
        if len(found) > 1:
            raise InputError(f"it holds several data sets: give one of {listed([str(folder) for folder, _ in found])}")
        if found:
            return found[0]
        inner = (Path(entry) for folder in level for entry in visible(folder) if entry.is_dir())
        level = [folder for folder in inner if os.access(folder, os.R_OK | os.X_OK)]
    archives = [entry.name for entry in visible(path) if entry.name.endswith(ARCHIVES)]
    hint = f"; did you mean {path.parent}?" if _layout(path.parent) else f"; unpack {archives[0]}" if archives else ""
    raise InputError(
        f"it is no data set: expected train-*.parquet and test-*.parquet, cifar-10-batches-py, cifar-10-batches-bin, "
        f"cifar-100-python, or folders train/CLASS and test/CLASS with images{hint}"
    )


def _layout(path: Path) -> Callable[[Path], Dataset] | None:
    """The reader for what lies in this folder."""
    if any(path.glob("train*.parquet")):
        return parquet
    inner = any((path / name).is_dir() for name in CIFAR_FOLDERS)
    if inner or any(path.glob("data_batch_*")) or is_cifar100(path):
        return batches
    if (path / "train").is_dir():
        return image_folder
    return None


def _downloaded() -> Path:
    """CIFAR-10 under data/, downloaded by torchvision if it isn't there."""
    path = Path("data/cifar-10-batches-py")
    if not path.is_dir():
        from torchvision.datasets import CIFAR10

        try:
            CIFAR10("data", download=True)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(
                f"the download failed ({reason}); put cifar-10-batches-py into data/ by hand, or give --data PATH"
                f"{' such as --data ./cifar10' if Path('cifar10').is_dir() else ''}"
            ) from error
    return path
