"""Takeovers, handoffs and followers when something goes wrong on the way: nothing crashes, nothing is left without a sequencer."""

import logging

import pytest
import trio

from streamq.broker import successions, takeovers
from streamq.broker.partition import Partition
from streamq.broker.refills import Refills
from streamq.log.takeover import Phase
from streamq.model.errors import CorruptDataError, StreamqError, UnavailableError
from streamq.model.ids import Member
from streamq.model.messages import Ack, Nack, Repair, Repaired, Seal, Sealed
from streamq.model.registers import PartitionRegister, Segment
from streamq.storage.interface import LostBatches
from streamq.testing.in_process import cluster
from streamq.wire.batch_format import stamp
from tests.broker.capture import capture_nodes, peer_client, sequencing_of, until
from tests.broker.test_cluster_in_process import Resender, create, to
from tests.broker.wire_client import make_batch, new_producer

logging.getLogger("streamq").setLevel(logging.ERROR)


async def test_two_brokers_are_repaired_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = capture_nodes(monkeypatch)
    async with cluster(3) as running:
        [view] = await create(running)
        partition = sequencing_of(nodes, view.id)
        sequencing = partition.sequencing
        assert sequencing is not None
        for follower in sequencing.followers.values():
            follower.is_live, follower.is_feeding = False, True  # nothing reaches them
        async with to(running, view.sequencer) as client:
            with pytest.raises(trio.TooSlowError):
                await client.produce(make_batch(view.id, [b"only here"]), timeout_s=0.1)
        assert await takeovers.take_over(partition, sequencing.epoch, "test") is Phase.DONE
        assert partition.sequencing is not None
        assert partition.sequencing.core.high_watermark == 1


async def test_who_lacks_much_takes_over_when_who_has_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one with the longest tail is still copying what lies before the epoch; the one that has that asks it, in vain, and goes on."""
    nodes = capture_nodes(monkeypatch)
    async with cluster(3) as running:
        [view] = await create(running)
        producer = Resender(running, view)
        await producer.send(b"one")
        sequencing = sequencing_of(nodes, view.id).sequencing
        assert sequencing is not None
        lagging, incomplete = sequencing.followers
        sequencing.followers[lagging].is_live, sequencing.followers[lagging].is_feeding = False, True  # nothing reaches it
        await producer.send(b"two")
        plain = takeovers._Run._become_whole

        async def become_whole(self: takeovers._Run, register: PartitionRegister) -> None:
            if self.node.broker == incomplete:
                raise UnavailableError("it does not hold all before this epoch", code="not_replica")
            await plain(self, register)

        monkeypatch.setattr(takeovers._Run, "_become_whole", become_whole)
        monkeypatch.setattr(takeovers, "DEFER_ABOVE_OFFSETS", 0)
        await running.kill(view.sequencer)
        with trio.fail_after(15):
            await producer.send(b"three")
        assert nodes[lagging].partitions[view.id].sequencing is not None


async def test_a_follower_that_was_sealed_by_an_aborted_takeover_is_not_left_out_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = capture_nodes(monkeypatch)
    async with cluster(3) as running:
        [view] = await create(running)
        producer = Resender(running, view)
        await producer.send(b"one")
        sequencing = sequencing_of(nodes, view.id).sequencing
        assert sequencing is not None
        sealed, other = sequencing.followers
        async with peer_client(running, sealed) as client:
            assert isinstance(await client.ask(Seal(view.id, sequencing.epoch, sequencing.segment.base)), Sealed)
        # The sequencer finds out only by asking, as after a connection that broke.
        sequencing.followers[sealed].is_live = False
        await until(lambda: sequencing.is_retired, 6)
        await running.kill(other)
        await producer.send(b"two")


async def test_a_follower_that_is_connected_in_another_incarnation_brings_a_new_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = capture_nodes(monkeypatch)
    async with cluster(3) as running:
        [view] = await create(running)
        sequencing = sequencing_of(nodes, view.id).sequencing
        assert sequencing is not None
        follower = next(iter(sequencing.followers.values()))
        # It came back, with a new directory, between the takeover's seal and its end.
        follower.member, follower.is_live = Member(follower.member.broker, b"o" * 16), False
        await until(lambda: sequencing.is_retired, 6)


async def test_a_takeover_that_cannot_read_its_own_log_does_not_end_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = capture_nodes(monkeypatch)
    async with cluster(3) as running:
        [view] = await create(running)
        partition = sequencing_of(nodes, view.id)
        sequencing = partition.sequencing
        assert sequencing is not None
        broken = True
        fold = Partition.fold

        async def damaged(self: Partition) -> None:
            if broken:
                raise CorruptDataError("damaged everywhere", code="data_damaged")
            await fold(self)

        monkeypatch.setattr(Partition, "fold", damaged)
        sequencing.wants_new_epoch = True
        await trio.sleep(1.5)
        assert all(broker.is_running for broker in running.brokers.values())
        broken = False
        await Resender(running, view).send(b"one")


async def test_a_peer_that_answers_a_seal_with_nonsense_does_not_end_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = capture_nodes(monkeypatch)
    async with cluster(3) as running:
        [view] = await create(running)
        partition = sequencing_of(nodes, view.id)
        sequencing = partition.sequencing
        assert sequencing is not None
        request = partition.node.peers.request

        async def nonsense(broker: str, message: object, timeout_s: float, payload: object = ()) -> object:
            answer = await request(broker, message, timeout_s, payload)  # type: ignore[arg-type]
            return message if isinstance(message, Seal) else answer

        monkeypatch.setattr(partition.node.peers, "request", nonsense)
        assert await takeovers.take_over(partition, sequencing.epoch, "test") is Phase.STUCK


async def test_a_handoff_that_fails_and_cannot_be_taken_back_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = capture_nodes(monkeypatch)
    async with cluster(3) as running:
        [view] = await create(running)
        partition = sequencing_of(nodes, view.id)
        sequencing = partition.sequencing
        assert sequencing is not None
        node = partition.node
        original, node_get = node.peers.request, node.registers.get_as
        broken = True

        async def request(broker: str, message: object, timeout_s: float, payload: object = ()) -> object:
            if broken and type(message).__name__ == "TakeOver":
                raise UnavailableError("no answer", code="timed_out")
            return await original(broker, message, timeout_s, payload)  # type: ignore[arg-type]

        async def get_as(kind: type, key: str, **more: float) -> object:
            if broken and kind is PartitionRegister:
                raise UnavailableError("no majority", code="timed_out")
            return await node_get(kind, key, **more)

        monkeypatch.setattr(node.peers, "request", request)
        monkeypatch.setattr(node.registers, "get_as", get_as)
        looker = successions.Successions(node)
        await looker.hand_over(partition, next(iter(sequencing.followers)))
        broken = False
        await Resender(running, view).send(b"one", timeout_s=6)


async def test_a_replica_that_does_not_hold_the_whole_log_does_not_open_epoch_after_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = capture_nodes(monkeypatch)
    async with cluster(3) as running:
        [view] = await create(running)
        producer = Resender(running, view)
        for i in range(10):
            await producer.send(b"%d" % i)
        await trio.sleep(0.1)
        victim = view.sequencer

        async def nothing_yet(self: Refills, partition: Partition, wanted: object) -> None:
            raise UnavailableError("copying is slow", code="unavailable")

        monkeypatch.setattr(Refills, "_copy", nothing_yet)
        broker = running.brokers[victim]
        broker._scope.cancel()
        await broker._ended.wait()
        broker.storage = broker.storage.crash(lost=[LostBatches(view.id, view.epoch, 4, 10)])
        await producer.send(b"somebody else sequences")
        await running.start(victim)
        await trio.sleep(4)  # long enough for it to be sent home to the victim, again and again
        epochs = [node.partitions[view.id].replica.state.opened for node in nodes.values()]
        await producer.send(b"after", timeout_s=3)
        assert max(epochs) - view.epoch <= 4, epochs


async def test_in_flight_batches_are_answered_when_the_own_replica_is_sealed_and_nobody_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = capture_nodes(monkeypatch)
    async with cluster(3) as running:
        [view] = await create(running)
        partition = sequencing_of(nodes, view.id)
        sequencing = partition.sequencing
        assert sequencing is not None
        for follower in sequencing.followers.values():
            follower.is_live, follower.is_feeding = False, True  # neither can be reached for now
        batch = make_batch(view.id, [b"x"], producer=new_producer())
        async with to(running, view.sequencer) as client:
            with pytest.raises(trio.TooSlowError):
                await client.produce(batch, timeout_s=0.05)
            async with peer_client(running, view.sequencer) as peer:
                await peer.ask(Seal(view.id, sequencing.epoch, sequencing.segment.base))
            with trio.fail_after(5):
                while not isinstance((await client.produce(batch, timeout_s=5))[0], Ack):
                    await trio.sleep(0.05)


async def test_a_sequencer_that_does_not_know_that_it_is_over_refuses_no_gap_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = capture_nodes(monkeypatch)
    async with cluster(3) as running:
        [view] = await create(running)
        old = sequencing_of(nodes, view.id)
        sequencing = old.sequencing
        assert sequencing is not None
        other = next(n for name, n in nodes.items() if name != view.sequencer)
        assert await takeovers.take_over(other.partitions[view.id], sequencing.epoch, "test") is Phase.DONE
        await until(lambda: old.sequencing is None)
        # As if nothing had been heard of the new epoch yet.
        sequencing.is_retired, sequencing.core.phase = False, sequencing.core.phase.SERVING
        old.sequencing = sequencing
        async with to(running, view.sequencer) as client:
            ahead = make_batch(view.id, [b"x"], producer=new_producer(), sequence=3)
            [outcome] = await client.produce(ahead)
        assert isinstance(outcome, Nack)
        assert outcome.code == "not_sequencer"
        async with to(running, other.broker) as client:
            [outcome] = await client.produce(ahead)
        assert isinstance(outcome, Nack)
        assert outcome.code == "sequence_gap"


async def test_a_full_disk_takes_no_repaired_tail_but_still_seals() -> None:
    """P-15: a takeover that pushes the unacked tail onto a full disk must not eat the room that is kept for seals."""
    async with cluster(3) as running:
        [view] = await create(running)
        target = next(name for name in running.brokers if name != view.sequencer)
        running.brokers[target].storage.refuse("the disk is full")
        members = tuple(Member(name, broker.storage.identity.incarnation) for name, broker in running.brokers.items())
        segment = Segment(view.epoch, 0, None, members, 2, 2, "fsync", view.sequencer, b"a" * 16)
        batch = stamp(make_batch(view.id, [b"tail"]), epoch=view.epoch, base=0, append_time=1)
        async with peer_client(running, target) as client:
            with pytest.raises(StreamqError) as refused:
                await client.channel.request(Repair(view.id, "orders", 0, segment), payload=[batch.head, batch.payload], timeout_s=2)
            assert refused.value.code == "disk_full"
            assert isinstance(await client.ask(Seal(view.id, view.epoch, 0)), Sealed)
            running.brokers[target].storage.refuse(None)
            answer = await client.channel.request(Repair(view.id, "orders", 0, segment), payload=[batch.head, batch.payload], timeout_s=2)
            assert isinstance(answer.message, Repaired)
            assert answer.message.local_tail == 1
