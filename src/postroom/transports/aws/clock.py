"""Whether SQS refused a signature because of the clock, and how far off the clock is.

A signature is good for some minutes around the server's time. See
https://docs.aws.amazon.com/IAM/latest/UserGuide/signature-v4-troubleshooting.html
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

_ALWAYS: Final = frozenset({"RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture", "ClockSkew"})
_PERHAPS: Final = frozenset(
    {"SignatureDoesNotMatch", "InvalidSignature", "InvalidSignatureException", "AuthFailure", "AccessDenied"}
)
_SIGNATURE: Final = _PERHAPS - {"AccessDenied"}
_SAID: Final = re.compile(
    r"signature (has )?expired|signature not yet current|time.{0,30}too skewed|is too skewed", re.IGNORECASE
)
_STAMP: Final = re.compile(r"\d{8}T\d{6}Z")
TOLERANCE: Final = 240.0
"""Seconds by which a clock may differ without being the cause: AWS refuses from five minutes on."""


@dataclass(frozen=True, slots=True)
class Skew:
    """A signature was refused because of the clock."""

    seconds: float | None
    """How far the server's clock is ahead of this machine's; None if the answer does not say."""


def skew_of(code: str, said: str, date: str | None, now: float) -> Skew | None:
    """Return how far off the clock is, if it is the reason of a refusal; None if it is not.

    Args:
        code: the error code, without a namespace.
        said: what the answer says.
        date: its Date header.
        now: seconds since the epoch by this machine's clock.
    """
    served = _http_date(date)
    off = None if served is None else served - now
    blamed = code in _ALWAYS or (code in _PERHAPS and _SAID.search(said) is not None)
    if not blamed and not (code in _SIGNATURE and off is not None and abs(off) > TOLERANCE):
        return None
    return Skew(off if off is not None and abs(off) > TOLERANCE else _between_stamps(said))


def _http_date(date: str | None) -> float | None:
    try:
        return None if date is None else parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None


def _between_stamps(said: str) -> float | None:
    # AWS says when the request was signed, what it compares that with, and, last, its own time.
    stamps = _STAMP.findall(said)
    try:
        times = [datetime.strptime(each, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp() for each in stamps]
    except ValueError:
        return None
    return times[-1] - times[0] if len(times) > 1 else None
