"""Files that are written whole or not at all, and JSON in which nothing is taken on trust."""

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a file. Whatever goes wrong, the old one stays and nothing else is left; text becomes UTF-8, with
    escapes for halves of surrogate pairs.

    Raises:
        OSError: it can't be written; the error names `path`.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode(errors="backslashreplace"))
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):  # there is none, or the file system can't be written
            temporary.unlink()


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: it can't be read.
        ValueError: as for `parse_json`.
    """
    return parse_json(path.read_bytes())


def parse_json(content: str | bytes, constant: Callable[[str], Any] | None = None) -> Any:
    """What this JSON holds; before bytes a byte-order mark is no harm.

    Args:
        constant: called for NaN, Infinity and -Infinity.

    Raises:
        ValueError: it is no JSON in UTF-8, or nested too deeply.
    """
    try:
        return json.loads(content, parse_constant=constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def typed(kind: Any, value: Any, name: str = "it") -> Any:
    """A value from JSON as a type: a dataclass, list, dict, `X | None`, a plain type or Any.

    Raises:
        ValueError: it is something else; `name` says what.
    """
    origin, inner, of_fields = get_origin(kind), get_args(kind), is_dataclass(kind)
    if kind is Any or (origin is UnionType and value is None):
        return value
    if origin is UnionType:
        return typed(inner[0], value, name)
    if kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{name} is too large") from None
    if type(value) is not (dict if of_fields else origin or kind):
        raise ValueError(f"{name} is missing or of another type")
    if of_fields:
        return kind(**{each.name: typed(each.type, value.get(each.name), each.name) for each in fields(kind)})
    if origin is list:
        return [typed(inner[0], each, name) for each in value]
    if origin is dict:
        return {key: typed(inner[1], each, name) for key, each in value.items()}
    return value


def typed_dict(kinds: Mapping[str, Any], value: Any, needed: Iterable[str] = ()) -> dict[str, Any]:
    """A dict from JSON whose values of these names have these types; only those `needed` must be there, and others
    may be.

    Raises:
        ValueError: a value has another type, or is missing.
    """
    content: dict[str, Any] = typed(dict[str, Any], value)
    for name in needed:
        if name not in content:
            raise ValueError(f"{name} is missing")
    return {name: typed(kinds.get(name, Any), each, name) for name, each in content.items()}
