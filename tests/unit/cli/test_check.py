"""``postroom check``: five wrong set-ups against a real local SQS, and what it says to each."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from postroom.cli import main
from postroom.local.threaded import ThreadedServer

APP = """
from dataclasses import dataclass
from contextlib import asynccontextmanager
from postroom import (
    Concurrency, Consumer, MessageContext, PoolLimits, ResourcePool, RetryPolicy, Shutdown, Visibility,
)

@dataclass(frozen=True)
class Tenant:
    tenant_id: str

@dataclass(frozen=True)
class Order:
    number: int

@asynccontextmanager
async def database(tenant):
    yield "a database"

def made(queue="orders", context=Tenant, timeout=10, expects=Tenant, **options):
    consumer = Consumer(queue, context=context, concurrency=Concurrency(handler_timeout=timeout), **options)
    async def handle(order: Order, ctx: MessageContext[expects, object]) -> None: ...
    return consumer, consumer.handler(handle)

good, _ = made()
types, _ = made(expects=str)
no_queue, _ = made("ordres")
short, _ = made(visibility=Visibility(timeout=20, heartbeat=False), timeout=60)
attempts, _ = made(retry=RetryPolicy(attempts=20))
slow, _ = made(shutdown=Shutdown(within=60))
pooled, _ = made(resources=ResourcePool(database, weight=1, limits=PoolLimits(budget=50)))
both = [good, pooled]
none = []
"""


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with consumers; what the command changes in this process is undone afterwards."""
    for name in ("AWS_ENDPOINT_URL_SQS", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "for the record")
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "shop_check.py").write_text(textwrap.dedent(APP))
    (tmp_path / "shop_broken.py").write_text("\nimport not_installed_anywhere\n")
    (tmp_path / "shop_typo.py").write_text("orders = 1\ndef handle(:\n")
    (tmp_path / "shop_exits.py").write_text('import sys\nsys.exit("ORDERS_DSN is not set")\n')
    (tmp_path / "shop_exits_well.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "shop_prints.py").write_text('print("settings were read", flush=True)\nfrom shop_check import good\n')
    (tmp_path / "shop_refused.py").write_text('raise OSError("no entry in postgres://app:hunter2@db/acme")\n')
    yield tmp_path
    sys.modules.pop("shop_check", None)


@pytest.fixture
def server() -> Iterator[ThreadedServer]:
    """A local SQS with a queue and a dead-letter queue as they should be."""
    with ThreadedServer() as running:
        running.create_queue("dead", {"MessageRetentionPeriod": "1209600"})
        redrive = {"deadLetterTargetArn": "arn:aws:sqs:us-east-1:000000000000:dead", "maxReceiveCount": "10"}
        running.create_queue("orders", {"RedrivePolicy": json.dumps(redrive)})
        yield running


def check(server: ThreadedServer, app: Path, *arguments: str) -> Result:
    """Run the command in this process."""
    command = ["check", "--directory", str(app), "--endpoint-url", server.endpoint_url, *arguments]
    return CliRunner().invoke(main, command)


def findings(result: Result) -> dict[tuple[str, str], dict[str, str]]:
    """Return the findings of the only report by level and topic."""
    [report] = json.loads(result.stdout)
    return {(finding["level"], finding["topic"]): finding for finding in report["findings"]}


def test_a_good_setup_ends_with_0_and_prints_the_policy(server: ThreadedServer, app: Path) -> None:
    """Everything is looked at, and nothing of it has to change."""
    result = check(server, app, "shop_check:good")
    assert result.exit_code == 0, result.output
    assert "0 to change, 0 warnings, 0 not known" in result.output
    for text in (
        "OK       handler",
        "8 attempts of 10 receives; 2 are left for outages",
        "dead keeps messages for 14 days",
        "allowed: sqs:DeleteMessage, sqs:ChangeMessageVisibility, sqs:ReceiveMessage",
        '"Resource": "arn:aws:sqs:us-east-1:000000000000:orders"',
    ):
        assert text in result.output, result.output


@pytest.mark.parametrize(
    ("target", "topic", "found", "advice"),
    [
        ("types", "context", "expects str", "MessageContext[Tenant, ...]"),
        ("no_queue", "queue", "does not exist", "create it"),
        ("short", "visibility", "60 s, and without heartbeat", "Visibility(timeout=90)"),
        ("attempts", "attempts", "maxReceiveCount is 10", "maxReceiveCount to 25"),
        ("slow", "stop", "kills after 30 s", "Shutdown(within=25)"),
    ],
)
def test_five_wrong_setups_end_with_2_and_the_remedy(  # noqa: PLR0917 - the table's columns
    server: ThreadedServer, app: Path, target: str, topic: str, found: str, advice: str
) -> None:
    """One error each, in the words of the options to change."""
    result = check(server, app, f"shop_check:{target}", "--json")
    assert result.exit_code == 2, result.output
    finding = findings(result)["error", topic]
    assert found in finding["found"]
    assert advice in finding["advice"]
    assert sum(level == "error" for level, _ in findings(result)) == 1


def test_a_dead_letter_queue_that_forgets_first_is_an_error(server: ThreadedServer, app: Path) -> None:
    """A message that is moved keeps its age: it would be gone when someone looks."""
    server.call(lambda broker: broker.set_attributes("dead", {"MessageRetentionPeriod": "3600"}))
    result = check(server, app, "shop_check:good", "--json")
    assert result.exit_code == 2
    assert findings(result)["error", "dead letters"]["found"] == (
        "dead keeps messages for 3600 s, orders for 4 days; the age counts on"
    )


def test_connections_of_all_replicas_are_counted(server: ThreadedServer, app: Path) -> None:
    """The same set-up fits with one replica, and not with three."""
    fits = check(server, app, "shop_check:pooled", "--max-connections", "100", "--json")
    many = check(server, app, "shop_check:pooled", "--max-connections", "100", "--replicas", "3", "--json")
    assert (fits.exit_code, many.exit_code) == (0, 2)
    assert "PoolLimits(budget=33)" in findings(many)["error", "connections"]["advice"]


def test_no_message_that_waits_is_touched(server: ThreadedServer, app: Path) -> None:
    """Its receives are what its attempts are made of."""
    server.call(lambda broker: broker.send("orders", "{}"))
    result = check(server, app, "shop_check:good", "--json")
    assert result.exit_code == 0
    assert ("unknown", "permissions") in findings(result)
    received = server.call(lambda broker: broker.queue("orders"))
    assert server.counts("orders") == (1, 0, 0)
    assert received is not None


def test_one_policy_covers_several_consumers(server: ThreadedServer, app: Path) -> None:
    """Equal statements appear once."""
    result = check(server, app, "shop_check:both", "--policy")
    policy = json.loads(result.stdout)
    assert [statement["Sid"] for statement in policy["Statement"]] == ["Consume", "Reject"]


def test_an_import_that_fails_is_a_finding_with_its_place(server: ThreadedServer, app: Path) -> None:
    """The line of the user's own file, and no traceback."""
    result = check(server, app, "shop_broken:orders", "--json")
    assert result.exit_code == 2
    finding = findings(result)["error", "import"]
    assert "not_installed_anywhere" in finding["found"]
    assert finding["advice"].endswith("shop_broken.py:2")


def test_a_name_without_consumers_does_not_pass(server: ThreadedServer, app: Path) -> None:
    """A list that settings left empty: nothing was looked at."""
    result = check(server, app, "shop_check:none", "--json")
    assert result.exit_code == 2
    assert findings(result)["error", "import"]["found"] == "'shop_check:none' has no consumers: the list is empty"


@pytest.mark.parametrize(
    ("module", "found"), [("shop_exits", "SystemExit: ORDERS_DSN is not set"), ("shop_exits_well", "SystemExit: 0")]
)
def test_a_module_that_exits_is_a_finding_with_its_place(
    server: ThreadedServer, app: Path, module: str, found: str
) -> None:
    """What was not looked at does not pass, and the next consumer is looked at."""
    result = check(server, app, f"{module}:orders", "shop_check:good", "--json")
    assert result.exit_code == 2
    [exits, good] = json.loads(result.stdout)
    [finding] = exits["findings"]
    assert (finding["level"], finding["topic"], finding["found"]) == ("error", "import", found)
    assert finding["advice"].endswith(f"{module}.py:2")
    assert not good["failed"]


@pytest.mark.parametrize("form", ["--json", "--policy"])
def test_what_a_module_prints_is_no_part_of_the_document(server: ThreadedServer, app: Path, form: str) -> None:
    """It goes to stderr, where it hinders no program."""
    result = check(server, app, "shop_prints:good", form)
    sys.modules.pop("shop_prints", None)
    assert result.exit_code == 0
    assert json.loads(result.stdout)
    assert "settings were read" in result.stderr


def test_a_typing_error_is_a_finding_with_its_place(server: ThreadedServer, app: Path) -> None:
    """No frame of the user's code is in its traceback."""
    result = check(server, app, "shop_typo:orders", "--json")
    assert findings(result)["error", "import"]["advice"].endswith("shop_typo.py:2")


def test_an_import_that_fails_is_shown_without_its_secrets(server: ThreadedServer, app: Path) -> None:
    """A module that connects when it is imported may quote its connection string."""
    result = check(server, app, "shop_refused:orders", "--json")
    assert findings(result)["error", "import"]["found"] == "OSError: no entry in postgres://app:***@db/acme"


def test_offline_asks_nothing(app: Path) -> None:
    """No port of this machine answers there, and it does not matter."""
    command = ["check", "--directory", str(app), "--endpoint-url", "http://127.0.0.1:9", "--offline", "shop_check:good"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "queue" not in [line[9:24].strip() for line in result.output.splitlines()]


def test_wrong_options_say_what_to_write(app: Path) -> None:
    """Exit code 2, as for any usage error."""
    for arguments, text in (
        (["--attribute", "tenantId"], "takes NAME=VALUE"),
        (["--grace", "0"], "a number above 0"),
        (["--replicas", "none"], "a whole number of at least 1"),
        (["--attribute", "a=1", "--attribute", "a=2"], "given twice"),
    ):
        result = CliRunner().invoke(main, ["check", "--directory", str(app), "shop_check:good", *arguments])
        assert result.exit_code == 2
        assert text in result.output


def test_it_runs_as_a_process_with_its_options_in_the_environment(server: ThreadedServer, app: Path) -> None:
    """As a step of a pipeline, before anything is deployed."""
    environment: dict[str, Any] = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {
        "AWS_ENDPOINT_URL_SQS": server.endpoint_url,
        "POSTROOM_CONSUMERS": "shop_check:good",
        "POSTROOM_CHECK_GRACE": "20",
        "POSTROOM_CHECK_JSON": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "postroom", "check"],
        cwd=app,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    [report] = json.loads(done.stdout)
    assert [each["topic"] for each in report["findings"] if each["level"] == "error"] == ["stop"]
