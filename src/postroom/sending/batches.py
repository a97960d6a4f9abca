"""Messages in batches as SQS takes them: ten at most, 1 MiB in all, and on FIFO queues one of each group."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Final

from postroom.message import MessageAttribute, OutgoingMessage
from postroom.options import MAX_BATCH

Numbered = tuple[int, OutgoingMessage]
"""A message and its place in the call."""

MAX_BYTES: Final = 1_048_576
"""Bytes of one message, and of all messages of one batch: 1 MiB, attributes included (quotas-messages.html)."""
MAX_ATTRIBUTES: Final = 10
"""Message attributes per message (quotas-messages.html)."""


def batches(messages: Iterable[OutgoingMessage]) -> Iterator[list[OutgoingMessage]]:
    """Group messages as SQS takes them: up to 10, and up to 1 MiB in all."""
    batch: list[OutgoingMessage] = []
    size = 0
    for message in messages:
        more = size_of(message)
        if batch and (len(batch) == MAX_BATCH or size + more > MAX_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += more
    if batch:
        yield batch


class Waiting:
    """Numbered messages that are not sent yet, and which of them make the next batch.

    Args:
        messages: numbered by their place.
        ordered: on a FIFO queue an entry that SQS refuses must not be overtaken by a later one of its group, which
            only a later call can keep. So a batch has one message of each group.
    """

    def __init__(self, messages: Iterable[OutgoingMessage], *, ordered: bool) -> None:
        self._ordered = ordered
        self._lines: dict[str | None, deque[Numbered]] = {}
        for numbered in enumerate(messages):
            self._line_of(numbered[1]).append(numbered)

    def take(self) -> list[Numbered]:
        """Take the next batch; empty when nothing waits."""
        batch: list[Numbered] = []
        size = 0
        # A copy, as lines are taken out and put behind the others below.
        for group in list(islice(self._lines, MAX_BATCH)):
            line = self._lines[group]
            while line and len(batch) < MAX_BATCH:
                size += size_of(line[0][1])
                if batch and size > MAX_BYTES:
                    return batch
                batch.append(line.popleft())
                if self._ordered:
                    break
            del self._lines[group]
            if line:
                self._lines[group] = line  # behind the other groups
        return batch

    def put_back(self, again: Iterable[Numbered]) -> None:
        """Let messages of the last batch be tried again, before all others of their groups."""
        for numbered in reversed(list(again)):
            self._line_of(numbered[1]).appendleft(numbered)

    def drop_group(self, group: str | None) -> Iterable[Numbered]:
        """Take out all messages of a group."""
        return self._lines.pop(group, ())

    def drop_all(self) -> Iterable[Numbered]:
        """Take out all messages."""
        lines, self._lines = self._lines, {}
        return chain.from_iterable(lines.values())

    def _line_of(self, message: OutgoingMessage) -> "deque[Numbered]":
        return self._lines.setdefault(message.group_id if self._ordered else None, deque())


def size_of(message: OutgoingMessage) -> int:
    """Return what a message counts against SQS's limit: body, and names, types and values of its attributes."""
    return _bytes(message.body) + size_of_attributes(message.message_attributes)


def size_of_attributes(attributes: Mapping[str, MessageAttribute]) -> int:
    """Return what attributes count against SQS's limit."""
    total = 0
    for name, value in attributes.items():
        content = len(value.binary_value) if value.binary_value is not None else _bytes(value.string_value or "")
        total += _bytes(name) + len(value.data_type) + content
    return total


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
