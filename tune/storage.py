"""A folder in an object store: s3://bucket/prefix, gs://..., or any other URI that pyarrow.fs takes, file:/// as well.

Credentials come from the environment, as the store's own tools have them, and are never stored.
"""

import os
from contextlib import suppress
from urllib.parse import parse_qsl, urlsplit

from pyarrow import ArrowException, fs

from model.config import InputError

_ATOMIC = {"s3", "gcs", "abfs"}  # an object is there when it is whole
_SECRET = ("key", "token", "secret", "password", "credential")


class Storage:
    """A folder at a URI; what is in it is named by relative paths.

    Raises:
        InputError: it is no URI of a known kind, or it holds credentials.
    """

    def __init__(self, uri: str) -> None:
        try:
            parts = urlsplit(uri)
        except ValueError:
            raise InputError("the storage is no URI: give one such as s3://bucket/prefix") from None
        secret = [key for key, _ in parse_qsl(parts.query) if any(word in key.lower() for word in _SECRET)]
        if "@" in parts.netloc or secret:
            raise InputError(
                f"{parts.scheme}://...: a storage URI must hold no credentials; set them in the environment, such as "
                f"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        if not parts.scheme or "://" not in uri:
            raise InputError(f"storage {uri!r} is no URI: give one such as s3://bucket/prefix")
        try:
            self._fs, self._root = fs.FileSystem.from_uri(uri)
        except (OSError, ValueError, ArrowException) as error:
            raise InputError(f"storage {uri}: {first_line(error)}; give a URI such as s3://bucket/prefix") from error
        self._root = self._root.rstrip("/")
        if not self._root:
            raise InputError(f"storage {uri}: it names no bucket or folder")
        self.uri = uri

    def __truediv__(self, name: str) -> "Storage":
        if name in ("", ".", "..") or "/" in name:
            raise InputError(f"{name!r} is no name of a folder in {self.uri}")
        parts = urlsplit(self.uri)
        return Storage(parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl())

    def split(self) -> "tuple[Storage, str]":
        """The folder that this one lies in, and its name there.

        Raises:
            InputError: there is none, or the name is none for a folder.
        """
        parts = urlsplit(self.uri)
        parent, _, name = parts.path.rstrip("/").rpartition("/")
        if not name or name in (".", ".."):
            raise InputError(f"{self.uri} names no run: give the URI of one, such as s3://bucket/prefix/name")
        return Storage(parts._replace(path=parent).geturl()), name

    def files(self) -> dict[str, fs.FileInfo]:
        """Size and time of all that is here, by relative path.

        Raises:
            OSError: the store can't be reached or forbids it.
        """
        found = self._fs.get_file_info(fs.FileSelector(self._root, recursive=True, allow_not_found=True))
        files = [info for info in found if info.type == fs.FileType.File and not info.path.endswith(".part")]
        return {info.path.removeprefix(self._root).lstrip("/"): info for info in files}

    def read(self, name: str) -> bytes | None:
        """A file's content; None where there is none.

        Raises:
            OSError: the store can't be reached or forbids it.
        """
        path = f"{self._root}/{name}"
        if self._fs.get_file_info(path).type != fs.FileType.File:
            return None
        try:
            with self._fs.open_input_stream(path) as file:
                return file.read()
        except FileNotFoundError:  # removed just now
            return None

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Write a file, whole or not at all.

        Raises:
            OSError: the store can't be reached, forbids it or is full.
        """
        path = f"{self._root}/{name}"
        atomic = self._fs.type_name in _ATOMIC
        if not atomic:
            self._fs.create_dir(os.path.dirname(path), recursive=True)
        with self._fs.open_output_stream(path if atomic else f"{path}.part") as file:
            file.write(content)
        if not atomic:
            self._fs.move(f"{path}.part", path)

    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.delete_file(f"{self._root}/{name}")

    def check(self) -> None:
        """Write, read and delete a file, to know before a search starts that it works.

        Raises:
            InputError: it doesn't.
        """
        try:
            self.write("write-test", b"")
            self.files()
            self.delete("write-test")
        except (OSError, ArrowException) as error:
            raise InputError(f"storage {self.uri} can't be used: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    text = str(error).partition("\n")[0]
    return text.partition(" (Request ID")[0].partition("; Details")[0].rstrip(".")
