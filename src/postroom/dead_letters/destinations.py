"""Where dead letters are sent: to the queue that each came from, if that can be trusted."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from postroom.dead_letters.reading import DeadLetter
from postroom.errors import ConfigurationError, PostroomError
from postroom.transports.protocol import Queue


@dataclass(frozen=True, eq=False)
class Destination:
    """A queue that letters are sent to."""

    queue: Queue

    @property
    def name(self) -> str:
        """Its name."""
        return self.queue.info.name

    @property
    def arn(self) -> str:
        """Its ARN."""
        return self.queue.info.arn

    @property
    def fifo(self) -> bool:
        """Whether it is a FIFO queue."""
        return self.queue.info.fifo


class Destinations:
    """Finds the queue for each letter, and opens each once.

    ``postroom.queue`` is an attribute, and anyone who may send a message can write it. So a queue that only this
    attribute names has to say itself that this is its dead-letter queue.

    Args:
        open_queue: opens a queue by name, URL or ARN.
        dead_letter_arn: the queue that the letters are in.
        to: one queue for all letters.
    """

    def __init__(self, open_queue: Callable[[str], Awaitable[Queue]], dead_letter_arn: str, *, to: str | None) -> None:
        self._open_queue = open_queue
        self._arn = dead_letter_arn
        self._to = to
        self._known: dict[str, Destination | str] = {}

    async def of(self, letter: DeadLetter) -> Destination | str:
        """Return where a letter goes, or why it cannot go anywhere.

        Raises:
            ConfigurationError: ``to`` is the dead-letter queue itself.
            TransportError: ``to`` cannot be opened.
        """
        if self._to is not None:
            found = self._known.get(self._to)
            if found is None:
                found = self._known[self._to] = Destination(await self._open_queue(self._to))
                if found.arn == self._arn:
                    raise ConfigurationError(f"{self._to} is the dead-letter queue itself; name another queue")
        elif letter.source is None:
            return "it does not tell which queue it came from; name one with to= (--to)"
        else:
            found = await self._source(letter)
        if isinstance(found, Destination) and found.fifo and letter.group_id is None:
            return f"queue {found.name} is a FIFO queue, and it has no message group"
        return found

    def give_up(self, home: Destination, why: str) -> None:
        """Let the letters stay that would go to a queue: it refuses all of them."""
        self._known.update({name: why for name, known in self._known.items() if known is home})

    async def _source(self, letter: DeadLetter) -> Destination | str:
        assert letter.source is not None  # noqa: S101 - looked at by its only caller
        found = self._known.get(letter.source)
        if found is None:
            try:
                found = Destination(await self._open_queue(letter.source))
            except PostroomError as error:
                found = f"its queue {letter.source} cannot be opened ({type(error).__name__}); name one with to= (--to)"
            self._known[letter.source] = found
        if letter.vouched or isinstance(found, str):
            return found
        redrive = found.queue.info.redrive
        if redrive is None or redrive.dead_letter_queue != self._arn:
            return f"queue {found.name} does not name this queue as its dead-letter queue; name one with to= (--to)"
        return found
