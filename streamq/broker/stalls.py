"""Finds sequencers that wait in vain, and followers that should have reported more by now, whatever was lost on the way.

What a sequencer can wait for begins with something that changes its partition: a batch that is assigned, a seal or a chain that the own
replica takes, a follower that is not live any more, whose feeder ended or whose connection is new. From then on it is looked at until
nothing is awaited: nothing is in flight, the own replica takes stores of this epoch, and each follower that is connected is live and has
reported all.
"""

import logging
from typing import Final

import trio

from streamq.broker.follower import Follower
from streamq.broker.lookout import Lookout
from streamq.broker.node import Node
from streamq.broker.sequencing import Sequencing
from streamq.model.errors import StreamqError
from streamq.model.limits import IN_FLIGHT_BYTES_MAX

__all__ = ["STALL_CHECK_S", "Stalls"]

log = logging.getLogger(__name__)

STALL_CHECK_S: Final = 1.0
FIND_OUT_CHECKS: Final = 2
HOLD_UP_CHECKS: Final = 3
LOOKS_AT_ONCE: Final = 100
"""Between two of so many, others have their turn: thousands of loaded partitions hold nobody up."""


class Stalls:
    def __init__(self, node: Node) -> None:
        self.node = node
        self._lookout = Lookout(node, interval_s=STALL_CHECK_S)
        self._finding_out: set[Sequencing] = set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await trio.sleep(STALL_CHECK_S)
            self._lookout.keep_all(self.node.loaded)
            self.node.loaded.clear()
            for number, partition in enumerate(self._lookout.due(), 1):
                sequencing = partition.sequencing
                if sequencing is not None and not self._look_at(sequencing):
                    self._lookout.keep(partition)
                if number % LOOKS_AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()

    def _look_at(self, sequencing: Sequencing) -> bool:
        """Whether nothing is awaited."""
        if sequencing in self._finding_out:
            return False
        stalled = sequencing.count_stalled_checks()
        if stalled >= HOLD_UP_CHECKS and self.node.in_flight_bytes >= IN_FLIGHT_BYTES_MAX:
            # Nothing is read from clients while so much is in flight: a partition without its quorum must not keep that so.
            sequencing.retire("its batches fill the memory for all, and are not acked")
            return True
        if stalled >= FIND_OUT_CHECKS:
            self._finding_out.add(sequencing)
            self.node.nursery.start_soon(self._find_out, sequencing, name=f"whether {sequencing.partition.name} may go on")
        is_sealed = sequencing.partition.replica.accepts_epoch != sequencing.epoch
        if is_sealed and not self._is_ending(sequencing):
            # P-14: a takeover sealed it and came to nothing. Without a new batch no store would be rejected, and nobody told.
            sequencing.retire("the own replica is sealed, and nobody has gone on")
            return True
        awaited = [follower for follower in sequencing.followers.values() if self._is_awaited(sequencing, follower)]
        return not awaited and not is_sealed and not sequencing.core.in_flight

    def _is_ending(self, sequencing: Sequencing) -> bool:
        core = sequencing.core
        return sequencing.partition.takeover_under_way is not None or core.phase is not core.phase.SERVING

    def _is_awaited(self, sequencing: Sequencing, follower: Follower) -> bool:
        """Whether more should come from it. One that is not connected is fed when it is (`Sequencing.peer_connected`)."""
        peer = self.node.peers.get(follower.member.broker)
        if peer is None or peer.channel is None:
            return False
        if follower.is_feeding:
            return True
        behind = follower.tail < sequencing.core.next_offset
        if not follower.is_live or (behind and follower.tail == follower.stalled_tail):
            follower.is_live = False
            sequencing.feed(follower)
        follower.stalled_tail = follower.tail if behind else -1
        return behind or not follower.is_live

    async def _find_out(self, sequencing: Sequencing) -> None:
        """Who is cut off with its clients would keep them waiting for ever while others serve, where they find out about their batches."""
        try:
            may_go_on = await sequencing.is_current(deadline_s=STALL_CHECK_S)
        except StreamqError:
            may_go_on = False
        finally:
            self._finding_out.discard(sequencing)
        if not may_go_on:
            sequencing.retire("neither its quorum nor that of the registers can be reached, or somebody else went on")
