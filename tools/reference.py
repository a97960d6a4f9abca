"""Write the reference pages of docs/reference, every public name and command; and docs/llms.txt, a list of all pages.

    python tools/reference.py           # write them
    python tools/reference.py --check   # exit 1 if one is out of date

The text of a name is its docstring, which the site's builder puts in.
"""

import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from postroom.cli import main as command_line

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "reference"
_CONSUMER = (
    "Consumer Queues MessageContext BatchContext Router by_attribute by_field UnknownKind Call CallNext Middleware "
    "ConsumerStatistics QueueStatistics Health Phase Failure current_message run serve "
    "AckMode OnInvalid ExitCode Settlement StopReason Retry Reject Drop AlreadyHandled"
)
TOPICS: dict[str, tuple[str, str, str]] = {
    "consumer": (
        "Consumer",
        "postroom",
        _CONSUMER,
    ),
    "options": ("Options", "postroom", "Concurrency Polling Visibility RetryPolicy Faults Shutdown"),
    "tenants": ("Control of tenants", "postroom", "Tenants TenantStatus TenantState"),
    "pool": (
        "Pool",
        "postroom",
        "ResourcePool Lease PoolLimits PoolTimeouts OpenBackoff PoolStatistics OpenFailure is_outage UnknownTenant",
    ),
    "transactions": ("Transactions", "postroom", "Transactional SyncTransactional TransactionRolledBack"),
    "messages": ("Messages", "postroom", "Message MessageAttribute OutgoingMessage attribute AwsClient"),
}
"""By page: its title, the module, and the names that it begins with. What is left over is on the pages below."""
MODULES = {
    "errors": ("Errors", "postroom.errors"),
    "events": ("Events", "postroom.events"),
    "sending": ("Sending", "postroom.sending"),
    "outbox": ("Outbox", "postroom.outbox"),
    "payloads": ("Payloads and contexts", "postroom.payloads"),
    "datasources": ("Datasources", "postroom.datasources"),
    "transports": ("Transports", "postroom.transports"),
    "local": ("Local SQS", "postroom.local"),
    "console": ("Console", "postroom.console"),
    "fleet": ("Fleet", "postroom.fleet"),
    "dead-letters": ("Dead letters", "postroom.dead_letters"),
    "health": ("Health over HTTP", "postroom.integrations.health"),
    "asgi": ("Health as an ASGI application", "postroom.integrations.asgi"),
    "logs": ("Logs", "postroom.integrations.logs"),
    "telemetry": ("Telemetry", "postroom.integrations.otel"),
    "starlette": ("Starlette", "postroom.integrations.starlette"),
    "fastapi": ("FastAPI", "postroom.integrations.fastapi"),
    "litestar": ("Litestar", "postroom.integrations.litestar"),
    "django": ("Django", "postroom.integrations.django"),
    "inspection": ("Inspection", "postroom.inspection"),
    "testing": ("Testing kit", "postroom.testing"),
    "claim-check": ("Claim check", "postroom.integrations.claim_check"),
    "step-functions": ("Step Functions", "postroom.integrations.step_functions"),
}
"""By page: its title, and the module of which every public name is described."""
INTERNAL = {"in_words", "retry_delay"}
"""What modules without ``__all__`` have for the package itself."""
_DECISIONS = "pause resume quarantine divert limit retry_now invalidate close places drain offboard probe"
_STATEMENTS = "show_attribute_values: false"
SHOWN = {
    "SQLITE_INBOX": _STATEMENTS,  # whole SQL statements: the value would be one line of 3,000 characters
    "SQLITE_OUTBOX": _STATEMENTS,
    # The rest of these is for the consumer, the fleet and the server, which use the same objects.
    "Tenants": f"members: [__getitem__, __iter__, {_DECISIONS.replace(' ', ', ')}]",
    "LocalQueue": "members: [name, arn, fifo, attributes, tags, available, delayed, in_flight, all_attributes]",
}
"""What a page shows of a name, where that is not everything."""


def names_of(module: str) -> list[str]:
    """Return the public names of a module: ``__all__``, or the classes and functions that it defines itself."""
    found = import_module(module)
    public = getattr(found, "__all__", None)
    if public is not None:
        return sorted(public)
    own = [name for name, value in vars(found).items() if getattr(value, "__module__", None) == module]
    return [name for name in own if not name.startswith("_") and name not in INTERNAL]


def described() -> set[str]:
    """Return the names of the package itself that a page describes."""
    told = {name for _, module, names in TOPICS.values() if module == "postroom" for name in names.split()}
    modules = ["postroom.sending", *(module for _, module in MODULES.values())]
    return told | {name for module in modules for name in names_of(module)}


def page(title: str, module: str, names: list[str]) -> str:
    """Return a page that describes names of a module."""
    if not names:
        return f"# {title}\n\n::: {module}\n    options:\n      show_root_heading: false\n"
    return "\n\n".join([f"# {title}", *(entry(module, name) for name in names)]) + "\n"


def entry(module: str, name: str) -> str:
    """Return what makes the site's builder put in the docstring of a name."""
    shown = f"\n    options:\n      {SHOWN[name]}" if name in SHOWN else ""
    return f"::: {module}.{name}{shown}"


def commands() -> str:
    """Return a page with the help of every command."""
    parts = ["# Command line", "Every option can be given as an environment variable, which its help names."]

    def tell(command: click.Command, path: str, parent: click.Context | None) -> None:
        settings: dict[str, Any] = {**command.context_settings, "max_content_width": 82}
        with click.Context(command, info_name=path.rsplit(" ", 1)[-1], parent=parent, **settings) as context:
            context.terminal_width = 82
            parts.append(f"## {path}\n\n```text\n{command.get_help(context)}\n```")
            if isinstance(command, click.Group):
                for name in command.list_commands(context):
                    child = command.get_command(context, name)
                    if child is not None and not child.hidden:
                        tell(child, f"{path} {name}", context)

    tell(command_line, "postroom", None)
    return "\n\n".join(parts) + "\n"


def llms() -> str:
    """Return the list of pages with their first sentences, in the form that language models are given (llmstxt.org)."""
    lines = [
        "# postroom",
        "",
        "> Consume Amazon SQS in multi-tenant systems, in typed asyncio Python.",
        "",
        "## Pages",
        "",
    ]
    for path in sorted((ROOT / "docs").glob("*.md")):
        title, _, text = path.read_text().partition("\n")
        after_picture = re.sub(r"^!\[.*\n", "", text.strip()).strip()
        prose = " ".join(re.split(r"\n(?=[^\w*`])", after_picture, maxsplit=1)[0].split())
        first = re.split(r"(?<=[.]) ", prose, maxsplit=1)[0]
        lines.append(f"- [{title.lstrip('# ')}]({path.name}): {first}")
    return "\n".join(lines) + "\n"


def pages() -> dict[Path, str]:
    """Return every page with its text."""
    made = {PAGES / f"{name}.md": page(title, module, names.split()) for name, (title, module, names) in TOPICS.items()}
    for name, (title, module) in MODULES.items():
        made[PAGES / f"{name}.md"] = page(title, module, names_of(module))
    made[PAGES / "cli.md"] = commands()
    made[ROOT / "docs" / "llms.txt"] = llms()
    return made


def main() -> int:
    """Write or check the pages."""
    check = "--check" in sys.argv[1:]
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if check:
            print(f"{path.relative_to(ROOT)} is out of date: run python tools/reference.py")
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(pages()[path])
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
