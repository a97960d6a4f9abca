"""``postroom health``: ask a running ``postroom run --health-port`` how it is. For platforms that check by command."""

import http.client
import sys
from urllib.parse import urlsplit

import click

from postroom.cli import CommandError
from postroom.cli.numbers import Number, WholeNumber

_LONGEST = 65_536


@click.command()
@click.argument("url", required=False, envvar="POSTROOM_HEALTH_URL")
@click.option("--port", type=WholeNumber(1, 65_535), default=8080, show_default=True,
              envvar="POSTROOM_HEALTH_PORT", show_envvar=True,
              help="Ask http://HOST:PORT/healthz, where no URL is given.")  # fmt: skip
@click.option("--host", metavar="ADDRESS", envvar="POSTROOM_HEALTH_HOST", show_envvar=True,
              help="Where the process serves its pages; else, and for all of the machine, 127.0.0.1.")  # fmt: skip
@click.option("--timeout", type=Number(min=0, min_open=True), default=3.0, show_default=True,
              envvar="POSTROOM_HEALTH_TIMEOUT", show_envvar=True, metavar="SECONDS",
              help="How long the answer may take.")  # fmt: skip
def health(*, url: str | None, port: int, host: str | None, timeout: float) -> None:
    """Exit with 0 if a consumer process is healthy, 1 if it is not or does not answer.

    URL is a health page, such as http://127.0.0.1:8080/readyz (also as POSTROOM_HEALTH_URL). By default /healthz,
    which fails until every consumer has been ready once, and then when a restart would help: what the health check of
    an ECS container should ask. In a container: CMD postroom health
    """
    status, body = _ask(url or f"http://{_reached(host)}:{port}/healthz", timeout)
    click.echo(f"{status}: {body}" if status not in {0, 200} else body, err=status != 200)
    sys.exit(0 if status == 200 else 1)


def _reached(host: str | None) -> str:
    """Return where pages that are served at an address are asked for, as it stands in a URL."""
    host = (host or "").strip("[]")
    if host in {"", "*", "0.0.0.0", "::"}:  # noqa: S104 - nothing is bound here
        return "[::1]" if host == "::" else "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _ask(url: str, timeout: float) -> tuple[int, str]:
    """Get a page. Not by urllib: a proxy that is set for AWS must not be asked about this machine."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise CommandError(f"{url!r} is not a URL, such as http://127.0.0.1:8080/healthz")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=timeout)
    try:
        connection.request("GET", f"{parts.path or '/healthz'}{'?' if parts.query else ''}{parts.query}")
        answer = connection.getresponse()
        return answer.status, answer.read(_LONGEST).decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return 0, f"no answer from {parts.hostname}:{connection.port}: {str(error) or type(error).__name__}"
    finally:
        connection.close()
