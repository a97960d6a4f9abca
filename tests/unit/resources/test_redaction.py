"""Secrets do not get out: not in log lines, not in tracebacks, not in the text or repr of postroom's errors."""

import asyncio
import io
import itertools
import logging
import logging.handlers
import queue
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from subprocess import CalledProcessError
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError

from postroom.errors import HandlerTimeout, PostroomError, UnknownTenant
from postroom.options import OpenBackoff, PoolTimeouts
from postroom.redaction import describe, describe_at_length, log_error, redact
from postroom.resources import ResourcePool
from support.virtual import in_virtual_time

SECRET = "hunter2-S3CR3T"


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://app:{SECRET}@db/tenant",
        f"postgresql+asyncpg://app:p@ss/{SECRET}@db:5432/tenant?sslmode=require",
        f"redis://:{SECRET}@cache:6379/0 refused",
        f"cannot connect: host=db user=app password={SECRET} dbname=x",
        f"host=db password='{SECRET} with blanks' dbname=x",
        f"host=db password='it\\'s {SECRET}' dbname=x",
        f"PGPASSWORD={SECRET} psql",
        f'{{"user": "app", "password": "{SECRET}"}}',
        repr({"password": SECRET, "host": "db"}),
        repr(f"password='{SECRET} x' host=\"db\""),
        f"connect(user='app', passwd=b'{SECRET}')",
        f"DataSource(dsn='x', secret='{SECRET}')",
        f"Server=db;Password={SECRET};Database=x",
        f"ALTER ROLE app PASSWORD '{SECRET}'",
        f"CREATE USER app IDENTIFIED BY '{SECRET}'",
        f"https://s3.eu-west-1.amazonaws.com/b?X-Amz-Signature={SECRET}&X-Amz-Date=1",
        f"https://x/?X-Amz-Credential={SECRET}%2F20260101%2Feu-west-1&X-Amz-Security-Token={SECRET}",
        f"Authorization: Bearer {SECRET}",
        f"authorization='Basic {SECRET}'",
        f"Authorization: AWS4-HMAC-SHA256 Credential=AK/1/2, SignedHeaders=host, Signature={SECRET}",
        f"headers={{'Authorization': 'AWS4-HMAC-SHA256 Signature={SECRET}'}}",
        f"got Bearer {SECRET} instead",
        f"aws_secret_access_key={SECRET}",
        f"api_key: {SECRET}",
        f"refresh_token => {SECRET}",
        f"password='{SECRET}",
        f"[parameters: ('{SECRET}', 1)]",
        f"DefaultEndpointsProtocol=https;AccountKey=x;sig={SECRET}",
        f"AccountName=a;AccountKey={SECRET};EndpointSuffix=core.windows.net",
        f"Cookie: session={SECRET}; theme=dark",
        str({"Set-Cookie": f"session={SECRET}; path=/"}),
        f"pg_dump --password {SECRET} failed",
        f"tool --api-key {SECRET}",
        f"host=db user=a pass={SECRET}",
        f"DB_PASS={SECRET}",
        f"last_token_error: {SECRET}",
        f"TokenError: password={SECRET}",
        f"TokenError: password: {SECRET}",
        f"TokenError: DB_PASSWORD = {SECRET}",
        f"InvalidTokenError: {SECRET}",
        f"shop.errors.InvalidPasswordError: '{SECRET} x'",
        f"ApiKeyException: {SECRET} is not known",
        f"PGPASS={SECRET}",
        f"psql --password '{SECRET} with blanks' failed",
        str(CalledProcessError(1, ["psql", "--password", SECRET, "-c", "x"])),
        str(CalledProcessError(1, ["psql", "--password", f"{SECRET} with blanks"])),
        str([(b"cookie", f"session={SECRET}".encode())]),
        f"login failed: password is {SECRET}",
        f"the old Password was '{SECRET} with blanks'.",
        repr(f"its api key is now: {SECRET}\n"),
        f"cannot log on as scott/{SECRET}@db.example:1521/orders",
        f"jdbc:oracle:thin:scott/p@ss{SECRET}@//10.0.0.5/orders",
        f"sqlplus scott/{SECRET}@(DESCRIPTION=(ADDRESS=(HOST=db)))",
        f'scott/"{SECRET}/x"@db:1521:orders',
        f"connect(host='db', credentials=('app', '{SECRET}'))",
        f"credentials: ['app', b'{SECRET}']",
        str({"tokens": {"old": ["x", ("y", SECRET)]}, "host": "db"}),
        repr(f"tokens={{'new': \"{SECRET}\", 'old)': '{SECRET}'}}"),
        f"credentials=Credentials('app', '{SECRET}')",
        f"secrets=['x',\n '{SECRET}',\n]",
        f"credentials=('a','b'),tokens=('c', '{SECRET}')",
        f"credentials=('app', '{SECRET}",
        f"tokens=[[[[['x', '{SECRET}']]]]]",
    ],
)
def test_a_secret_is_known_by_its_place(text: str) -> None:
    """In URLs, pairs, headers, signed requests and SQL, quoted or not, whole or cut."""
    assert SECRET not in redact(text)
    assert "***" in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        f"cannot parse -----BEGIN PRIVATE KEY-----\nMIIE\n{SECRET}\n-----END PRIVATE KEY-----\n",
        f"key='-----BEGIN RSA PRIVATE KEY-----\\nMIIE\\n{SECRET}\\n-----END RSA PRIVATE KEY-----\\n'",
        f"-----BEGIN ENCRYPTED PRIVATE KEY-----\n{SECRET}",
        f"bad claim in eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.{SECRET}",
        f"GET /user with ghp_{SECRET}aaaaaaaa: 401",
        f"github_pat_11AAAA_{SECRET} was revoked",
        f"xoxb-123-456-{SECRET} is not allowed",
        f"no such customer for sk_live_{SECRET}",
        f"https://hooks.slack.com/services/T0/B0/{SECRET.replace('-', '')}-{SECRET} answered 404",
        f"<soap:Fault><wsse:Password Type='x'>{SECRET}</wsse:Password></soap:Fault>",
        f"<apiKey>{SECRET}</apiKey>",
        f"'<a:Password b:Type = \\\"x\\\">{SECRET}</a:Password>'",
        f'<add key="DbPassword" value="{SECRET}"/>',
        str(CalledProcessError(22, ["curl", "-u", f"app:{SECRET}", "https://x"])),
        f"curl --user app:{SECRET} https://x failed",
        f"mysql -h db -u app -p{SECRET} orders",
        str(CalledProcessError(1, ["/usr/bin/mysqldump", "-u", "app", f"-p{SECRET} with blanks", "orders"])),
        f"mariadb-dump '-p{SECRET}'",
        f"sshpass -p '{SECRET} with blanks' ssh host",
        str(["sshpass", "-p", SECRET, "ssh", "host"]),
        str(["redis-cli", "-h", "cache", "-a", SECRET]),
        f"Ocp-Apim-Subscription-Key: {SECRET}",
        f"signing_key={SECRET}",
        f"Client error '404 Not Found' for url 'https://api.telegram.org/bot123456:{SECRET}/sendMessage'",
        f"Illegal header value b'{SECRET}\\n'",
        str(ValueError(f"return character(s) in header value: {SECRET + chr(10)!r}")),
        repr(ValueError(f"Invalid header value {(SECRET + chr(10)).encode()!r}")),
        f"ya29.{SECRET}: token expired",
        f"shpat_{SECRET} is not allowed",
    ],
)
def test_a_secret_is_known_by_its_form(text: str) -> None:
    """Private keys, tokens with a prefix that says what they are, elements of XML, logins of a command."""
    assert SECRET not in redact(text)
    assert "***" in redact(text)
    for group in (ExceptionGroup("of two", [ValueError(text), OSError()]), ValueError(text)):
        assert SECRET not in describe(group)
        assert SECRET not in describe_at_length(group)


@pytest.mark.parametrize(
    "text",
    [
        'password authentication failed for user "app"',
        "AUTH <password> called without any password configured for the default user. Are you sure?",
        "the security token included in the request is invalid",
        "asyncpg.exceptions.InvalidPasswordError: password authentication failed",
        "botocore.exceptions.UnauthorizedSSOTokenError: The SSO session has expired",
        "NoTokenException: expired 3 s ago",
        "no such file: /etc/postgresql/tenant.conf",
        "http://sqs:4566/000000000000/orders answered 503",
        'relation "orders" does not exist at character 15',
        "KeyError: 'BILLING_DB_HOST'",
        "postgresql://app@db/tenant: connection refused",
        "invalid cookie: its name has a blank",
        "no such option: '--passive'",
        "compass=north",
        "-----BEGIN CERTIFICATE----- is no PEM of a key",
        "<password/> is empty, <passwords count='2'/> too",
        "<app.models.AccessToken object at 0x7f> has expired, <Token id=5> too",
        "sort -u a b failed",
        "sort -u /a/b:c, and ./a:b, and ['sort', '-u', '/a/b:c']",
        "date -u +%H:%M, and date -u 12:30",
        "docker run -u 1000:1000 x",
        "sort -u C:\\a\\b",
        "the password is wrong, the secret was None, and the token is 3 h old",
        repr("the password was rejected\n"),
        "mysql -u app -p orders",
        "mysql: [ERROR] unknown option '--pass-on'",
        "owner/name@v4/dist, owner/name@1.2.3/a.js, node_modules/@scope/name/a.js, library/nginx@sha256:01ab",
        "eyJ is no token, and neither is sk-SK",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    """A reader needs what went wrong: users, hosts, files, the driver's words."""
    assert redact(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"Key (email)=({SECRET}) already exists.", "Key (email)=(***) already exists."),
        (
            f'Key (lower(email), n)=({SECRET}) (x), 7) is not present in table "u".',
            'Key (lower(email), n)=(***) is not present in table "u".',
        ),
        (f"Schlüssel »(email)=({SECRET})« existiert bereits.", "Schlüssel »(email)=(***)« existiert bereits."),
        (
            f"DETAIL:  Failing row contains (1, null, a) b,\n{SECRET}).\n[SQL: INSERT INTO u VALUES ($1)]",
            "DETAIL:  Failing row contains (***).\n[SQL: INSERT INTO u VALUES ($1)]",
        ),
        (
            f"Partition key of the failing row contains (day) = ({SECRET}).",
            "Partition key of the failing row contains (day) = (***).",
        ),
        (
            f"invalid input for query argument $2: '{SECRET}' ('str' object cannot be interpreted as an integer)",
            "invalid input for query argument $2: *** ('str' object cannot be interpreted as an integer)",
        ),
        (f'invalid input syntax for type integer: "{SECRET}"', "invalid input syntax for type integer: ***"),
        (f'invalid input value for enum mood: "{SECRET}"', "invalid input value for enum mood: ***"),
        (f'date/time field value out of range: "{SECRET}"', "date/time field value out of range: ***"),
        (f'value "{SECRET}" is out of range for type integer', "value *** is out of range for type integer"),
        (f'malformed array literal: "{SECRET}"', "malformed array literal: ***"),
        (f"Duplicate entry '{SECRET}' for key 'users.email'", "Duplicate entry *** for key 'users.email'"),
        (f"Incorrect integer value: '{SECRET}' for column 'n'", "Incorrect integer value: *** for column 'n'"),
        (
            f"n\n  Input should be a valid integer [type=int_parsing, input_value='{SECRET}', input_type=str]",
            "n\n  Input should be a valid integer [type=int_parsing, input_value=***, input_type=str]",
        ),
    ],
)
def test_a_value_that_a_database_or_a_validator_quotes_is_hidden(text: str, shown: str) -> None:
    """Rows, keys, parameters and input are the tenant's data. Columns, types and tables say what is wrong."""
    assert redact(text) == shown
    assert SECRET not in describe(ValueError(text))
    assert SECRET not in describe_at_length(ValueError(text))


def test_what_an_error_says_begins_no_line_of_the_log() -> None:
    """A sender's text may stand in an error, in a note of one or in a group: it forges no record, and colours none."""
    forged = "x\nERROR Tenant zulu is unavailable\r\x1b[31m\u2028\u202ered"

    def failed(error: Exception) -> Exception:
        try:
            raise error
        except Exception as raised:
            return raised

    noted = ValueError("text")
    noted.add_note(forged)
    for error in (ValueError(forged), noted, ExceptionGroup(forged, [ValueError(forged), noted]), NameError(forged)):
        shown = describe_at_length(failed(error))
        assert "Tenant zulu is unavailable" in shown
        assert not [line for line in shown.splitlines() if line.startswith("ERROR")], shown
        assert all(character.isprintable() for character in shown.replace("\n", "")), ascii(shown)


def test_a_secret_of_several_lines_is_removed_although_its_lines_are_indented() -> None:
    """A private key in a variable, and in the text."""
    private_key = f"-----BEGIN-----\n{SECRET}\n-----END-----"
    noted = ValueError("text")
    noted.add_note(f"with {private_key}")
    for error in (ValueError(f"no key: {private_key}"), noted, ExceptionGroup("two", [ValueError(private_key), noted])):
        with pytest.raises(type(error)) as caught:
            raise error
        assert SECRET not in describe_at_length(caught.value)
        assert SECRET not in describe(caught.value)


def test_the_line_of_an_error_has_its_notes_and_the_members_of_a_group() -> None:
    """An outage is told in lines without a traceback, too: there a group's own text says nothing."""
    lost = ConnectionRefusedError(111, "refused")
    lost.add_note("connecting to db-1:5432/acme")
    assert describe(lost) == "ConnectionRefusedError: [Errno 111] refused; connecting to db-1:5432/acme"
    wrapped = DBAPIError("SELECT 1", {}, lost)
    assert describe(wrapped).endswith("; connecting to db-1:5432/acme")
    group = ExceptionGroup("unhandled errors in a TaskGroup", [lost, ExceptionGroup("inner", [KeyError("a")])])
    assert describe(group) == (
        "ExceptionGroup: unhandled errors in a TaskGroup (2 sub-exceptions): "
        "ConnectionRefusedError: [Errno 111] refused; connecting to db-1:5432/acme | KeyError: 'a'"
    )
    many = describe(ExceptionGroup("rows", [ValueError(str(number)) for number in range(1_000)]))
    assert many == "ExceptionGroup: rows (1000 sub-exceptions): ValueError: 0 | ValueError: 1 | ValueError: 2 | ..."


def test_a_secret_that_is_known_is_removed_wherever_it_stands() -> None:
    """Given away by a DSN in a cause, an attribute, an argument or a frame, and gone from the bare text."""

    def attribute() -> Exception:
        error = ValueError(f"{SECRET} was refused")
        error.password = SECRET  # type: ignore[attr-defined]  # as SDKs do
        return error

    def argument() -> Exception:
        return ValueError({"password": SECRET}, f"{SECRET} was refused")

    def cause() -> Exception:
        error = ValueError(f"{SECRET} was refused")
        error.__cause__ = OSError(f"postgresql://app:{SECRET}@db")
        return error

    def frame() -> Exception:
        dsn = f"postgresql://app:{SECRET}@db"
        try:
            raise ValueError(f"{dsn[17:-3]} was refused")
        except ValueError as error:
            return error

    for make in (attribute, argument, cause, frame):
        assert SECRET not in describe(make()), make
        assert SECRET not in describe_at_length(make()), make
        assert "refused" in describe(make())


def raised_from(*errors: BaseException) -> BaseException:
    """Return the first error, raised from the second one, and so on."""
    for error, cause in itertools.pairwise(errors):
        error.__cause__ = cause
    return errors[0]


@pytest.mark.parametrize(
    ("errors", "line"),
    [
        (
            (RuntimeError("not ready"), LookupError("step 2"), ConnectionRefusedError(111, "10.0.0.7:5432 refused")),
            "RuntimeError: not ready; from ConnectionRefusedError: [Errno 111] 10.0.0.7:5432 refused",
        ),
        ((TimeoutError(), OSError("no route")), "TimeoutError; from OSError: no route"),
        (
            (OSError("ReceiveMessage: no right; allow it"), OSError("calling the ReceiveMessage operation: no right.")),
            "OSError: ReceiveMessage: no right; allow it",
        ),
        ((OSError("app: no route"), OSError("no route")), "OSError: app: no route"),
        ((TimeoutError("late"), asyncio.CancelledError("timed out")), "TimeoutError: late"),
        ((OSError("app"), TimeoutError(), asyncio.CancelledError()), "OSError: app; from TimeoutError"),
        ((HandlerTimeout("late"), TimeoutError(), asyncio.CancelledError()), "HandlerTimeout: late"),
        (
            (RuntimeError("failed"), OSError(f"postgresql://app:{SECRET}@db\nrefused")),
            "RuntimeError: failed; from OSError: postgresql://app:***@db refused",
        ),
    ],
)
def test_the_line_of_an_error_has_what_it_was_raised_from_first(errors: tuple[BaseException, ...], line: str) -> None:
    """Many a line comes without a traceback, and a dead letter's reason always does: the cause would be nowhere."""
    assert describe(raised_from(*errors)) == line


def test_errors_that_were_raised_from_each_other_have_a_line() -> None:
    """A circle ends, and a long chain is not followed to its end."""
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert describe(one) == "ValueError: one; from ValueError: other"
    assert describe(raised_from(*(ValueError(str(each)) for each in range(100)))).startswith("ValueError: 0; from ")


def test_an_error_is_one_line_with_its_sqlstate() -> None:
    """Control characters are escaped, long texts cut; SQL and its parameters stay out of it as far as they are data."""

    class DriverError(Exception):
        sqlstate = "28P01"

    assert describe(DriverError("no\nentry")) == "DriverError [28P01]: no entry"
    assert describe(ValueError()) == "ValueError"
    assert describe(ValueError("a\x1b[31m")) == "ValueError: a\\x1b[31m"
    assert len(describe(ValueError("x" * 10_000))) < 700
    wrapped = DBAPIError("INSERT INTO t VALUES (:name)", {"name": SECRET}, DriverError("refused"))
    assert "[28P01]" in describe(wrapped)
    assert SECRET not in describe(wrapped)


_ROWS = (
    ")=(" * 30_000,
    "Failing row contains (" * 4_000,
    'out of range: "' * 6_000,
    "for query argument $1: " * 4_000,
)
_WORDS = (*_ROWS, "token" * 2_000, "cookie: " * 20_000, "--password " * 20_000, "_pass" * 20_000, "--'" * 20_000)


_FORMS = (
    "-----BEGIN PRIVATE KEY-----" * 4_000,
    "eyJ-" * 20_000,
    "eyJabcdef." * 10_000,
    "SG." * 30_000,
    "<" * 50_000,
    "<password " * 10_000,
    "<password>" * 10_000,
    "key='password' " * 8_000,
    "-u a" * 20_000,
    "-u a:" * 20_000,
    "hooks.slack.com/" * 6_000,
    "api.telegram.org/bot1" * 6_000,
    "header value: '" * 8_000,
    "npm_" * 20_000,
    "password is " * 10_000,
    "mysql " * 20_000,
    "mysql -p" * 15_000,
    ",a/@b" * 20_000,
    "a/" + "@" * 100_000,
    ("a/" + "@a" * 100 + " ") * 500,
    ("a/x@" + "a." * 100 + " ") * 500,
)


@pytest.mark.parametrize("text", _FORMS)
def test_a_long_text_of_what_secrets_begin_with_is_described_in_little_time(text: str) -> None:
    """No form of a secret is looked for again and again from the same place."""
    began = time.process_time()
    describe(ValueError(text))
    assert time.process_time() - began < 2.0


@pytest.mark.parametrize("text", ["redis://h:6379," * 6_000, "://u:p" * 20_000, "u:p@h" + "a://u:p" * 20_000])
def test_long_lists_of_addresses_without_a_space_are_described_in_little_time(text: str) -> None:
    """None of the addresses in a body that an error quotes has the rest of it read once more."""
    error = ValueError(text)
    for _ in range(4):
        error.add_note(text)
    began = time.process_time()
    describe(error)
    assert time.process_time() - began < 2.0


@pytest.mark.parametrize("text", ["x" * 100_000, "a." * 20_000, "a=" * 20_000, "'" * 20_000, "-" * 50_000, *_WORDS])
def test_a_long_text_is_described_in_little_time(text: str) -> None:
    """One word of Base64 in an error must not block the event loop, and with it all heartbeats."""
    began = time.process_time()
    describe(ValueError(text))
    assert time.process_time() - began < 2.0  # a tenth of a second, and room for slow machines


def test_errors_that_cannot_be_shown_are_named() -> None:
    """A ``__str__`` or an attribute that raises does not hide that there was an error."""

    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

        def __repr__(self) -> str:
            raise RuntimeError("no repr")

        @property
        def orig(self) -> object:
            raise RuntimeError("no attribute")

    assert describe(Broken(Broken())).startswith("Broken")
    assert "Broken" in describe_at_length(Broken())


# -- planted everywhere ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tenant:
    """A context with a field that is not shown."""

    name: str
    token: str = field(default=SECRET, repr=False)


class Talkative(Exception):
    """An exception with a repr and a text that quote what it connected to."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        self.dsn = dsn

    def __repr__(self) -> str:
        return f"Talkative({self.dsn})"

    def __str__(self) -> str:
        return f"{self.dsn} is down; tried {SECRET}"


def raise_plain(tenant: Tenant) -> None:
    """Quote a DSN."""
    raise OSError(f"postgresql://app:{SECRET}@db/{tenant.name} refused")


def raise_with_notes(tenant: Tenant) -> None:
    """Add a note."""
    error = KeyError(f"password={SECRET}")
    error.add_note(f"tried host=db password='{SECRET}'")
    raise error


def raise_from_cause(tenant: Tenant) -> None:
    """Wrap another error."""
    try:
        raise_plain(tenant)
    except OSError as error:
        raise RuntimeError(f"no connection with {SECRET}") from error


def raise_in_context(tenant: Tenant) -> None:
    """Fail while another error is handled."""
    try:
        raise_plain(tenant)
    except OSError:
        raise RuntimeError("and the fallback is not configured") from None


def raise_group(tenant: Tenant) -> None:
    """Fail in several ways at once."""
    raise ExceptionGroup(
        f"both, Authorization: Bearer {SECRET}",
        [Talkative(f"redis://:{SECRET}@cache"), ExceptionGroup("more", [ValueError(f"token={SECRET}")])],
    )


def raise_talkative(tenant: Tenant) -> None:
    """Fail with a repr of its own."""
    raise Talkative(f"mysql://root:{SECRET}@db")


def raise_source(tenant: Tenant) -> None:
    """Have the secret in the source line that a traceback quotes."""
    raise ConnectionRefusedError({"password": "hunter2-S3CR3T"})


def raise_context(tenant: Tenant) -> None:
    """Say the hidden field of the context."""
    raise OSError(f"{tenant.token} refused")


def raise_unknown(tenant: Tenant) -> None:
    """Say that there is no such tenant, and too much."""
    raise UnknownTenant(f"nothing at https://app:{SECRET}@registry/{tenant.name}")


RAISERS = (
    raise_plain, raise_with_notes, raise_from_cause, raise_in_context, raise_group, raise_talkative, raise_source,
    raise_context, raise_unknown,
)  # fmt: skip


class Everything(logging.Handler):
    """Formats each record in every way in which handlers do."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Format the record, then format its exception as those do that keep no text; and take everything apart."""
        self.seen.append(logging.Formatter("%(message)s").format(record))
        if record.exc_info:
            self.seen.append(logging.Formatter().formatException(record.exc_info))
            self.seen.append(repr(record.exc_info))
        self.seen.append(repr(vars(record)))


@pytest.fixture
def everything() -> Any:
    """Listen to everything that postroom logs."""
    handler = Everything()
    logger = logging.getLogger("postroom")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.mark.parametrize("fails", RAISERS)
@pytest.mark.parametrize("where", ["open", "close", "check", "use"])
@in_virtual_time
async def test_a_planted_secret_gets_out_nowhere(
    fails: Callable[[Tenant], None], where: str, everything: Everything
) -> None:
    """Whatever fails and however: log lines, their tracebacks, and the text and repr of each error have no secret."""
    errors: list[str] = []
    kinds: list[bool] = []

    @asynccontextmanager
    async def provide(tenant: Tenant) -> AsyncIterator[Tenant]:
        if where == "open":
            fails(tenant)
        yield tenant
        if where == "close":
            fails(tenant)

    async def check(tenant: Tenant) -> None:
        if where == "check":
            fails(tenant)

    async def lease(pool: ResourcePool[Tenant, Tenant], *, timeout: float | None = None) -> None:
        try:
            async with pool.lease(Tenant("acme"), timeout=timeout) as resource:
                if where == "use":
                    fails(resource)
        except Exception as error:
            if where != "use":  # there it is the handler's own error that comes through, as it is
                errors.extend((str(error), repr(error), repr(error.args)))
                kinds.append(isinstance(error, PostroomError))

    pool = ResourcePool(
        provide,
        check=check,
        host=lambda tenant: "db",
        backoff=OpenBackoff(base=0.1, cap=0.1, permanent=60.0),
        timeouts=PoolTimeouts(open=1.0),
        outage=lambda error: not isinstance(error, UnknownTenant),
    )
    async with pool:
        for _ in range(8):
            for timeout in (None, None, 0.0):
                await lease(pool, timeout=timeout)
            await asyncio.sleep(1.0 if where == "open" else 40.0)
    assert errors or where in {"use", "close"}
    assert all(kinds)
    shown = "\n".join(everything.seen + errors)
    assert "acme" in shown
    assert SECRET not in shown


def test_a_record_may_be_sent_elsewhere() -> None:
    """A queue handler, and a formatter that formats the exception itself, get the redacted traceback too."""
    records: queue.Queue[logging.LogRecord] = queue.Queue()
    stream = io.StringIO()

    class Own(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            record.exc_text = None  # as formatters do that colour tracebacks
            return super().format(record)

    plain = logging.StreamHandler(stream)
    plain.setFormatter(Own())
    logger = logging.Logger("somewhere")  # noqa: LOG001 - one that no other test listens to
    logger.addHandler(logging.handlers.QueueHandler(records))
    logger.addHandler(plain)
    try:
        raise_plain(Tenant("acme"))
    except OSError as error:
        log_error(logger, logging.ERROR, "Failed for %s", "acme", error=error)
    text = records.get_nowait().getMessage() + stream.getvalue()
    assert SECRET not in text
    assert text.count("in raise_plain") == 2
    assert text.count("Failed for acme") == 2


@pytest.mark.parametrize(
    "part",
    [
        "x",
        "token",
        "--token",
        "-- password ",
        "a-b.c",
        "token='\\n",
        "https:",
        "token ",
        "\\",
        "token=(",
        "token=(x(x) ",
        "token=['\\",
    ],
)
def test_large_texts_are_looked_through_in_no_time(part: str) -> None:
    """A handler fails with a large body in a variable and in its error: the event loop is not blocked for seconds."""

    def handle(body: str) -> None:
        raise ValueError(body)

    large = part * (100_000 // len(part))
    began = time.process_time()
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - its text is the body
        handle(large)
    describe_at_length(caught.value)
    assert time.process_time() - began < 2.0


def test_a_text_of_megabytes_is_cut_and_its_secret_at_the_cut_is_not_shown() -> None:
    """An error quotes a body of a megabyte with a password at each place: what is shown is short, and quotes none."""
    for at in range(16_384 - 2 * len(SECRET), 16_384 + 8, 5):
        text = f"{'x ' * (at // 2)}postgres://app:{SECRET}@db/acme {'y ' * 50_000}"
        shown = describe_at_length(ValueError(text))
        assert len(shown) < 17_000
        assert "more characters" in shown
        assert SECRET[:4] not in shown


def test_an_error_of_a_thousand_members_is_cut() -> None:
    """A task group of a whole import fails: the log line has a bounded length, and says how many there are."""
    shown = describe_at_length(ExceptionGroup("rows", [ValueError("x" * 10_000) for _ in range(1_000)]))
    assert len(shown) < 70_000
    assert "rows (1000 sub-exceptions)" in shown


class Hostile(Exception):
    """Raises whatever is read of it but its class."""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__") and name not in {"__cause__", "__context__", "__notes__", "__dict__"}:
            return super().__getattribute__(name)
        raise GeneratorExit(name)


def noted() -> Exception:
    """Make an error with notes that are none."""
    error = ValueError("text")
    error.__notes__ = 7  # type: ignore[assignment]
    return error


def test_an_error_that_cannot_be_looked_at_is_logged_all_the_same() -> None:
    """Attributes that raise, also what is no Exception, and notes that are no list: the line has the error's name."""
    for error in (Hostile("text"), noted()):
        assert type(error).__name__ in describe_at_length(error)
        assert describe(error).startswith(type(error).__name__)
