"""What each tenant costs: counted per minute, told to observers, and written to a CSV file."""

import asyncio
import csv
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from postroom.checking import check_path
from postroom.consumer import Consumer
from postroom.errors import ConfigurationError
from postroom.events import Event, HandlerFinished, MessageSettled, TenantUsage, UsageReport
from postroom.log_fields import Log, Step
from postroom.options import check_count, check_seconds
from postroom.resources import display_key
from postroom.types import Settlement

_log = Log("postroom.console", Step.OBSERVER)

OTHERS: Final = "(others)"
"""The name under which tenants beyond the limit are summed up."""
_COLUMNS: Final = (
    "began", "seconds", "queue", "tenant", "handler_seconds", "lease_seconds", "messages", "failed", "receives",
    "dead_letters",
)  # fmt: skip
_RISKY: Final = ("=", "+", "-", "@")
"""What spreadsheets take for the beginning of a formula."""


class _Sum:
    """The sums of one tenant."""

    __slots__ = ("dead_letters", "failed", "handler_seconds", "lease_seconds", "messages", "receives")

    def __init__(self) -> None:
        self.handler_seconds = 0.0
        self.lease_seconds = 0.0
        self.messages = 0
        self.failed = 0
        self.receives = 0
        self.dead_letters = 0

    def usage(self, name: str) -> TenantUsage:
        """Return the sums as they are told."""
        return TenantUsage(
            tenant=name,
            handler_seconds=round(self.handler_seconds, 3),
            lease_seconds=round(self.lease_seconds, 3),
            messages=self.messages,
            failed=self.failed,
            receives=self.receives,
            dead_letters=self.dead_letters,
        )


class UsageMeter:
    """Counts what each tenant costs while its block is entered.

        run(orders, beside=UsageMeter(orders, path="usage.csv"))

    Every ``every`` seconds, and at the end, the observers of each consumer get a ``UsageReport``. It has to be entered
    in the event loop of the consumers.

    Args:
        consumers: what is measured.
        every: seconds of one report.
        path: a CSV file that each report is appended to; None for none.
        most: tenants that are counted one by one in each report; the rest is summed up as ``(others)``.

    Raises:
        ConfigurationError: no consumer, an ``every`` that is not above 0, a ``most`` below 1; when it is entered, a
            file that cannot be written.
    """

    def __init__(
        self,
        *consumers: Consumer[Any, Any],
        every: float = 60.0,
        path: Path | str | None = None,
        most: int = 10_000,
    ) -> None:
        if not consumers:
            raise ConfigurationError("UsageMeter(...) takes at least one consumer, one argument each; got none")
        check_seconds("UsageMeter", "every", every, least=0.001)
        check_count("UsageMeter", "most", most)
        if path is not None:
            check_path("UsageMeter(path=...)", path, 'path="usage.jsonl"')
        self._counts = [_Count(consumer, most) for consumer in consumers]
        self._every = every
        self._path = None if path is None else Path(path)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin to count."""
        if self._path is not None:
            try:
                # Tried at once: a path that cannot be written must stop the start, and not be
                # missed at the end of the month.
                await asyncio.to_thread(_append, self._path, [])
            except OSError as error:
                text = f"the usage file {self._path} cannot be written: {error.strerror}. Name another one"
                raise ConfigurationError(text) from error
        for count in self._counts:
            count.start()
        self._task = asyncio.get_running_loop().create_task(self._run(), name="postroom-usage")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Tell the last report, and count no more."""
        assert self._task is not None  # noqa: S101 - it was entered
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        for count in self._counts:
            # Before the last report, so that no event comes between the sum and the end.
            count.stop()
        await self._report()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            await self._report()

    async def _report(self) -> None:
        reports = [report for count in self._counts if (report := count.take()) is not None]
        if self._path is not None and reports:
            try:
                await asyncio.to_thread(_append, self._path, reports)
            except OSError as error:  # the observers have been told; the work goes on
                _log.warning("The usage of %.0f s could not be written to %s: %s", self._every, self._path, error)


class _Count:
    """What is counted in one consumer since the last report."""

    def __init__(self, consumer: Consumer[Any, Any], most: int) -> None:
        self._consumer = consumer
        self._most = most
        self._sums: dict[Hashable, _Sum] = {}
        self._others = _Sum()
        self._rest = False
        self._began = (0.0, 0.0)
        self._leave: Callable[[], None] | None = None

    def start(self) -> None:
        """Begin to listen."""
        self._began = time.time(), asyncio.get_running_loop().time()
        self._leave = self._consumer.subscribe(self._tell)

    def stop(self) -> None:
        """Listen no longer."""
        if self._leave is not None:
            self._leave()

    def take(self) -> UsageReport | None:
        """Make the report, tell the observers, and begin again. None where nothing happened."""
        now = time.time(), asyncio.get_running_loop().time()
        # Both clocks: the wall clock says when, and may be set; the loop's says how long.
        began, self._began = self._began, now
        sums, self._sums = self._sums, {}
        if not sums:
            return None
        usages = [each.usage(display_key(tenant)) for tenant, each in sums.items()]
        usages.sort(key=lambda usage: (-usage.handler_seconds, -usage.receives, usage.tenant))
        if self._rest:
            usages.append(self._others.usage(OTHERS))
            self._others, self._rest = _Sum(), False
        report = UsageReport(self._consumer.queue, began[0], round(now[1] - began[1], 3), tuple(usages))
        self._consumer.tell(report)
        return report

    def _tell(self, event: Event) -> None:
        if isinstance(event, HandlerFinished):
            each = self._sum(event.tenant)
            each.handler_seconds += event.seconds
            each.failed += event.error is not None
            pool = self._consumer.pool
            if pool is not None:
                each.lease_seconds += event.seconds * (pool.weight_of(event.tenant) or 1)
        elif isinstance(event, MessageSettled):
            each = self._sum(event.tenant)
            each.receives += 1  # each receive of a message ends with one settlement
            each.messages += event.settlement is Settlement.ACKED
            each.dead_letters += event.settlement is Settlement.REJECTED

    def _sum(self, tenant: Hashable) -> _Sum:
        known = self._sums.get(tenant)
        if known is not None:
            return known
        # Bounded: a key that is different in every message would fill the memory.
        if len(self._sums) >= self._most:
            self._rest = True
            return self._others
        known = self._sums[tenant] = _Sum()
        return known


def _append(path: Path, reports: Sequence[UsageReport]) -> None:
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        # A new file, or one that was rotated away meanwhile.
        if not file.tell():
            writer.writerow(_COLUMNS)
        for report in reports:
            for usage in report.tenants:
                name = f"'{usage.tenant}" if usage.tenant.startswith(_RISKY) else usage.tenant
                writer.writerow([
                    f"{report.began:.0f}", report.seconds, report.queue, name, usage.handler_seconds,
                    usage.lease_seconds, usage.messages, usage.failed, usage.receives, usage.dead_letters,
                ])  # fmt: skip
