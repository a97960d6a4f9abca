"""Where message ids and sequence numbers come from: one source for sends and for moves."""

from random import Random


class Ids:
    """The ids of one broker. A seeded generator makes runs repeat."""

    __slots__ = ("rng", "seq")

    def __init__(self, rng: Random) -> None:
        self.rng: Random = rng
        self.seq: int = 0
        """The sequence of the latest message."""

    def unique(self) -> str:
        """Return a new random UUID as text."""
        text = f"{self.rng.getrandbits(128):032x}"
        return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}"

    def queue(self) -> int:
        """Return a new number for a queue, which its receipt handles carry."""
        return self.rng.getrandbits(64)
