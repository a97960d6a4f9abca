"""RDS tokens and Secrets Manager against local fakes of AWS, and a rotation of a real database under load."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from aiobotocore.session import get_session
from aiohttp import web
from botocore.exceptions import ClientError

from postroom.datasources import (
    DataSource,
    Registry,
    asyncpg_pool,
    psycopg_connections,
    psycopg_pool,
    rds_iam_token,
    secrets_manager,
    sqlalchemy_engine,
)
from postroom.datasources.credentials import SecretUnreadable
from postroom.errors import ConfigurationError
from support.tenant_database import TenantDatabase

HOST = "acme.c1x2y3.eu-west-1.rds.amazonaws.com"


@dataclass
class FakeAws:
    """Secrets Manager, and the endpoint from which a container gets its credentials."""

    url: str = ""
    secret: Any = '{"username": "app", "password": "first"}'
    requests: list[str] = field(default_factory=list[str])

    async def secrets(self, request: web.Request) -> web.Response:
        """Answer GetSecretValue."""
        asked = json.loads(await request.text())
        self.requests.append(asked["SecretId"])
        assert request.headers["X-Amz-Target"] == "secretsmanager.GetSecretValue"
        assert "AWS4-HMAC-SHA256" in request.headers["Authorization"]
        if asked["SecretId"] == "missing":
            error = {
                "__type": "ResourceNotFoundException",
                "Message": "Secrets Manager can't find the specified secret.",
            }
            return web.json_response(error, status=400, content_type="application/x-amz-json-1.1")
        kind = "SecretBinary" if isinstance(self.secret, bytes) else "SecretString"
        value = "c2VjcmV0" if isinstance(self.secret, bytes) else self.secret
        answer = {"ARN": "arn:aws:secretsmanager:eu-west-1:1:secret:acme", "Name": "acme", kind: value}
        return web.json_response(answer, content_type="application/x-amz-json-1.1")

    async def credentials(self, _: web.Request) -> web.Response:
        """Answer as the endpoint of a container does."""
        self.requests.append("credentials")
        keys = {"AccessKeyId": "ASIAFAKE", "SecretAccessKey": "secret-key", "Token": "session-token"}
        return web.json_response({**keys, "Expiration": "2099-01-01T00:00:00Z"})


@pytest.fixture
async def aws(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeAws]:
    """Run the fake, and point the SDK to it."""
    fake = FakeAws()
    application = web.Application()
    application.router.add_post("/", fake.secrets)
    application.router.add_get("/credentials", fake.credentials)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{fake.url}/credentials")
    yield fake
    await runner.cleanup()


class TestRdsTokens:
    """``rds_iam_token``."""

    async def test_a_token_is_what_rds_expects(self, aws: FakeAws) -> None:
        """A signed URL without its scheme: for this endpoint, port and user, its region, and 15 minutes."""
        token = await rds_iam_token(HOST, user="app", port=5433)()
        url = urlsplit(f"https://{token}")
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        assert (url.netloc, url.path) == (f"{HOST}:5433", "/")
        assert (query["Action"], query["DBUser"], query["X-Amz-Expires"]) == ("connect", "app", "900")
        assert query["X-Amz-Credential"].startswith("ASIAFAKE/")
        assert query["X-Amz-Credential"].endswith("/eu-west-1/rds-db/aws4_request")
        assert query["X-Amz-Security-Token"] == "session-token"
        assert len(query["X-Amz-Signature"]) == 64
        assert "secret-key" not in token

    async def test_it_is_the_token_that_the_sdk_makes(self, aws: FakeAws) -> None:
        """Byte for byte, when both sign in the same second."""
        session = get_session()
        async with session.create_client("rds", region_name="eu-west-1") as client:
            for _ in range(5):
                ours = await rds_iam_token(HOST, user="app", session=session)()
                generate: Any = client.generate_db_auth_token
                theirs = await generate(DBHostname=HOST, Port=5432, DBUsername="app")
                if ours == theirs:
                    return
        assert sorted(ours.split("&")) == sorted(theirs.split("&"))

    async def test_many_connections_sign_once(self, aws: FakeAws) -> None:
        """And the credentials are fetched once."""
        token = rds_iam_token(HOST, user="app")
        assert len(set(await asyncio.gather(*(token() for _ in range(50))))) == 1
        assert aws.requests == ["credentials"]

    async def test_a_missing_region_is_named(self, aws: FakeAws, monkeypatch: pytest.MonkeyPatch) -> None:
        """An endpoint with a name of one's own does not say it."""
        monkeypatch.delenv("AWS_DEFAULT_REGION")
        with pytest.raises(ConfigurationError, match="no region"):
            await rds_iam_token("db.internal", user="app")()
        assert "us-west-2/rds-db" in (await rds_iam_token("db.internal", user="app", region="us-west-2")()).replace(
            "%2F", "/"
        )


class TestSecretsManager:
    """``secrets_manager``."""

    async def test_the_field_of_a_secret(self, aws: FakeAws) -> None:
        """Fetched once, and again after it was refused."""
        password = secrets_manager("acme", endpoint_url=aws.url)
        assert await asyncio.gather(*(password() for _ in range(20))) == ["first"] * 20
        aws.secret = '{"password": "second"}'
        assert await password() == "first"
        password.forget("first")
        assert await password() == "second"
        assert aws.requests.count("acme") == 2

    async def test_a_secret_that_is_the_password(self, aws: FakeAws) -> None:
        """Without JSON."""
        aws.secret = "plain"
        assert await secrets_manager("acme", field=None, endpoint_url=aws.url)() == "plain"

    @pytest.mark.parametrize("secret", ["hush", '{"other": "hush"}', '["hush"]', '{"password": 7}', b"hush"])
    async def test_another_secret_is_not_shown(self, aws: FakeAws, secret: object) -> None:
        """The error names the secret and the field."""
        aws.secret = secret
        with pytest.raises(
            SecretUnreadable, match="secret acme is no JSON object with the text field 'password'"
        ) as bad:
            await secrets_manager("acme", endpoint_url=aws.url)()
        assert "hush" not in f"{bad.value}{bad.value.__cause__}{bad.value.__context__}"

    async def test_a_missing_secret_is_awss_error(self, aws: FakeAws) -> None:
        """It is not an unknown tenant."""
        with pytest.raises(ClientError) as missing:
            await secrets_manager("missing", endpoint_url=aws.url)()
        assert not isinstance(missing.value, LookupError)


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("provide", "connect", "scheme"),
    [
        (asyncpg_pool, "acquire", "postgresql"),
        (psycopg_pool, "connection", "postgresql"),
        (psycopg_connections, "connection", "postgresql"),
        (sqlalchemy_engine, "connect", "postgresql"),
        (sqlalchemy_engine, "connect", "postgresql+psycopg"),
    ],
    ids=["asyncpg", "psycopg pool", "psycopg connections", "SQLAlchemy asyncpg", "SQLAlchemy psycopg"],
)
async def test_a_rotation_under_load_fails_no_use(
    aws: FakeAws, tenant: TenantDatabase, provide: Any, connect: str, scheme: str
) -> None:
    """The password changes on the server and in the secret; old connections are ended between two uses."""
    role = f"app{secrets.token_hex(4)}"
    tenant.server.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'first'")
    dsn = tenant.dsn.replace(f"postroom:{tenant.server.password}", role).replace("postgresql", scheme, 1)
    source = DataSource(dsn, password=secrets_manager("acme", ttl=3600, endpoint_url=aws.url))
    async with provide(Registry({"a": source}), max_size=4)("a") as resource:

        async def use() -> None:
            async with getattr(resource, connect)():
                await asyncio.sleep(0.002)

        for round_, password in enumerate(["second", "third"]):
            await asyncio.gather(*(use() for _ in range(20)))
            tenant.server.execute(f"ALTER ROLE {role} PASSWORD '{password}'")
            aws.secret = json.dumps({"password": password})
            if provide is sqlalchemy_engine:
                await resource.dispose()
            elif provide is asyncpg_pool:
                await resource.expire_connections()
            elif provide is psycopg_pool:
                await resource.drain()
            await asyncio.gather(*(use() for _ in range(20)))
            assert aws.requests.count("acme") == round_ + 2
    tenant.wait_for_backends(0)
