"""The README's code runs as it stands: real databases, and the SQS protocol over HTTP."""

import ast
import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from postroom import Concurrency, Faults, Polling, RetryPolicy, Shutdown, Visibility
from postroom.local import LocalBroker, LocalServer
from postroom.local.shapes import AttributeValue, Send
from postroom.testing.postgres import PostgresServer

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
[COMMANDS] = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
SMALL, FIRST, SECOND = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
SCHEMA = "CREATE TABLE orders (order_id text PRIMARY KEY, customer_id text, amount numeric)"


@pytest.fixture
async def broker(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalBroker]:
    """A local SQS that the environment points to, as it would to any endpoint."""
    async with LocalBroker() as made, LocalServer(made) as server:
        for name, value in {
            "AWS_ENDPOINT_URL_SQS": server.endpoint_url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }.items():
            monkeypatch.setenv(name, value)
        made.create_queue("tenant-orders")
        yield made


def namespace(postgres: PostgresServer, *tenants: str) -> dict[str, Any]:
    """Run the first block as a module that is imported, with databases of this machine's."""
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(FIRST, "README.md", "exec"), names)  # noqa: S102 - the README's own code is what is tested
    for tenant in tenants:
        names["DSNS"][tenant] = postgres.create_database(f"readme-{tenant}-{id(names)}", schema=SCHEMA)
    return names


def send(broker: LocalBroker, order_id: str, tenant: str) -> None:
    """Send an order as the README's service expects it."""
    body = json.dumps({"order_id": order_id, "customer_id": "cust-123", "amount": "99.99"})
    attributes = {
        "tenantId": AttributeValue(string_value=tenant, data_type="String"),
        "region": AttributeValue(string_value="eu-west-1", data_type="String"),
    }
    broker.send("tenant-orders", Send(message_body=body, message_attributes=attributes))


async def until(happened: Callable[[], bool]) -> None:
    """Wait until something has happened, for ten seconds at most."""
    async with asyncio.timeout(10):
        while not happened():
            await asyncio.sleep(0.01)


async def rows(dsn: str) -> list[tuple[Any, ...]]:
    """Read a tenant's orders."""
    connection = await asyncpg.connect(dsn)
    try:
        return [tuple(row) for row in await connection.fetch("SELECT * FROM orders ORDER BY order_id")]
    finally:
        await connection.close()


async def test_the_smallest_example_needs_no_database(broker: LocalBroker, capsys: pytest.CaptureFixture[str]) -> None:
    """A consumer with a context and a handler, and nothing else."""
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(SMALL, "README.md", "exec"), names)  # noqa: S102 - as below
    broker.create_queue("greetings")
    attributes = {"tenantId": AttributeValue(string_value="acme", data_type="String")}
    broker.send("greetings", Send(message_body='{"text": "hello"}', message_attributes=attributes))
    async with names["greetings"] as greetings:
        await until(lambda: sum(greetings.statistics().settled.values()) == 1)
    assert capsys.readouterr().out == "acme: hello\n"


def test_the_first_commands_print_what_the_readme_says(tmp_path: Path) -> None:
    """A local SQS, the smallest example and a message, as a shell runs them; only the port is another."""
    (tmp_path / "greetings.py").write_text(SMALL)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    install, script = COMMANDS.replace("4566", port).split("\n", 1)
    assert install.startswith("pip install /path/to/postroom")
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shell = subprocess.Popen(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": programs, "POSTROOM_LOCAL_PORT": port, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # the block leaves two programs in the background: all end together
    )
    assert shell.stdout is not None
    try:
        # what `postroom send` prints may come between the text and its end of line
        assert any(line.startswith("acme: hello") for line in shell.stdout)
    finally:
        os.killpg(shell.pid, signal.SIGTERM)
        shell.communicate(timeout=30)


async def test_the_first_example_writes_each_order_to_its_tenants_database(
    broker: LocalBroker, postgres_server: PostgresServer
) -> None:
    """And a message of a tenant that does not exist is a permanent failure, as the text below it says."""
    names = namespace(postgres_server, "tenant-a", "tenant-b")
    orders = names["orders"]
    send(broker, "order-001", "tenant-a")
    send(broker, "order-002", "tenant-b")
    send(broker, "order-999", "nobody")
    async with orders:
        await until(lambda: sum(orders.statistics().settled.values()) == 3)
        statistics = orders.statistics()
    for tenant, order in (("tenant-a", "order-001"), ("tenant-b", "order-002")):
        assert [row[0] for row in await rows(names["DSNS"][tenant])] == [order]
    assert statistics.failed == {"ResourceOpenError": 1}
    assert statistics.pool.opened == 2


async def test_the_second_example_shares_the_pool(broker: LocalBroker, postgres_server: PostgresServer) -> None:
    """Pool and consumer in one ``async with``: handlers drain before the pool closes."""
    names = namespace(postgres_server, "tenant-a")
    names |= {"until": until, "send": send, "broker": broker}
    exec("from postroom import PoolLimits, ResourcePool", names)  # noqa: S102 - as above
    body = SECOND.replace("    ...", "    await work(databases)")
    exec(f"async def example(work):\n{textwrap.indent(body, '    ')}", names)  # noqa: S102 - as above

    async def web_route(databases: Any) -> None:
        send(broker, "order-001", "tenant-a")
        tenant = names["Tenant"]("tenant-a", "eu-west-1")
        await until(lambda: broker.attributes("tenant-orders")["ApproximateNumberOfMessagesNotVisible"] == "0")
        async with databases.lease(tenant) as pool, asyncio.timeout(10):
            while await pool.fetchval("SELECT count(*) FROM orders") != 1:
                await asyncio.sleep(0.01)

    await names["example"](web_route)
    assert [row[0] for row in await rows(names["DSNS"]["tenant-a"])] == ["order-001"]


def test_every_document_that_is_linked_exists() -> None:
    """No dead link from one document of the project to another."""
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def slug(heading: str) -> str:
    """Return the anchor that a heading gets where Markdown is shown."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_every_heading_that_is_linked_exists() -> None:
    """No link to a section that was renamed."""
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", document.read_text()):
            linked = (document.parent / target) if target else document
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), flags=re.MULTILINE)
            assert anchor in map(slug, headings), f"{document.name} links to {target}#{anchor}"


@pytest.mark.parametrize(
    "options", [Concurrency, Polling, Visibility, RetryPolicy, Faults], ids=lambda each: each.__name__
)
def test_the_table_of_options_has_the_defaults(options: type[Any]) -> None:
    """Every default that the README names is the real one, and only ``overrides`` and ``weights`` are left out."""
    [shown] = re.findall(rf"`{options.__name__}\((.+?)\)`", README)
    call = ast.parse(f"f({shown.replace(' MiB', ' * 1024 * 1024')})", mode="eval").body
    assert isinstance(call, ast.Call)
    said = {each.arg: eval(ast.unparse(each.value), {}) for each in call.keywords}  # noqa: S307 - numbers
    real = {each.name: getattr(options(), each.name) for each in fields(options)}
    assert {name: value for name, value in real.items() if name not in {"overrides", "weights"}} == said


def test_the_stages_of_a_stop_are_the_real_ones() -> None:
    """They are named in the README, and add up to what it says."""
    [within, stages] = re.search(r"`Shutdown\(within=(\d+)\)`, or its stages: `(.+?)`", README).groups()  # type: ignore[union-attr]
    said = {name: float(value) for name, value in re.findall(r"(\w+)=(\d+)", stages)}
    assert said == {each.name: getattr(Shutdown(), each.name) for each in fields(Shutdown)}
    assert Shutdown().total == float(within)
