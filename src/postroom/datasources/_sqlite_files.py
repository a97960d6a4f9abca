"""Which file a connection of SQLite has open, and what it must not leave beside another one in its place."""

import sqlite3
from contextlib import suppress
from pathlib import Path


class OpenFile:
    """A file as it is just before it is opened.

    SQLite itself goes on reading and writing a file that was deleted or replaced, and finds the write-ahead log by its
    name: it would play the log of the old file into the new one, and destroy that.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names = [Path(f"{path}{suffix}") for suffix in ("-wal", "-shm")]
        self._file = _identity(path)
        self._log: tuple[int, int] | None = None

    def note(self) -> None:
        """Note what was opened.

        Raises:
            OSError: it is not known which file that was.
        """
        before, self._file = self._file, _identity(self._path)
        if self._file is None or before not in (None, self._file):
            raise OSError(f"the file {self._path.name!r} was replaced while it was opened")
        self._log = _identity(self._names[0])

    def is_in_place(self) -> bool:
        """Return False where another file was put in its place.

        Raises:
            FileNotFoundError: there is none. What is written to a deleted file is lost without an error.
        """
        status = self._path.stat()
        return (status.st_dev, status.st_ino) == self._file

    def close(self, connection: sqlite3.Connection) -> None:
        """Close the connection, and leave nothing of its log to another file."""
        there = _identity(self._path)
        if there != self._file:
            with suppress(sqlite3.Error):  # what was committed goes to the old file, and the log is empty
                connection.set_authorizer(None)
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            if there is not None and self._log is not None and _identity(self._names[0]) == self._log:
                for name in self._names:  # or who still has the old file open would go on writing into it
                    name.unlink(missing_ok=True)
            self._log = None  # its number may be another file's from now on
        connection.close()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
