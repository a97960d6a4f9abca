"""Batch handlers: messages of one tenant are handled together, and each is settled by itself.

Each message keeps its own task, slot, lease and heartbeat: it joins a batch instead of calling a handler, and ends with
its part of the batch's outcome. So the pipeline, the core and settlement know nothing of batches.
"""

import asyncio
import contextvars
import copy
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Annotated, Any, Final, Generic, cast, get_args, get_origin

import msgspec

from postroom.consumer.callables import check_handler, is_async, name_of
from postroom.consumer.context import MessageContext, settles_of
from postroom.consumer.handlers import refuse_unworked
from postroom.errors import (
    AlreadyHandled,
    ConfigurationError,
    Drop,
    MessageError,
    OwnershipLost,
    Reject,
    Retry,
)
from postroom.message import Message
from postroom.options import Concurrency
from postroom.payloads import payload_type_of
from postroom.payloads.generics import written_out
from postroom.program_end import ends_the_program
from postroom.resources.identity import Identifier
from postroom.tasks import home_context, message_variable
from postroom.types import C_co, R_co

_LISTS: Final = (list, Sequence)


class BatchContext(Generic[C_co, R_co]):
    """The tenant of a batch, its messages, and what was leased for them. Every batch has its own."""

    __slots__ = ("_failures", "context", "items", "resources", "tenant")

    def __init__(self, items: Sequence[MessageContext[C_co, R_co]]) -> None:
        first = items[0]
        self.items: tuple[MessageContext[C_co, R_co], ...] = tuple(items)
        """The context of each message, by its place: ``batch.items[0].message``, ``.attempt``, ``.ack()``."""
        self.context: C_co = first.context
        """What the resolver made of each of the messages; None when the consumer has no ``context=``."""
        self.resources: R_co = first.resources
        """What the pool leased for the context; valid until the handler returns."""
        self.tenant: Any = first.tenant
        """The tenant, as ``consumer.tenants[...]`` calls it."""
        self._failures: dict[int, BaseException] = {}

    def fail(self, index: int, error: BaseException) -> None:
        """Let one message fail, as if its handler had raised ``error``; the others go on.

        ``Retry``, ``Reject``, ``Drop`` and ``AlreadyHandled`` decide as they do in a handler. The last call counts.

        Args:
            index: the place of the message in the batch, from 0.
            error: why.

        Raises:
            ConfigurationError: there is no such place, or ``error`` is no exception.
        """
        if not _is_place(index, len(self.items)):
            raise ConfigurationError(f"batch.fail(index) takes a place from 0 to {len(self.items) - 1}; got {index!r}")
        if not _is_error(error):
            raise ConfigurationError(f"batch.fail(index, error) takes an exception; got {type(error).__name__}")
        self._failures[index] = error

    @property
    def failures(self) -> dict[int, BaseException]:
        """What was let fail so far, by place."""
        return dict(self._failures)

    def __repr__(self) -> str:
        return f"<BatchContext of {len(self.items)} messages>"


_current: Final[contextvars.ContextVar[tuple[BatchContext[Any, Any], "asyncio.Task[Any] | None"] | None]] = (
    message_variable("postroom_batch")
)
"""A batch, and the task of its handler."""


def current_batch() -> BatchContext[Any, Any] | None:
    """Return the batch that the calling code handles; None outside of a batch handler."""
    current = _current.get()
    return None if current is None else current[0]


def message_of_batch() -> Message | None:
    """Return the first message of the batch that the current task handles; None in any other task."""
    current = _current.get()
    return None if current is None or current[1] is not asyncio.current_task() else current[0].items[0].message


BatchFunction = Callable[[list[Any], BatchContext[Any, Any]], Awaitable[None]]


class _Member(msgspec.Struct, eq=False):
    """One message in a batch."""

    payload: Any
    ctx: MessageContext[Any, Any]
    over: asyncio.Future[None]
    error: BaseException | None = None
    traceback: TracebackType | None = None
    cuts: int = 0
    """How often it was cancelled."""

    def waits(self) -> None:
        """Let the time that follows be none of its handler's: it waits for others."""
        settles = settles_of(self.ctx)
        settles.idle -= settles.loop.time()
        if settles.limit is not None:
            settles.limit.pause()

    def goes_on(self) -> None:
        """Count its handler's time again."""
        settles = settles_of(self.ctx)
        settles.idle += settles.loop.time()
        if settles.limit is not None:
            settles.limit.resume()


class _Batch:
    """Messages that are handled together: it collects, then runs, then is over."""

    def __init__(self, function: BatchFunction) -> None:
        self._function = function
        self.members: list[_Member] = []
        self.timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None
        self._cuts = 0
        # That of the first message, which logs of the handler must not name alone.
        self._context = home_context()

    def begin(self, name: str) -> asyncio.Task[None]:
        """Call the handler, in a task of its own, which is returned: it goes on when one of its messages is lost."""
        for member in self.members:
            member.goes_on()
        self.task = asyncio.get_running_loop().create_task(self._run(), name=name, context=self._context)
        self.task.add_done_callback(self._ended, context=self._context)
        return self.task

    async def end(self, member: _Member) -> None:
        """Wait for the end of the handler, which is the end of the message's part in it.

        A message that is cancelled waits, too, also one that is lost: neither it nor its resources must go back while
        the handler runs, nor may what follows in its group begin. The handler is cancelled when all of its messages
        are.
        """
        while not member.over.done():
            try:
                await asyncio.wait([member.over])  # unlike an await, it cancels nothing of the others
            except asyncio.CancelledError:
                if self.task is None:
                    member.goes_on()
                    self.members.remove(member)
                    raise
                member.cuts += 1
                self._cancel()

    def _cancel(self) -> None:
        """Cancel the handler as often as all of its messages were: by their time limits, and by a stop after that."""
        cuts = min((member.cuts for member in self.members), default=0)
        if self.task is not None and cuts > self._cuts:
            self._cuts = cuts
            self.task.cancel()

    async def _run(self) -> None:
        self._leave_out_lost()
        if not (members := self.members):
            return
        batch = BatchContext([member.ctx for member in members])
        _current.set((batch, asyncio.current_task()))
        error: BaseException | None = None
        try:
            function: Callable[..., Awaitable[object]] = self._function
            result = await function([member.payload for member in members], batch)
            if result is not None:
                refuse_unworked(result)
        except BaseException as raised:  # a SystemExit too: it ends the consumer from each message's own task
            error = _for_all(raised)
        failures = batch.failures
        given: set[int] = set()
        for index, member in enumerate(members):
            failure = failures.get(index, error)
            # Each raises one of its own: a shared one would grow by a traceback with each, and name one message for
            # all.
            member.error = _copy_of(failure) if failure is not None and id(failure) in given else failure
            given.add(id(failure))
            member.traceback = None if failure is None else failure.__traceback__

    def _leave_out_lost(self) -> None:
        """Leave out what was lost while it waited: another consumer may handle it by now."""
        for member in tuple(self.members):
            if settles_of(member.ctx).lost:
                message_id = member.ctx.message.id
                text = f"message {message_id} was lost while it waited for its batch"
                member.error = OwnershipLost(text, message_id=message_id)
                member.over.set_result(None)
                self.members.remove(member)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():  # by foreign code, before its first step: nothing was handled, and nothing may be deleted
            for member in self.members:
                member.error = Retry("the task of its batch was cancelled before it began")
        elif (error := task.exception()) is not None:
            for member in self.members:
                member.error = member.error or error
        for member in self.members:
            member.over.set_result(None)


class BatchHandler:
    """Collects messages of one tenant, and calls a function with them. Made by ``consumer.batch_handler``.

    Args:
        function: called as ``function(payloads, batch)``.
        size: the most messages of a batch.
        wait: seconds that the first message of a batch waits for others: less when the consumer stops, its tenant is
            paused, or messages wait for the slots.
    """

    def __init__(self, function: BatchFunction, *, size: int, wait: float) -> None:
        self._function = function
        self._size = size
        self._wait = wait
        self._collecting: dict[Any, _Batch] = {}
        self._running: Counter[Any] = Counter()
        """Batches that run, by tenant."""
        self._hurried = False
        self._identify = Identifier()
        self._name = f"postroom-batch-{name_of(function)}"

    @property
    def function(self) -> "BatchFunction":
        """The function that batches are handed to."""
        return self._function

    async def __call__(self, payload: Any, ctx: MessageContext[Any, Any]) -> None:
        """Join a batch, and end as the message's part of it ends."""
        # By the context as the pool tells contexts apart: 1 and True are two. By the resources, too: after a
        # replacement the same tenant has others, and a batch has one set.
        key = (ctx.tenant, self._identify(ctx.context), id(ctx.resources))
        batch = self._collecting.get(key)
        if batch is None:
            batch = self._collecting[key] = _Batch(self._function)
            wait = 0.0 if self._hurried else self._wait
            batch.timer = asyncio.get_running_loop().call_later(wait, self._begin, key, batch)
        member = _Member(payload, ctx, asyncio.get_running_loop().create_future())
        member.waits()
        batch.members.append(member)
        if len(batch.members) >= self._size:
            self._begin(key, batch)
        try:
            await batch.end(member)
        except asyncio.CancelledError:
            if not batch.members:
                self._forget(key, batch)
            raise
        if (error := member.error) is not None:
            # As the handler left it: one that could not be copied has the traceback of other messages by now.
            raise error.with_traceback(member.traceback)

    def check_slots(self, concurrency: Concurrency, *, shared: bool) -> None:
        """Refuse a ``Concurrency`` that is too small for the batches. Raises ``ConfigurationError``."""
        check_batch(self._size, self._wait, concurrency, shared=shared)

    def hurry(self) -> None:
        """Hand over what is collected, and from now on let no message wait for others: the consumer stops."""
        self._hurried = True
        for key, batch in tuple(self._collecting.items()):
            self._begin(key, batch)

    def relax(self) -> None:
        """End what ``hurry`` began: the consumer starts again."""
        self._hurried = False

    def hand_over(self, tenant: Any) -> None:
        """Hand over what is collected of a tenant: something was decided about it."""
        for key, batch in tuple(self._collecting.items()):
            if key[0] == tenant:
                self._begin(key, batch)

    def make_way(self, is_crowded: Callable[[Any], bool]) -> bool:
        """Hand over what is collected of crowded tenants: waiting, it takes slots, and no other can join it.

        But a tenant's own batch that runs leaves its slots to those that can join.

        Returns:
            whether anything is still collected.
        """
        for key, batch in tuple(self._collecting.items()):
            if key[0] not in self._running and is_crowded(key[0]):
                self._begin(key, batch)
        return bool(self._collecting)

    def _begin(self, key: Any, batch: _Batch) -> None:
        self._forget(key, batch)
        # All may have been cancelled while it collected, and the timer may ring after it became
        # full.
        if batch.members and batch.task is None:
            self._running[key[0]] += 1
            batch.begin(self._name).add_done_callback(lambda _task: self._ended(key[0]))

    def _ended(self, tenant: Any) -> None:
        self._running[tenant] -= 1
        if not self._running[tenant]:
            del self._running[tenant]

    def _forget(self, key: Any, batch: _Batch) -> None:
        # A newer batch of the same tenant may collect under this key by now.
        if self._collecting.get(key) is batch:
            del self._collecting[key]
        if batch.timer is not None:
            batch.timer.cancel()


def check_batch(size: object, wait: object, concurrency: Concurrency, *, shared: bool) -> None:
    """Refuse sizes that no batch can have. Raises ``ConfigurationError`` with what to write.

    Args:
        size: see there.
        wait: see there.
        concurrency: what bounds how many messages of a tenant run at once.
        shared: whether several tenants share the slots.
    """
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ConfigurationError(f"batch_handler(size=...) takes a whole number from 1 up; got {size!r}")
    if isinstance(wait, bool) or not isinstance(wait, int | float) or not 0 <= wait < math.inf:
        raise ConfigurationError(f"batch_handler(wait=...) takes seconds, 0 or more; got {wait!r}")
    slots = min(concurrency.total, concurrency.per_tenant) if shared else concurrency.total
    if size > slots:
        total = max(size, concurrency.total)
        enough = f"Concurrency(total={total}, per_tenant={size})" if shared else f"Concurrency(total={total})"
        text = f"batch_handler(size={size}) needs a slot for each message of a batch, and a tenant has {slots}"
        raise ConfigurationError(f"{text}: write {enough}")


def check_batch_function(function: Any) -> None:
    """Refuse what cannot be called as ``function(payloads, batch)``. Raises ``ConfigurationError``."""
    check_handler(function)
    if not is_async(function):
        text = f"batch handler {name_of(function)} is a plain def: write it as `async def`"
        raise ConfigurationError(f"{text}, and call what blocks with `await asyncio.to_thread(...)`")


def element_type_of(function: Any) -> Any:
    """Return the payload type of one message: what the annotation ``list[...]`` of the first parameter says.

    Raises:
        ConfigurationError: the annotation is no list.
    """
    wanted = written_out(payload_type_of(function))
    if get_origin(wanted) is Annotated:
        wanted = written_out(get_args(wanted)[0])
    if wanted is object or wanted is list:
        return object
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin in _LISTS and len(arguments) == 1:
        return arguments[0]
    text = f"batch handler {name_of(function)} gets a list of payloads: annotate it as list[{_name(wanted)}]"
    raise ConfigurationError(text)


def _for_all(error: BaseException) -> BaseException:
    """Return an error that left the handler as one of all messages.

    A duplicate is one message, and so is what one task of a ``TaskGroup`` says of its own: the others are not done.
    """
    found: BaseException | None = None
    if isinstance(error, AlreadyHandled):
        found = error
    elif not ends_the_program(error) and isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        found = group.subgroup((AlreadyHandled, Retry, Reject, Drop))
        while isinstance(found, BaseExceptionGroup):
            found = cast("BaseExceptionGroup[BaseException]", found).exceptions[0]
    if found is None:
        return cast("BaseException", error)
    name = type(found).__name__
    failure = MessageError(
        f"{name} left the handler of a batch, and concerns one of its messages: batch.fail(index, ...)"
    )
    failure.__cause__ = error
    return failure


def _copy_of(error: BaseException) -> BaseException:
    """Return an equal error; the error itself, where its class cannot be copied: its class decides what follows."""
    for make in (copy.copy, _remade):
        with suppress(Exception):  # of a constructor, or a `__str__`, of the application's
            made = make(error)
            if made is not error and type(made) is type(error) and str(made) == str(error):
                made.__cause__, made.__context__ = error.__cause__, error.__context__
                made.__suppress_context__ = error.__suppress_context__
                if notes := vars(error).get("__notes__"):
                    vars(made)["__notes__"] = list(notes)
                return made.with_traceback(error.__traceback__)
    return error


def _remade(error: BaseException) -> BaseException:
    """Copy an error without its constructor, which may want other arguments than those it kept."""
    made: BaseException = type(error).__new__(type(error), *error.args)
    made.args = error.args
    vars(made).update(vars(error))
    return made


def _is_place(index: object, count: int) -> bool:
    return isinstance(index, int) and not isinstance(index, bool) and 0 <= index < count


def _is_error(error: object) -> bool:
    return isinstance(error, BaseException)


def _name(wanted: Any) -> str:
    return wanted.__name__ if isinstance(wanted, type) else str(wanted)
