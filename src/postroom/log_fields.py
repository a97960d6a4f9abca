"""Fields of log records: every record of postroom has ``queue``, ``tenant``, ``message_id``, ``attempt`` and ``step``.

A field is None where there is no such thing to name. The text of a line says the same for people; the fields are for
formatters, filters and log stores. An attribute that the application's own record factory has set stays the
application's.
"""

import inspect
import logging
import sys
import traceback
from collections.abc import Hashable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Protocol

from postroom.display import display_key, one_line
from postroom.program_end import heed
from postroom.types import UNRESOLVED

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter

FIELDS: Final = ("queue", "tenant", "message_id", "attempt", "step")
_LOGGING: Final = frozenset({"logging", "postroom.log_fields", "postroom.redaction"})
"""The modules that a line passes through on its way: a record names the first line outside of them."""


class Step(StrEnum):
    """What was being done when something was logged."""

    START = "start"
    STOP = "stop"
    CLIENT = "client"
    """Connecting with SQS."""
    RECEIVE = "receive"
    CONTEXT = "context"
    PAYLOAD = "payload"
    RESOURCES = "resources"
    """Opening, leasing, checking or closing a tenant's resources."""
    HANDLER = "handler"
    ON_ERROR = "on_error"
    POLICY = "policy"
    """Asking one of your functions, such as ``retry=``, what to do."""
    OBSERVER = "observer"
    SETTLE = "settle"
    DEAD_LETTER = "dead_letter"
    SEND = "send"
    """Sending messages, or moving them between queues."""
    FLEET = "fleet"
    """Meeting other replicas in the store of a fleet."""
    LOOP = "loop"
    """Running the event loop and what lives in it."""
    HEALTH = "health"


class Described(Protocol):
    """A delivery, as far as its log lines need it."""

    @property
    def message(self) -> Any:
        """The message, with its ``id`` and ``queue``."""
        ...

    @property
    def tenant(self) -> Any:
        """Its tenant."""
        ...

    @property
    def attempt(self) -> int:
        """Which attempt it is."""
        ...


def about(
    delivery: Described | None = None,
    *,
    queue: str | None = None,
    tenant: Hashable = None,
    message_id: str | None = None,
    attempt: int | None = None,
    step: Step | None = None,
) -> dict[str, object]:
    """Return the fields of a record, as ``extra=`` takes them: those of a delivery, or the ones that are named.

    A tenant is shown as in the text of the lines: on one line, cut, and without what its type hides.
    """
    if delivery is not None:
        queue, tenant = delivery.message.queue or None, delivery.tenant
        message_id, attempt = delivery.message.id, delivery.attempt
    shown = None if tenant is None or tenant is UNRESOLVED else display_key(tenant)
    found: dict[str, object] = {"queue": queue, "tenant": shown, "message_id": message_id, "attempt": attempt}
    if step is not None:
        found["step"] = step.value
    return found


def tenant_in_words(tenant: Hashable) -> str:
    """Return how the text of a line names a tenant: ``tenant acme``. One that is not known yet has no name."""
    return "a tenant that was not resolved" if tenant is UNRESOLVED else f"tenant {display_key(tenant)}"


class Log(_Adapter):
    """A logger that gives every record its fields.

    Args:
        logger: the logger, or its name.
        step: what is being done where it is used, unless a line says otherwise.
    """

    def __init__(self, logger: str | logging.Logger, step: Step) -> None:
        super().__init__(logging.getLogger(logger) if isinstance(logger, str) else logger)
        setattr(self, "isEnabledFor", self.logger.isEnabledFor)  # noqa: B010 - asked for every lease: one call, not two
        self.step: Step = step
        """What is being done where it is used."""
        self._defaults: dict[str, object] = {**dict.fromkeys(FIELDS), "step": step.value}

    def log(
        self,
        level: int,
        msg: object,
        *args: object,
        exc_info: Any = None,
        extra: Mapping[str, object] | None = None,
        **kwargs: object,
    ) -> None:
        """Log a line. ``extra`` is what ``about`` returns."""
        del kwargs
        if not self.logger.isEnabledFor(level):
            return
        if isinstance(exc_info, BaseException):
            exc_info = (type(exc_info), exc_info, exc_info.__traceback__)
        elif exc_info:
            exc_info = sys.exc_info()
        self.emit(level, str(msg), args, extra, exc_info=exc_info or None)

    def emit(
        self,
        level: int,
        text: str,
        args: tuple[object, ...],
        extra: Mapping[str, object] | None,
        *,
        exc_info: Any = None,
        exc_text: str | None = None,
    ) -> None:
        """Make a record with its fields, and hand it to the logger's handlers.

        Not by ``extra`` of the logger itself: that raises for a name which the application's record factory has set.
        A factory, a filter or a handler of the application's that raises is told on standard error, as the standard
        library does with what it catches itself: no message may be lost, and no consumer end, for a line of the log.
        One that asks for the end of the program ends what runs in order, as any function of the application's does.
        """
        try:
            self._hand_over(level, text, args, extra, exc_info=exc_info, exc_text=exc_text)
        except BaseException as error:
            heed(error)
            if logging.raiseExceptions:
                traceback.print_exception(error, chain=False)  # the error that is logged may have secrets

    def _hand_over(
        self,
        level: int,
        text: str,
        args: tuple[object, ...],
        extra: Mapping[str, object] | None,
        *,
        exc_info: Any,
        exc_text: str | None,
    ) -> None:
        logger = self.logger
        path, line, function = _caller()
        args = tuple(map(_in_one_line, args))
        record = logger.makeRecord(logger.name, level, path, line, text, args, exc_info, function)
        known = record.__dict__
        for name, value in self._defaults.items():
            if name not in known:
                known[name] = value if extra is None else extra.get(name, value)
        if exc_text is not None:
            record.exc_text = exc_text
        logger.handle(record)


def _in_one_line(argument: object) -> object:
    """Return what a line says. Senders write some of it: a line break in there would begin a record of their own."""
    if not isinstance(argument, str | BaseException):
        return argument
    try:
        text = str(argument)
    except Exception:  # an error of the application's with a `__str__` of its own
        return type(argument).__name__
    shown = one_line(text)
    return argument if shown == text else shown


def _caller() -> tuple[str, int, str]:
    """Return the file, the line and the function that logs.

    Not by ``findCaller``: a logger class of the application, such as structlog's, counts the frames in its own way.
    """
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__") in _LOGGING:
        frame = frame.f_back
    if frame is None:
        return "(unknown file)", 0, "(unknown function)"
    return frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name
