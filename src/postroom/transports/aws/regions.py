"""An open client: its connections, one for each region that its queues are in, and how queues are found."""

import asyncio
from dataclasses import replace
from typing import Any, Final

from postroom.checking import check_queue
from postroom.errors import AccessDenied, ClosedError, ConfigurationError, QueueNotFound
from postroom.log_fields import Log, Step, about
from postroom.transports.aws import wire
from postroom.transports.aws.addresses import Address, address_of, region_of_url
from postroom.transports.aws.connection import Connection, Request
from postroom.transports.aws.errors import lacks_permission, translate
from postroom.transports.aws.opening import open_connection, region_of, session_of
from postroom.transports.aws.queue import AwsQueue, subject_of
from postroom.transports.aws.settings import ClientSettings
from postroom.transports.aws.statistics import ClientStatistics
from postroom.transports.calls import Calls
from postroom.transports.protocol import QueueInfo

_log: Final = Log("postroom.transports", Step.START)

_ATTRIBUTES_DENIED: Final = (
    "Reading the attributes of %s was denied; it is used without them. Not known: its redrive policy (dead-letter "
    "queue and maxReceiveCount), its retention period and its visibility timeout. To change that, allow "
    "sqs:GetQueueAttributes on %s"
)


async def open_regions(settings: ClientSettings) -> "Regions":
    """Open a client, and the connection to its own region if it has one.

    Raises: as ``AwsClient`` when it is entered.
    """
    session = session_of(settings)
    regions = Regions(settings, session, region_of(settings, session))
    try:
        if regions.home is not None:
            await regions.connection(regions.home)
    except BaseException:
        await regions.aclose()
        raise
    return regions


class Regions:
    """The connections of an open client.

    Args:
        settings: what the client was made with.
        session: the botocore session.
        home: the region of queues that are opened by their mere name; None if none is configured.
    """

    def __init__(self, settings: ClientSettings, session: Any, home: str | None) -> None:
        self.home = home
        self._settings = settings
        self._session = session
        self._opening = asyncio.Lock()
        self._connections: dict[str, Connection] = {}
        self._calls = Calls("AwsClient")
        self._told: set[str] = set()

    async def connection(self, region: str) -> Connection:
        """Return the connection to a region, opened if need be."""
        async with self._opening:
            found = self._connections.get(region)
            if found is not None and (found.has_credentials or not await self._credentials_have_come()):
                return found
            opened = await open_connection(self._settings, self._session, region)
            if self._calls.closed:
                await opened.aclose()
                raise ClosedError("this AwsClient was closed while it opened a connection")
            self._connections[region] = opened
        if found is not None:  # it was opened before there were credentials, so no queue uses it
            await found.aclose()
        return opened

    async def queue(self, name: str) -> AwsQueue:
        """Open a queue by name, URL or ARN. Raises: as ``AwsClient.queue``."""
        check_queue("AwsClient.queue(name)", name)
        return await self._calls.make(f"opening queue {name!r}", self._open, name)

    def statistics(self) -> ClientStatistics:
        """Return a snapshot, summed over all regions."""
        each = [connection.statistics() for connection in self._connections.values()]
        return ClientStatistics(
            hot_path=any(one.hot_path for one in each),
            objections=tuple(dict.fromkeys(objection for one in each for objection in one.objections)),
            hot_calls=sum(one.hot_calls for one in each),
            hot_misses=sum(one.hot_misses for one in each),
            hot_connections=sum(one.hot_connections for one in each),
        )

    async def aclose(self) -> None:
        """Close every connection. Calls that are out end at once, and later ones too, with ``ClosedError``."""
        self._calls.end()
        connections, self._connections = self._connections, {}
        await asyncio.gather(*(connection.aclose() for connection in connections.values()))

    async def _open(self, name: str) -> AwsQueue:
        address = address_of(name)
        connection = await self.connection(self._region_for(name, address))
        _check_endpoint(name, address, connection)
        url = address.url or await _find_url(connection, address)
        info = await self._ask(connection, _completed(address, url, connection), url)
        await connection.settle_path()
        return AwsQueue(connection, info, calls=self._settings.connections)

    async def _credentials_have_come(self) -> bool:
        # Where a pod or a task starts, its role may take a moment longer than the process.
        try:
            return await self._session.get_credentials() is not None
        except Exception as error:
            raise translate(error, operation="reading the credentials") from error

    def _region_for(self, name: str, address: Address) -> str:
        region = address.region or self.home
        if region is None:
            text = (
                f"opening queue {name!r}: you must specify a region; set AWS_REGION, pass AwsClient(region=...), or "
                "name the queue by its URL or ARN, which says the region"
            )
            raise AccessDenied(text, operation="GetQueueUrl", code="NoRegionError")
        return region

    async def _ask(self, connection: Connection, address: Address, url: str) -> QueueInfo:
        subject = subject_of(address.name, address.arn, rotating=connection.rotating)
        parameters = wire.attribute_parameters(url)
        request = Request(operation="GetQueueAttributes", parameters=parameters, subject=subject)
        try:
            return await connection.call(
                request, lambda answer: wire.queue_info_of(address, url, wire.read_attributes(answer))
            )
        except AccessDenied as error:
            if not lacks_permission(error):
                raise
        if url not in self._told:  # a queue may be opened again and again, as dead-letter queues are
            self._told.add(url)
            _log.warning(_ATTRIBUTES_DENIED, subject.text, subject.resource, extra=about(queue=address.name))
        return wire.queue_info_of(address, url, None)


async def _find_url(connection: Connection, address: Address) -> str:
    parameters: wire.Parameters = {"QueueName": address.name}
    if address.account is not None:
        parameters["QueueOwnerAWSAccountId"] = address.account
    subject = subject_of(address.name, address.arn, rotating=connection.rotating)
    request = Request(operation="GetQueueUrl", parameters=parameters, subject=subject)
    try:
        return await connection.call(request, lambda answer: str(answer["QueueUrl"]))
    except QueueNotFound as error:
        text = f"{error}; {connection.endpoint_url} was asked"
        raise QueueNotFound(text, operation=error.operation, code=error.code) from error.__cause__
    except AccessDenied as error:
        if not lacks_permission(error):
            raise
        if address.account is None:
            text = f"{error}; or name the queue by its URL, which needs no sqs:GetQueueUrl"
            raise AccessDenied(text, operation=error.operation, code=error.code) from error.__cause__
    # An ARN says all that the URL says.
    return f"{connection.endpoint_url.rstrip('/')}/{address.account}/{address.name}"


def _completed(address: Address, url: str, connection: Connection) -> Address:
    """Return what a queue's name says, with what is known from elsewhere."""
    found = address_of(url)
    return replace(
        address, region=address.region or connection.region, account=address.account or found.account, url=url
    )


def _check_endpoint(name: str, address: Address, connection: Connection) -> None:
    """Refuse a queue that the client's endpoint does not lead to: another one of that name may be there."""
    leads_to = region_of_url(connection.endpoint_url)
    if address.region is None or leads_to is None or leads_to == address.region:
        return
    raise ConfigurationError(
        f"queue {name!r} is in {address.region}, but the client's endpoint is that of {leads_to} "
        f"({connection.endpoint_url}): use a client with an endpoint of {address.region}, or with none"
    )
