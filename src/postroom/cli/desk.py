"""Talks to the console of a running consumer by HTTP: what ``status`` and ``tenants`` share."""

import getpass
import http.client
import json
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import urlencode, urlsplit

import click

from postroom.cli import CommandError, CommandFailed

F = TypeVar("F", bound=Callable[..., Any])
_LONGEST: Final = 64 * 1024 * 1024
_PATIENCE: Final = 10.0


def console_options(function: F) -> F:
    """Add what leads to a console."""
    for option in reversed((
        click.option("--url", default="http://127.0.0.1:8081/", show_default=True, envvar="POSTROOM_CONSOLE_URL",
                     show_envvar=True, help="The console: of `postroom run --console`, or where it is mounted."),
        click.option("--token", envvar="POSTROOM_CONSOLE_TOKEN", show_envvar=True,
                     help="The console's token. Better by environment: others see a command's words."),
        click.option("--operator", envvar="POSTROOM_OPERATOR", show_envvar=True,
                     help="Who acts; by default the user of this process."),
    )):  # fmt: skip
        function = option(function)
    return function


class Console:
    """The HTTP API of one console.

    Args:
        url: its address.
        token: what it wants to see before it lets anyone act.
        operator: who acts.
    """

    def __init__(self, url: str, token: str | None, operator: str | None) -> None:
        self._url = url if url.endswith("/") else f"{url}/"
        self._headers = {"X-Postroom-Operator": operator or getpass.getuser()}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    def state(self, *, top: int, search: str = "") -> dict[str, Any]:
        """Return one look."""
        return self._call("GET", f"state?{urlencode({'top': top, 'search': search})}")

    def act(self, order: Mapping[str, Any], *, patience: float = _PATIENCE) -> dict[str, Any]:
        """Carry out an action."""
        token = self._call("GET", "me")["token"]
        headers = {"Content-Type": "application/json", "X-Postroom-Token": token}
        return self._call("POST", "actions", body=json.dumps(order), headers=headers, patience=patience)

    def _call(
        self,
        method: str,
        path: str,
        *,
        body: str | None = None,
        headers: Mapping[str, str] | None = None,
        patience: float = _PATIENCE,
    ) -> dict[str, Any]:
        """Ask. Not by urllib: a proxy that is set for AWS must not be asked about this machine."""
        parts = urlsplit(self._url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise CommandError(f"{self._url!r} is not a URL, such as http://127.0.0.1:8081/")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname, parts.port, timeout=patience)
        try:
            connection.request(method, parts.path + path, body=body, headers={**self._headers, **(headers or {})})
            answer = connection.getresponse()
            content = answer.read(_LONGEST)
        except (OSError, http.client.HTTPException) as error:
            text = (
                f"no console answers at {self._url}: {str(error) or type(error).__name__}. See `postroom run --console`"
            )
            raise CommandFailed(text) from error
        finally:
            connection.close()
        return self._said(answer.status, content)

    def _said(self, status: int, content: bytes) -> dict[str, Any]:
        try:
            said: Any = json.loads(content)
        except ValueError:
            said = None
        if not isinstance(said, dict):
            raise CommandFailed(f"{self._url} is not a console: it answered {status}")
        if status != http.client.OK:
            kind = CommandError if status in {400, 403} else CommandFailed
            raise kind(str(said.get("error", status)))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
        return said  # pyright: ignore[reportUnknownVariableType]
