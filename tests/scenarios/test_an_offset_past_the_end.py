"""Found by tier 1: an append that was refused for an offset past the end was stored at that offset afterwards, when an earlier try came."""

from itertools import count

from streamq.log.idempotence import IdempotenceTable
from streamq.log.sequencer import Assigned, Refused, Sequencer
from streamq.model.batches import FLAG_CONDITIONAL, BatchHeader
from streamq.model.errors import UnavailableError, UnknownOutcomeError
from streamq.model.ids import NO_PRODUCER, Member
from streamq.model.messages import Nack
from streamq.model.registers import Segment
from streamq_producer.effects import Entry, Failed
from streamq_producer.session import PartitionSession

PARTITION = b"p" * 16
ME = Member("b1", b"1" * 16)


def test_a_refusal_is_not_certain_while_an_earlier_try_is_on_its_way() -> None:
    segment = Segment(1, 0, None, (ME,), 1, 1, "fsync", "b1", b"a" * 16)
    sequencer = Sequencer(partition=PARTITION, segment=segment, table=IdempotenceTable())
    session = PartitionSession(replicas=("b1",), sequencer="b1", in_flight=4, tickets=count(1), producer=b"P" * 16)
    entry = Entry("wants 1", records=1, deadline=9.0)
    session.add(entry, 0.0)
    session.on_opened("b1", 0.0)
    wanted = BatchHeader(PARTITION, 1, 0, 0, 0, session.producer, session.producer_epoch, 0, 0, 0, 0, 1, 0, flags=FLAG_CONDITIONAL)
    session.on_lost("b1", UnavailableError("connection lost", code="unavailable"), 0.1)
    session.on_opened("b1", 0.2)
    refused = sequencer.on_produce(wanted, "second try", 1)
    assert isinstance(refused, Refused)
    [told, *_] = session.on_nack(Nack(entry.tickets[-1], refused.code, refused.message, ""), 0.3)
    sequencer.on_produce(BatchHeader(PARTITION, 1, 0, 0, 0, NO_PRODUCER, 0, 0, 0, 0, 0, 0, 0), "another's", 1)
    assert isinstance(sequencer.on_produce(wanted, "first try", 2), Assigned)
    assert isinstance(told, Failed)
    assert isinstance(told.error, UnknownOutcomeError)
