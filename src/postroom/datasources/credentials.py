"""Passwords of a ``DataSource`` that expire or rotate: RDS IAM tokens and AWS Secrets Manager.

    token = rds_iam_token("acme.c1x.eu-west-1.rds.amazonaws.com", user="app")
    DataSource("postgresql://app@acme.c1x.eu-west-1.rds.amazonaws.com/acme?sslmode=require", password=token)

They are asked for each physical connection and answer from memory: many connections at once make
one request, and a newer value is fetched before the old one ends. Nothing is done before the first
connection.
"""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, cast

import botocore.auth
import botocore.awsrequest
import msgspec

from postroom.aws_session import new_session
from postroom.errors import ConfigurationError, PostroomError
from postroom.log_fields import Log, Step
from postroom.options import check_seconds

# They have no types of their own.
_auth: Any = botocore.auth
_awsrequest: Any = botocore.awsrequest
_log = Log("postroom.datasources", Step.RESOURCES)
_TOKEN_LIVES: Final = 900
"""Seconds that RDS accepts a token for. Connections that exist outlive it.

https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/UsingWithRDS.IAMDBAuth.html
"""
_PATIENCE: Final = 5.0
"""Seconds between two tries to replace a value that still holds."""
_LONGEST_FETCH: Final = 30.0
"""Seconds for one fetch. Every connection waits for the same one: without a limit, one that is never answered would
keep out all later ones."""
_RDS_HOST_PARTS: Final = 6
"""Of ``name.account.region.rds.amazonaws.com``."""


class SecretUnreadable(PostroomError):
    """Secrets Manager answered, but not with a password where one was expected. The text does not show what it was."""


@dataclass(frozen=True, slots=True)
class Freshness:
    """How long a remembered password is used.

    Args:
        refresh: seconds after which a newer one is fetched, while the old one is still used.
        expire: seconds after which the old one is not used any longer.

    Raises:
        ConfigurationError: it would expire before it is refreshed.
    """

    refresh: float
    expire: float

    def __post_init__(self) -> None:
        check_seconds("Freshness", "refresh", self.refresh)
        check_seconds("Freshness", "expire", self.expire)
        if self.refresh > self.expire:
            raise ConfigurationError(f"a password is refreshed before it expires; got {self!r}")


class CachedPassword:
    """A password function that remembers: the ``password=`` of a ``DataSource``.

    Args:
        fetch: fetches the present password.
        freshness: how long it is used.
        name: what the log calls it; no secret.
    """

    def __init__(self, fetch: Callable[[], Awaitable[str]], freshness: Freshness, *, name: str) -> None:
        self._fetch = fetch
        self._freshness = freshness
        self._name = name
        self._value: _Remembered | None = None
        self._fetching: asyncio.Task[str] | None = None
        self._tried = 0.0
        self._told = ""
        """The type of the error that the log told of since the last success."""

    def __repr__(self) -> str:
        return f"CachedPassword({self._name!r})"

    async def __call__(self) -> str:
        """Return the present password. Raises whatever kept it from being fetched, once the old one has expired."""
        now = asyncio.get_running_loop().time()
        value = self._value
        if value is None or now >= value.fetched + self._freshness.expire:
            return await self._fetched()
        if now >= value.fetched + self._freshness.refresh and now >= self._tried + _PATIENCE:
            self._start()
        return value.password

    def forget(self, password: str, /) -> None:
        """Fetch it again at the next call, if ``password``, which a server has refused, is still the present one."""
        # Only that one: many connections are refused at once, and the first has fetched a new one
        # by now.
        if self._value is not None and self._value.password == password:
            self._value = None

    async def _fetched(self) -> str:
        # Shielded: a connection that is given up must not take the answer away from the others.
        return await asyncio.shield(self._start())

    def _start(self) -> "asyncio.Task[str]":
        """Return the fetch that is under way, or start one."""
        loop = asyncio.get_running_loop()
        if self._fetching is None or self._fetching.get_loop() is not loop:
            self._tried = loop.time()
            # A clean context: the fetch belongs to no message, although one message's connection caused it.
            clean = contextvars.Context()
            self._fetching = loop.create_task(self._remember(), name=f"postroom-password-{self._name}", context=clean)
            self._fetching.add_done_callback(self._ended)
        return self._fetching

    async def _remember(self) -> str:
        began = asyncio.get_running_loop().time()
        limit = asyncio.timeout(_LONGEST_FETCH)
        try:
            async with limit:
                password = await self._fetch()
        except TimeoutError:
            if not limit.expired():
                raise
            raise TimeoutError(f"the password of {self._name} was not fetched within {_LONGEST_FETCH:g} s") from None
        self._value = _Remembered(password, began)
        if self._told:
            _log.warning("The password of %s is refreshed again", self._name)
            self._told = ""
        return password

    def _ended(self, task: "asyncio.Task[str]") -> None:
        self._fetching = None
        error = None if task.cancelled() else task.exception()
        # Else those who wait for it get the error, or it is the same as before.
        if error is not None and self._value is not None and (kind := type(error).__name__) != self._told:
            self._told = kind
            # The type alone: a service's own words may quote what it was asked with.
            _log.warning(
                "The password of %s could not be refreshed (%s); the old one is used while it lasts; a connection in "
                "%g s or later tries again",
                self._name,
                kind,
                _PATIENCE,
            )


@dataclass(frozen=True, slots=True, repr=False)
class _Remembered:
    password: str
    fetched: float


def rds_iam_token(
    host: str, *, user: str, port: int = 5432, region: str | None = None, session: Any = None
) -> CachedPassword:
    """Return a password function for IAM database authentication of RDS and Aurora.

    RDS accepts a token for 15 minutes; each is used for ten and replaced in the background after
    seven. It is signed here, without a request; only the credentials may have to be fetched.
    Connections need TLS.

    Args:
        host: the endpoint that connections are made to: it is a part of what is signed.
        user: the database's user, who has the role ``rds_iam``.
        port: the database's port.
        region: None for the one that the endpoint names, else that of the session.
        session: an aiobotocore session of your own; None for a new one, with the usual credentials.

    Raises:
        ConfigurationError: when it is asked: there is no region, or there are no credentials.
    """
    known = session or new_session()

    async def sign() -> str:
        where = region or _region_of(host) or known.get_config_variable("region")
        credentials = await known.get_credentials()
        if not where or credentials is None:
            missing = "region" if not where else "AWS credentials"
            raise ConfigurationError(f"an RDS token for {host} cannot be signed: no {missing} found")
        frozen = await credentials.get_frozen_credentials()
        parameters = {"Action": "connect", "DBUser": user}
        request = _awsrequest.AWSRequest(method="GET", url=f"https://{host}:{port}/", params=parameters)
        _auth.SigV4QueryAuth(frozen, "rds-db", where, expires=_TOKEN_LIVES).add_auth(request)
        return cast("str", request.url).removeprefix("https://")

    return CachedPassword(sign, Freshness(420, 600), name=f"{user} at {host}")


def secrets_manager(
    secret_id: str,
    *,
    field: str | None = "password",
    ttl: float = 60.0,
    session: Any = None,
    **client: Any,
) -> CachedPassword:
    """Return a password function that reads AWS Secrets Manager.

    A value is used for ``ttl`` seconds at most; a new one is fetched in the background after half
    of that. When the server refuses a password, the provider has it fetched again and tries once
    more, so that a rotation fails no connection. For secrets that rotate one user's password: one
    that alternates between two users changes the name too.

    Args:
        secret_id: the name or the ARN.
        field: the field of a secret in JSON, as RDS writes it; None when the secret is the
            password.
        ttl: seconds for which a value is used.
        session: an aiobotocore session of your own; None for a new one, with the usual credentials.
        client: further keywords for the client, such as ``region_name`` or ``endpoint_url``.

    Raises:
        SecretUnreadable: when it is asked: the secret has no such field, or is binary.
        botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError: when it is asked: AWS
            refused, or could not be reached.
    """
    known = session or new_session()

    async def read() -> str:
        async with known.create_client("secretsmanager", **client) as service:
            answer = await service.get_secret_value(SecretId=secret_id)
        text = answer.get("SecretString")
        return _password_in(text, field, secret_id)

    check_seconds("secrets_manager", "ttl", ttl)
    return CachedPassword(read, Freshness(ttl / 2, ttl), name=f"secret {secret_id}")


def _password_in(text: object, field: str | None, secret_id: str) -> str:
    if isinstance(text, str) and field is None:
        return text
    password: object = None
    if isinstance(text, str):
        try:
            password = msgspec.json.decode(text, type=dict[str, Any]).get(field or "")
        except msgspec.MsgspecError:  # its words quote the secret
            password = None
    if not isinstance(password, str):
        raise SecretUnreadable(f"the secret {secret_id} is no JSON object with the text field {field!r}")
    return password


def _region_of(host: str) -> str | None:
    parts = host.split(".")
    return parts[-4] if len(parts) >= _RDS_HOST_PARTS and ".rds.amazonaws.com" in host else None
