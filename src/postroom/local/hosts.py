"""Which requests a web page may have sent: those are refused, so that no page reads or changes queues.

A developer's browser runs pages of strangers on the machine on which this server listens. Such a page can send simple
requests to a loopback address, and with a name of its own that suddenly resolves to loopback (DNS rebinding) it can
read the answers as well. Two checks end both:

* **Host.** The name in the Host header must be one that no stranger can make resolve to this machine: an address, a
  loopback name, the machine's own name, a name without a dot (``sqs`` in a compose file), a name under a suffix that
  the public DNS does not have, or one that was allowed by name.
* **Origin.** Browsers tell where a page comes from, in Origin, Sec-Fetch-Site or Referer; SDKs send none of them. What
  comes from another origin than this server is refused, whatever the method. No CORS header is ever sent, so that a
  browser does not even ask twice.
"""

import socket
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

_PRIVATE_SUFFIXES = (".localhost", ".local", ".internal", ".test", ".home.arpa")
"""Suffixes that are reserved for private use, so that no public name can end with them."""
_OTHER_SITES = frozenset({b"cross-site", b"same-site"})
_REMEMBERED = 1_000


class HostPolicy:
    """Decides which requests are refused for where they come from.

    Args:
        allowed: more names for the Host header; one that starts with a dot allows all names under it. ``*`` allows all.
        option: what a refusal says to use for that.
    """

    def __init__(self, allowed: Iterable[str] = (), *, option: str = "--allow-host") -> None:
        names = {name.strip().lower() for name in allowed}
        self._suffixes = (*_PRIVATE_SUFFIXES, *sorted(name for name in names if name.startswith(".")))
        self._names = names | {"localhost", socket.gethostname().lower()}
        self._good: set[bytes] = set()
        self._option = option

    def refusal(self, headers: Mapping[bytes, bytes]) -> str | None:
        """Return why a request is refused; None for one that is served."""
        host = headers.get(b"host")
        if host is not None and host not in self._good:
            if not self._is_own(_name_of(host.decode("latin-1"))):
                shown = host[:100].decode("latin-1")
                return f"The host {shown!a} is not a name of this server; {self._option} allows it."
            if len(self._good) >= _REMEMBERED:
                self._good.clear()
            self._good.add(host)
        if b"origin" in headers or b"sec-fetch-site" in headers or b"referer" in headers:
            return _foreign(headers, host or b"")
        return None

    def _is_own(self, name: str) -> bool:
        if "*" in self._names or name in self._names or ("." not in name and ":" not in name):
            return True
        if name.endswith(self._suffixes):
            return True
        try:
            ip_address(name)
        except ValueError:
            return False
        return True  # a page at an address has that address for its origin: nothing to rebind


def _foreign(headers: Mapping[bytes, bytes], host: bytes) -> str | None:
    """Return why a request that a browser sent is refused; None if it comes from this server's own origin."""
    for name in (b"origin", b"referer"):
        source = headers.get(name)
        if source is not None and _authority(source) != host.lower():
            shown = source[:100].decode("latin-1")
            return f"A page of another origin ({shown!a}) cannot use this server."
    if headers.get(b"sec-fetch-site") in _OTHER_SITES:
        return "A page of another site cannot use this server."
    return None


def _authority(source: bytes) -> bytes | None:
    """Return host and port of an origin or a URL; None for ``null`` and whatever else is no address."""
    try:
        parts = urlsplit(source.decode("latin-1"))
    except ValueError:  # such as half an IPv6 address
        return None
    if parts.scheme not in {"http", "https"}:
        return None
    return parts.netloc.rpartition("@")[2].lower().encode("latin-1")


def _name_of(host: str) -> str:
    """Return the name or the address of a Host header, without its port."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".")
