"""The example's README does what it says: its own commands, on a real queue, with real databases."""

import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
import pytest

from postroom.local.threaded import ThreadedServer
from postroom.testing.postgres import PostgresServer
from support.output import read_until

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "multi_tenant_datasource"
TEXT = (EXAMPLE / "README.md").read_text(encoding="utf-8")
ENDPOINT = "http://localhost:4566"
SECTION = dict(re.findall(r"^### (.*?)\n(.*?)(?=^##|\Z)", TEXT, flags=re.DOTALL | re.MULTILINE))


@pytest.fixture
def server() -> Iterator[ThreadedServer]:
    """A local SQS in the place of the one that the README starts."""
    with ThreadedServer() as running:
        yield running


def commands(section: str) -> list[list[str]]:
    """Return the commands of a section's shell blocks, as a shell splits them."""
    blocks = re.findall(r"```bash\n(.*?)```", SECTION[section], flags=re.DOTALL)
    return _split_at_ends("\n".join(blocks).replace("\\\n", " "))


def _split_at_ends(text: str) -> list[list[str]]:
    """Split shell text at line ends that are not inside quotes; leave comments out."""
    commands: list[list[str]] = []
    rest = ""
    for line in text.splitlines(keepends=True):
        rest += line
        try:
            words = shlex.split(rest, comments=True)
        except ValueError:  # inside quotes
            continue
        if words:
            commands.append(words)
        rest = ""
    return commands


def _options(words: list[str]) -> dict[str, str]:
    return dict(zip(words[::2], words[1::2], strict=True))


def _aws(server: ThreadedServer, words: list[str]) -> None:
    """Do what ``aws sqs <action> --option value ...`` does."""
    assert words[:2] == ["aws", "sqs"]
    options = {name: value.replace(ENDPOINT, server.endpoint_url) for name, value in _options(words[3:]).items()}
    assert options.pop("--endpoint-url") == server.endpoint_url
    client: Any = boto3.client("sqs", **server.client_options)
    with closing(client):
        if words[2] == "create-queue":
            client.create_queue(QueueName=options["--queue-name"])
        else:
            assert words[2] == "send-message"
            attributes = json.loads(options.get("--message-attributes", "{}"))
            client.send_message(
                QueueUrl=options["--queue-url"],
                MessageBody=options["--message-body"],
                MessageAttributes=attributes,
            )


def _environment(server: ThreadedServer, databases: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return {**own, "ORDERS_DATABASES": databases, "AWS_ENDPOINT_URL_SQS": server.endpoint_url, "PYTHONUNBUFFERED": "1"}


def _postroom(server: ThreadedServer, words: list[str], databases: str) -> "subprocess.Popen[str]":
    """Start a ``postroom`` command of the README in the root of the checkout."""
    assert words[0] == "postroom"
    arguments = [word.replace(ENDPOINT, server.endpoint_url) for word in words[1:]]
    return subprocess.Popen(
        [sys.executable, "-m", "postroom", *arguments],
        cwd=ROOT,
        env=_environment(server, databases),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _expected() -> list[str]:
    blocks: list[str] = re.findall(r"```\n(INFO.*?)```", SECTION["Expected output"], flags=re.DOTALL)
    assert len(blocks) == 1
    return blocks[0].splitlines()


def test_every_file_that_the_readme_names_is_there() -> None:
    """And every module is named."""
    named = set(re.findall(r"\]\(([\w./]+\.(?:py|md))\)", TEXT))
    assert all((EXAMPLE / name).is_file() for name in named), named
    modules = {path.name for path in EXAMPLE.glob("*.py")} - {"__init__.py"}
    assert modules <= named


def test_its_commands_have_the_output_that_it_shows(server: ThreadedServer, tmp_path: Path) -> None:
    """Create the queue, run, send, read the log line by line; then look into the databases."""
    (create,) = [words for words in commands("3. Create the queue") if words[0] == "aws"]
    _aws(server, create)
    (run,) = _split_at_ends(re.findall(r"```bash\n(postroom run.*?)```", TEXT, flags=re.DOTALL)[0].replace("\\\n", " "))
    sends = commands("Send test messages")
    worker = _postroom(server, run, str(tmp_path))
    with worker:
        seen = read_until(worker, f"Consuming {server.endpoint_url}")
        for number, words in enumerate(sends, start=1):
            if words[0] == "aws":
                _aws(server, words)
            else:
                assert _postroom(server, words, str(tmp_path)).communicate(timeout=30)[0].strip().count("-") == 4
            seen += read_until(worker, f"Processing order order-{number:03}")
        (missing,) = commands("Missing tenant attributes")
        _aws(server, missing)
        seen += read_until(worker, "Missing required tenant attributes: ")
        worker.send_signal(signal.SIGTERM)
        rest, _ = worker.communicate(timeout=30)
    assert worker.returncode == 0, rest
    position = 0
    for line in _expected():
        position = seen.find(line, position)
        assert position >= 0, f"{line!r} is missing, or too early, in:\n{seen}"
    assert "Context resolution failed for message " in seen
    assert _rows(tmp_path / "tenant-a-us-east-1-db.sqlite") == ["order-001", "order-003", "order-004"]
    assert _rows(tmp_path / "tenant-b-eu-west-1-db.sqlite") == ["order-002"]


def _rows(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [str(row[0]) for row in connection.execute("SELECT order_id FROM orders ORDER BY order_id")]


@pytest.mark.postgres
def test_it_runs_on_postgres_as_the_table_of_variables_says(
    server: ThreadedServer, postgres_server: PostgresServer
) -> None:
    """A server's DSN without a database; each tenant's database exists; as `python -m` this time."""
    names = ["tenant-a-us-east-1-db", "tenant-b-eu-west-1-db"]
    for name in names:
        postgres_server.create_database(name)
    server.create_queue("tenant-orders")
    environment = _environment(server, postgres_server.dsn("x").removesuffix("/x"))
    environment |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "l", "AWS_SECRET_ACCESS_KEY": "l"}
    worker = subprocess.Popen(
        [sys.executable, "-m", "examples.multi_tenant_datasource.main"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with worker:
        for words in [words for words in commands("Send test messages") if words[0] == "aws"]:
            _aws(server, words)
        seen = read_until(worker, "Processing order order-", times=3)
        worker.send_signal(signal.SIGTERM)
        rest, _ = worker.communicate(timeout=30)
    assert worker.returncode == 0, seen + rest
    orders = [postgres_server.execute("SELECT order_id FROM orders ORDER BY 1", database=name) for name in names]
    assert orders == ["order-001\norder-003", "order-002"]
    for name in names:
        postgres_server.drop_database(name)
