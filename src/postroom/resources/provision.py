"""What the user of a pool gave it: how to open and check resources, and what their failures mean."""

from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from postroom.checking import answered, shown
from postroom.display import display_key
from postroom.log_fields import Log, Step, about
from postroom.program_end import heed
from postroom.repeats import Repeats
from postroom.resources.causes import NotAProvider, Unhealthy
from postroom.resources.failures import OpenFailure, classify_open, is_outage
from postroom.resources.providers import Opener

_log = Log("postroom.pool", Step.POLICY)


@dataclass(frozen=True, slots=True)
class Provision:
    """The user's functions of one pool. What they raise is logged and concerns the one question that was asked."""

    opener: Opener
    check: Callable[[Any], Awaitable[object]] | None
    classify: Callable[[BaseException], OpenFailure] | None
    outage: Callable[[BaseException], bool] | None
    knows_weight: bool
    """The weight was said, by the user or by the provider: what resources look like is not guessed."""
    repeats: Repeats = field(default_factory=Repeats)

    def is_permanent(self, key: Hashable, error: BaseException) -> bool:
        """Return whether a failed open of a key says that there is no such tenant."""
        if isinstance(error, Unhealthy | NotAProvider):
            return False
        what, wrong = "failed", None
        try:
            answer: Any = answered((self.classify or classify_open)(error))
            if isinstance(answer, OpenFailure):
                return answer is OpenFailure.UNKNOWN_TENANT
            what = f"returned {shown(answer)}"
        except BaseException as raised:
            heed(raised)
            wrong = raised
        text = f"classify= {what} for key %s; its failed open counts as an outage"
        self.repeats.failed("classify", _log, text, display_key(key), error=wrong, extra=about(tenant=key))
        return False

    def is_outage(self, error: BaseException) -> bool:
        """Return whether what a use of resources raised says that their server cannot be used for now."""
        try:
            return is_outage(error) or (self.outage is not None and bool(answered(self.outage(error))))
        except BaseException as raised:
            heed(raised)
            self.repeats.failed("outage", _log, "outage= failed; the failure counts as the message's own", error=raised)
            return False
