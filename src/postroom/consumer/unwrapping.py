"""The chain of ``Consumer(unwrap=...)``: envelopes before the context, contents before the payload."""

import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractAsyncContextManager
from typing import Any

from postroom.consumer.callables import check_callable, is_async, name_of
from postroom.consumer.job import Job
from postroom.errors import ConfigurationError, DecodeError, Drop, PayloadError, Reject, Retry
from postroom.events import Event, MessageSettled, Observer
from postroom.message import Message
from postroom.payloads import Contents, SnsEnvelope, unwrap_sns
from postroom.payloads.decoder import unwrapped
from postroom.tracebacks import place_of

Step = Callable[[Message], Message | Awaitable[Message]]

_TWICE = 2
"""A message that is at most so many times as large unwrapped is kept so until it is decoded."""


class Unwrapping:
    """Takes messages out of what they travel in. Each step is run once for a message, unless that takes memory.

    Envelopes are plain functions and run when a message is received, because they tell the tenant. Contents
    (``Contents`` and ``async def`` functions) are unpacked right before the payload is
    decoded, in the message's slot. Contents in front of an envelope are unpacked with it.

    Raises:
        ConfigurationError: a step cannot be called with a message, or is async and stands in front of an envelope.
    """

    def __init__(self, steps: Step | Iterable[Step]) -> None:
        chain: Sequence[Any] = (steps,) if callable(steps) else tuple(_listed(steps))
        for step in chain:
            _check(step)
        last = max((place for place, step in enumerate(chain, 1) if not _is_content(step)), default=0)
        self._envelopes = chain[:last]
        self._contents = chain[last:]
        for step in self._envelopes:
            if is_async(step):
                text = f"{name_of(step)} is async, so it must stand behind the envelopes: the context is read before it"
                raise ConfigurationError(f"Consumer(unwrap=[...]): {text}")
        self.resources: list[AbstractAsyncContextManager[Any]] = [
            step for step in chain if isinstance(step, AbstractAsyncContextManager)
        ]
        """Steps that are entered when a consumer starts."""

    @property
    def observers(self) -> list[Observer]:
        """What tells the steps that want to know it what became of each message."""
        watching = [step for step in (*self._envelopes, *self._contents) if isinstance(step, Contents)]
        return [_teller(step) for step in watching if type(step).settled is not Contents.settled]

    def check_resolver(self, resolver: object) -> None:
        """Refuse a resolver that takes messages out of the same envelope again: of what is inside, it finds none."""
        _refuse_second(self._envelopes, resolver, "context_from_attributes(unwrap=...)")

    def check_decoder(self, decoder: object) -> None:
        """Refuse a decoder that takes messages out of the same envelope again, as ``check_resolver`` does."""
        _refuse_second((*self._envelopes, *self._contents), decoder, "decoder_for(unwrap=...)")

    def envelope(self, job: Job) -> Message:
        """Return what the resolver of a message's context sees, and keep it. Raises what a step raises."""
        message = self.opened(job.message)
        if len(message.body) <= _TWICE * len(job.message.body):
            job.inner = message
            self._note(job, message)
        return message

    def opened(self, received: Message) -> Message:
        """Return a message out of its envelopes. Raises what a step raises."""
        message = received
        for step in self._envelopes:
            message = unwrapped(step, message, step(message))
        return message

    async def contents(self, job: Job) -> Message:
        """Return what the payload is decoded from.

        Raises:
            PayloadError: a step failed. ``Drop``, ``Reject`` and ``Retry`` of a step pass.
        """
        try:
            message = job.inner or self.envelope(job)
            job.inner = None
            self._note(job, message)
            for step in self._contents:
                found = step(message)
                message = unwrapped(step, message, await found if inspect.isawaitable(found) else found)
        except (PayloadError, Drop, Reject, Retry):
            raise
        except Exception as error:
            text = f"the message could not be unwrapped ({type(error).__name__}{place_of(error)})"
            raise DecodeError(text, message_id=job.message.id) from error
        return message

    def _note(self, job: Job, message: Message) -> None:
        if self._envelopes:
            job.attributes = message.attributes


def _listed(steps: object) -> Iterable[Any]:
    # A set has no order, and the steps run in one.
    if not isinstance(steps, Iterable) or isinstance(steps, str | bytes | AbstractSet):
        text = "Consumer(unwrap=...) takes a function (Message) -> Message, such as unwrap_sns, or a list of them"
        raise ConfigurationError(f"{text}; got {steps!r}")
    return steps  # pyright: ignore[reportUnknownVariableType] - each is checked next


def _check(step: object) -> None:
    if isinstance(step, type):
        text = f"Consumer(unwrap=...): {step.__name__} is a class: pass an instance, {step.__name__}()"
        raise ConfigurationError(text)
    check_callable("Consumer(unwrap=...)", "(Message) -> Message", step, 1)


def _refuse_second(chain: Iterable[object], reader: object, what: str) -> None:
    step = getattr(reader, "unwraps", None)
    if isinstance(step, SnsEnvelope) and step.raw:
        return  # it lets pass what is inside
    if step is not None and any(step == each or (_is_sns(step) and _is_sns(each)) for each in chain):
        text = f"Consumer(unwrap=...) and {what} would both unwrap each message ({name_of(step)})"
        # Nothing tells which functions of the user's let others pass; and what is inside may look like an envelope.
        text += f": remove the one in {what}, which is given what was inside"
        raise ConfigurationError(f"{text}, also where it lets pass what is in no envelope: once is enough for both")


def _is_sns(step: object) -> bool:
    return step is unwrap_sns or isinstance(step, SnsEnvelope)


def _is_content(step: object) -> bool:
    return isinstance(step, Contents) or (callable(step) and is_async(step))


def _teller(step: Contents) -> Observer:
    def tell(event: Event) -> None:
        if isinstance(event, MessageSettled):
            step.settled(event.message, event.settlement)

    return tell
