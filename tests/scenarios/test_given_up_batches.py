"""Found by tier 2: a batch that its producer had given up, still on its way, was stored behind what the producer sent after it."""

from itertools import count

from streamq.log.idempotence import IdempotenceTable
from streamq.log.sequencer import Assigned, Refused, Sequencer
from streamq.model.batches import BatchHeader
from streamq.model.errors import UnavailableError, UnknownOutcomeError
from streamq.model.ids import Member
from streamq.model.registers import Segment
from streamq_producer.effects import Entry, Failed, Transmit
from streamq_producer.session import PartitionSession

PARTITION = b"p" * 16
ME = Member("b1", b"1" * 16)


def header(session: PartitionSession, sequence: int) -> BatchHeader:
    return BatchHeader(PARTITION, 1, 0, 0, 0, session.producer, session.producer_epoch, sequence, 0, 0, 0, 0, 0)


def test_a_batch_that_was_given_up_never_lands_behind_what_was_sent_after_it() -> None:
    """P-33: what follows a batch of unknown outcome has a higher producer epoch, which fences it."""
    segment = Segment(1, 0, None, (ME,), 1, 1, "fsync", "b1", b"a" * 16)
    sequencer = Sequencer(partition=PARTITION, segment=segment, table=IdempotenceTable())
    session = PartitionSession(replicas=("b1",), sequencer="b1", in_flight=4, tickets=count(1), producer=b"P" * 16)
    session.add(Entry("first", records=1, deadline=1.0), 0.0)
    [sent] = session.on_opened("b1", 0.0)
    assert isinstance(sent, Transmit)
    late = header(session, 0)
    session.on_lost("b1", UnavailableError("connection lost", code="unavailable"), 0.1)
    [given_up, *_] = session.on_time(1.0)
    assert isinstance(given_up, Failed)
    assert isinstance(given_up.error, UnknownOutcomeError)
    session.add(Entry("second", records=1, deadline=9.0), 1.0)
    effects = session.on_time(session.next_deadline) + session.on_opened("b1", 2.0)
    assert any(isinstance(effect, Transmit) for effect in effects)
    assert isinstance(sequencer.on_produce(header(session, 0), "second", 1), Assigned)
    refused = sequencer.on_produce(late, "first", 2)
    assert isinstance(refused, Refused)
    assert refused.code == "fenced"
