"""Opening a botocore client, and finding out whether the hot path may be taken beside it."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from functools import cache
from importlib.metadata import version
from typing import Any, Final, cast

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession

from postroom.aws_session import environment_region
from postroom.checking import check_endpoint_variables
from postroom.errors import ConfigurationError
from postroom.options import check_seconds
from postroom.transports.aws import conditions
from postroom.transports.aws.addresses import region_of_url
from postroom.transports.aws.connection import Connection
from postroom.transports.aws.errors import OPENING, translate
from postroom.transports.aws.settings import ClientSettings, check_read_timeout

_NO_BOUND: Final = 10_000
"""Connections of one botocore client: more than a process has."""


async def open_connection(settings: ClientSettings, session: Any, region: str) -> Connection:
    """Open the botocore client of a region.

    Raises: as ``AwsClient`` when it is entered.
    """
    if settings.endpoint_url is None:
        check_endpoint_variables("SQS")
    async with AsyncExitStack() as stack:
        try:
            sqs = await stack.enter_async_context(
                session.create_client(
                    "sqs",
                    region_name=region,
                    endpoint_url=settings.endpoint_url,
                    verify=settings.verify,
                    config=_config_of(settings),
                )
            )
            credentials = await session.get_credentials()
        except json.JSONDecodeError as error:  # of a process that gives credentials
            raise translate(error, operation=OPENING) from error
        except ValueError as error:  # botocore's word for an endpoint that is not a URL
            raise ConfigurationError(f"{OPENING}: {error}") from error
        except Exception as error:
            raise translate(error, operation=OPENING) from error
        check_seconds("AioConfig", "connect_timeout", sqs.meta.config.connect_timeout)
        check_read_timeout(sqs.meta.config.read_timeout)
        against = _objections(settings, session, sqs, credentials)
        return Connection(sqs, credentials, stack.pop_all(), objections=against)


def _objections(settings: ClientSettings, session: Any, sqs: Any, credentials: Any) -> list[str]:
    if not settings.hot_path:
        return ["AwsClient(hot_path=False)"]
    found = list(conditions.objections(session, sqs, verify=settings.verify))
    if credentials is None:
        found.append("there are no credentials")
    return found


def session_of(settings: ClientSettings) -> Any:  # an AioSession, which has no types
    """Return the botocore session to use.

    Raises:
        ConfigurationError: it is of another kind, or its profile does not exist.
    """
    if settings.session is not None:
        if isinstance(settings.session, AioSession):
            return settings.session
        raise ConfigurationError(
            f"AwsClient(session=...) takes an aiobotocore.session.AioSession; got {type(settings.session).__name__}"
        )
    return AioSession(profile=settings.profile)


def region_of(settings: ClientSettings, session: Any) -> str | None:
    """Return the region that is configured; None if none is. The environment counts before the profile."""
    try:
        configured = session.get_config_variable("region")  # reads the profile, which may not exist
        own = session.instance_variables().get("region")
    except Exception as error:
        raise translate(error, operation=OPENING) from error
    found = (
        getattr(settings.config, "region_name", None),
        settings.region,
        own,
        environment_region(),
        configured,
        *map(region_of_url, _endpoints(settings)),
    )
    return next(filter(None, found), None)


def _endpoints(settings: ClientSettings) -> Iterator[str]:
    yield settings.endpoint_url or ""
    yield os.environ.get("AWS_ENDPOINT_URL_SQS", "")
    yield os.environ.get("AWS_ENDPOINT_URL", "")


def _config_of(settings: ClientSettings) -> Any:
    given = cast("dict[str, Any]", vars(settings.config)) if settings.config is not None else {}
    lost_in_merging = ("connector_args", "http_session_cls")  # by older versions of aiobotocore
    options: dict[str, Any] = {
        **{name: given[name] for name in lost_in_merging if name in given},
        "retries": {"mode": "standard", "total_max_attempts": settings.max_attempts},
        # Each queue bounds its own calls. A bound over all of them would let idle queues starve the others.
        "max_pool_connections": _NO_BOUND,
        "connect_timeout": settings.connect_timeout,
        "read_timeout": settings.read_timeout,
        "parameter_validation": False,
        "user_agent": _user_agent(),
    }
    ours: Any = AioConfig(**options)
    return ours if settings.config is None else ours.merge(settings.config)


@cache  # installed packages are looked up in files, for each client
def _user_agent() -> str:
    python = ".".join(map(str, sys.version_info[:3]))
    return f"postroom/{version('postroom')} aiobotocore/{version('aiobotocore')} python/{python}"
