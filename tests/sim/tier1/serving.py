"""One consumer's stream from one partition of a simulated broker: whole batches below the high watermark known here (P-23)."""

from typing import TYPE_CHECKING

from streamq.log.replica import Unreadable
from streamq.model.errors import StreamqError
from streamq.model.messages import Failure, Records
from tests.sim.tier1.disk import Damage
from tests.sim.tier1.endpoint import Steps

if TYPE_CHECKING:
    from tests.sim.tier1.network import Connection
    from tests.sim.tier1.partition import Partition

__all__ = ["Subscription"]


class Subscription:
    """Sends what is readable as it becomes so; a watermark alone when nothing else tells it. Ends with a `Failure`."""

    def __init__(self, connection: "Connection", partition: "Partition", offset: int) -> None:
        self.connection = connection
        self.partition = partition
        self._offset = offset
        self._told: tuple[int, int] | None = None
        self._is_mending = False
        self._is_asked = False
        partition.readers.append(self.wake)
        self.wake()

    def end(self) -> None:
        if self.wake in self.partition.readers:
            self.partition.readers.remove(self.wake)

    def wake(self) -> None:
        """Soon: not in the middle of what the partition is at."""
        if not self._is_asked:
            self._is_asked = True
            self.partition.process.after(0.0, self._serve)

    def _serve(self) -> None:
        self._is_asked = False
        partition = self.partition
        if self._is_mending or not self.connection.is_open:
            return
        batches = partition.read(self._offset)
        if isinstance(batches, Damage):
            self._is_mending = True
            partition.process.spawn(self._mend(batches))
            return
        if batches is Unreadable.TRIMMED or batches is Unreadable.LACKING:
            self.end()
            self.connection.tell(Failure("offset_trimmed" if batches is Unreadable.TRIMMED else "not_replica", ""))
            return
        epoch, mark = partition.replica.high_watermark
        found = [] if isinstance(batches, Unreadable) else batches
        if not found and self._told == (epoch, mark):
            return
        self._told = (epoch, mark)
        self.connection.tell(Records(epoch, mark, partition.replica.start_offset), found)
        if found:
            self._offset = found[-1].end
            self.wake()

    def _mend(self, damage: Damage) -> Steps:
        try:
            yield from self.partition.mend(damage)
        except StreamqError:
            self.end()
            self.connection.tell(Failure("data_damaged", ""))
            return
        self._is_mending = False
        self.wake()
