"""A file that grows by whole records, whatever fails."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


class Journal:
    """Appends to a file; what a write that failed has left of itself is taken off again.

    The disk may be full, a signal may come in the middle of a write: the file then ends with
    the last whole record, and the next write goes on from there. Nothing waits in a buffer, so
    that what was written outlives the program.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None
        self._size = 0
        self._torn = False  # whether bytes of a write that failed may be left

    def begin(self, content: Iterable[bytes]) -> None:
        """Put new content in place of the file, at once: until it is whole, the file is the old one."""
        size = _put_in_place(self.path, content)
        file = os.open(self.path, os.O_RDWR)
        os.lseek(file, size, os.SEEK_SET)
        self._release()
        self._file, self._size, self._torn = file, size, False

    def append(self, record: bytes) -> None:
        """Write a record after what there is, or leave the file as it was."""
        assert self._file is not None, "begin() comes first"
        try:
            if self._torn:
                os.ftruncate(self._file, self._size)
                os.lseek(self._file, self._size, os.SEEK_SET)
            self._torn = True
            _write_all(self._file, record)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise
        self._torn = False
        self._size += len(record)

    def close(self) -> bool:
        """Write no more; whether there is a file, and it is still the one that was written to."""
        try:
            return self._file is not None and os.path.samestat(os.fstat(self._file), self.path.stat())
        except FileNotFoundError:
            return False
        finally:
            self._release()

    def _release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _put_in_place(path: Path, content: Iterable[bytes]) -> int:
    """Put a new file in place of an old one, at once, and give its size; if that fails, the old one stays."""
    beside = path.with_name(path.name + ".new")
    try:
        with beside.open("wb", buffering=0) as file:
            for part in content:
                _write_all(file.fileno(), part)
            os.fsync(file.fileno())  # before the old one goes, so that no crash leaves neither
            size = file.tell()
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return size


def _write_all(file: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]
