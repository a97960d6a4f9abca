"""The context: whose message is this?"""

from dataclasses import dataclass

from postroom import ContextError, Message, MissingAttribute


@dataclass(frozen=True)
class TenantContext:
    """One tenant in one region. Being frozen, it is the key of the tenant's resources as it is."""

    tenant_id: str
    region: str


def tenant_of(message: Message) -> TenantContext:
    """Resolve the context of a message from its attributes."""
    try:
        return TenantContext(message.attributes["tenantId"], message.attributes["region"])
    except MissingAttribute as missing:  # it knows which one: missing, empty, or Binary
        raise ContextError(f"Missing required tenant attributes: {missing}") from missing
