"""The console's page in a real browser: it loads, it updates, an action works, an error is shown, it stays fluid."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from postroom import Concurrency, Consumer, MessageContext, TenantState
from postroom.console import ConsoleServer, allow_token
from postroom.local import LocalBroker
from postroom.local.shapes import AttributeValue, Send
from postroom.transports.memory import MemoryClient
from support.chromium import CHROMIUM, MISSING, Page, chromium
from support.shop import tenant_of

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)

TOKEN = "correct horse battery"


class Site:
    """A consumer, its console, and a page of a browser that shows it."""

    def __init__(self, consumer: Consumer[str, None], broker: LocalBroker, page: Page, url: str) -> None:
        self.consumer = consumer
        self.broker = broker
        self.page = page
        self.url = url
        self.gate = asyncio.Event()

    def send(self, tenant: str, count: int = 1) -> None:
        """Send messages of a tenant."""
        named = {"tenantId": AttributeValue(string_value=tenant, data_type="String")}
        for _ in range(count):
            self.broker.send("orders", Send(message_body="1", message_attributes=named, message_group_id=tenant))

    async def sign_in(self) -> None:
        """Be Ann, by the page's own form."""
        await self.page.until("!document.querySelector('#me').disabled")
        await self.page.js("document.querySelector('#me').click()")
        await self.page.js(f"$('l-name').value = 'ann'; $('l-token').value = '{TOKEN}'; $('l-form').requestSubmit()")
        await self.page.until("$('me').textContent === 'ann' && !$('login').open")


@asynccontextmanager
async def site(directory: Path) -> AsyncIterator[Site]:
    """Run everything. Handlers wait for the gate."""
    async with LocalBroker() as broker, chromium(directory) as new_page:
        broker.create_queue("orders", {"VisibilityTimeout": "60"})
        consumer: Consumer[str, None] = Consumer(
            "orders", context=tenant_of, client=MemoryClient(broker), concurrency=Concurrency(total=4, per_tenant=2)
        )

        @consumer.handler
        async def handle(payload: int, ctx: MessageContext[str, None]) -> None:
            await made.gate.wait()

        page = await new_page()
        async with consumer, ConsoleServer(consumer, port=0, allow=allow_token(TOKEN)) as server:
            made = Site(consumer, broker, page, server.url)
            await page.resize(1440, 900)
            await page.open(server.url)
            yield made
            made.gate.set()


def names(selector: str = ".row:not([hidden]) .name") -> str:
    """Return an expression for the names that are in sight, from the top."""
    sort = "sort((a, b) => a.closest('.row').offsetTop - b.closest('.row').offsetTop)"
    return f"[...document.querySelectorAll('{selector}')].{sort}.map((e) => e.textContent).join()"


async def test_it_loads_updates_acts_and_shows_errors(tmp_path: Path) -> None:
    """As an operator uses it: one tenant waits, is found, opened by the keyboard, and paused with a reason."""
    async with site(tmp_path) as made:
        page = made.page
        await page.until("$('link').textContent === 'live'")
        await page.until("!$('none').hidden && $('none').textContent === 'No tenant has anything here now.'")
        made.send("zeta")
        made.send("acme", 6)
        await page.until(f"{names()}.includes('zeta')")
        await page.until("rows.get('0:acme') && rows.get('0:acme').w")  # it has waited for more than a second
        assert (await page.js(names())).startswith("acme")
        assert await page.js("document.querySelectorAll('.fact')[0].textContent") == "slots3 of 4"

        await page.press("j")  # chooses the first row
        await page.press("Enter")
        await page.until("$('tenant').open && $('t-name').textContent === 'acme'")
        assert await page.js("$('act').hidden && !$('readonly').hidden")  # no one has signed in
        await page.press("Escape")
        await page.until("!$('tenant').open")

        await made.sign_in()
        await page.press("Enter")
        await page.until("$('tenant').open && !$('act').hidden")
        await page.js("document.querySelector('[data-action=pause]').click()")
        await page.until("!$('error').hidden && $('error').textContent.startsWith('Say why')")
        await page.js("$('reason').value = 'too many of them'; document.querySelector('[data-action=limit]').click()")
        await page.until("$('error').textContent === 'limit needs concurrency or rate; 0 ends a limit'")
        await page.js("document.querySelector('[data-action=pause]').click()")
        await page.until("!$('tenant').open && $('toast').textContent === 'pause: acme'")
        assert made.consumer.tenants["acme"].state is TenantState.PAUSED
        assert made.consumer.tenants["acme"].reason == "too many of them (ann)"
        await page.until("document.querySelector('.row.paused .err')?.textContent === 'too many of them (ann)'")

        await page.press("/")
        await page.until("document.activeElement === $('search')")
        await page.press("z")
        await page.until(f"{names()} === 'zeta'")

        await page.resize(390, 844, phone=True)
        await page.js("$('search').value = ''; $('search').dispatchEvent(new Event('input'))")
        await page.until("document.querySelector('.row.paused:not([hidden]) .err')?.checkVisibility()")
        await page.press("Escape")
        await page.js("document.querySelector('.row.paused').click(); $('reason').value = 'wrong on purpose'")
        await page.js("$('to').value = 'nowhere'; document.querySelector('[data-action=divert]').click()")
        await page.until("!$('error').hidden && $('error').textContent.includes('nowhere')")
        box = await page.js("(({top, bottom}) => [top, bottom])($('error').getBoundingClientRect())")
        assert 0 <= box[0] < box[1] <= 844  # in sight, without scrolling
        assert await page.js("!document.querySelector('[data-action=divert]').disabled")
        # What the browser itself logs of the refused requests is all that may be there.
        assert all("400" in problem for problem in page.problems), page.problems


async def test_it_says_that_the_connection_is_lost_and_comes_back(tmp_path: Path) -> None:
    """A page that shows old figures as if they were new would mislead."""
    async with site(tmp_path) as made:
        page = made.page
        await page.until("$('link').textContent === 'live'")
        await page.js("source.close(); source.onerror(); setTimeout(connect, 300)")
        assert await page.js("$('link').className") == "off"
        await page.until("$('link').textContent === 'live' && $('link').className === ''")


@pytest.mark.long
async def test_ten_thousand_tenants_stay_fluid_and_fit_a_phone(tmp_path: Path) -> None:
    """Only what is in sight is in the document; scrolling through all of them drops hardly a frame."""
    async with site(tmp_path) as made:
        page = made.page
        for number in range(10_000):
            made.consumer.tenants.pause(f"tenant-{number:05}", reason="ten thousand")
        await page.until("$('link').textContent === 'live'")
        await page.js("$('top').value = '10000'; $('top').dispatchEvent(new Event('change'))")
        await page.until("order.length === 10000 && rows.size === 10000", seconds=60)
        figures: dict[str, Any] = await page.js(SCROLL)
        print(f"10,000 rows: {figures}")
        assert figures["nodes"] < 100
        assert figures["painted"] > 0.99
        assert figures["worst"] < 500  # milliseconds of one frame, on a machine that others use, too
        await page.resize(390, 844, phone=True)
        await page.until("document.documentElement.scrollWidth <= 390")
        await page.until("$('scroll').clientHeight > 300")
        assert not page.problems


SCROLL = """(async () => {
  const box = $("scroll"), frames = [];
  let last = performance.now(), painted = 0, looks = 0;
  for (let step = 0; step < 120; step++) {
    box.scrollTop = step * (box.scrollHeight - box.clientHeight) / 119;
    await new Promise(requestAnimationFrame);
    await new Promise(requestAnimationFrame);
    const now = performance.now(); frames.push((now - last) / 2); last = now;
    const first = Math.floor(box.scrollTop / height()), wanted = rows.get(order[first]).n;
    looks++;
    painted += [...document.querySelectorAll(".row:not([hidden]) .name")].some((e) => e.textContent === wanted);
  }
  frames.sort((a, b) => a - b);
  return {nodes: document.querySelectorAll(".row").length, painted: painted / looks,
    median: frames[60], worst: frames[119]};
})()"""
