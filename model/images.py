"""Encoded images to uint8 arrays, once per machine: decoding, and the memory-mapped cache of what was decoded."""

import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.progress import track

from model.config import InputError
from model.data import Dataset

SIDE_PX = 32
FORMAT = "1"  # part of every fingerprint
DECODER = "2"  # of the cached arrays: what an earlier decoder made is made again
LONG_DECODE = 5_000  # images; what takes longer than that gets a progress bar
ARRAYS = ("train_images", "train_labels", "eval_images", "eval_labels")
SCALED = "32-bit grey scaled"  # begins what is said of such images: all of a data set must have one scale


def decoded(encoded: Iterable[tuple[str, bytes | Path | None]], count: int, kinds: set[str]) -> np.ndarray:
    """uint8 [count, 32, 32, 3] of the encoded images, or of the files at these paths; adds what they were to `kinds`.

    Raises:
        InputError: some can't be read or decoded, or their 32-bit grey values have no one scale.
    """
    images = np.empty((count, SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    broken: list[str] = []
    console = Console(stderr=True)
    progress = track(encoded, "decoding", total=count, console=console, transient=True, disable=count < LONG_DECODE)
    for row, (name, content) in enumerate(progress):
        try:
            content = content.read_bytes() if isinstance(content, Path) else content
        except OSError as error:
            broken.append(f"{name} can't be read: {error.strerror or error}")
            continue
        try:
            images[row] = as_rgb32(Image.open(io.BytesIO(content or b"")), kinds)
        except Exception as error:  # Pillow raises many kinds for a damaged file
            unknown = "unknown format" if content else "it is empty"
            reason = unknown if isinstance(error, UnidentifiedImageError) else error
            broken.append(f"{name} can't be decoded as an image: {reason}")
    if broken:
        raise InputError(listed(broken, "; "))
    if len(scales := sorted(kind for kind in kinds if kind.startswith(SCALED))) > 1:
        raise InputError(f"{' beside '.join(scales)}: give all of them one scale, or save them with 8 or 16 bits")
    return images


def as_rgb32(image: Image.Image, kinds: set[str]) -> np.ndarray:
    """uint8 [32, 32, 3] of one image of any mode and size; adds what was done to it to `kinds`.

    Colours are as of Pillow's convert("RGB"), which drops transparency, but grey of more than 8 bits is scaled where
    that cuts at 255.

    Raises:
        ValueError: 32-bit grey values are of no known scale.
    """
    if getattr(image, "is_animated", False):
        kinds.add("only the first picture read of files with several")
    size = image.size
    if image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16"):
        kinds.add("grey images made RGB")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = _grey_of_32_bits(image, kinds)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            kinds.add("transparency dropped")
    rgb = image.convert("RGB")
    if size != (SIDE_PX, SIDE_PX):
        kinds.add(f"{size[0]}x{size[1]}")
        rgb = rgb.resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR)
    return np.asarray(rgb)


def _grey_of_32_bits(image: Image.Image, kinds: set[str]) -> Image.Image:
    """8-bit grey of mode I or F, whose values have no fixed scale: the smallest usual one that holds them."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    tops = (1, 255, 65_535) if image.mode == "F" else (255, 65_535)
    top = next((top for top in tops if 0 <= low <= high <= top), None)
    if top is None:
        raise ValueError(
            f"32-bit grey values from {low:g} to {high:g}, where 0 to {' or '.join(map(str, tops))} is read"
        )
    if high > 0:  # black is black at every scale
        kinds.add(f"{SCALED} from 0..{top}")
    grey = values // 256 if top == 65_535 else np.rint(values * (255 / top))
    return Image.fromarray(grey.astype(np.uint8))


def note_of(kinds: set[str]) -> str:
    """What was done to the images, for a data set's note."""
    sizes = sorted(kind for kind in kinds if kind.replace("x", "").isdigit())
    notes = sorted(kinds.difference(sizes))
    if sizes:
        notes.append(f"images of {sizes[0]}{' and other sizes' if len(sizes) > 1 else ''} resized to 32x32")
    return ", ".join(notes)


def listed(lines: Sequence[str], between: str = ", ", shown: int = 4) -> str:
    """The first of `lines` on one line, and how many more there are."""
    more = [f"and {len(lines) - shown:,} more"] if len(lines) > shown else []
    return between.join([*lines[:shown], *more])


def fingerprint_of(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256(FORMAT.encode())
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:12]


def cached(fingerprint: str, decode: Callable[[], Dataset]) -> Dataset:
    """The decoded data, memory-mapped from the machine's cache; decoded and put there if absent or damaged. Where no
    cache can be written they are decoded each time."""
    root = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "resnet9-tune"
    folder = root / fingerprint
    try:
        return _from_cache(folder)
    except Exception:  # whatever is wrong with a cache, it is made again
        dataset = decode()
    if not root.is_absolute():  # a user without a home; the specification of XDG_CACHE_HOME rules out relative paths
        return dataset
    facts = {key: value for key, value in vars(dataset).items() if key not in ARRAYS}
    temporary = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=root))
        for key in ARRAYS:
            np.save(temporary / f"{key}.npy", getattr(dataset, key))
        (temporary / "facts.json").write_text(json.dumps(facts | {"decoder": DECODER}), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)  # whole or not at all, also when two processes decode at once
    except OSError:  # no cache then
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
    return dataset


def _from_cache(folder: Path) -> Dataset:
    """What `cached` wrote; any exception when it isn't whole."""
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    if facts.pop("decoder", "1") != DECODER:
        raise ValueError(f"{folder} was made by another decoder")
    facts |= {key: tuple(facts[key]) for key in ("mean", "std", "classes")}
    # asarray: a plain array over the same mapping, since Ray copies subclasses of ndarray
    arrays: dict[str, Any] = {key: np.asarray(np.load(folder / f"{key}.npy", mmap_mode="r")) for key in ARRAYS}
    for split in ("train", "eval"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        whole = images.shape == (len(labels), SIDE_PX, SIDE_PX, 3) and images.dtype == np.uint8
        if not whole or labels.dtype != np.int64 or not 0 <= labels.min() <= labels.max() < len(facts["classes"]):
            raise ValueError(f"{folder} holds other arrays than expected")
    return Dataset(**arrays, **facts)
