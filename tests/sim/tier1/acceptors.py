"""A broker's acceptor over its simulated disk, as `broker.local_acceptor` does it: nothing it says leaves before it is durable (P-3)."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from streamq.metadata.acceptor import Acceptor, AcceptorRecord, Answer, Effect, Standing
from streamq.model.ids import Member
from streamq.model.messages import Message
from streamq.model.registers import Voters
from streamq.storage.interface import Lost, LostState, LostUnknown

if TYPE_CHECKING:
    from tests.sim.tier1.process import Process

__all__ = ["RECORD_KEY", "LocalAcceptor", "cell_key"]

RECORD_KEY = ("voters", "")
NO_PARTITION = b""
Reply = Callable[[Message], None]


def cell_key(key: str) -> tuple[str, str]:
    return ("acceptor", key)


class LocalAcceptor:
    def __init__(self, process: "Process", lost: Sequence[Lost]) -> None:
        self.process = process
        self.world = process.world
        self._disk = disk = process.disk
        self._undurable: deque[list[Callable[[], None]]] = deque()
        self.changed: list[Callable[[], None]] = []
        """Called, once, when the record has changed durably."""
        stored = disk.states.get(RECORD_KEY)
        cells = {key[1]: value for key, value in disk.states.items() if key[0] == "acceptor"}
        record = stored or AcceptorRecord(disk.incarnation, disk.first_voters, self._first_standing())
        if any(map(_concerns_acceptor, lost)) or (stored is None and cells):
            self.world.counters["acceptors_lost"] += 1
            record = AcceptorRecord(self.world.token(), record.voters, Standing.OUTSIDE, record.replaces)
            self._append(RECORD_KEY, record)
            for key in cells:
                self._append(cell_key(key), None)
            cells = {}
        self.core = Acceptor(broker=process.name, record=record, cells=cells)

    def _first_standing(self) -> Standing:
        return Standing.FOUNDING if self._disk.first_voters.names(self._disk.member) else Standing.OUTSIDE

    @property
    def member(self) -> Member:
        return self.core.member

    @property
    def voters(self) -> Voters:
        return self.core.record.voters

    @property
    def standing(self) -> Standing:
        return self.core.record.standing

    @property
    def is_to_be_admitted(self) -> bool:
        return self.standing is not Standing.READY and self.voters.voter(self.process.name) is not None

    def accepted(self, key: str) -> bytes | None:
        cell = self.core.cell(key)
        return cell.value if cell is not None else None

    def submit(self, message: Message, reply: Reply) -> None:
        self.perform(self.core.on_message(message), reply)

    def perform(self, effect: Effect, reply: Reply) -> None:
        then = effect.then
        if isinstance(effect, Answer):
            if self._undurable:
                self._undurable[-1].append(lambda: reply(then))
            else:
                reply(then)
            return
        if effect.cell is not None:
            key, cell = effect.cell
            token = self._append(cell_key(key), cell)
        else:
            token = self._append(RECORD_KEY, effect.record)
            token.append(self._on_record)
        token.append(lambda: reply(then))

    def _append(self, key: Any, value: Any) -> list[Callable[[], None]]:
        token: list[Callable[[], None]] = []
        self._undurable.append(token)
        self._disk.append(NO_PARTITION, 0, (), key, value, self._durable)
        return token

    def _durable(self) -> None:
        for call in self._undurable.popleft():
            call()

    def _on_record(self) -> None:
        changed, self.changed = self.changed, []
        for call in changed:
            call()


def _concerns_acceptor(lost: Lost) -> bool:
    if isinstance(lost, LostState):
        return lost.key == RECORD_KEY or lost.key[0] == "acceptor"
    return isinstance(lost, LostUnknown)
