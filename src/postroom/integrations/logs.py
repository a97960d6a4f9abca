"""Logs for machines: one JSON object per line, and the fields of the message that is handled on every line.

    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    handler.addFilter(MessageFields())
    logging.basicConfig(level=logging.INFO, handlers=[handler])

``postroom run --log-format json`` does just that.
"""

import logging
import traceback
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from postroom.consumer import current_message
from postroom.consumer.batching import current_batch
from postroom.log_fields import FIELDS, Step, about

__all__ = ["JsonFormatter", "MessageFields", "message_fields"]

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
"""What every record has: not a field of the application."""


def message_fields() -> dict[str, object]:
    """Return the fields of the message that the calling code handles: queue, tenant, message_id, attempt, step.

    In a batch handler those that its messages share. Empty outside of a handler. For whatever adds fields to log
    lines, spans or errors.
    """
    if (ctx := current_message()) is not None:
        found = about(ctx, step=Step.HANDLER)
    elif (batch := current_batch()) is not None:
        queues = {each.message.queue for each in batch.items}
        found = about(queue=queues.pop() if len(queues) == 1 else None, tenant=batch.tenant, step=Step.HANDLER)
    else:
        return {}
    return {name: value for name, value in found.items() if value is not None}


class MessageFields(logging.Filter):
    """Gives every record that is logged while a message is handled the fields of that message.

    Add it to handlers, where it sees the records of all loggers. What a record has already stays as it is.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields; every record passes."""
        known = record.__dict__
        for name, value in message_fields().items():
            if known.get(name) is None:
                known[name] = value
        for name in FIELDS:
            known.setdefault(name, None)  # so that a format string may name them
        return True


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON.

    It has ``time`` (UTC, ISO 8601), ``level``, ``logger``, ``message``, the fields that are not None, whatever else
    was passed as ``extra=``, and ``exception`` with the traceback where there is one. What is not JSON is written as
    its ``str()``, and a record that cannot be written at all as a line that says so.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return one record as JSON."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": _text(record),
        }
        for name, value in vars(record).items():
            if name not in _STANDARD and value is not None and not name.startswith("_"):
                # What a log call passes in `extra=` must not replace the time or the level.
                line.setdefault(name, value)
        exception = record.exc_text
        if not exception and record.exc_info:
            exception = record.exc_text = self.formatException(record.exc_info)
        if exception:
            line["exception"] = exception
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return _encoded(line)


def _text(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # as of a %d for a text: the line is worth more than the complaint
        return f"{_shown(record.msg)} (its arguments do not fit: {traceback.format_exception_only(error)[-1].strip()})"


def _encoded(line: dict[str, object]) -> str:
    try:
        return msgspec.json.encode(line, enc_hook=_shown).decode()
    except Exception:  # such as a mapping with objects as keys, or a text that is no Unicode
        plain = {name: _shown(value) for name, value in line.items()}
        return msgspec.json.encode(plain).decode()


def _shown(value: Any) -> str:
    try:
        text = str(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    return text.encode("utf-8", "backslashreplace").decode()
