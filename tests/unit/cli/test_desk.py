"""``status``, ``tenants``, ``run --reload`` and completion."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner, Result

from postroom import Consumer, TenantState
from postroom.cli import main
from postroom.cli.reloading import _changed, _snapshot
from postroom.cli.status import render
from postroom.console import ConsoleError, ConsoleServer, RemoteConsole, allow_token
from postroom.local import LocalBroker
from postroom.local.shapes import Send
from postroom.local.threaded import ThreadedServer
from postroom.transports.memory import MemoryClient

TOKEN = "correct horse battery"


async def invoke(server: ConsoleServer, *words: str, token: str | None = TOKEN) -> Result:
    """Run a command in a thread, as the console lives in this one."""
    more = ["--url", server.url, *(["--token", token] if token else []), "--operator", "ann"]
    return await asyncio.to_thread(CliRunner().invoke, main, [*words, *more])


async def in_a_process(server: ConsoleServer, *words: str) -> asyncio.subprocess.Process:
    """Run one of ``postroom tenants`` that takes signals, which only a main thread can."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "postroom", "tenants", *words, "--url", server.url, "--token", TOKEN,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def test_tenants_are_listed_and_acted_on_from_a_shell() -> None:
    """With the reason and the operator's name; without the token only a look is allowed."""
    consumer: Consumer[str, None] = Consumer("orders", context=lambda message: message.attributes["tenantId"])
    consumer.tenants.limit("acme", rate=5)
    async with ConsoleServer(consumer, port=0, allow=allow_token(TOKEN)) as server:
        paused = await invoke(server, "tenants", "pause", "acme", "--reason", "too many")
        assert paused.output == "pause: acme in orders\n", paused.output
        assert consumer.tenants["acme"].state is TenantState.PAUSED
        assert consumer.tenants["acme"].reason == "too many (ann)"
        listed = await invoke(server, "tenants", "list")
        assert listed.output.splitlines()[1].split()[:2] == ["acme", "paused"]
        status = await invoke(server, "status")
        assert status.output.splitlines()[0] == "orders: not running"
        assert '"n": "acme"' in (await invoke(server, "status", "--json")).output
        refused = await invoke(server, "tenants", "resume", "acme", "--reason", "over", token=None)
        assert (refused.exit_code, "you may look, and not act" in refused.output) == (2, True)
        assert "POSTROOM_CONSOLE_TOKEN" in refused.output
        near = await invoke(server, "tenants", "resume", "acm", "--reason", "over")
        assert near.output == "resume: acm (nothing of it is here yet. Is it 'acme'?) in orders\n"
        searched = await invoke(server, "tenants", "list", "--search", "zeta")
        assert searched.output == "No tenant has this in its name.\n"
        unknown = await invoke(server, "tenants", "limit", "acme", "--reason", "x")
        assert "limit needs concurrency or rate" in unknown.output
        no_reason = await invoke(server, "tenants", "resume", "acme")
        assert "Missing option '--reason'" in no_reason.output
    gone = await invoke(server, "status")
    assert gone.exit_code == 1
    assert "no console answers at" in gone.output


@pytest.mark.parametrize("command", [("tenants", "list"), ("status", "--once")])
def test_a_look_at_several_consoles_says_to_name_one(command: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable that names several for the commands that act is the same."""
    monkeypatch.setenv("POSTROOM_CONSOLE_URL", "http://127.0.0.1:8081/ http://127.0.0.1:8082/")
    looked = CliRunner().invoke(main, command)
    assert looked.exit_code == 2
    assert "this command looks at one console: say --url http://127.0.0.1:8081/" in " ".join(looked.stderr.split())


async def test_offboarding_a_misspelled_tenant_says_which_names_are_near() -> None:
    """It is done all the same, as every action is; but it must not pass for the other tenant's."""
    async with LocalBroker() as broker:
        broker.create_queue("dead")
        policy = {"deadLetterTargetArn": broker.attributes("dead")["QueueArn"], "maxReceiveCount": 3}
        broker.create_queue("orders", {"RedrivePolicy": json.dumps(policy)})
        consumer: Consumer[str, None] = Consumer(
            "orders", context=lambda message: message.attributes["tenantId"], client=MemoryClient(broker)
        )
        consumer.handler(lambda _payload, _ctx: None)
        consumer.tenants.limit("acme", rate=5)
        async with consumer, ConsoleServer(consumer, port=0, allow=allow_token(TOKEN)) as server:
            done = await in_a_process(server, "offboard", "acm", "--reason", "left")
            said, _ = await done.communicate()
    hint = "(nothing of it is here yet. Is it 'acme'?)"
    assert said.decode() == f"acm is offboarded in orders {hint}: its messages become dead letters\n"


async def test_a_console_without_tenants_and_without_a_token_says_so() -> None:
    """A header alone would look like a failure."""
    consumer: Consumer[str, None] = Consumer("orders", context=lambda message: message.attributes["tenantId"])
    async with ConsoleServer(consumer, port=0) as server:
        assert (await invoke(server, "tenants", "list")).output == "No tenant has anything here now.\n"
        assert (await invoke(server, "status")).output == "orders: not running\nNo tenant has anything here now.\n"
        refused = await invoke(server, "tenants", "pause", "acme", "--reason", "x")
        assert (refused.exit_code, "this console is read-only" in refused.output) == (2, True)


async def test_a_move_with_a_program_that_does_not_exist_pauses_nothing() -> None:
    """It is found out before the first step."""
    consumer: Consumer[str, None] = Consumer("orders", context=lambda message: message.attributes["tenantId"])
    consumer.tenants.limit("acme", rate=5)
    async with ConsoleServer(consumer, port=0, allow=allow_token(TOKEN)) as server:
        words = ("tenants", "move", "acme", "--reason", "x", "--switch", "no-such-program db-2", "--no-back")
        result = await invoke(server, *words)
        assert (result.exit_code, "there is no program 'no-such-program'" in result.output) == (2, True)
        assert consumer.tenants["acme"].state is TenantState.ACTIVE


async def test_a_move_that_fails_says_it_once() -> None:
    """Its last line is the error: not again as a log line, and not again as a message of the command."""
    consumer: Consumer[str, None] = Consumer("orders", context=lambda message: message.attributes["tenantId"])
    consumer.tenants.pause("acme", reason="broken")
    async with ConsoleServer(consumer, port=0, allow=allow_token(TOKEN)) as server:
        words = ("move", "acme", "--reason", "x", "--switch", "true", "--no-back")
        process = await in_a_process(server, *words)
        _, said = await process.communicate()
        assert process.returncode == 1
        lines = said.decode().splitlines()
        assert [line.split()[1] for line in lines] == ["pause", "back", "back"], lines
        assert lines[-1].endswith("It is as it was")  # paused, by the operator
        consumer.tenants.resume("acme")
        process = await in_a_process(server, "move", "acme", "--reason", "x", "--switch", "false", "--back", "true")
        _, said = await process.communicate()
        assert process.returncode == 1
        text = "tenant acme was not moved (switch: --switch: false ended with exit code 1). It runs as before"
        assert said.decode().splitlines()[-1].endswith(text)


async def test_a_drain_that_is_interrupted_says_what_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process was told, and does it: the tenant stays paused."""

    def act(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RemoteConsole, "act", act)
    result = CliRunner().invoke(main, ["tenants", "drain", "acme", "--reason", "x", "--url", "http://127.0.0.1:1/"])
    assert result.exit_code == 130
    text = "interrupted: http://127.0.0.1:1/ goes on with it; `postroom tenants list` shows how the tenant is\n"
    assert result.output == text


async def test_live_status_goes_on_when_its_console_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that starts again is gone for a moment; Ctrl-C ends the view without an error."""
    said: dict[str, Any] = {"strips": [{"queue": "orders", "running": False}], "rows": [], "total": 0}
    answers: list[Any] = [said, said, ConsoleError("no console answers"), said, KeyboardInterrupt()]

    def state(_console: object, **_options: object) -> dict[str, Any]:
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return cast("dict[str, Any]", answer)

    monkeypatch.setattr(RemoteConsole, "state", state)
    monkeypatch.setattr("postroom.cli.status._is_terminal", lambda: True)
    result = CliRunner().invoke(main, ["status", "--every", "0.2"])
    assert result.exit_code == 0, result.output
    assert answers == []
    assert "no console answers; trying again" in result.output


def test_lines_are_cut_and_coloured_only_for_a_terminal() -> None:
    """Elsewhere the text is plain, and whole."""
    row = {"q": 0, "n": "acme", "s": "unavailable", "why": "x" * 50, "w": 0}
    said: dict[str, Any] = {"strips": [{"queue": "orders", "running": False}], "rows": [row], "total": 3}
    plain = render(said, now=7200.0)
    assert "\033" not in plain
    assert "2 h" in plain
    assert plain.splitlines()[-1] == "and 2 more"
    cut = render(said, now=7200.0, width=20)
    assert "\033[31m" in cut
    assert "x" not in cut.splitlines()[2]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed_for_each_shell(shell: str) -> None:
    """A script that names this command."""
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    assert "_POSTROOM_COMPLETE" in result.output


def test_a_changed_added_or_removed_file_is_noticed(tmp_path: Path) -> None:
    """Python files only, and none of an environment."""
    module = tmp_path / "a.py"
    module.write_text("1")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "b.py").write_text("1")
    before = _snapshot(tmp_path)
    assert list(before) == [str(module)]
    assert _changed(before, _snapshot(tmp_path)) is None
    os.utime(module, (1, 1))
    assert _changed(before, _snapshot(tmp_path)) == str(module)
    module.unlink()
    assert _changed(before, _snapshot(tmp_path)) == str(module)


async def test_run_starts_again_when_a_file_changes(tmp_path: Path) -> None:
    """And ends with the exit code of what it ran when it is told to stop."""
    module = tmp_path / "shop.py"
    module.write_text("raise SystemExit('first')\n")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "postroom", "run", "shop:orders", "--reload", "--directory", str(tmp_path),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        async with asyncio.timeout(60):
            while b"first" not in (line := await process.stderr.readline()):
                assert line
            module.write_text("raise SystemExit('second version')\n")
            while b"has changed; starting again" not in (line := await process.stderr.readline()):
                assert line
            while b"second" not in (line := await process.stderr.readline()):
                assert line
            process.terminate()
            assert await process.wait() in {1, 143}  # 143: the child was told so in the middle of its own end
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_a_signal_to_run_with_reload_drains_its_consumers_once(tmp_path: Path) -> None:
    """A supervisor may send it to the whole process group, and the child must not take it as a second one."""
    (tmp_path / "shop.py").write_text(
        "import asyncio\nfrom postroom import Consumer\n\norders = Consumer('orders')\n\n"
        "@orders.handler\nasync def handle(payload: dict, ctx: object) -> None:\n"
        "    print('started', flush=True)\n    await asyncio.sleep(0.5)\n    print('ended', flush=True)\n"
    )
    with ThreadedServer() as server:
        server.create_queue("orders")
        server.call(lambda broker: broker.send("orders", Send(message_body="{}")))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "postroom", "run", "shop:orders", "--reload", "--directory", str(tmp_path),
            "--endpoint-url", server.endpoint_url, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True,
            env={**os.environ, "AWS_DEFAULT_REGION": "us-east-1"},
        )  # fmt: skip
        assert process.stdout is not None
        try:
            async with asyncio.timeout(60):
                assert await process.stdout.readline() == b"started\n"
                os.killpg(process.pid, signal.SIGINT)
                rest, log = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
    assert (process.returncode, rest) == (0, b"ended\n"), log.decode()


@pytest.mark.parametrize("at", ["here", "127.0.0.1:", ":8081"])
def test_a_console_address_that_is_none_is_refused(at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to write."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / f"shop{abs(hash(at))}.py").write_text("from postroom import Consumer\norders = Consumer('orders')\n")
    name = f"shop{abs(hash(at))}:orders"
    result = CliRunner().invoke(main, ["run", name, "--directory", str(tmp_path), "--console", at])
    assert result.exit_code == 2
    assert "--console takes PORT or HOST:PORT" in result.output
