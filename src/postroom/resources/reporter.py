"""The pool's log lines: what happened, to which key or host, why, and what follows. No line contains a secret."""

import logging
from collections.abc import Hashable
from typing import Any, Final

from postroom.display import counted, display_key
from postroom.log_fields import Log, Step, about
from postroom.outages import Kind, Outages, Telling, Timer, cause_of
from postroom.redaction import describe, hidden_values, log_traceback
from postroom.resources import news
from postroom.resources.causes import Cause

log: Final = Log("postroom.pool", Step.RESOURCES)

_KEYS: Final = Kind("Resources not available", "key", log, Step.RESOURCES, "tenant")
_HOSTS: Final = Kind("Host not available", "host", log, Step.RESOURCES)
_UNHEALTHY: Final = Kind("Resources unhealthy", "key", log, Step.RESOURCES, "tenant")
_SUSPECT: Final = Kind("Resources suspect", "key", log, Step.RESOURCES, "tenant")
_IGNORES: Final = Kind("Resources ignore a cancellation", "key", log, Step.RESOURCES, "tenant")
_UNCLOSED: Final = Kind("Resources closed with an error", "key", log, Step.RESOURCES, "tenant")


class Reporter:
    """Puts the core's news into words. One ERROR per outage, with the traceback; then a line per change of state.

    What comes and goes shares a line, now and then.
    """

    def __init__(self, name: str, timer: Timer) -> None:
        self._name = name
        self._time = timer.time
        self.outages: Outages = Outages(timer)

    def tell(self, told: news.News) -> None:
        """Write what is to be told."""
        match told:
            case news.OpenFailed():
                self._open_failed(told)
            case news.HostFailed():
                self._host_failed(told)
            case news.Available(key, seconds, tries):
                text = "Resources available again for key: %s; %.3g s, %s"
                level = logging.WARNING if self.outages.worked(_KEYS, key, self._time()) else logging.DEBUG
                log.log(level, text, display_key(key), seconds, counted(tries, "try"), extra=about(tenant=key))
            case news.Repaired(key):
                self.outages.forget(_KEYS, key)
            case news.HostAvailable():
                self._host_available(told)
            case news.Exhausted():
                self._exhausted(told)

    def _open_failed(self, told: news.OpenFailed) -> None:
        what = "Outage met by a use of the resources of key" if told.in_use else "Resources not available for key"
        kind = "unknown tenant" if told.permanent else "outage"
        text = f"{what}: %s ({kind}: %s); next try in %.3g s"
        arguments = (display_key(told.key), told.cause.text, told.retry_after)
        extra = about(tenant=told.key)
        telling = self._failed(_KEYS, told.key, told.cause) if told.told else Telling.KNOWN
        if telling is Telling.NEWS and told.loud and not told.permanent:
            log_traceback(log, logging.ERROR, text, *arguments, shown=told.cause.at_length(), extra=extra)
        else:
            log.log(logging.WARNING if telling.is_told else logging.DEBUG, text, *arguments, extra=extra)

    def _host_failed(self, told: news.HostFailed) -> None:
        why, telling = told.cause.text, self._failed(_HOSTS, told.host, told.cause)
        level = logging.WARNING if telling.is_told else logging.DEBUG
        if told.trips > 1:
            text = "Host still not available: %s (probe %d failed: %s); next probe in %.3g s"
            log.log(level, text, display_key(told.host), told.trips - 1, why, told.retry_after)
            return
        text = "Host not available: %s (outage of several keys, last %s: %s); its keys are left alone for %.3g s"
        arguments, extra = (
            (display_key(told.host), display_key(told.key), why, told.retry_after),
            about(tenant=told.key),
        )
        if telling is Telling.NEWS:
            log_traceback(log, logging.ERROR, text, *arguments, shown=told.cause.at_length(), extra=extra)
        else:
            log.log(level, text, *arguments, extra=extra)

    def _host_available(self, told: news.HostAvailable) -> None:
        text, tries = "Host available again: %s; %.3g s, %s", counted(told.tries, "probe")
        level = logging.WARNING if self.outages.worked(_HOSTS, told.host, self._time()) else logging.DEBUG
        log.log(level, text, display_key(told.host), told.seconds, tries)

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

    def _failed(self, kind: Kind, subject: Hashable, cause: Cause) -> Telling:
        return self.outages.failed(kind, subject, cause_of(cause.error), cause.text, self._time())

    def _happened(self, kind: Kind, key: Hashable, error: BaseException, why: str) -> int:
        """Note what is over at once. Returns how loud its line is."""
        is_news = self.outages.happened(kind, key, cause_of(error), why, self._time())
        return logging.WARNING if is_news else logging.DEBUG

    def opened(self, key: Hashable, host: Hashable) -> None:
        """Note that resources are open: where failures were forgotten meanwhile, no news tells of their end."""
        now = self._time()
        if self.outages.worked(_KEYS, key, now):
            log.warning("Resources available again for key: %s", display_key(key), extra=about(tenant=key))
        if host is not None and self.outages.worked(_HOSTS, host, now):
            log.warning("Host available again: %s", display_key(host))

    def suspect(self, key: Hashable, context: Any, error: BaseException) -> None:
        """Say that resources are not trusted any longer."""
        why = describe(error, hidden_values(context))
        text = "Resources suspect for key: %s (%s); replaced by the next lease"
        log.log(self._happened(_SUSPECT, key, error, why), text, display_key(key), why, extra=about(tenant=key))

    def unhealthy(self, key: Hashable, context: Any, error: BaseException) -> None:
        """Say that a health check failed."""
        why = describe(error, hidden_values(context))
        text = "Resources unhealthy for key: %s (%s); replaced by the next lease"
        log.log(self._happened(_UNHEALTHY, key, error, why), text, display_key(key), why, extra=about(tenant=key))

    def created(self, key: Hashable) -> None:
        """Say that resources were opened."""
        log.log(self._quiet_level(key), "Resources created for key: %s", display_key(key), extra=about(tenant=key))

    def _quiet_level(self, key: Hashable) -> int:
        """Return how loud it is that resources come and go. While they fail again and again, that is told already."""
        return logging.DEBUG if self.outages.comes_and_goes(key) else logging.INFO

    def closed(self, key: Hashable, context: Any, reason: str, error: BaseException | None) -> None:
        """Say that resources were closed, and what they raised in closing."""
        if error is None:
            text = "Resources closed for key: %s (%s)"
            log.log(self._quiet_level(key), text, display_key(key), reason, extra=about(tenant=key))
        else:
            why = describe(error, hidden_values(context))
            text = "Resources closed with an error for key: %s (%s; %s)"
            level = self._happened(_UNCLOSED, key, error, why)
            log.log(level, text, display_key(key), reason, why, extra=about(tenant=key))

    def ignores(self, key: Hashable, weight: int, option: str, seconds: float, place: str) -> None:
        """Say that an open, a close or a health check runs on although it was cancelled."""
        why = f"PoolTimeouts({option}={seconds:g}){f', at {place}' if place else ''}"
        is_news = self.outages.happened(_IGNORES, key, option, why, self._time())
        log.log(
            logging.WARNING if is_news else logging.DEBUG,
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
