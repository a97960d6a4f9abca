"""The budget: what is open, opening or still closing weighs, and never more than the limit (I3)."""


class Budget:
    """Weights taken and given back. Taking more than is free is a bug of the caller, not a wait."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit: int = limit
        self.used: int = 0

    @property
    def free(self) -> int:
        """What may still be taken."""
        return self.limit - self.used

    def take(self, weight: int) -> None:
        """Take ``weight``, before an open starts."""
        if weight > self.free:
            raise AssertionError(f"budget overrun: {weight} asked for, {self.free} of {self.limit} free")
        self.used += weight

    def give_back(self, weight: int) -> None:
        """Give ``weight`` back, after a close has finished."""
        if weight > self.used:
            raise AssertionError(f"budget given back twice: {weight} of {self.used}")
        self.used -= weight
