"""Log lines of the commands: short ones for people, with colours only on a terminal, or JSON for machines."""

import logging
import sys
from collections.abc import Collection
from typing import Final, TextIO

import click

_COLOURS: Final = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}
FORMATS: Final = ("text", "json")


class _Formatter(logging.Formatter):
    """Time, level, logger, text; the level coloured where there is a terminal."""

    def __init__(self, *, colour: bool, brief: Collection[str] = ()) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s", datefmt="%H:%M:%S")
        self._colour = colour
        self._brief = brief

    def format(self, record: logging.LogRecord) -> str:
        """Return one record as text."""
        if record.name in self._brief and record.exc_info:
            record = logging.makeLogRecord({**record.__dict__, "exc_info": None, "exc_text": None})
        text = super().format(record)
        colour = _COLOURS.get(record.levelname)
        return click.style(text, fg=colour) if colour and self._colour else text


def _not_written_yet(record: logging.LogRecord) -> bool:
    """Whether no handler of a logger below the root writes this record to stderr or stdout, too."""
    logger = logging.getLogger(record.name)
    while logger.parent is not None:
        for handler in logger.handlers:
            stream: object = getattr(handler, "stream", None)
            here = stream is not None and (stream is sys.stderr or stream is sys.stdout)
            if here and record.levelno >= handler.level and handler.filter(record):
                return False
        logger = logger.parent
    return True


def log_to_stderr(level: str, *, form: str = "text", stream: TextIO | None = None, brief: Collection[str] = ()) -> None:
    """Log from a level on, to stderr. Known libraries are heard from WARNING on.

    Args:
        level: the name of a level.
        form: ``text`` or ``json``.
        stream: where to, if not to stderr.
        brief: loggers that get no traceback in the text: their lines name the cause.
    """
    out: TextIO | None = sys.stderr if stream is None else stream
    # None: it was started with stderr closed, as by some supervisors.
    handler: logging.Handler = logging.NullHandler() if out is None else logging.StreamHandler(out)
    if form == "json":
        from postroom.integrations.logs import JsonFormatter, MessageFields

        handler.setFormatter(JsonFormatter())
        handler.addFilter(MessageFields())
    else:
        handler.setFormatter(_Formatter(colour=out is not None and out.isatty(), brief=brief))
    handler.addFilter(_not_written_yet)
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in ("asyncio", "aiobotocore", "botocore", "aiohttp", "urllib3", "sqlalchemy"):
        logging.getLogger(name).setLevel(logging.WARNING)
