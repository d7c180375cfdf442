"""Encoded images to uint8 arrays, once per machine: decoding, and the memory-mapped cache of what was decoded."""

import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.progress import track

from model.config import InputError
from model.data import Dataset

SIDE_PX = 32
FORMAT = "1"  # of the cached arrays; part of every fingerprint
LONG_DECODE = 5_000  # images; what takes longer than that gets a progress bar
ARRAYS = ("train_images", "train_labels", "eval_images", "eval_labels")


def decoded(encoded: Iterable[tuple[str, bytes | None]], count: int, sizes: set[str]) -> np.ndarray:
    """uint8 [count, 32, 32, 3] of the encoded images; adds what they were to `sizes`."""
    images = np.empty((count, SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    console = Console(stderr=True)
    progress = track(encoded, "decoding", total=count, console=console, transient=True, disable=count < LONG_DECODE)
    for row, (name, content) in enumerate(progress):
        try:
            image = Image.open(io.BytesIO(content or b""))
            images[row] = as_rgb32(image)
        except Exception as error:  # Pillow raises many kinds for a damaged file
            reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
            raise InputError(f"{name} can't be decoded as an image: {reason}") from error
        if image.size != (SIDE_PX, SIDE_PX):
            sizes.add(f"{image.width}x{image.height}")
        if image.mode in ("1", "L", "LA", "I", "I;16", "I;16B", "F"):
            sizes.add("grey")
    return images


def as_rgb32(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):  # Pillow's own conversion cuts at 255 instead of scaling
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    rgb = image.convert("RGB")
    if rgb.size != (SIDE_PX, SIDE_PX):
        rgb = rgb.resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR)
    return np.asarray(rgb)


def size_note(sizes: set[str]) -> str:
    resized = sorted(sizes - {"grey"})
    notes = ["grey images made RGB"] if "grey" in sizes else []
    if resized:
        notes.append(f"images of {resized[0]}{' and other sizes' if len(resized) > 1 else ''} resized to 32x32")
    return ", ".join(notes)


def fingerprint_of(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256(FORMAT.encode())
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:12]


def cached(fingerprint: str, decode: Callable[[], Dataset]) -> Dataset:
    """The decoded data, memory-mapped from the machine's cache; decoded and put there if absent or damaged."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "resnet9-tune"
    folder = root / fingerprint
    try:
        return _from_cache(folder)
    except Exception:  # whatever is wrong with a cache, it is made again
        dataset = decode()
    facts = {key: value for key, value in vars(dataset).items() if key not in ARRAYS}
    temporary = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=root))
        for key in ARRAYS:
            np.save(temporary / f"{key}.npy", getattr(dataset, key))
        (temporary / "facts.json").write_text(json.dumps(facts))
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)  # whole or not at all, also when two processes decode at once
    except OSError:  # no cache then
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
    return dataset


def _from_cache(folder: Path) -> Dataset:
    """What `cached` wrote; any exception when it isn't whole."""
    facts = json.loads((folder / "facts.json").read_text())
    facts |= {key: tuple(facts[key]) for key in ("mean", "std", "classes")}
    # asarray: a plain array over the same mapping, since Ray copies subclasses of ndarray
    arrays: dict[str, Any] = {key: np.asarray(np.load(folder / f"{key}.npy", mmap_mode="r")) for key in ARRAYS}
    for split in ("train", "eval"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        whole = images.shape == (len(labels), SIDE_PX, SIDE_PX, 3) and images.dtype == np.uint8
        if not whole or labels.dtype != np.int64 or not 0 <= labels.min() <= labels.max() < len(facts["classes"]):
            raise ValueError(f"{folder} holds other arrays than expected")
    return Dataset(**arrays, **facts)
