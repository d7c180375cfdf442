"""Text: locales and encodings, terminals, JSON files of all kinds, names of files that are no text."""

import functools
import os
import subprocess
import tempfile

from benchmarks.hostile import data
from benchmarks.hostile.box import Box, Case, Ended, Skipped, search, start, train
from benchmarks.hostile.stops import CONFIRM

ASCII = {"PYTHONIOENCODING": "ascii"}
C = {"LC_ALL": "C", "LANG": None, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
NARROW = {"TERM": "dumb", "COLUMNS": "20", "NO_COLOR": "1"}
ODD = "runs/läuf-日本"


@functools.cache
def _locales() -> tempfile.TemporaryDirectory:
    folder = tempfile.TemporaryDirectory(prefix="locale-")
    command = ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", f"{folder.name}/de_DE.ISO-8859-1"]
    try:
        made = subprocess.run(command, capture_output=True).returncode in (0, 1)  # 1: with warnings
    except OSError:
        made = False
    if not (made and os.path.isdir(command[-1])):
        raise Skipped("no latin-1 locale can be made (localedef)")
    return folder


def latin_1(box: Box) -> dict[str, str | None]:
    locale = {"LOCPATH": _locales().name, "LC_ALL": "de_DE.ISO-8859-1"}
    return {**locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def on_run(name: str, *command: str, env, kind: str = "finished") -> Case:
    """A command on a run folder whose name has letters of two alphabets."""
    return start(f"{name}", *command, env=env, prepare=lambda box: box.add_run(kind, ODD))


def config(name: str, content: bytes, *codes: int, says: tuple[str, ...] = ()) -> Case:
    """A training from a config file."""

    def prepare(box: Box) -> None:
        (box.folder / "c.json").write_bytes(content)

    return train(f"a config {name}", "--config", "c.json", prepare=prepare, codes=codes, says=says)


def predicted(box: Box) -> Ended:
    """Image files whose names are no text."""
    weights = next(box.add_run("confirmed").glob("best/*.safetensors"))
    names = [b"a\xff.png", b"line\nbreak.png", "日本.png".encode()]
    for name in names:
        data.image(os.path.join(os.fsencode(box.folder), name))
    return box.run("model.predict", str(weights), *names, env=C).ended(0)


def odd_classes(box: Box) -> Ended:
    """Names of classes and images that are no text, and more than one line."""
    data.image_folder(box.folder / "data", classes=2, train=6, test=2)
    for split in (b"train", b"test"):
        place = os.path.join(os.fsencode(box.folder), b"data", split)
        os.rename(os.path.join(place, b"class0"), os.path.join(place, b"c\xff0"))
        os.rename(os.path.join(place, b"class1"), os.path.join(place, b"c\n1"))
        os.rename(os.path.join(place, b"c\n1", b"0.png"), os.path.join(place, b"c\n1", b"\xfe\n.png"))
    box.run(*data.TRAIN, env=C).ended(0, 2)
    return data.counted(box.run(*data.TRAIN, "--out", "o").ended(0, 2), 6, 2)


def odd_broken_image(box: Box) -> Ended:
    """A broken image is named on one line, whatever its name."""
    data.image_folder(box.folder / "data", classes=2, train=6, test=2)
    (box.folder / "data/train/class0/a\n\x1b[31mb.png").write_bytes(b"x")
    return box.run(*data.TRAIN, env=ASCII).ended(2, says=[r"a.{1,2}\\x1b\[31mb\.png"])


CASES = [
    train("ASCII output, training", env=ASCII),
    on_run("ASCII output, status", "tune.status", ODD, env=ASCII),
    on_run("ASCII output, report", "tune.report", ODD, env=ASCII),
    on_run("ASCII output, export", "tune.export", ODD, "--weights", env=ASCII, kind="confirmed"),
    start("ASCII output, spaces", "tune.spaces", "lr_scan", env=ASCII),
    train("C locale, training", "--out", "ö", env=C),
    on_run("C locale, confirmation", "tune.confirm", ODD, *CONFIRM[2:], env=C),
    on_run("C locale, export", "tune.export", ODD, "--weights", env=C, kind="confirmed"),
    on_run("latin-1 locale, report", "tune.report", ODD, env=latin_1),
    train("latin-1 locale, training", "--out", "ö", env=latin_1),
    search("ASCII on a narrow dumb terminal, search", env={**NARROW, **ASCII}),
    on_run("a narrow dumb terminal, status", "tune.status", ODD, env=NARROW),
    config("with a byte-order mark", b'\xef\xbb\xbf{"version": 1, "config": {"width": 1}}', 0),
    config("of 100,000 brackets", b"[" * 100_000, 2, says=("c.json",)),
    config("that is no UTF-8", b'{"version": 1, "config": {"width": \xff}}', 2, says=("c.json",)),
    config("with a width of 1e999", b'{"version": 1, "config": {"width": 1e999}}', 2, says=("width",)),
    train("an option that is no text", "--config", "\udcff.json", codes=(2,), says=["config file"]),
    search("a name that is no text", "--name", "x\udcff", codes=(2, 0)),
    Case("images to predict whose names are no text", predicted),
    Case("classes and images whose names are no text", odd_classes, cost=2),
    Case("a broken image whose name has a line break and colours", odd_broken_image),
]
