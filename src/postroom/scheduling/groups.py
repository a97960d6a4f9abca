"""Message groups: one ticket of each is in a lane, the rest waits behind it in order."""

from collections import deque
from collections.abc import Callable
from itertools import takewhile
from typing import Generic

from typing_extensions import TypeVar

from postroom.scheduling.tickets import State, Ticket

T = TypeVar("T", bound=Ticket, default=Ticket)


class _Group(Generic[T]):
    """One message group: its head, of which there is always one, and what waits behind it in order."""

    __slots__ = ("behind", "head")

    def __init__(self, head: T) -> None:
        self.head = head
        self.behind: deque[T] = deque()


class Groups(Generic[T]):
    """The message groups that have something here, by name."""

    __slots__ = ("_groups", "behind")

    def __init__(self) -> None:
        self._groups: dict[str, _Group[T]] = {}
        self.behind: int = 0
        """Tickets that wait behind the heads of their groups."""

    def __len__(self) -> int:
        return len(self._groups)

    def enter(self, name: str, ticket: T) -> bool:
        """Take a ticket in. Returns whether it is the head; otherwise it waits behind.

        The head's own work that comes again, while the head has not ended yet, is before all that waits behind.
        """
        group = self._groups.get(name)
        if group is not None:
            if ticket.is_again(group.head):
                group.behind.appendleft(ticket)
            else:
                group.behind.append(ticket)
            self.behind += 1
            return False
        self._groups[name] = _Group(ticket)
        return True

    def next(self, name: str) -> T | None:
        """Return the next head, after one that is done; None, and the group is forgotten, when there is none."""
        group = self._groups[name]
        if not group.behind:
            del self._groups[name]
            return None
        self.behind -= 1
        group.head = group.behind.popleft()
        return group.head

    def has_again(self, ticket: T) -> bool:
        """Whether the work of a head has come again: then all that waits behind it is in order."""
        behind = self.behind_of(ticket)
        return bool(behind) and behind[0].is_again(ticket)

    def behind_of(self, ticket: T) -> list[T]:
        """Return, in order, what waits behind a ticket if it is the head of its group."""
        group = self._groups.get(ticket.group) if ticket.group is not None else None
        return list(group.behind) if group is not None and group.head is ticket else []

    def strike_off(self, ticket: T) -> list[T]:
        """Strike off, in order, what waits behind a ticket in its group."""
        group = self._groups.get(ticket.group) if ticket.group is not None else None
        if group is None:
            return []
        if group.head is ticket:
            return self._struck_off(group, 0)
        return self._struck_off(group, group.behind.index(ticket) + 1) if ticket in group.behind else []

    def holds(self, ticket: T, check: Callable[[T], bool]) -> bool:
        """Whether something holds for a ticket that is in a lane, and for what is behind it in its group."""
        return check(ticket) and (ticket.group is None or all(map(check, self._groups[ticket.group].behind)))

    def all_behind(self) -> list[T]:
        """Return what waits behind any head."""
        return [ticket for group in self._groups.values() for ticket in group.behind] if self.behind else []

    def leave(self, ticket: T) -> None:
        """Take a ticket out that waits behind the head of its group."""
        if ticket.group is not None:
            self._groups[ticket.group].behind.remove(ticket)
            self.behind -= 1

    def strike_off_all(self, keep: Callable[[T], bool]) -> list[T]:
        """Strike off, in order within each group, what waits behind any head, from the first that is not kept on.

        Behind a head that is not kept itself nothing is kept: it would overtake the head. Its own work that came again
        would not.
        """
        struck: list[T] = []
        for group in self._groups.values():
            stays = keep(group.head) or self.has_again(group.head)
            struck += self._struck_off(group, sum(1 for _ in takewhile(keep, group.behind)) if stays else 0)
        return struck

    def _struck_off(self, group: _Group[T], kept: int) -> list[T]:
        line = list(group.behind)
        behind = line[kept:]
        group.behind = deque(line[:kept])
        self.behind -= len(behind)
        for ticket in behind:
            ticket.state = State.DONE
        return behind
