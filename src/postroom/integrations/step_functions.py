"""Tasks of AWS Step Functions that wait for a token (``.waitForTaskToken``): a middleware that reports them.

A state machine sends a message with a task token and waits. The handler does the work; this middleware tells the state
machine how it ended, and that it goes on while it does.
https://docs.aws.amazon.com/step-functions/latest/dg/connect-to-resource.html
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, cast

from postroom.aws_session import error_code
from postroom.checking import check_function
from postroom.consumer import CallNext, MessageContext
from postroom.consumer.batching import current_batch
from postroom.errors import AlreadyHandled, ConfigurationError, Drop, Reject, ServiceUnavailable
from postroom.integrations._shared_client import SharedClient
from postroom.log_fields import Log, Step, about
from postroom.options import check_count, check_seconds
from postroom.payloads.encoding import to_json
from postroom.redaction import describe
from postroom.repeats import Repeats
from postroom.tasks import message_variable

_log = Log("postroom.step_functions", Step.HANDLER)

_NAMES: Final = ("taskToken", "TaskToken", "task_token")
_OVER: Final = frozenset({"TaskTimedOut", "TaskDoesNotExist", "InvalidToken"})
"""What Step Functions answers when a task waits no more: it timed out, its execution was stopped, or it never was."""
_LARGEST: Final = 262_144
"""Bytes of output that Step Functions takes (API_SendTaskSuccess.html)."""
_LONGEST_ERROR: Final = 256
_LONGEST_CAUSE: Final = 32_768

TokenOf = Callable[[Any, MessageContext[Any, Any]], str | None]


@dataclass(slots=True)
class _Task:
    """One task that runs."""

    token: str
    output: str = "{}"
    over: str | None = None
    """Why the state machine does not wait for it any longer."""


_current: ContextVar[_Task | None] = message_variable("postroom_step_functions_task")


def set_task_output(output: object) -> None:
    """Say what the state machine gets as the output of the task that the calling handler works on.

    Args:
        output: what can be written as JSON, as the payload of a ``Sender``; at most 262,144 bytes. Without a call,
            and for None, it is ``{}``.

    Raises:
        ConfigurationError: it has no JSON form or is too large; or it is called outside of a handler behind
            ``TaskTokens``, for a message without a token, or in a batch handler.
    """
    if current_batch() is not None:
        text = "a batch handler cannot say of which message set_task_output() is: register a handler of one message"
        raise ConfigurationError(text)
    task = _current.get()
    if task is None:
        text = (
            "set_task_output() works in a handler of a message with a task token: Consumer(middleware=[TaskTokens()])"
        )
        raise ConfigurationError(text)
    written = "{}" if output is None else to_json(output)
    if (size := len(written.encode())) > _LARGEST:
        text = f"the output of the task has {size:,} bytes; Step Functions takes {_LARGEST:,}"
        raise ConfigurationError(f"{text}: store it, and return where it is")
    task.output = written


def _about(ctx: MessageContext[Any, Any]) -> dict[str, object]:
    return about(tenant=ctx.tenant, message_id=ctx.message.id, attempt=ctx.attempt)


class TaskTokens:
    """Reports to Step Functions what becomes of the task that a message carries the token of.

        orders = Consumer("orders", context=Tenant, middleware=[TaskTokens(heartbeat=30, attempts=5)])

    * The handler returns: ``SendTaskSuccess``, before the message is acknowledged. If Step Functions cannot be reached,
      the handler has failed and the message comes back: make it idempotent, as with ``ctx.transaction()``. A duplicate
      that the inbox recognises reports success as well, with an empty output.
    * It raises ``Reject`` or ``Drop``: ``SendTaskFailure``. Any other error: only at the attempt that ``attempts``
      names; before that the state machine goes on waiting, and the message is tried again.
    * The task waits no more (it timed out, its execution was stopped): a handler that runs is cancelled at the next
      heartbeat, and the message is dropped. The state machine sends another one if it retries.

    A message without a token is handled as if this were not there. The consumer opens the client when it starts, and
    closes it when it has stopped.

    Args:
        token: where the token is: a function ``(payload, ctx) -> str | None``. By default the message attribute or the
            field of the payload that is called ``taskToken``, ``TaskToken`` or ``task_token``.
        heartbeat: seconds between two ``SendTaskHeartbeat``, the first one before the handler begins; below the state's
            ``HeartbeatSeconds``. None: none is sent.
        attempts: the failed attempt at which the task has failed: what ``RetryPolicy(attempts=)`` or the queue's
            ``maxReceiveCount`` says. None: a failure is never reported, and the state's ``TimeoutSeconds`` ends it.
        timeout: seconds that one call to Step Functions may take.
        region: the region of Step Functions; None for what the environment says.
        endpoint_url: the address of Step Functions, where it is not AWS; None for what the environment says.
        session: an ``aiobotocore.session.AioSession`` of your own.

    Raises:
        ConfigurationError: an argument cannot work.
    """

    def __init__(
        self,
        token: TokenOf | None = None,
        *,
        heartbeat: float | None = None,
        attempts: int | None = None,
        timeout: float = 10.0,
        region: str | None = None,
        endpoint_url: str | None = None,
        session: Any = None,
    ) -> None:
        if token is not None:
            check_function("TaskTokens(token)", "(payload, ctx) -> str | None", token, arguments=2)
        if heartbeat is not None:
            check_seconds("TaskTokens", "heartbeat", heartbeat, least=0.001)
        if attempts is not None:
            check_count("TaskTokens", "attempts", attempts)
        self._token = token_of if token is None else token
        self._heartbeat = heartbeat
        self._attempts = attempts
        self._timeout = timeout
        self._client = SharedClient(
            "TaskTokens",
            "pass it to Consumer(middleware=[...]), or write `async with tokens:`",
            ("stepfunctions", "SFN"),
            timeout=timeout,
            region=region,
            endpoint_url=endpoint_url,
            session=session,
            config={"read_timeout": timeout, "max_pool_connections": 50},
        )
        self._repeats = Repeats()

    async def __aenter__(self) -> Self:
        """Open the client, unless it is open."""
        await self._client.enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the client, if this is the last exit."""
        await self._client.leave()

    async def __call__(self, payload: Any, ctx: MessageContext[Any, Any], call_next: CallNext) -> None:
        """Handle a message, and report how that ended. Raises what the handler raises."""
        token = self._token(payload, ctx)
        if token is None:
            await call_next(payload, ctx)
            return
        task = _Task(token)
        _current.set(task)
        try:
            async with self._beating(task, ctx):
                await call_next(payload, ctx)
        except AlreadyHandled:
            await self._succeeded(task, ctx)
            raise
        except Exception as error:
            # Not before the last attempt: a task that has failed cannot succeed at a retry.
            if task.over is None and self._is_final(error, ctx):
                await self._failed(task, error, ctx)
            raise
        await self._succeeded(task, ctx)

    # -- the heartbeat --------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _beating(self, task: _Task, ctx: MessageContext[Any, Any]) -> AsyncGenerator[None]:
        """Send heartbeats while the block runs. Raises ``Drop`` when the task waits no more."""
        if self._heartbeat is None:
            yield
            return
        # Before the handler: a task that is over already must not be worked on.
        await self._call("send_task_heartbeat", task, ctx)
        if task.over is not None:
            raise _dropped(task)
        limit = asyncio.timeout(None)
        beats: asyncio.Task[None] | None = None
        try:
            async with limit:
                # Inside of the limit, which it uses to end the handler.
                beats = asyncio.create_task(self._beat(task, ctx, limit), name="postroom-task-heartbeat")
                yield
        except TimeoutError as error:
            if task.over is None:
                raise
            raise _dropped(task) from error
        finally:
            if beats is not None:
                beats.cancel()
                await asyncio.wait([beats])

    async def _beat(self, task: _Task, ctx: MessageContext[Any, Any], limit: asyncio.Timeout) -> None:
        while task.over is None:
            await asyncio.sleep(self._heartbeat or 0)
            try:
                await self._call("send_task_heartbeat", task, ctx)
            except ServiceUnavailable as error:
                text = "No heartbeat for the task of message %s: %s; the next one is sent"
                told = self._repeats.failed
                told("heartbeat", _log, text, ctx.message.id, error, level=logging.WARNING, extra=_about(ctx))
        # A time that is past: the block is cancelled as by a timeout, and its clean-up runs.
        limit.reschedule(asyncio.get_running_loop().time())

    # -- how it ended ---------------------------------------------------------------------------------------------

    def _is_final(self, error: Exception, ctx: MessageContext[Any, Any]) -> bool:
        return isinstance(error, Reject | Drop) or (self._attempts is not None and ctx.attempt >= self._attempts)

    async def _succeeded(self, task: _Task, ctx: MessageContext[Any, Any]) -> None:
        await self._call("send_task_success", task, ctx, output=task.output)

    async def _failed(self, task: _Task, error: Exception, ctx: MessageContext[Any, Any]) -> None:
        name, cause = type(error).__name__[:_LONGEST_ERROR], describe(error)[:_LONGEST_CAUSE]
        try:
            await self._call("send_task_failure", task, ctx, error=name, cause=cause)
        except ServiceUnavailable as unreachable:
            text = "The failed task of message %s could not be reported: %s; its state times out"
            _log.error(
                text,
                ctx.message.id,
                unreachable,
                extra=_about(ctx),
            )

    async def _call(self, operation: str, task: _Task, ctx: MessageContext[Any, Any], **arguments: str) -> None:
        """Call Step Functions. Raises ``ServiceUnavailable`` if it cannot be reached, or refuses for now."""
        client = self._client.opened()
        try:
            async with asyncio.timeout(self._timeout):
                await getattr(client, operation)(taskToken=task.token, **arguments)
        except Exception as error:
            code = error_code(error)
            if code not in _OVER:
                text = f"Step Functions could not be told ({operation}: {code})"
                raise ServiceUnavailable(text, operation=operation, code=code) from error
            task.over = code
            _log.warning(
                "The task of message %s waits no more (%s)",
                ctx.message.id,
                code,
                extra=_about(ctx),
            )


def token_of(payload: Any, ctx: MessageContext[Any, Any]) -> str | None:
    """Return the task token of a message: of an attribute, or of a field of its payload; None if it has none."""
    for name in _NAMES:
        if found := ctx.message.attributes.get(name):
            return found
    body: Any = payload
    for name in _NAMES:
        value: Any = (
            cast("Mapping[str, Any]", body).get(name) if isinstance(body, Mapping) else getattr(body, name, None)
        )
        if isinstance(value, str) and value:
            return value
    return None


def _dropped(task: _Task) -> Drop:
    return Drop(f"the state machine does not wait for the task any longer ({task.over})")
