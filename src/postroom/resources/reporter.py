"""The pool's log lines: what happened, to which key or host, why, and what follows. No line contains a secret."""

import logging
from collections.abc import Hashable
from typing import Any, Final

from postroom.display import counted, display_key
from postroom.log_fields import Log, Step, about
from postroom.redaction import describe, hidden_values, log_traceback
from postroom.resources import news

log: Final = Log("postroom.pool", Step.RESOURCES)


class Reporter:
    """Puts the core's news into words. One ERROR per outage, with the traceback; then a line per change of state."""

    def __init__(self, name: str) -> None:
        self._name = name

    def tell(self, told: news.News) -> None:
        """Write what is to be told."""
        match told:
            case news.OpenFailed():
                self._open_failed(told)
            case news.HostFailed():
                self._host_failed(told)
            case news.Available(key, seconds, tries):
                text = "Resources available again for key: %s; %.3g s, %s"
                log.warning(text, display_key(key), seconds, counted(tries, "try"), extra=about(tenant=key))
            case news.HostAvailable(host, seconds, tries):
                log.warning("Host available again: %s; %.3g s, %s", display_key(host), seconds, counted(tries, "probe"))
            case news.Exhausted():
                self._exhausted(told)

    def _open_failed(self, told: news.OpenFailed) -> None:
        what = "Outage met by a use of the resources of key" if told.in_use else "Resources not available for key"
        kind = "unknown tenant" if told.permanent else "outage"
        text = f"{what}: %s ({kind}: %s); next try in %.3g s"
        arguments = (display_key(told.key), told.cause.text, told.retry_after)
        extra = about(tenant=told.key)
        if told.permanent and (told.loud or told.changed):
            log.warning(text, *arguments, extra=extra)
        elif told.loud:
            log_traceback(log, logging.ERROR, text, *arguments, shown=told.cause.at_length(), extra=extra)
        elif told.changed:
            log.warning(text, *arguments, extra=extra)
        else:
            log.debug(text, *arguments, extra=extra)

    def _host_failed(self, told: news.HostFailed) -> None:
        why = told.cause.text
        if told.trips == 1:
            text = "Host not available: %s (outage of several keys, last %s: %s); its keys are left alone for %.3g s"
            arguments = (display_key(told.host), display_key(told.key), why, told.retry_after)
            log_traceback(
                log, logging.ERROR, text, *arguments, shown=told.cause.at_length(), extra=about(tenant=told.key)
            )
        else:
            level = logging.WARNING if told.changed else logging.DEBUG
            text = "Host still not available: %s (probe %d failed: %s); next probe in %.3g s"
            log.log(level, text, display_key(told.host), told.trips - 1, why, told.retry_after)

    def _exhausted(self, told: news.Exhausted) -> None:
        holders = ", ".join(f"{display_key(key)} ({weight}, {leases} leased)" for key, weight, leases in told.holders)
        subject = self._name if told.host is None else f"host {display_key(told.host)}"
        option = "budget" if told.host is None else "per_host"
        log.warning(
            "No budget for key: %s, waiting for %.3g s: it needs %d, and %d of %d of %s are in use, most of it by %s. "
            "Raise PoolLimits(%s=...), make each resource smaller, or lease for less time",
            display_key(told.key),
            told.seconds,
            told.weight,
            told.used,
            told.limit,
            subject,
            holders,
            option,
            extra=about(tenant=told.key),
        )

    def suspect(self, key: Hashable, context: Any, error: BaseException) -> None:
        """Say that resources are not trusted any longer."""
        why = describe(error, hidden_values(context))
        text = "Resources suspect for key: %s (%s); replaced by the next lease"
        log.warning(text, display_key(key), why, extra=about(tenant=key))

    def unhealthy(self, key: Hashable, context: Any, error: BaseException) -> None:
        """Say that a health check failed."""
        why = describe(error, hidden_values(context))
        text = "Resources unhealthy for key: %s (%s); replaced by the next lease"
        log.warning(text, display_key(key), why, extra=about(tenant=key))

    def closed(self, key: Hashable, context: Any, reason: str, error: BaseException | None) -> None:
        """Say that resources were closed, and what they raised in closing."""
        if error is None:
            log.info("Resources closed for key: %s (%s)", display_key(key), reason, extra=about(tenant=key))
        else:
            why = describe(error, hidden_values(context))
            text = "Resources closed with an error for key: %s (%s; %s)"
            log.warning(text, display_key(key), reason, why, extra=about(tenant=key))

    def ignores(self, key: Hashable, weight: int, option: str, seconds: float, place: str) -> None:
        """Say that an open, a close or a health check runs on although it was cancelled."""
        log.warning(
            "The %s of the resources of key %s ignores its cancellation after PoolTimeouts(%s=%g)%s. Until it ends, "
            "they take %d of the budget. Let it pass CancelledError on",
            option,
            display_key(key),
            option,
            seconds,
            f": it waits at {place}" if place else "",
            weight,
            extra=about(tenant=key),
        )

    def holds_more(self, key: Hashable, connections: int, budget: int) -> None:
        """Say that a resource holds several connections and counts as one."""
        log.warning(
            "%s: the resources of key %s may hold %d connections each, and count as 1 of the budget of %d. Pass "
            "ResourcePool(weight=%d), or weight=1 if that is meant",
            self._name,
            display_key(key),
            connections,
            budget,
            connections,
            extra=about(tenant=key),
        )
