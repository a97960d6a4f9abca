"""What every test leaves behind: nothing in the loggers."""

import gc
import logging
import sys
from collections.abc import Iterator
from functools import cache
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes depends on what else the machine does, and says nothing about the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_collectstart() -> None:
    """Keep the garbage collector out of the collection, which makes little garbage and keeps all the rest."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Hide what was collected from the garbage collector.

    It looked at thousands of tests again and again, which took a quarter of the time that they take.
    """
    gc.collect()
    gc.freeze()
    gc.enable()
    _read_aws_once()


def _read_aws_once() -> None:
    """Let all sessions of botocore share what they read of AWS: each one reads megabytes of JSON else."""
    if (session := sys.modules.get("botocore.session")) is not None:
        patch.object(session, "create_loader", cache(session.create_loader)).start()


@pytest.fixture(autouse=True)
def loggers_as_they_were() -> Iterator[None]:
    """Start each test with loggers that are heard, and undo what it does to them."""
    logging.disable(logging.NOTSET)
    root, ours = logging.getLogger(), logging.getLogger("postroom")
    levels, handlers, kind = (root.level, ours.level), list(root.handlers), logging.getLoggerClass()
    yield
    logging.setLoggerClass(kind)
    logging.disable(logging.NOTSET)
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
    root.handlers[:] = handlers
