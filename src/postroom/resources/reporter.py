"""The pool's log lines: what happened, to which key or host, why, and what follows. No line contains a secret."""

import logging
from collections.abc import Hashable
from typing import Any, Final

from postroom.redaction import describe, hidden_values, log_traceback
from postroom.resources import news
from postroom.resources.identity import display_key

log: Final = logging.getLogger("postroom.pool")


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
                log.warning("Resources available again for key: %s; %.3g s, %d tries", _shown(key), seconds, tries)
            case news.HostAvailable(host, seconds, tries):
                log.warning("Host available again: %s; %.3g s, %d probes", _shown(host), seconds, tries)
            case news.Exhausted():
                self._exhausted(told)

    def _open_failed(self, told: news.OpenFailed) -> None:
        what = "Outage met by a use of the resources of key" if told.in_use else "Resources not available for key"
        kind = "unknown tenant" if told.permanent else "outage"
        text = f"{what}: %s ({kind}: %s); next try in %.3g s"
        arguments = (_shown(told.key), told.cause.text, told.retry_after)
        if told.permanent and (told.loud or told.changed):
            log.warning(text, *arguments)
        elif told.loud:
            log_traceback(log, logging.ERROR, text, *arguments, shown=told.cause.at_length())
        elif told.changed:
            log.warning(text, *arguments)
        else:
            log.debug(text, *arguments)

    def _host_failed(self, told: news.HostFailed) -> None:
        why = told.cause.text
        if told.trips == 1:
            text = "Host not available: %s (outage of several keys, last %s: %s); its keys are left alone for %.3g s"
            arguments = (_shown(told.host), _shown(told.key), why, told.retry_after)
            log_traceback(log, logging.ERROR, text, *arguments, shown=told.cause.at_length())
        else:
            level = logging.WARNING if told.changed else logging.DEBUG
            text = "Host still not available: %s (probe %d failed: %s); next probe in %.3g s"
            log.log(level, text, _shown(told.host), told.trips - 1, why, told.retry_after)

    def _exhausted(self, told: news.Exhausted) -> None:
        holders = ", ".join(f"{_shown(key)} ({weight}, {leases} leased)" for key, weight, leases in told.holders)
        whose = self._name if told.host is None else f"host {_shown(told.host)}"
        option = "budget" if told.host is None else "per_host"
        log.warning(
            "No budget for key: %s, waiting for %.3g s: it needs %d, and %d of %d of %s are in use, most of it by %s. "
            "Raise PoolLimits(%s=...), make each resource smaller, or lease for less time",
            _shown(told.key),
            told.seconds,
            told.weight,
            told.used,
            told.limit,
            whose,
            holders,
            option,
        )

    def suspect(self, key: Hashable, context: Any, error: BaseException) -> None:
        """Say that resources are not trusted any longer."""
        why = describe(error, hidden_values(context))
        log.warning("Resources suspect for key: %s (%s); replaced by the next lease", _shown(key), why)

    def unhealthy(self, key: Hashable, context: Any, error: BaseException) -> None:
        """Say that a health check failed."""
        why = describe(error, hidden_values(context))
        log.warning("Resources unhealthy for key: %s (%s); replaced by the next lease", _shown(key), why)

    def closed(self, key: Hashable, context: Any, reason: str, error: BaseException | None) -> None:
        """Say that resources were closed, and what they raised in closing."""
        if error is None:
            log.info("Resources closed for key: %s (%s)", _shown(key), reason)
        else:
            why = describe(error, hidden_values(context))
            log.warning("Resources closed with an error for key: %s (%s; %s)", _shown(key), reason, why)

    def holds_more(self, key: Hashable, connections: int, budget: int) -> None:
        """Say that a resource holds several connections and counts as one."""
        log.warning(
            "%s: the resources of key %s may hold %d connections each, and count as 1 of the budget of %d. Pass "
            "ResourcePool(weight=%d), or weight=1 if that is meant",
            self._name,
            _shown(key),
            connections,
            budget,
            connections,
        )


def _shown(key: Hashable) -> str:
    return display_key(key)
