"""``postroom run``: finding consumers, and saying what to write when there is none."""

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from postroom import Consumer
from postroom.cli import CommandError, main
from postroom.cli.loading import load
from postroom.cli.run import _ends_at_sigterm
from postroom.local.threaded import ThreadedServer
from support.output import read_until

APP = """
from types import SimpleNamespace
from postroom import Consumer, MessageContext

def made(queue):
    consumer = Consumer(queue)
    @consumer.handler
    async def handle(body: dict, ctx: MessageContext) -> None:
        print("handled", body["n"], flush=True)
    return consumer

orders = made("orders")
several = [made("a"), made("b")]
nested = SimpleNamespace(orders=orders)
handle = orders.handles
number = 7
async def later():
    return []
def factory():
    return made("from-a-function")
def factory_of_several():
    return (made("x"), made("y"))
"""


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module with consumers in a directory of its own."""
    (tmp_path / "shop_app.py").write_text(textwrap.dedent(APP))
    (tmp_path / "shop_broken.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "shop_app"
    sys.modules.pop("shop_app", None)


@pytest.mark.parametrize(
    ("target", "queues"),
    [
        ("orders", ["orders"]),
        ("nested.orders", ["orders"]),
        ("several", ["a", "b"]),
        ("factory", ["from-a-function"]),
        ("factory_of_several", ["x", "y"]),
    ],
)
def test_consumers_lists_and_functions_are_found(app: str, target: str, queues: list[str]) -> None:
    """A function is for those who want nothing at import time."""
    assert [consumer.queue for consumer in load(f"{app}:{target}")] == queues
    assert all(isinstance(consumer, Consumer) for consumer in load(f"{app}:{target}"))


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("shop_app", "not MODULE:CONSUMER"),
        (":orders", "not MODULE:CONSUMER"),
        ("shop_app:", "not MODULE:CONSUMER"),
        ("shop_app:parcels", "has no 'parcels'"),
        ("shop_app:parcels", "; write shop_app:orders"),
        ("shop_app.py:orders", "names a file: write the module, shop_app:orders"),
        ("shop_app:handle", "is the handler of a consumer: write shop_app:orders"),
        ("shop_app:SimpleNamespace", "is a class, not a Consumer; write shop_app:orders"),
        ("shop_app:made", "cannot be called without arguments"),
        ("shop_app:number", "is a int, not a Consumer"),
        ("shop_app:later", "is an async function: write it as a plain `def`"),
        ("shop_missing:orders", "no module 'shop_missing' in .*; say --directory"),
        ("shop_missing.inner:orders", "no module 'shop_missing.inner'"),
    ],
)
def test_what_cannot_be_found_is_said_with_the_remedy(app: str, target: str, text: str) -> None:
    """Exit code 2, one line."""
    with pytest.raises(CommandError, match=text) as wrong:
        load(target)
    assert wrong.value.exit_code == 2
    assert app


@pytest.mark.parametrize(
    ("source", "shown", "last"),
    [
        ("import not_installed_anywhere", "in <module>", "ModuleNotFoundError: No module named 'not_installed"),
        ("def work():\n    1 / 0\nwork()", "in work", "ZeroDivisionError: division by zero"),
        ("def make():\n    1 / 0", "in make", "ZeroDivisionError: division by zero"),
        ("def make(:", "def make(:", "SyntaxError: invalid syntax"),
        ("from postroom import Consumr", "in <module>", "ImportError: cannot import name 'Consumr'"),
        ("import postroom\norders = postroom.Consumer('orders', polling=3)", "", "Consumer(polling=...) takes"),
        ("import postroom\npolling = postroom.Polling(memory=1)", "", "Polling(memory=...) takes"),
    ],
)
def test_a_module_that_raises_is_one_line_behind_its_own_frames(
    tmp_path: Path, source: str, shown: str, last: str
) -> None:
    """It is the user's code: where it fails is what they need, and how postroom came there is not."""
    (tmp_path / "shop_raises.py").write_text(source + "\n")
    done = CliRunner().invoke(main, ["run", "shop_raises:make", "--directory", str(tmp_path)])
    sys.modules.pop("shop_raises", None)
    *frames, line = done.stderr.splitlines()
    assert done.exit_code == 2
    assert line.startswith(f"Error: 'shop_raises:make' cannot be loaded: {last}")
    assert "shop_raises.py" in line
    assert shown in "".join(frames)
    assert not any('File "' in each and "shop_raises.py" not in each for each in frames)


@pytest.mark.parametrize(
    ("source", "said", "shown"),
    [
        ("def make():\n    raise KeyError('ORDERS_DSN')", "cannot be loaded: KeyError: 'ORDERS_DSN' (", "in make"),
        ("", "has no 'make'", None),
    ],
)
def test_what_is_not_started_is_a_line_of_json_where_lines_are_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, said: str, shown: str | None
) -> None:
    """A deployment that fails so is seen where the others are: at its level, with its traceback in the same record."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    (tmp_path / "shop_json.py").write_text(source)
    command = ["run", "shop_json:make", "--directory", str(tmp_path), "--log-format", "json"]
    done = CliRunner().invoke(main, command)
    sys.modules.pop("shop_json", None)
    assert done.exit_code == 2
    [line] = done.stderr.splitlines()
    record = json.loads(line)
    assert (record["level"], record["logger"], record["step"]) == ("CRITICAL", "postroom.consumer", "start")
    assert record["message"].startswith("Cannot start: ")
    assert said in record["message"]
    assert shown is None or shown in record["exception"]


@pytest.mark.parametrize(("target", "source"), [(".shop_odd:make", ""), ("shop_odd:make", "\0")])
def test_what_python_itself_refuses_is_said_too(tmp_path: Path, target: str, source: str) -> None:
    """No line of the user's code has run."""
    (tmp_path / "shop_odd.py").write_text(source)
    done = CliRunner().invoke(main, ["run", target, "--directory", str(tmp_path)])
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith(f"Error: {target!r} cannot be loaded: ")
    assert "IndexError" not in done.stderr


def test_without_a_target_it_is_a_usage_error() -> None:
    """Exit code 2."""
    assert CliRunner().invoke(main, ["run"]).exit_code == 2


def _start(directory: Path, *arguments: str) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return subprocess.Popen(
        [sys.executable, "-m", "postroom", "run", *arguments],
        cwd=directory,
        env={**environment, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_module_with_the_name_of_one_that_the_library_needs_may_be_there(tmp_path: Path) -> None:
    """An application with queues may well have a queue.py."""
    (tmp_path / "queue.py").write_text("raise OSError('that of the application')")
    (tmp_path / "shop_without.py").write_text("from postroom import Consumer\norders = Consumer('orders')\n")
    command = [sys.executable, "-P", "-m", "postroom", "run", "--directory", str(tmp_path), "shop_without:orders"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "the consumer of 'orders' has no handler" in ended.stderr
    assert ended.returncode == 2


def test_a_worker_handles_messages_until_a_signal(tmp_path: Path) -> None:
    """The endpoint as an option, credentials made up for this machine, exit code 0 on SIGTERM."""
    (tmp_path / "shop_worker.py").write_text(textwrap.dedent(APP))
    with ThreadedServer() as server:
        server.create_queue("orders")
        server.call(lambda broker: broker.send("orders", '{"n": 1}'))
        worker = _start(tmp_path, "shop_worker:orders", "--endpoint-url", server.endpoint_url)
        with worker:
            assert worker.stdout is not None
            seen = read_until(worker, "handled 1")
            worker.send_signal(signal.SIGTERM)
            seen += worker.stdout.read()
            assert worker.wait(20) == 0, seen
        assert server.counts("orders") == (0, 0, 0)


def test_a_queue_that_does_not_exist_ends_with_2(tmp_path: Path) -> None:
    """And the log says what to check."""
    (tmp_path / "shop_worker.py").write_text(textwrap.dedent(APP))
    with ThreadedServer() as server:
        worker = _start(tmp_path, "shop_worker:orders", "--endpoint-url", server.endpoint_url)
        output, _ = worker.communicate(timeout=30)
    assert worker.returncode == 2
    assert "orders" in output
    assert "Traceback" not in output


def test_a_queue_that_cannot_be_reached_is_waited_for_as_long_as_it_was_said(tmp_path: Path) -> None:
    """Then it ends with 1, and the log says what to check; no port of this machine answers there."""
    (tmp_path / "shop_worker.py").write_text(textwrap.dedent(APP))
    worker = _start(tmp_path, "shop_worker:orders", "--endpoint-url", "http://127.0.0.1:9", "--wait", "0")
    output, _ = worker.communicate(timeout=60)
    assert worker.returncode == 1
    assert "Stopped: " in output
    assert "Traceback" not in output


def test_a_consumer_that_is_named_twice_is_refused(app: str) -> None:
    """By two names, or by one that stands for a list: it cannot run beside itself. Two of one queue can."""
    done = CliRunner().invoke(main, ["run", f"{app}:orders", f"{app}:nested.orders"])
    assert done.exit_code == 2
    assert done.stderr == "Error: the consumer of 'orders' is named twice: name each once\n"


def test_the_wait_is_seconds() -> None:
    """Anything else is a usage error, exit code 2."""
    for wrong in ("-1", "soon"):
        assert CliRunner().invoke(main, ["run", "app:orders", "--wait", wrong]).exit_code == 2


EXITS = """
import sys
from postroom import Consumer, MessageContext

orders = Consumer("orders")

@orders.handler
async def handle(body: dict, ctx: MessageContext) -> None:
    sys.exit(body["n"])
"""


@pytest.mark.parametrize("definition", ["async def", "def"])
def test_a_handler_that_exits_decides_on_the_exit_code(tmp_path: Path, definition: str) -> None:
    """The process ends in order, with the code that the handler said; its message is kept."""
    (tmp_path / "shop_exits.py").write_text(textwrap.dedent(EXITS).replace("async def", definition))
    with ThreadedServer() as server:
        server.create_queue("orders")
        server.call(lambda broker: broker.send("orders", '{"n": 7}'))
        worker = _start(tmp_path, "shop_exits:orders", "--endpoint-url", server.endpoint_url)
        output, _ = worker.communicate(timeout=30)
        pause = threading.Event()
        while server.counts("orders") == (0, 1, 0):  # it comes back after its backoff
            pause.wait(0.05)
        assert server.counts("orders") == (1, 0, 0)
    assert worker.returncode == 7
    assert "sys.exit(7)" in output
    assert "Stopped consuming" in output


FORKS = """
import multiprocessing, time
from postroom import Consumer, MessageContext

orders = Consumer("orders")

def work(begun):
    begun.set()
    time.sleep(60)

@orders.handler
HANDLE:
    fork = multiprocessing.get_context("fork")
    begun = fork.Event()
    child = fork.Process(target=work, args=(begun,))
    child.start()
    begun.wait(20)
    child.terminate()
    child.join(20)
    child.kill()
    print("the child ended with", child.exitcode, flush=True)
"""


@pytest.mark.parametrize("definition", ["async def", "def"])
def test_a_signal_for_a_child_of_a_handler_ends_the_child_alone(tmp_path: Path, definition: str) -> None:
    """As ``with multiprocessing.Pool()`` sends it: the handler goes on, and so do the consumers of its process."""
    code = textwrap.dedent(FORKS).replace("HANDLE", f"{definition} handle(body: dict, ctx: MessageContext) -> None")
    (tmp_path / "shop_forks.py").write_text(code)
    with ThreadedServer() as server:
        server.create_queue("orders")
        server.call(lambda broker: broker.send("orders", '{"n": 7}'))
        worker = _start(tmp_path, "shop_forks:orders", "--endpoint-url", server.endpoint_url)
        seen = read_until(worker, "the child ended with")
        worker.send_signal(signal.SIGINT)
        output, _ = worker.communicate(timeout=30)
    assert "the child ended with -15" in seen
    assert "SIGTERM" not in seen + output
    assert worker.returncode == 0


HANGS = """
import asyncio, threading
from concurrent.futures import ThreadPoolExecutor
import anyio
from postroom import Consumer, MessageContext, Shutdown

orders = Consumer("orders", shutdown=Shutdown(within=1))

@orders.handler
async def handle(body: dict, ctx: MessageContext) -> None:
    asyncio.get_running_loop().call_later(0.1, orders.stop)
    await CALL
"""


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("asyncio.to_thread(threading.Event().wait)", False),
        ("asyncio.get_running_loop().run_in_executor(ThreadPoolExecutor(1), threading.Event().wait)", True),
        pytest.param(
            "anyio.to_thread.run_sync(threading.Event().wait, abandon_on_cancel=True)", True, marks=pytest.mark.long
        ),
    ],
    ids=["asyncio", "an executor", "anyio"],
)
def test_a_thread_that_an_async_handler_left_behind_does_not_keep_the_process(
    call: str, told: bool, tmp_path: Path
) -> None:
    """The handler is cancelled, its call in a thread goes on, and the process ends all the same."""
    (tmp_path / "shop_hangs.py").write_text(textwrap.dedent(HANGS).replace("CALL", call))
    with ThreadedServer() as server:
        server.create_queue("orders")
        server.call(lambda broker: broker.send("orders", '{"n": 7}'))
        worker = _start(tmp_path, "shop_hangs:orders", "--endpoint-url", server.endpoint_url)
        output, _ = worker.communicate(timeout=30)
        assert server.counts("orders") == (1, 0, 0)
    assert worker.returncode == 3
    assert "Traceback" not in output
    assert ("; the process ends without it" in output) is told


@pytest.mark.parametrize("token", ["", "short"])
def test_a_token_that_is_too_short_is_refused_by_its_option(app: str, token: str) -> None:
    """It says how to make one; an unset variable in the command line is an empty one."""
    words = ["run", f"{app}:orders", "--console", "0", "--console-token", token]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert done.stderr.startswith("Error: --console-token (POSTROOM_CONSOLE_TOKEN) takes a secret of at least 12 char")


@pytest.mark.parametrize("during", ["postroom.cli.run.load", "postroom.consumer.runner.run_to_exit"])
def test_sigterm_ends_the_process_also_before_the_consumers_listen(
    during: str, app: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Process 1 of a container gets no signal that has no handler. Afterwards all is as it was."""
    before = signal.getsignal(signal.SIGTERM)

    def comes(*_args: object, **_options: object) -> list[object]:
        handler = signal.getsignal(signal.SIGTERM)
        assert callable(handler)
        handler(signal.SIGTERM, None)
        raise AssertionError("it goes on")

    monkeypatch.setattr(during, comes)
    assert CliRunner().invoke(main, ["run", f"{app}:orders"]).exit_code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_handler_of_sigterm_that_is_not_pythons_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What embeds Python has set it in C: Python shows None for it, and cannot put it back."""
    replaced: list[object] = []
    shown = SimpleNamespace(SIGTERM=signal.SIGTERM, getsignal=lambda _: None, signal=lambda *to: replaced.append(to))
    monkeypatch.setattr("postroom.cli.run.signal", shown)
    with _ends_at_sigterm():
        pass
    assert replaced == []
