"""``postroom status``: the console's page as a table in a terminal, looked at again and again."""

import json
import shutil
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import click

from postroom.cli.desk import console_options
from postroom.cli.numbers import Number
from postroom.cli.tenant_rows import cells, tenants_table

if TYPE_CHECKING:
    from postroom.console import RemoteConsole

_COLOURS: Final = {"unavailable": "red", "paused": "yellow", "quarantined": "yellow", "diverted": "yellow",
                   "limited": "yellow"}  # fmt: skip


@click.command()
@console_options
@click.option("--every", default=1.0, show_default=True, type=Number(min=0.2), envvar="POSTROOM_EVERY",
              show_envvar=True, metavar="SECONDS", help="Seconds between two looks.")  # fmt: skip
@click.option("--once", is_flag=True, envvar="POSTROOM_ONCE", show_envvar=True,
              help="Look once. That is the default where the output is no terminal.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, envvar="POSTROOM_JSON", show_envvar=True,
              help="Look once, and print everything as JSON.")  # fmt: skip
@click.option("--search", default="", envvar="POSTROOM_SEARCH", show_envvar=True, help="Only names with this text.")
def status(
    *,
    url: str,
    token: str | None,
    operator: str | None,
    every: float,
    once: bool,
    as_json: bool,
    search: str,
) -> None:
    """Show what the tenants of a running consumer do, the one that waits longest first. Ctrl-C ends it.

    Rates, durations and shares are counted from the first look on, so a single look has none.
    """
    from postroom.console import RemoteConsole

    console = RemoteConsole(url, token=token, operator=operator)
    if as_json:
        click.echo(json.dumps(console.state(top=10_000, search=search)))
        return
    terminal = _is_terminal()
    width = shutil.get_terminal_size().columns if terminal else None
    text = render(console.state(top=50, search=search), now=time.time(), width=width)
    if once or not terminal:
        click.echo(text)
        return
    with suppress(KeyboardInterrupt):
        _live(console, every=every, search=search)
    click.echo()


def _live(console: "RemoteConsole", *, every: float, search: str) -> None:
    """Draw one look over the last one until Ctrl-C. A console that is gone may come back: its process starts again."""
    from postroom.console import ConsoleError

    click.clear()
    while True:
        size = shutil.get_terminal_size()
        try:
            said = console.state(top=max(5, size.lines - 4), search=search)
            text = render(said, now=time.time(), width=size.columns)
        except ConsoleError as error:
            text = click.style(f"{error}; trying again", fg="red")
        lines = "".join(f"{line}\033[K\n" for line in text.splitlines()[: size.lines - 1])
        click.echo(f"\033[H{lines}\033[J", nl=False)
        time.sleep(every)


def _is_terminal() -> bool:
    return sys.stdout.isatty()


def render(said: dict[str, Any], *, now: float, width: int | None = None) -> str:
    """Return one look as text: a line per consumer, then the tenants. With a width, lines are cut and coloured."""
    head = [_strip(strip) for strip in said["strips"]]
    lines = tenants_table(said, now).splitlines()
    more = said["total"] - len(said["rows"])
    tail = [f"and {more} more"] if more > 0 else []
    if width is None:
        return "\n".join([*head, *lines, *tail])
    states = ["", *(cells(row, now)[1] for row in said["rows"])]
    shown = [click.style(line[:width], fg=_COLOURS.get(state)) for line, state in zip(lines, states, strict=False)]
    return "\n".join([*(click.style(line[:width], bold=True) for line in head), *shown, *tail])


def _strip(strip: dict[str, Any]) -> str:
    if not strip["running"]:
        return f"{strip['queue']}: not running"
    flight = "" if strip["in_flight"] is None else f", {strip['in_flight']} of {strip['in_flight_limit']} in flight"
    pool = "" if strip["pool"] is None else f", pool {strip['pool'][0]} of {strip['pool'][1]}"
    unreachable = f", not reachable: {'; '.join(strip['unreachable'])}" if strip.get("unreachable") else ""
    return (
        f"{strip['queue']}: {strip['busy']} of {strip['slots']} slots, {strip['waiting']} waiting, "
        f"{strip['away']} parked{flight}{pool}, {strip['receives']} receives (${strip['dollars']:.2f})"
        f"{unreachable}"
    )
