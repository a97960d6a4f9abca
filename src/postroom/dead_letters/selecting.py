"""Which dead letters are meant: by tenant, by reason, by age, by id."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from postroom.checking import listed
from postroom.dead_letters.reading import DeadLetter
from postroom.display import counted
from postroom.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterFilter:
    """Chooses dead letters. Every condition that is given has to hold; without any, all are chosen.

    Args:
        tenant: the tenant's name, as logs show it; exactly.
        reason: a part of the reason, upper or lower case alike; ``*`` stands for anything.
        older_than: seconds since the message was first sent, at least.
        newer_than: seconds since the message was first sent, less than that.
        ids: ids of letters in the dead-letter queue, or ids that the messages had in the queue they came from; at
            least one. None for no such condition.

    A letter that does not tell its age matches no condition on it.

    Raises:
        ConfigurationError: a condition that no letter can fulfil, or that is no text or number.
    """

    tenant: str | None = None
    reason: str | None = None
    older_than: float | None = None
    newer_than: float | None = None
    ids: Collection[str] | None = None

    def __post_init__(self) -> None:
        for name in ("tenant", "reason"):
            _check_text(name, getattr(self, name))
        for name in ("older_than", "newer_than"):
            _check_age(name, getattr(self, name))
        if self.ids is not None:
            ids = listed("LetterFilter(ids=...)", 'ids=["..."]', self.ids)
            if not ids:  # a purge of what a program has chosen must not take everything when that is nothing
                raise ConfigurationError("LetterFilter(ids=[]) chooses no letter; leave ids= out to choose all")
            if any(not isinstance(each, str) for each in ids):
                raise ConfigurationError(f"LetterFilter(ids=...) takes a list of texts; got {self.ids!r}")
            object.__setattr__(self, "ids", ids)
        if self.older_than is not None and self.newer_than is not None and self.older_than >= self.newer_than:
            text = f"no letter is older than {self.older_than:g} s and newer than {self.newer_than:g} s"
            raise ConfigurationError(text)

    def matches(self, letter: DeadLetter, *, now: float) -> bool:
        """Say whether a letter is meant. ``now`` is in seconds since the epoch."""
        if self.tenant is not None and letter.tenant != self.tenant:
            return False
        if self.ids is not None and letter.id not in self.ids and letter.message_id not in self.ids:
            return False
        if self.reason is not None and not _contains(letter.reason, self.reason):
            return False
        if self.older_than is None and self.newer_than is None:
            return True
        if letter.sent is None:
            return False
        age = now - letter.sent
        old_enough = self.older_than is None or age >= self.older_than
        return old_enough and (self.newer_than is None or age < self.newer_than)

    def described(self) -> str:
        """Return the conditions as one line of text."""
        parts = [f"{name} {value!r}" for name in ("tenant", "reason") if (value := getattr(self, name)) is not None]
        parts += [
            f"{name.replace('_', ' ')} {value:g} s"
            for name in ("older_than", "newer_than")
            if (value := getattr(self, name)) is not None
        ]
        parts += [counted(len(self.ids), "id")] if self.ids else []
        return ", ".join(parts) or "all letters"


def _contains(reason: str, part: str) -> bool:
    escaped = part.lower().replace("[", "[[]")
    return fnmatchcase(reason.lower(), f"*{escaped}*")


def _check_text(name: str, value: Any) -> None:
    if value is not None and not (isinstance(value, str) and value):
        raise ConfigurationError(f"LetterFilter({name}=...) takes text that is not empty, or None; got {value!r}")


def _check_age(name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ConfigurationError(f"LetterFilter({name}=...) takes seconds, at least 0, or None; got {value!r}")
