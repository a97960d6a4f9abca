"""The tutorial's files and commands work as they stand, in an empty directory."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from threading import Thread

from support.ports import free_port

TUTORIAL = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text()
COMMANDS = Path(sys.executable).parent
Output = Callable[[str], str]


def written(name: str) -> str:
    """Return the file of the tutorial that has this title."""
    (text,) = re.findall(rf'```\w+ title="{re.escape(name)}"\n(.*?)```', TUTORIAL, flags=re.DOTALL)
    return str(text)


def command(start: str) -> list[str]:
    """Return the tutorial's commands that begin so, without their directory."""
    lines = TUTORIAL.replace("\\\n    ", "").splitlines()
    return [line.removeprefix(".venv/bin/") for line in lines if line.startswith(f".venv/bin/{start}")]


@contextmanager
def running(words: str, where: Path, environment: dict[str, str]) -> Iterator[Output]:
    """Run a command until the block ends. Yields a function that waits for a line of its output."""
    process = subprocess.Popen(
        [COMMANDS / "postroom", *shlex.split(words)[1:]],
        cwd=where,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: Queue[str | None] = Queue()
    seen: list[str] = []
    assert process.stdout is not None
    output = process.stdout

    def read() -> None:
        for line in output:
            lines.put(line)
        lines.put(None)

    reader = Thread(target=read)
    reader.start()

    def until(part: str) -> str:
        for earlier in seen:  # two messages are handled beside each other: their lines have no order
            if part in earlier:
                return earlier
        while (line := lines.get(timeout=60)) is not None:
            seen.append(line)
            if part in line:
                return line
        raise AssertionError(f"{part!r} never came: {''.join(seen)}")

    try:
        yield until
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        reader.join(30)
        output.close()


def wait_until(words: str, part: str, where: Path, environment: dict[str, str]) -> None:
    """Run a command until its output has some text: SQS moves a letter when it would be received once more."""
    for _ in range(40):
        said = subprocess.run(
            [COMMANDS / "postroom", *shlex.split(words)[1:]],
            cwd=where, env=environment, check=True, capture_output=True, text=True,
        )  # fmt: skip
        if part in said.stdout:
            return
    raise AssertionError(f"{part!r} never came: {said.stdout}{said.stderr}")


def test_a_first_message_of_ones_own(tmp_path: Path) -> None:
    """An order is recorded; one without an amount, and one of an unknown tenant, are named in the log."""
    for name in ("shop.py", "queues.toml"):
        (tmp_path / name).write_text(written(name))
    variables = dict(re.findall(r"(AWS_\w+)=(\S+)", TUTORIAL))
    assert variables["AWS_ENDPOINT_URL_SQS"].endswith(":4566")
    port = free_port()
    variables["AWS_ENDPOINT_URL_SQS"] = f"http://127.0.0.1:{port}"
    environment = {**os.environ, **variables, "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "error"}
    (local,), (run,) = command("postroom local"), command("postroom run")
    with running(f"{local} --port {port}", tmp_path, environment) as server:
        server("Amazon SQS for development")
        (look,) = command("postroom check")
        said = subprocess.run(
            [COMMANDS / "postroom", *shlex.split(look)[1:]],
            cwd=tmp_path, env=environment, check=True, capture_output=True, text=True,
        )  # fmt: skip
        assert "\n0 to change, 0 warnings, 0 not known\n" in said.stdout
        with running(run, tmp_path, environment) as consumer:
            good, bad, stranger = command("postroom send")
            for words in (good, bad, stranger):
                subprocess.run(
                    [COMMANDS / "postroom", *shlex.split(words)[1:]], cwd=tmp_path, env=environment, check=True
                )
            consumer("acme: recorded 1")
            assert "amount" in consumer("tenant acme")
            consumer("unknown")
            consumer("attempt 3")
            (look,) = command("postroom dead-letters list")
            wait_until(look, "acme    3 failed attempts, the last one with ValidationError", tmp_path, environment)
            (back,) = command("postroom dead-letters redrive")
            wait_until(back, "1 of 1 letter was sent home", tmp_path, environment)
    assert list((tmp_path / "databases").glob("acme*.sqlite3"))
