"""Files are written whole or not at all; JSON is what it should be, or a ValueError says what is wrong with it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from model.files import parse_json, read_json, typed, typed_dict, write_whole


@pytest.mark.parametrize("content", ["text ± 猫", b"bytes"])
def test_a_file_is_replaced(tmp_path: Path, content: str | bytes) -> None:
    for _ in range(2):
        write_whole(tmp_path / "file", content)
    written = (tmp_path / "file").read_bytes()
    assert written == (content.encode() if isinstance(content, str) else content)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_text_that_is_no_utf_8_is_written_with_escapes(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", "caf\udce9")
    assert (tmp_path / "file").read_bytes() == b"caf\\udce9"


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", "old")
    (tmp_path / "file.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: .*/file'"):
        write_whole(tmp_path / "file", "new")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"file": "old"}


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none/file'"):
        write_whole(tmp_path / "none" / "file", "new")


def test_a_byte_order_mark_is_no_harm(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "file") == {"a": 1}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' * 100_000, "nested"),
        (b"{", "line 1"),
        (b'"\xff\xfe"', "utf-8"),
    ],
)
def test_what_is_no_json_is_a_value_error(content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_json(content)


@dataclass(frozen=True)
class Inner:
    x: float


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, 1),
        (float, 1),
        (float | None, None),
        (list[float], [1, 2.5]),
        (dict[str, int], {"a": 1}),
        (list[Inner], [{"x": 1.0}]),
        (Any, object),
    ],
)
def test_a_value_of_its_type(kind: Any, value: Any) -> None:
    expected = [Inner(1.0)] if kind == list[Inner] else value
    assert typed(kind, value) == expected


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, True),
        (int, 1.0),
        (int, None),
        (float, "1"),
        (float, 10**400),
        (list[float], {}),
        (list[float], ["a"]),
        (dict[str, int], {"a": "b"}),
        (list[Inner], [{}]),
    ],
)
def test_a_value_of_another_type(kind: Any, value: Any) -> None:
    with pytest.raises(ValueError, match=r"(number|x) is"):
        typed_dict({"number": kind}, json.loads(json.dumps({"number": value, "more": 1})))


def test_what_is_needed_must_be_there() -> None:
    with pytest.raises(ValueError, match="b is missing"):
        typed_dict({"a": int}, {"a": 1}, needed=("a", "b"))
