"""The record of what was done with dead letters: who, when, why, which. It also says where a killed run stood.

One JSON object per line; nothing of a body. What was sent is on disk before the letter is deleted. So a run that goes
on with the journal of a killed one deletes what that one had sent, and does not send it again.
"""

import asyncio
import fcntl
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any, Self

import msgspec

from postroom.checking import check_path
from postroom.errors import ConfigurationError


class _Line(msgspec.Struct):
    event: str = ""
    queue: str = ""
    letters: list[str] = []


class Journal:
    """A file that is only appended to. One process at a time writes to it; another one is refused.

    Args:
        path: the file; it is made if it does not exist. Its directory has to exist.
    """

    def __init__(self, path: Path | str) -> None:
        check_path("Journal(path)", path, 'Journal("redrive.jsonl")')
        self.path: Path = Path(path)
        self._file: FileIO | None = None
        self._sent: dict[str, set[str]] = {}

    def __enter__(self) -> Self:
        try:
            self._file = self.path.open("ab", buffering=0)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._close()
            raise ConfigurationError(f"another process writes to {self.path}; wait for it, or name another file") from (
                error
            )
        except OSError as error:
            self._close()
            text = f"the record cannot be written to {self.path}: {error.strerror}. Name another file"
            raise ConfigurationError(text) from error
        self._load()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def already_sent(self, queue: str) -> set[str]:
        """Return the ids of letters of a queue that were sent home and, as far as is known, not deleted."""
        return set(self._sent.get(queue, ()))

    async def write(self, event: str, *, queue: str, letters: Sequence[str] = (), **more: Any) -> None:
        """Append one line, and return when it is on disk."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        line: Mapping[str, Any] = {"at": at, "event": event, "queue": queue, "letters": list(letters), **more}
        await asyncio.to_thread(self._append, msgspec.json.encode(line) + b"\n")
        self._learn(_Line(event, queue, list(letters)))

    def _append(self, line: bytes) -> None:
        if self._file is None:
            raise ConfigurationError("this Journal is not open: write `with journal:` around its use")
        self._file.write(line)
        os.fsync(self._file.fileno())

    def _load(self) -> None:
        decode = msgspec.json.Decoder(_Line).decode
        content = self.path.read_bytes()
        for line in content.splitlines():
            try:
                self._learn(decode(line))
            except msgspec.MsgspecError:
                continue  # the last line of a run that was killed while it wrote
        if content and not content.endswith(b"\n"):
            self._append(b"\n")

    def _learn(self, line: _Line) -> None:
        if line.event == "sent":
            self._sent.setdefault(line.queue, set()).update(line.letters)
        elif line.event == "deleted":
            self._sent.get(line.queue, set()).difference_update(line.letters)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
