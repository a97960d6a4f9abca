"""``postroom dead-letters`` and ``peek``, against a local SQS over HTTP."""

import http.client
import json
import signal
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from postroom.cli import CommandError, main
from postroom.cli.letter_ids import whole_ids
from postroom.dead_letters import LetterFilter
from postroom.dead_letters.walking import Walk
from postroom.local.shapes import AttributeValue, Send
from postroom.local.threaded import ThreadedServer
from postroom.message import Message
from support.signals import interrupt


class Desk:
    """A queue of which some messages became dead letters, and the command line."""

    def __init__(self, server: ThreadedServer, directory: Path) -> None:
        self.server = server
        self.journal = directory / "journal.jsonl"
        server.create_queue("dead")
        arn = server.call(lambda broker: broker.attributes("dead")["QueueArn"])
        policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": "1"})
        url = server.create_queue("orders", {"RedrivePolicy": policy, "VisibilityTimeout": "0"})

        def send(letter: Send) -> None:
            server.call(lambda broker: broker.send("orders", letter))

        for number in range(5):
            tenant = "acme" if number < 3 else "beta"
            named = {"tenantId": AttributeValue(string_value=tenant, data_type="String")}
            send(Send(message_body=f"secret-{number}", message_group_id=tenant, message_attributes=named))
        for _ in range(2):  # the second receive finds that the first was the last
            self._receive(url)
        assert server.counts("dead") == (5, 0, 0)

    def _receive(self, url: str) -> None:
        """Receive what is there, without the second that a command waits for more."""
        asked = json.dumps({"QueueUrl": url, "MaxNumberOfMessages": 10}).encode()
        target = {"X-Amz-Target": "AmazonSQS.ReceiveMessage", "Content-Type": "application/x-amz-json-1.0"}
        connection = http.client.HTTPConnection(self.server.endpoint_url.removeprefix("http://"))
        connection.request("POST", "/", asked, target)
        connection.getresponse().read()
        connection.close()

    def run(self, *words: str) -> Result:
        """Run a command."""
        return CliRunner().invoke(main, [*words, "--endpoint-url", self.server.endpoint_url])

    def letters(self, command: str, *words: str) -> Result:
        """Run one of ``dead-letters``."""
        more = ["--journal", str(self.journal)] if command in {"redrive", "purge"} else []
        return self.run("dead-letters", command, "dead", *words, *more)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """Five dead letters of two tenants."""
    for name in ("AWS_ENDPOINT_URL_SQS", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "")  # the command sets them: this undoes it
        monkeypatch.delenv(name)
    with ThreadedServer() as server:
        yield Desk(server, tmp_path)


def test_letters_are_listed_shown_redriven_and_purged_by_tenant(desk: Desk) -> None:
    """Dry run first; acting needs a reason; bodies are shown only when asked for."""
    listed = desk.letters("list")
    assert listed.exit_code == 0, listed.output
    assert listed.output.splitlines()[1].split() == ["3", "acme", "received", "too", "often"]
    assert "secret" not in listed.output

    letter = listed.output.splitlines()[-1].split()[0]
    shown = desk.run("dead-letters", "show", "dead", letter, "--tenant-from", "attribute:tenantId")
    assert "received too often" in shown.output
    assert "secret" not in shown.output
    assert "secret" in desk.run("dead-letters", "show", "dead", letter, "--body").output

    dry = desk.letters("redrive", "--tenant", "acme")
    assert "Dry run: 3 of 5 letters would be sent home" in dry.output
    assert not desk.journal.exists()
    refused = desk.letters("redrive", "--tenant", "acme", "--yes")
    assert refused.exit_code == 2
    assert "--yes needs --reason" in refused.output
    assert desk.server.counts("dead") == (5, 0, 0)

    done = desk.letters("redrive", "--tenant", "acme", "--yes", "--reason", "fixed")
    assert done.exit_code == 0, done.output
    assert "3 of 3 letters were sent home" in done.output
    assert desk.server.counts("orders") == (3, 0, 0)
    assert json.loads(desk.journal.read_text().splitlines()[-1])["reason"] == "fixed"

    gone = desk.letters("purge", "--tenant", "beta", "--yes", "--reason", "tenant has left")
    assert "2 of 2 letters were deleted" in gone.output
    assert desk.letters("list").output == "No letters.\n"
    assert desk.letters("redrive").output == "No letters.\n"


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["list", "orders"], 2, "Name the dead-letter queue, not its source"),
        (["list", "nothing"], 2, "nothing"),
        (["list", "dead", "--older-than", "soon"], 2, "is not a duration"),
        (["list", "dead", "--tenant-from", "name"], 2, "takes group, attribute:NAME or MODULE:CONSUMER"),
        (
            ["list", "dead", "--tenant-from", "no_such.module:orders"],
            2,
            "say --directory",
        ),
        (["show", "dead", "no-such-id"], 1, "no letter 'no-such-id'"),
        (["redrive", "dead", "--to", "dead"], 2, "is the dead-letter queue itself"),
    ],
)
def test_a_wrong_word_says_what_to_write(desk: Desk, words: list[str], code: int, text: str) -> None:
    """One line, and the exit code of something to change."""
    result = desk.run("dead-letters", *words)
    assert (result.exit_code, text in result.output) == (code, True), result.output


def test_the_beginning_of_an_id_will_do(desk: Desk) -> None:
    """As long as one letter alone has it; else all that have it are named, and nothing is done."""
    ids = [line.split()[0] for line in desk.letters("list").output.splitlines()[-5:]]
    shown = desk.run("dead-letters", "show", "dead", ids[0][:12])
    assert shown.output.splitlines()[0].split() == ["id", ids[0]]
    purged = desk.letters("purge", "--id", ids[1][:12], "--id", ids[2], "--yes", "--reason", "test")
    assert "2 of 2 letters were deleted" in purged.output
    left = [line.split()[0] for line in desk.letters("list").output.splitlines()[-3:]]
    assert sorted(left) == sorted({*ids} - {ids[1], ids[2]})


def test_a_beginning_that_says_too_little_is_refused(desk: Desk) -> None:
    """A short one before anything is looked at, one that no letter has with the list as the remedy."""
    short = desk.letters("purge", "--id", "abc", "--yes", "--reason", "test")
    assert (short.exit_code, short.stderr) == (
        2,
        "Error: an id, or at least 4 characters of its beginning; got 'abc'\n",
    )
    missing = desk.run("dead-letters", "show", "dead", "zzzz")
    assert missing.exit_code == 1
    assert "No letter has an id that begins with 'zzzz'" in missing.stderr
    assert desk.server.counts("dead") == (5, 0, 0)


async def test_letters_with_the_same_beginning_are_all_named() -> None:
    """Ten of them, and how many more there are."""
    found = [SimpleNamespace(id=f"same-{n}", message_id=f"own-{n}", tenant="acme" if n else None) for n in range(12)]

    async def letters(_: LetterFilter) -> AsyncGenerator[Any]:
        for each in found:
            yield each

    queue: Any = SimpleNamespace(letters=letters)
    assert await whole_ids(queue, ["own-11"], LetterFilter()) == ("same-11",)
    with pytest.raises(CommandError) as refused:
        await whole_ids(queue, ["same"], LetterFilter())
    lines = refused.value.message.splitlines()
    assert lines[:3] == ["12 letters have an id that begins with 'same':", "  same-0  -", "  same-1  acme"]
    assert lines[-1] == "  and 2 more"


def test_letters_that_stay_are_counted_by_why_and_the_exit_code_says_so(desk: Desk) -> None:
    """A letter that was sent by hand tells no source."""
    desk.server.call(lambda broker: broker.send("dead", Send(message_body="x", message_group_id="odd")))
    result = desk.letters("redrive", "--tenant", "odd", "--yes", "--reason", "try")
    assert result.exit_code == 1
    assert "1 stayed: it does not tell which queue it came from; name one with to= (--to)" in result.output


def test_where_no_letter_is_meant_no_action_is_advised(desk: Desk) -> None:
    """A dry run that found nothing to do says so, and how a tenant is found that is no message group."""
    result = desk.letters("purge", "--tenant", "gamma")
    assert (result.exit_code, result.stdout) == (0, "None of 5 letters is one of these.\n")
    assert "try --tenant-from attribute:NAME" in result.stderr


def test_where_no_letter_tells_its_tenant_the_list_says_how_it_is_found(desk: Desk) -> None:
    """Senders that set no message group name the tenant in an attribute."""
    desk.server.call(lambda broker: broker.purge("dead"))
    named = {"tenantId": AttributeValue(string_value="acme", data_type="String")}
    desk.server.call(lambda broker: broker.send("dead", Send(message_body="x", message_attributes=named)))
    assert "try --tenant-from attribute:NAME" in desk.letters("list").stderr
    found = desk.letters("list", "--tenant-from", "attribute:tenantId")
    assert (found.stderr, found.stdout.splitlines()[1].split()[:2]) == ("", ["1", "acme"])


def test_what_a_terminal_cannot_show_is_escaped(desk: Desk) -> None:
    """A reason with an arrow, where the locale is not UTF-8: no traceback, and the rest is shown."""
    named = {"postroom.reason": AttributeValue(string_value="5 € → 6 €", data_type="String")}
    desk.server.call(lambda broker: broker.send("dead", Send(message_body="{}", message_attributes=named)))
    command = ["dead-letters", "list", "dead", "--endpoint-url", desk.server.endpoint_url]
    done = CliRunner(charset="iso-8859-15").invoke(main, command)
    assert done.exit_code == 0, done.exception
    assert "5 € \\u2192 6 €" in done.stdout
    assert "received too often" in done.stdout


def test_peek_leaves_messages_where_they_are(desk: Desk) -> None:
    """With one receive more, which it says in its help."""
    first = desk.run("peek", "dead", "--count", "3")
    assert len(first.output.splitlines()) == 4, first.output
    assert "secret" not in first.output
    assert desk.server.counts("dead") == (5, 0, 0)
    assert "secret-" in desk.run("peek", "dead", "--body").output
    assert desk.run("peek", "orders").output == "No messages.\n"


def test_peek_tells_of_messages_that_it_cannot_see(desk: Desk) -> None:
    """A queue with everything in flight is not empty."""
    desk.server.call(lambda broker: broker.send("orders", Send(message_body="x", delay_seconds=60)))
    assert desk.run("peek", "orders").output == "No visible messages; 1 are in flight or delayed.\n"


@pytest.mark.parametrize(("command", "shown"), [("list", "3  acme"), ("show", "")])
def test_a_signal_leaves_no_letter_invisible(
    desk: Desk, command: str, shown: str, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while they are only looked at: what was seen is shown, and the exit code says that there may be more."""
    receive = Walk._receive
    asked: list[None] = []

    async def interrupted(walk: Walk) -> list[Message]:
        asked.append(None)
        if len(asked) == 2:
            await interrupt(number)
        return await receive(walk)

    monkeypatch.setattr(Walk, "_receive", interrupted)
    result = desk.letters(command, *(["abcd"] if command == "show" else []))
    assert len(asked) >= 2
    assert result.exit_code == 1
    assert "interrupted: it ends with the batch that is under way; once more to end at once" in result.output
    assert "it was interrupted" in result.output.splitlines()[-1]
    assert shown in result.output
    assert desk.server.counts("dead") == (5, 0, 0)


@pytest.mark.parametrize("command", ["list", "redrive", "purge"])
def test_letters_that_others_hold_are_not_no_letters(desk: Desk, command: str) -> None:
    """Another operator looks at them, or a command was killed: it says how many, and when they are back."""
    desk.server.create_queue("other")
    desk.server.call(lambda broker: broker.send("other", Send(message_body="x", delay_seconds=60)))
    result = desk.run("dead-letters", command, "other")
    assert result.exit_code == 0
    text = "another command looks at them, or one was killed: they are visible again within its --hold"
    assert result.output == f"No visible letters; 1 are in flight or delayed: {text}.\n"


def test_a_misspelled_tenant_is_told_from_an_empty_queue(desk: Desk) -> None:
    """With the name that is near."""
    result = desk.letters("list", "--tenant", "acmee", "--tenant-from", "attribute:tenantId")
    assert (result.exit_code, result.output) == (0, "None of 5 letters is one of these.\nIs it 'acme'?\n")
    far = desk.letters("list", "--tenant", "nothing-alike")
    assert far.output.startswith("None of 5 letters is one of these.\nA letter's tenant is its message group;")
