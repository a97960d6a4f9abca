"""The code of docs/telemetry.md runs, and the trace that it shows is the one that it makes."""

import asyncio
import re
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import httpx
import pytest
from opentelemetry import metrics, trace

from postroom.local import LocalServer
from postroom.transports import AwsClient
from support.aws import isolate_aws
from support.telemetry import Recorded, drawn

TEXT = (Path(__file__).parents[2] / "docs" / "telemetry.md").read_text(encoding="utf-8")
FIRST, STORY, PROMETHEUS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
(PICTURE,) = re.findall(r"```text\n(.*?)```", TEXT, flags=re.DOTALL)


async def test_one_request_is_seen_from_the_web_server_to_the_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over HTTP into the application, over HTTP through SQS: the picture in the document."""
    isolate_aws(monkeypatch)
    recorded = Recorded()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: recorded.tracer_provider)
    monkeypatch.setattr("opentelemetry.metrics._internal.get_meter_provider", lambda: recorded.meter_provider)
    names: dict[str, Any] = {}
    async with LocalServer() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", server.endpoint_url)
        server.broker.create_queue("orders")
        exec(compile(FIRST + STORY, "telemetry.md", "exec"), names)  # noqa: S102 - the document's own code
        async with AwsClient() as client, names["orders"]:
            names["app"].state.queue = await client.queue("orders")
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(app=names["app"]), base_url="http://shop"
            ) as browser:
                answer = await browser.post("/orders", headers={"x-tenant": "acme"}, json={"id": "7"})
            assert answer.status_code == 202
            async with asyncio.timeout(20):
                while not recorded.spans("process"):
                    await asyncio.sleep(0.01)
    assert drawn(recorded.spans()) + "\n" == PICTURE
    assert recorded.value("messaging.client.sent.messages", messaging__destination__name="orders") == 1
    assert recorded.value("messaging.client.consumed.messages", messaging__destination__name="orders") == 1


def test_the_prometheus_exporter_is_set_up_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names on the page are those that the document derives."""
    made: list[Any] = []
    monkeypatch.setattr(metrics, "set_meter_provider", made.append)
    names: dict[str, Any] = {}
    exec(compile(PROMETHEUS.replace("9464", "0"), "telemetry.md", "exec"), names)  # noqa: S102 - the document's own code
    try:
        from postroom.integrations.otel import Telemetry

        telemetry = Telemetry(meter_provider=made[0])
        with telemetry.sending("orders"):
            pass
        with urlopen(f"http://127.0.0.1:{names['server'].server_port}/metrics") as page:
            said = page.read().decode()
        assert 'messaging_client_operation_duration_seconds_bucket{le="0.005"' in said
        assert "messaging_client_sent_messages_total{" in said
    finally:
        names["server"].shutdown()
        names["server"].server_close()
        names["thread"].join()
        made[0].shutdown()
