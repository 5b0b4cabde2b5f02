"""The verdict of `support/synced_acks.py` on records made by hand: one thing amiss anywhere, and the ack was too early."""

from collections.abc import Callable

import pytest

from streamq.model.batches import Batch
from streamq.model.messages import Ack
from streamq.wire.batch_format import MAGIC, stamp
from tests.broker.wire_client import make_batch
from tests.support.recorded_disks import AckLeft, Event, SyncBegan, Synced, Wrote
from tests.support.synced_acks import verdict

BASE = 7
FILE = "000001.journal"
SENT = make_batch(b"p" * 16, [b"a value"], producer=b"producer" * 2, sequence=3)
ACK = Ack(0, BASE, 5, 2, 3, True)


def stored(batch: Batch = SENT, base: int = BASE) -> bytes:
    """As it lies in a group, between other bytes, some of which look like a batch."""
    placed = stamp(batch, epoch=1, base=base, append_time=5)
    return b"head and table " + MAGIC + placed.head + placed.payload + MAGIC + bytes(100)


def good() -> list[Event]:
    return [
        Wrote("b1", FILE, 4096, stored()),
        Wrote("b2", FILE, 8192, stored()),
        SyncBegan("b1", FILE, 1),
        SyncBegan("b2", FILE, 1),
        Synced("b2", FILE, 1),
        Synced("b1", FILE, 1),
        AckLeft(SENT, ACK),
    ]


def test_an_ack_behind_w_syncs_is_in_time() -> None:
    told = verdict(good(), write_quorum=2)
    assert told == ((2,), ())


@pytest.mark.parametrize("cut", [1, 15, 19, 100, 138, len(stored()) - 105])
def test_a_batch_may_be_written_in_pieces(cut: int) -> None:
    record = good()
    record[:1] = [Wrote("b1", FILE, 4096 + cut, stored()[cut:]), Wrote("b1", FILE, 4096, stored()[:cut])]
    assert verdict(record, write_quorum=2).too_early == ()


def test_a_sync_covers_what_an_earlier_one_did_not() -> None:
    """Neither what was written after that began, nor what it never reported."""
    record = good()
    record[:0] = [SyncBegan("b1", FILE, 8), SyncBegan("b1", FILE, 9)]
    record.insert(3, Synced("b1", FILE, 8))
    assert verdict(record, write_quorum=2).too_early == ()


def swap(one: int, other: int) -> Callable[[list[Event]], None]:
    def change(record: list[Event]) -> None:
        record[one], record[other] = record[other], record[one]

    return change


def put(at: int, *events: Event) -> Callable[[list[Event]], None]:
    def change(record: list[Event]) -> None:
        record[at : at + 1] = events

    return change


DAMAGED = stored()[:-110] + b"!" + stored()[-109:]


@pytest.mark.parametrize(
    ("change", "synced"),
    [
        pytest.param(swap(5, 6), 1, id="it left before the second sync ended"),
        pytest.param(put(5), 1, id="a sync never ended"),
        pytest.param(swap(0, 2), 1, id="the sync began before the write"),
        pytest.param(put(0, Wrote("b1", "000002.journal", 4096, stored())), 1, id="another file was synced"),
        pytest.param(put(0, Wrote("b2", FILE, 4096, stored())), 1, id="one disk has it twice"),
        pytest.param(put(0), 1, id="it was never written"),
        pytest.param(put(0, Wrote("b1", FILE, 4096, stored()[:-105])), 1, id="its end was not written"),
        pytest.param(put(0, Wrote("b1", FILE, 4096, DAMAGED)), 1, id="its bytes are others"),
        pytest.param(put(0, Wrote("b1", FILE, 4096, stored(base=8))), 1, id="it lies elsewhere in the log"),
        pytest.param(put(0, Wrote("b1", FILE, 4096, stored()), Wrote("b1", FILE, 4096, bytes(500))), 1, id="it was written over"),
        pytest.param(put(6, AckLeft(SENT, ACK._replace(base=8))), 0, id="the ack tells another place"),
        pytest.param(put(6, AckLeft(SENT, ACK._replace(copies=3))), 2, id="the ack tells more copies than there are"),
    ],
)
def test_one_thing_amiss_makes_it_too_early(change: Callable[[list[Event]], None], synced: int) -> None:
    record = good()
    change(record)
    told = verdict(record, write_quorum=2)
    assert told.synced == (synced,)
    assert len(told.too_early) == 1
