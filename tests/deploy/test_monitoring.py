"""The dashboard and the alert rules: they parse, use names that exist, and show data of a real run."""

import asyncio
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import start_http_server

from postroom import Concurrency, Consumer, MessageContext, PoolLimits, ResourcePool, RetryPolicy, Shutdown
from postroom.integrations.otel import Telemetry, TopTenants, names
from postroom.local import LocalBroker
from support.world import Databases, Order, Tenant, World

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "postroom.json").read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = {f"{panel['title']} {target['refId']}": target["expr"] for panel in PANELS for target in panel["targets"]}
RULES = DEPLOY / "prometheus" / "rules.yml"
ALERTS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"][0]["rules"]
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="Prometheus is not installed: apt-get install prometheus",
)


def filled(expression: str) -> str:
    """Put values in the place of Grafana's variables."""
    return expression.replace("$__rate_interval", "5s").replace("$queue", ".*")


@pytest.mark.parametrize("query", QUERIES)
def test_every_query_of_the_dashboard_parses(query: str) -> None:
    """By Prometheus's own grammar."""
    promql_parser.parse(filled(QUERIES[query]))


def exported() -> set[str]:
    """Return the names that the Prometheus exporter makes of the instruments."""
    found: set[str] = set()
    for instrument in names.INSTRUMENTS:
        name = instrument.name.replace(".", "_") + {"s": "_seconds", "By": "_bytes"}.get(instrument.unit, "")
        found |= {name, f"{name}_total", f"{name}_bucket", f"{name}_count"}
    return found


def used(expression: str) -> set[str]:
    """Return the metrics that an expression names."""
    without_labels = re.sub(r"\{[^}]*\}|by \([^)]*\)", "", expression)
    return set(re.findall(r"\b(?:postroom|messaging)_\w+", without_labels))


def test_dashboard_and_rules_use_names_that_exist() -> None:
    """A name that changes would leave a panel empty, and an alert silent."""
    expressions = [*QUERIES.values(), *(rule["expr"] for rule in ALERTS)]
    unknown = {name for expression in expressions for name in used(expression)} - exported()
    assert unknown == set()


FLEET = {each.name for each in (*names.FLEET_COUNTERS.values(), *names.FLEET_GAUGES.values())}
"""What only a fleet has: the dashboard is for every service."""


def test_every_instrument_is_on_the_dashboard() -> None:
    """What is measured is shown, but for some that say the same as another one, and those that only a fleet has."""
    shown = {name for expression in QUERIES.values() for name in used(expression)}
    bases = {re.sub(r"_(total|bucket|count|seconds|bytes)", "", name) for name in shown}
    missing = {each.name for each in names.INSTRUMENTS if each.name.replace(".", "_") not in bases}
    assert missing - FLEET == {
        "messaging.client.operation.duration",  # receives are long polls: their duration shows no trouble
        "postroom.handlers.succeeded",
        "postroom.held.size",
        "postroom.pool.checks.failed",
        "postroom.pool.live",
        "postroom.pool.refusals",
        "postroom.pool.timeouts",
        "postroom.tenants",
    }


def test_panels_do_not_overlap_and_say_what_they_show() -> None:
    """Grafana takes anything and draws it."""
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)


def test_every_alert_says_what_to_do() -> None:
    """It wakes a person: a summary, what to look at, and whether it can wait."""
    alerts = [rule for rule in ALERTS if "alert" in rule]
    assert len(alerts) == 13
    for alert in alerts:
        assert alert["labels"]["severity"] in {"page", "ticket"}
        assert alert["annotations"].keys() == {"summary", "description"}


def test_what_an_alert_tells_to_look_for_is_there() -> None:
    """What its description quotes is the title of a panel, or stands in a text that the log has."""
    source = "".join(each.read_text(encoding="utf-8") for each in (DEPLOY.parent / "src").rglob("*.py"))
    titles = {panel["title"] for panel in PANELS}
    said = [rule["annotations"]["description"] for rule in ALERTS if "alert" in rule]
    quoted = {text for each in said for text in re.findall(r'"(.+?)"', each)}
    assert len(quoted) >= 7
    assert {text for text in quoted if text not in titles and text not in source} == set()


@needs_prometheus
def test_the_rules_pass_promtool_and_fire_when_they_should(tmp_path: Path) -> None:
    """A healthy consumer fires none of them, also one that is busy; each fires for its own trouble."""
    checked = subprocess.run(["promtool", "check", "rules", RULES], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tests = (Path(__file__).parent / "rules_test.yml").read_text(encoding="utf-8").replace("RULES", str(RULES))
    assert all(rule["alert"] in tests for rule in ALERTS if "alert" in rule)
    (tmp_path / "rules_test.yml").write_text(tests)
    tested = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "rules_test.yml"], capture_output=True, text=True, check=False
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr


# -- a real Prometheus ----------------------------------------------------------------------------------------------


@pytest.fixture
def exporter() -> Iterator[tuple[MeterProvider, int]]:
    """A meter provider, and the port of the page that Prometheus scrapes."""
    provider = MeterProvider([PrometheusMetricReader()])
    server, thread = start_http_server(0, "127.0.0.1")
    yield provider, server.server_port
    server.shutdown()
    server.server_close()
    thread.join()
    provider.shutdown()


@asynccontextmanager
async def prometheus(directory: Path, scraped: int) -> AsyncIterator[str]:
    """Run a Prometheus that scrapes a port, and give its URL."""
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "postroom", "static_configs": [{"targets": [f"127.0.0.1:{scraped}"]}]}],
    }
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    process = await asyncio.create_subprocess_exec(
        "prometheus", f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data",
        "--web.listen-address=127.0.0.1:0", "--log.level=info", stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        address = ""
        async for line in process.stderr:
            if found := re.search(rb'Listening on" address=(\S+)', line):
                address = found[1].decode()
            if b"Server is ready" in line:
                break
        assert address, "Prometheus did not start"
        reading = asyncio.create_task(process.stderr.read(), name="prometheus-log")
        yield f"http://{address}"
        process.terminate()
        await reading
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def asked(url: str, expression: str) -> list[float]:
    """Return the values of an instant query, without those that are no number."""
    query = urllib.parse.urlencode({"query": filled(expression)})
    with urllib.request.urlopen(f"{url}/api/v1/query?{query}", timeout=10) as answer:  # noqa: S310 - our own
        said = json.loads(answer.read())
    values = [float(series["value"][1]) for series in said["data"]["result"]]
    return [value for value in values if value == value]  # noqa: PLR0124 - NaN is not itself


@asynccontextmanager
async def shop(provider: MeterProvider) -> AsyncIterator[None]:
    """A consumer with work for good, failing and unavailable tenants, for as long as the block lasts."""
    telemetry = Telemetry(meter_provider=provider, tenants=TopTenants(5))
    databases = Databases()
    databases.failures["down"] = lambda: ConnectionRefusedError("no database")
    pool = ResourcePool(databases, limits=PoolLimits(budget=20), name="databases")  # too small: opens go on
    async with LocalBroker(seed=1) as broker:
        world = World(broker)
        world.create(dead_letters="dead", receives=5)
        orders: Consumer[Tenant, Any] = Consumer(
            "orders", context=Tenant, resources=pool, client=world.client, observers=[telemetry],
            retry=RetryPolicy(base=0.1, cap=0.5), concurrency=Concurrency(total=8),
            shutdown=Shutdown(drain=0, cancel=1),
        )  # fmt: skip

        @orders.handler
        async def handle(order: Order, ctx: MessageContext[Tenant, Any]) -> None:
            await asyncio.sleep(order.seconds)
            if order.order_id.startswith("bad"):
                raise ValueError(order.order_id)

        async def produce() -> None:
            number = 0
            while True:
                number += 1
                with telemetry.sending("orders"):
                    world.send_orders(str(number), tenant=f"t{number % 50}", seconds=0.02)
                world.send_orders(f"bad-{number}", tenant="bad")
                world.send_orders(f"{number}", tenant="down")
                await asyncio.sleep(0.05)

        async with orders:
            producing = asyncio.create_task(produce(), name="producer")
            try:
                yield
            finally:
                producing.cancel()
                await asyncio.wait([producing])


@needs_prometheus
async def test_every_panel_shows_data_of_a_real_run(exporter: tuple[MeterProvider, int], tmp_path: Path) -> None:
    """A real Prometheus scrapes a consumer at work, and each query of each panel returns numbers."""
    provider, port = exporter
    empty = {**QUERIES, "the utilisation rule": "postroom:slots:utilisation"}
    async with prometheus(tmp_path, port) as url, shop(provider):
        try:
            async with asyncio.timeout(40):
                while empty:
                    await asyncio.sleep(0.5)
                    empty = {
                        name: each for name, each in empty.items() if not await asyncio.to_thread(asked, url, each)
                    }
        except TimeoutError:
            pytest.fail(f"without data: {', '.join(empty)}")
        assert await asyncio.to_thread(asked, url, "sum(postroom_outages)") == [1.0]
