"""Where SQS is: what ``run``, ``send`` and ``demo`` share."""

import os
from collections.abc import Callable, MutableMapping
from typing import Any, TypeVar

import click

from postroom.checking import check_endpoint
from postroom.transports.aws.addresses import is_loopback

F = TypeVar("F", bound=Callable[..., Any])
_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}


def endpoint_option(function: F) -> F:
    """Add ``--endpoint-url``."""
    return click.option(
        "--endpoint-url",
        envvar="AWS_ENDPOINT_URL_SQS",
        show_envvar=True,
        metavar="URL",
        help="Another endpoint than AWS's, such as that of postroom local.",
    )(function)


def use_endpoint(
    endpoint_url: str | None, region: str | None = None, environment: MutableMapping[str, str] = os.environ
) -> None:
    """Point every AWS client of this process there.

    A server on this machine takes any credentials and any region, so where none are set, some are made up. AWS never
    sees them.
    """
    if region is not None:
        environment["AWS_DEFAULT_REGION"] = region
    if endpoint_url is None:
        return
    check_endpoint("--endpoint-url (AWS_ENDPOINT_URL_SQS)", endpoint_url)
    environment["AWS_ENDPOINT_URL_SQS"] = endpoint_url
    if is_loopback(endpoint_url):
        if not any(map(environment.get, ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"))):
            environment.update(_CREDENTIALS)
        if not any(map(environment.get, ("AWS_DEFAULT_REGION", "AWS_REGION", "AWS_PROFILE"))):
            environment["AWS_DEFAULT_REGION"] = "us-east-1"
