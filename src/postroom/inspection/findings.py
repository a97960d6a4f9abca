"""What an inspection is told, and what it says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from postroom.checking import check_kind, check_options
from postroom.options import check_count, check_seconds

DEFAULT_GRACE = 30.0
"""Seconds between SIGTERM and SIGKILL where nothing else is said, on Kubernetes and on ECS.

https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-termination and
https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_ContainerDefinition.html (``stopTimeout``)
"""


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    """Nothing to do."""
    UNKNOWN = "unknown"
    """It could not be found out; the advice says how to."""
    WARNING = "warning"
    """It works, and not as well as one would think."""
    ERROR = "error"
    """It does not work, or it loses work. Change it before it ships."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    topic: str
    """Where to look: ``handler``, ``queue``, ``dead letters``, ``attempts``, ``visibility``, ..."""
    found: str
    """What is the case, with its figures."""
    advice: str = ""
    """What to do. Empty where there is nothing to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What the platform gives a consumer.

    Args:
        grace: seconds between SIGTERM and SIGKILL.
        replicas: processes that run at once, at most.
        max_connections: connections that one database server takes, for these processes alone. None: it is asked of
            the database of ``sample``, if there is one.
        attributes: message attributes of a sample message, from which a context is resolved and its resources are
            leased. None: no tenant's resources are opened.
        body: the body of that message.

    Raises:
        ConfigurationError: a number makes no sense.
    """

    grace: float = DEFAULT_GRACE
    replicas: int = 1
    max_connections: int | None = None
    attributes: Mapping[str, str] | None = None
    body: str = "{}"

    def __post_init__(self) -> None:
        check_seconds("Deployment", "grace", self.grace, least=0.001, most=86_400)
        check_count("Deployment", "replicas", self.replicas)
        if self.max_connections is not None:
            check_count("Deployment", "max_connections", self.max_connections)
        check_options("Deployment(attributes=...)", self.attributes, 'attributes={"tenantId": "acme"}')
        check_kind("Deployment(body=...)", self.body, str, "body='{}'")


@dataclass(frozen=True, slots=True)
class Report:
    """All that was found of one consumer."""

    queue: str
    """The queue, as the consumer names it."""
    findings: Sequence[Finding] = ()
    policy: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The least IAM policy that the consumer needs, as a document of IAM."""

    @property
    def failed(self) -> bool:
        """Whether something has to change."""
        return any(finding.level is Level.ERROR for finding in self.findings)


def ok(topic: str, found: str) -> Finding:
    """Return that something is as it should be."""
    return Finding(Level.OK, topic, found)


def unknown(topic: str, found: str, advice: str) -> Finding:
    """Return that something could not be found out."""
    return Finding(Level.UNKNOWN, topic, found, advice)


def warning(topic: str, found: str, advice: str) -> Finding:
    """Return that something works, and not as well as one would think."""
    return Finding(Level.WARNING, topic, found, advice)


def error(topic: str, found: str, advice: str) -> Finding:
    """Return that something has to change."""
    return Finding(Level.ERROR, topic, found, advice)
