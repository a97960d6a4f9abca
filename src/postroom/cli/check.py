"""``postroom check module:consumer``: what is wrong with a consumer, before it ships."""

import asyncio
import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from postroom.cli.attributes import once
from postroom.cli.endpoint import endpoint_option, use_endpoint
from postroom.cli.loading import place_of
from postroom.cli.numbers import Number, WholeNumber
from postroom.display import counted
from postroom.redaction import describe
from postroom.types import ExitCode

if TYPE_CHECKING:
    from postroom.consumer import Consumer
    from postroom.inspection import Deployment, Finding, Report

_COLOURS: Final = {"ok": "green", "unknown": "cyan", "warning": "yellow", "error": "red"}
_WIDTH: Final = 76
_INDENT: Final = 24


@click.command()
@click.argument("consumers", nargs=-1, required=True, metavar="MODULE:CONSUMER...", envvar="POSTROOM_CONSUMERS")
@click.option("--directory", default=".", show_default=True, envvar="POSTROOM_DIRECTORY", show_envvar=True,
              type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Where modules are looked for first.")  # fmt: skip
@click.option("--grace", default=30.0, show_default=True, envvar="POSTROOM_CHECK_GRACE", show_envvar=True,
              type=Number(min=0, min_open=True), metavar="SECONDS",
              help="Between SIGTERM and SIGKILL: terminationGracePeriodSeconds, stopTimeout.")  # fmt: skip
@click.option("--replicas", default=1, show_default=True, envvar="POSTROOM_CHECK_REPLICAS", show_envvar=True,
              type=WholeNumber(min=1), metavar="N", help="Processes that run at once, at most.")  # fmt: skip
@click.option("--max-connections", envvar="POSTROOM_CHECK_MAX_CONNECTIONS", show_envvar=True,
              type=WholeNumber(min=1), metavar="N",
              help="Connections that a database server allows; else --attribute's tenant's is asked.")  # fmt: skip
@click.option("--attribute", "attributes", multiple=True, metavar="NAME=VALUE",
              envvar="POSTROOM_CHECK_ATTRIBUTES", show_envvar=True,
              help="Open the resources of a message with this attribute, repeatable: tenantId=a")  # fmt: skip
@click.option("--body", default="{}", envvar="POSTROOM_CHECK_BODY", show_envvar=True,
              help="The body of that message, for a context that comes from the body.")  # fmt: skip
@click.option("--offline", is_flag=True, envvar="POSTROOM_CHECK_OFFLINE", show_envvar=True,
              help="Look at the code alone: ask nothing of SQS or of a database.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, envvar="POSTROOM_CHECK_JSON", show_envvar=True,
              help="Print one JSON document: findings and policy of each consumer.")  # fmt: skip
@click.option("--policy", "policy_only", is_flag=True, envvar="POSTROOM_CHECK_POLICY", show_envvar=True,
              help="Print the IAM policy alone.")  # fmt: skip
@endpoint_option
def check(
    *,
    consumers: tuple[str, ...],
    directory: Path,
    grace: float,
    replicas: int,
    max_connections: int | None,
    attributes: Sequence[str],
    body: str,
    offline: bool,
    as_json: bool,
    policy_only: bool,
    endpoint_url: str | None,
) -> None:
    """Look at consumers before they ship: code, queue, permissions, databases, stop.

    MODULE:CONSUMER is what "postroom run" takes (also as POSTROOM_CONSUMERS). It prints what was found, what to do,
    and the least IAM policy. No message that waits is received; with --attribute, the resources of one tenant are
    opened and closed.

    Exit codes: 0 where nothing has to change (warnings included), 2 where something has to.
    """
    from postroom.inspection import Deployment

    use_endpoint(endpoint_url)
    sys.path.insert(0, str(directory.resolve()))
    deployment = Deployment(
        grace=grace,
        replicas=replicas,
        max_connections=max_connections,
        attributes=once(map(_pair, attributes)) or None,
        body=body,
    )
    # What the modules print is not part of a document, nor of the table.
    with redirect_stdout(sys.stderr):
        reports = [report for name in consumers for report in _reports(name, deployment, offline=offline)]
    if policy_only:
        click.echo(json.dumps(_merged(reports), indent=2))
    elif as_json:
        click.echo(json.dumps([{**asdict(report), "failed": report.failed} for report in reports], indent=2))
    else:
        for report in reports:
            click.echo(_table(report))
    sys.exit(int(ExitCode.CONFIGURATION if any(report.failed for report in reports) else ExitCode.CLEAN))


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals or not value:
        raise click.UsageError(f"--attribute takes NAME=VALUE, such as tenantId=tenant-a; got {text!r}")
    return name, value


def _reports(name: str, deployment: "Deployment", *, offline: bool) -> "Iterator[Report]":
    """Import what a name means and look at it. What its import raises is the finding."""
    from postroom.consumer.loading import WrongName, load_consumers
    from postroom.inspection import Finding, Level, Report, inspect_consumer

    try:
        loaded: list[Consumer[Any, Any]] = load_consumers(name)
    except WrongName as problem:
        yield Report(name, [Finding(Level.ERROR, "import", str(problem))])
        return
    except (Exception, SystemExit) as problem:  # what exits while it is imported says so of itself, and is not checked
        advice = f"it is raised at {place_of(problem)}"
        yield Report(name, [Finding(Level.ERROR, "import", describe(problem), advice)])
        return
    if not loaded:  # else nothing was looked at, and a step of a pipeline passes
        yield Report(name, [Finding(Level.ERROR, "import", f"{name!r} has no consumers: the list is empty")])
    for consumer in loaded:
        yield asyncio.run(inspect_consumer(consumer, deployment, offline=offline))


def _merged(reports: "Sequence[Report]") -> dict[str, Any]:
    """Return one policy for all: statements that differ get a number, for a Sid has to be unique."""
    statements: list[dict[str, Any]] = []
    for report in reports:
        for statement in report.policy.get("Statement", ()):
            if statement not in statements:
                statements.append(statement)
    seen: dict[str, int] = {}
    for index, statement in enumerate(statements):
        sid = statement["Sid"]
        seen[sid] = seen.get(sid, 0) + 1
        if seen[sid] > 1:
            statements[index] = {**statement, "Sid": f"{sid}{seen[sid]}"}
    return {"Version": "2012-10-17", "Statement": statements}


def _table(report: "Report") -> str:
    lines = [f"Consumer of {report.queue}", ""]
    for finding in report.findings:
        lines += _row(finding)
    if report.policy:
        lines += ["", "The least IAM policy that it needs (your own code may need more):", ""]
        lines += [json.dumps(report.policy, indent=2)]
    counts = {level: sum(finding.level == level for finding in report.findings) for level in _COLOURS}
    lines += [
        "",
        f"{counts['error']} to change, {counted(counts['warning'], 'warning')}, {counts['unknown']} not known",
        "",
    ]
    return "\n".join(lines)


def _row(finding: "Finding") -> Iterator[str]:
    level = click.style(f"{finding.level.value.upper():<9}", fg=_COLOURS[finding.level])
    head = f"{level}{finding.topic:<{_INDENT - 9}}"
    first, *rest = textwrap.wrap(finding.found, _WIDTH, break_on_hyphens=False) or [""]
    yield head + first
    for line in rest:
        yield " " * _INDENT + line
    for index, line in enumerate(textwrap.wrap(finding.advice, _WIDTH - 3, break_on_hyphens=False)):
        yield " " * _INDENT + ("-> " if not index else "   ") + line
