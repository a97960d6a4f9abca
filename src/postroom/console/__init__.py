"""The operator's page: every tenant, the one that waits longest first, and what can be done about it."""

from postroom.console.app import Allow, ConsoleRequest, console
from postroom.console.server import ConsoleServer, allow_token
from postroom.console.usage import UsageMeter

__all__ = ["Allow", "ConsoleRequest", "ConsoleServer", "UsageMeter", "allow_token", "console"]
