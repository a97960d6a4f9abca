"""What a replica may start, by what the store answered and when."""

from postroom import Fleet
from postroom.fleet import MemoryState
from postroom.fleet.ledger import Demand, Ledger
from postroom.fleet.protocol import Answer, Grant

WORK = Demand(running=0, waiting=3, local=8)


def exchange(ledger: Ledger, epoch: str, now: float) -> None:
    """Ask for slots of a tenant, and get two."""
    sent = ledger.ask(["acme"], lambda _tenant: WORK, now)
    assert sent is not None
    ledger.answered(sent, Answer(epoch, 0, 2, tuple(Grant(2, 2) for _ in sent.request.asks)), now)


def test_a_tenant_is_not_starved_where_its_slots_are_only_not_believed_yet() -> None:
    """The replica was cut off for longer than a lease, and the store forgot everything meanwhile.

    A starved tenant's messages are given back, a receive each; this is over in two ticks.
    """
    ledger = Ledger(Fleet(MemoryState(lambda: 0.0), per_tenant=4), "r1", 0.0, lambda _tenant: None)
    ledger.look("acme", 0.0)
    exchange(ledger, "old", 0.0)
    assert ledger.allowed("acme", 0.5) == 2
    exchange(ledger, "new", 100.0)
    assert ledger.allowed("acme", 100.5) == 0
    assert ledger.starved(100.5) == []
    exchange(ledger, "new", 102.5)
    assert ledger.allowed("acme", 103.0) == 2
