"""Opening a client and its queues: the botocore client, and whether the hot path may be taken beside it."""

import os
import sys
from contextlib import AsyncExitStack
from importlib.metadata import version
from typing import Any, cast

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession

from postroom.errors import ConfigurationError, PostroomError
from postroom.transports.aws import conditions, wire
from postroom.transports.aws.connection import Connection
from postroom.transports.aws.errors import translate
from postroom.transports.aws.queue import AwsQueue
from postroom.transports.aws.settings import ClientSettings, check_read_timeout


async def open_queue(connection: Connection, name: str) -> AwsQueue:
    """Find a queue by name, URL or ARN, and read its attributes."""
    subject = f"queue {wire.name_of(name)!r}"
    url = name if "://" in name else await _find_url(connection, name, subject)
    info = await connection.call(
        "GetQueueAttributes",
        wire.attribute_parameters(url),
        lambda answer: wire.queue_info_of(url, wire.read_attributes(answer)),
        subject=subject,
    )
    await connection.settle_path()
    return AwsQueue(connection, info)


async def _find_url(connection: Connection, name: str, subject: str) -> str:
    parameters: wire.Parameters = {"QueueName": wire.name_of(name)}
    if name.startswith("arn:"):
        parameters["QueueOwnerAWSAccountId"] = _account_of(name)
    return await connection.call("GetQueueUrl", parameters, lambda answer: str(answer["QueueUrl"]), subject=subject)


def _account_of(arn: str) -> str:
    parts = arn.split(":")
    if len(parts) != 6 or parts[2] != "sqs":
        raise ConfigurationError(f"not the ARN of a queue (arn:aws:sqs:<region>:<account>:<name>): {arn!r}")
    return parts[4]


async def open_connection(settings: ClientSettings) -> Connection:
    """Open the botocore client.

    Raises: as ``AwsClient`` when it is entered.
    """
    async with AsyncExitStack() as stack:
        try:
            session = _session_of(settings)
            sqs = await stack.enter_async_context(
                session.create_client(
                    "sqs",
                    region_name=_region_of(settings, session),
                    endpoint_url=settings.endpoint_url,
                    verify=settings.verify,
                    config=_config_of(settings),
                )
            )
            credentials = await session.get_credentials()
        except PostroomError:
            raise
        except ValueError as error:  # botocore's word for an endpoint that is not a URL
            raise ConfigurationError(f"opening the SQS client: {error}") from error
        except Exception as error:
            raise translate(error, operation="opening the SQS client") from error
        check_read_timeout(sqs.meta.config.read_timeout)
        against = _objections(settings, session, sqs, credentials)
        return Connection(sqs, credentials, stack.pop_all(), calls=settings.connections, objections=against)


def _objections(settings: ClientSettings, session: Any, sqs: Any, credentials: Any) -> list[str]:
    if not settings.hot_path:
        return ["AwsClient(hot_path=False)"]
    found = list(conditions.objections(session, sqs, verify=settings.verify))
    if credentials is None:
        found.append("there are no credentials")
    return found


def _session_of(settings: ClientSettings) -> Any:
    if settings.session is None:
        return AioSession(profile=settings.profile)
    if isinstance(settings.session, AioSession):
        return settings.session
    raise ConfigurationError(
        f"AwsClient(session=...) takes an aiobotocore.session.AioSession; got {type(settings.session).__name__}"
    )


def _region_of(settings: ClientSettings, session: Any) -> str | None:
    # botocore alone among the SDKs does not know AWS_REGION, which ECS, Lambda and people set.
    region: str | None = settings.region or session.get_config_variable("region") or os.environ.get("AWS_REGION")
    return region


def _config_of(settings: ClientSettings) -> Any:
    given = cast("dict[str, Any]", vars(settings.config)) if settings.config is not None else {}
    lost_in_merging = ("connector_args", "http_session_cls")  # by older versions of aiobotocore
    options: dict[str, Any] = {
        **{name: given[name] for name in lost_in_merging if name in given},
        "retries": {"mode": "standard", "total_max_attempts": settings.max_attempts},
        "max_pool_connections": 2 * settings.connections,
        "connect_timeout": settings.connect_timeout,
        "read_timeout": settings.read_timeout,
        "parameter_validation": False,
        "user_agent": _user_agent(),
    }
    ours: Any = AioConfig(**options)
    return ours if settings.config is None else ours.merge(settings.config)


def _user_agent() -> str:
    python = ".".join(map(str, sys.version_info[:3]))
    return f"postroom/{version('postroom')} aiobotocore/{version('aiobotocore')} python/{python}"
