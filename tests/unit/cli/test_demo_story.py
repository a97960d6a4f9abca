"""The demo's story: what is sent, as anybody would send it, and how what was read back is judged."""

import json
import logging
import shlex
import socket
import sqlite3
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from postroom.cli.demo.databases import dead_port, read_file, with_database
from postroom.cli.demo.story import FAILING, SERVED, Finding, Order, rows_of
from postroom.cli.logs import _Formatter

EVIL = Order("o'1", "c 2", Decimal("1.10"), "tenant 'x'", "$(id)")


@pytest.mark.parametrize("order", [*SERVED, *FAILING, EVIL], ids=lambda order: order.order_id)
def test_the_printed_command_sends_what_the_demo_sends(order: Order) -> None:
    """A shell reads it back to the same body and attributes, whatever is in them."""
    words = shlex.split(order.command("http://127.0.0.1:4566/0/q", "http://127.0.0.1:4566").replace("\\\n", " "))
    assert words[:3] == ["aws", "sqs", "send-message"]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    outgoing = order.outgoing()
    assert options["--message-body"] == outgoing.body
    attributes = json.loads(options.get("--message-attributes", "{}"))
    sent = {name: value.string_value for name, value in outgoing.message_attributes.items()}
    assert {name: value["StringValue"] for name, value in attributes.items()} == sent
    assert options["--endpoint-url"] == "http://127.0.0.1:4566"


def test_without_an_endpoint_the_command_is_for_aws() -> None:
    """No --endpoint-url then."""
    assert "--endpoint-url" not in SERVED[0].command("https://sqs.example/1/q", None)


def test_amounts_are_sent_digit_by_digit() -> None:
    """Money takes no way through a float."""
    body = json.loads(SERVED[0].body, parse_float=Decimal)
    assert body == {"orderId": "order-001", "customerId": "cust-123", "amount": Decimal("99.99")}


def test_each_tenant_must_have_its_own_rows_only() -> None:
    """And the one with a database that is down none at all."""
    assert rows_of("tenant-a") == [
        ("order-001", "cust-123", Decimal("99.99")),
        ("order-003", "cust-789", Decimal("199.99")),
    ]
    assert rows_of("tenant-c") is None


def test_a_finding_that_is_wrong_says_what_it_must_be() -> None:
    """One that is right says what it is."""
    rows = [("order-001", "cust-123", Decimal("99.99"))]
    assert str(Finding("rows", rows, rows)) == "rows: order-001 cust-123 99.99"
    wrong = Finding("rows", None, rows)
    assert not wrong.right
    assert str(wrong) == "rows: no table (must be order-001 cust-123 99.99)"
    assert str(Finding("dead", {"b", "a"}, {"a"})) == "dead: a, b (must be a)"
    assert str(Finding("left", (0, 0, 0), (0, 0, 0))) == "left: 0, 0, 0"


def test_a_file_is_read_without_being_made(tmp_path: Path) -> None:
    """Reading back must not change what is read."""
    assert read_file(tmp_path / "a") is None
    assert list(tmp_path.iterdir()) == []
    connection = sqlite3.connect(tmp_path / "a")
    connection.execute("CREATE TABLE orders (order_id, customer_id, amount)")
    connection.execute("INSERT INTO orders VALUES ('order-001', 'cust-123', '99.99')")
    connection.commit()
    connection.close()
    assert read_file(tmp_path / "a") == [("order-001", "cust-123", Decimal("99.99"))]


def test_an_outage_of_the_demo_is_one_line_with_its_cause() -> None:
    """A traceback of thirty lines would hide what the demo shows; other loggers keep theirs."""
    formatter = _Formatter(colour=False, brief=["postroom.pool"])
    try:
        raise OSError("unable to open database file")
    except OSError:
        found = sys.exc_info()
    for name, lines in (("postroom.pool", 1), ("shop", 5)):
        record = logging.LogRecord(name, logging.ERROR, "x.py", 1, "not available: %s", (found[1],), found)
        text = formatter.format(record)
        assert (text.count("\n") + 1 >= lines, "Traceback" in text) == (True, lines > 1)
        assert "not available: unable to open database file" in text
        assert record.exc_info is found  # other handlers get all of it


def test_the_dead_port_refuses_and_cannot_be_taken() -> None:
    """A tenant's database that is down stays down."""
    with dead_port() as port:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))


def test_a_database_of_the_same_server_keeps_the_rest_of_the_dsn() -> None:
    """User, password, port and parameters."""
    dsn = "postgresql://u:p@db:5433/postgres?sslmode=require"
    assert with_database(dsn, "a b") == "postgresql://u:p@db:5433/a%20b?sslmode=require"
