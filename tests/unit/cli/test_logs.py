"""The lines of ``postroom run`` beside the handlers that a module has given single loggers."""

import io
import logging
from collections.abc import Iterator

import pytest

from postroom.cli.logs import log_to_stderr


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the root logger as it was."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)


@pytest.fixture(params=["postroom", "shop"])
def logger(request: pytest.FixtureRequest) -> Iterator[logging.Logger]:
    """A logger that a module gives handlers; they are taken away again."""
    logger = logging.getLogger(request.param)
    before = logger.handlers[:]
    yield logger
    logger.handlers[:] = before


def lines(capsys: pytest.CaptureFixture[str], logger: logging.Logger) -> list[str]:
    """Log from a child of the logger and from another one, and return the lines."""
    log_to_stderr("INFO")
    logging.getLogger(f"{logger.name}.tests").info("one")
    logging.getLogger("another").info("two")
    return capsys.readouterr().err.splitlines()


def test_a_line_is_not_written_twice(capsys: pytest.CaptureFixture[str], logger: logging.Logger) -> None:
    """A handler of the module for stderr has its lines; other loggers have theirs as before."""
    logger.addHandler(logging.StreamHandler())
    own, other = lines(capsys, logger)
    assert own == "one"
    assert other.endswith("INFO    another: two")


@pytest.mark.parametrize("kind", ["elsewhere", "nowhere", "level", "filter"])
def test_a_line_is_not_lost(capsys: pytest.CaptureFixture[str], logger: logging.Logger, kind: str) -> None:
    """A handler that writes elsewhere, or does not take the record, leaves it to the command."""
    handler = logging.NullHandler() if kind == "nowhere" else logging.StreamHandler()
    if isinstance(handler, logging.StreamHandler) and kind == "elsewhere":
        handler.setStream(io.StringIO())
    handler.setLevel("WARNING" if kind == "level" else "INFO")
    if kind == "filter":
        handler.addFilter(lambda _: False)
    logger.addHandler(handler)
    assert [line[9:] for line in lines(capsys, logger)] == [
        f"INFO    {logger.name}.tests: one",
        "INFO    another: two",
    ]
