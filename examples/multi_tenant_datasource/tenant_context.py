"""The context: which tenant does a message belong to?"""

from dataclasses import dataclass

from postroom import ContextError, Message, MissingAttribute
from postroom.payloads import context_from_attributes


@dataclass(frozen=True)
class TenantContext:
    """A tenant in a region. Frozen, because it is the key of the tenant's resources."""

    tenant_id: str
    """From the message attribute ``tenantId``."""
    region: str
    """From the message attribute ``region``."""


_from_attributes = context_from_attributes(TenantContext)


def resolve_tenant(message: Message) -> TenantContext:
    """Read the tenant from the message attributes.

    ``context=TenantContext`` alone would do the same; the function is here to say it in this service's own words.
    """
    try:
        return _from_attributes(message)
    except MissingAttribute as error:
        text = f"Missing required tenant attributes: {error}"
        raise ContextError(text, message_id=message.id) from error
