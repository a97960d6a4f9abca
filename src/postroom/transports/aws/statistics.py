"""What a client can say of itself."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientStatistics:
    """What a client has done since it was opened, as far as the hot path is concerned."""

    hot_path: bool
    """Whether receives, batch deletes and visibility batches take the hot path."""
    objections: tuple[str, ...]
    """What speaks against it; empty too as long as no queue was opened, which decides."""
    hot_calls: int
    """Calls that it answered."""
    hot_misses: int
    """Calls that it tried and left to the ordinary client."""
    hot_connections: int
    """Connections that it has now."""
