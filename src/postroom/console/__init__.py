"""The operator's page: every tenant, the one that waits longest first, and what can be done about it."""

from postroom.console.app import Allow, ConsoleRequest, console
from postroom.console.moving import Moved, MoveFailed, MoveStep, Offboarded, move_tenant, offboard_tenant
from postroom.console.remote import ConsoleError, RemoteConsole
from postroom.console.server import ConsoleServer, allow_token
from postroom.console.usage import UsageMeter

__all__ = [
    "Allow",
    "ConsoleError",
    "ConsoleRequest",
    "ConsoleServer",
    "MoveFailed",
    "MoveStep",
    "Moved",
    "Offboarded",
    "RemoteConsole",
    "UsageMeter",
    "allow_token",
    "console",
    "move_tenant",
    "offboard_tenant",
]
