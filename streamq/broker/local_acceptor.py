"""This broker's acceptor over its storage: nothing it says leaves before it is durable (P-3).

States in storage: `acceptor/<key>` for each register's cell, `voters` for the acceptor's record. An acceptor whose state was lost or
damaged draws a new incarnation of its own and forgets the rest; P-40 then re-admits it like any other replacement.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

import trio

from streamq.metadata.acceptor import Acceptor, AcceptorRecord, Answer, Cell, Effect, Standing
from streamq.model.ids import Incarnation, Member
from streamq.model.messages import (
    Accept,
    AdoptVoters,
    ListKeys,
    Message,
    Prepare,
    ReadAccepted,
    ReadVoters,
    VotersReady,
)
from streamq.model.registers import Voters
from streamq.storage.interface import Lost, LostState, LostUnknown, Storage
from streamq.wire.codec import decode_value, encode

__all__ = ["ACCEPTOR_MESSAGES", "Durable", "LocalAcceptor"]

ACCEPTOR_MESSAGES: Final = (Prepare, Accept, ReadAccepted, ListKeys, ReadVoters, AdoptVoters, VotersReady)
"""What the router hands to `LocalAcceptor.answer`."""
RECORD_KEY: Final = "voters"
CELL_PREFIX: Final = "acceptor/"


class Durable:
    """The token of a storage write: the broker's `on_durable` calls it (`token()`) once the write is durable."""

    def __init__(self) -> None:
        self._then: list[Callable[[], None]] = []

    def then(self, callback: Callable[[], None]) -> None:
        self._then.append(callback)

    def __call__(self) -> None:
        for callback in self._then:
            callback()


class LocalAcceptor:
    """Owns the acceptor core. Nothing is awaited between its decision and `storage.append`, so decisions and writes have one order."""

    def __init__(self, storage: Storage, *, new_incarnation: Callable[[], Incarnation]) -> None:
        """`new_incarnation` draws 16 random bytes; used only if acceptor state was lost."""
        self.on_voted: Callable[[str], None] = lambda key: None
        """Told of the key of each register for which something is accepted here: a hint that it may change."""
        self._storage = storage
        self._undurable: deque[Durable] = deque()
        self._changed = trio.Event()
        identity = storage.identity
        states = storage.states()
        stored = states.get(RECORD_KEY)
        record = AcceptorRecord(identity.incarnation, identity.first_voters, _first_standing(identity.first_voters, storage))
        if stored is not None:
            record = decode_value(AcceptorRecord, stored)
        cells = {key[len(CELL_PREFIX) :]: decode_value(Cell, value) for key, value in states.items() if key.startswith(CELL_PREFIX)}
        self._has_lost_state = any(map(_concerns_acceptor, storage.lost)) or (stored is None and bool(cells))
        if self._has_lost_state:
            # P-3: it cannot tell what it has promised. Under a new incarnation it has promised nothing.
            record = AcceptorRecord(new_incarnation(), record.voters, Standing.OUTSIDE, record.replaces)
            self._append([(RECORD_KEY, encode(record)), *((CELL_PREFIX + key, None) for key in cells)])
            cells = {}
        self._core = Acceptor(broker=identity.broker, record=record, cells=cells)

    @property
    def broker(self) -> str:
        return self._storage.identity.broker

    @property
    def cluster(self) -> bytes:
        return self._storage.identity.cluster

    @property
    def member(self) -> Member:
        """What voter configurations name: the broker, and the incarnation of its acceptor."""
        return self._core.member

    @property
    def voters(self) -> Voters:
        """The newest configuration adopted here."""
        return self._core.record.voters

    @property
    def standing(self) -> Standing:
        return self._core.record.standing

    @property
    def is_proved(self) -> bool:
        return self._core.is_proved

    @property
    def replaces(self) -> Incarnation | None:
        return self._core.record.replaces

    def accepted(self, key: str) -> bytes | None:
        """What this acceptor has accepted last: evidence, not the register's value (P-1)."""
        cell = self._core.cell(key)
        return cell.value if cell is not None else None

    async def answer(self, message: Message) -> Message:
        """The answer (perhaps a `Failure`), once what it says is durable. Cancelling it loses the answer only."""
        done = trio.Event()
        answers: list[Message] = []

        def reply(answer: Message) -> None:
            answers.append(answer)
            done.set()

        self.submit(message, reply)
        await done.wait()
        return answers[0]

    def submit(self, message: Message, reply: Callable[[Message], None]) -> None:
        """As `answer`, without a task: `reply` is called at once, or from the storage's `on_durable`."""
        self._perform(self._core.on_message(message), reply)

    async def prove(self) -> None:
        """Nothing known speaks against this directory (P-31); from now on the acceptor answers. Durable on return."""
        await self._performed(self._core.on_proved())

    async def set_replaces(self, incarnation: Incarnation) -> None:
        """Records, once, whose place in `broker/<id>` this directory takes; durable on return."""
        await self._performed(self._core.on_replaces(incarnation))

    async def changed(self) -> None:
        """Returns when voters or standing have changed (durably) after the call."""
        await self._changed.wait()

    async def _performed(self, effect: Effect) -> None:
        done = trio.Event()
        self._perform(effect, lambda _: done.set())
        await done.wait()

    def _perform(self, effect: Effect, reply: Callable[[Message], None]) -> None:
        then = effect.then
        if isinstance(effect, Answer):
            # It may report what is still on its way to the disk, so it waits for all of that.
            if self._undurable:
                self._undurable[-1].then(lambda: reply(then))
            else:
                reply(then)
            return
        states: list[tuple[str, bytes | None]] = []
        if effect.cell is not None:
            key, cell = effect.cell
            states.append((CELL_PREFIX + key, encode(cell)))
        if effect.record is not None:
            states.append((RECORD_KEY, encode(effect.record)))
        token = self._append(states)
        if effect.record is not None:
            token.then(self._on_record)
        token.then(lambda: reply(then))
        if effect.cell is not None:
            voted = effect.cell[0]
            token.then(lambda: self.on_voted(voted))

    def _append(self, states: list[tuple[str, bytes | None]]) -> Durable:
        token = Durable()
        token.then(lambda: self._on_durable(token))
        self._undurable.append(token)
        self._storage.append((), states, token)
        return token

    def _on_durable(self, token: Durable) -> None:
        oldest = self._undurable.popleft()
        assert oldest is token

    def _on_record(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _first_standing(voters: Voters, storage: Storage) -> Standing:
    identity = storage.identity
    return Standing.FOUNDING if voters.names(Member(identity.broker, identity.incarnation)) else Standing.OUTSIDE


def _concerns_acceptor(lost: Lost) -> bool:
    if isinstance(lost, LostState):
        return lost.key == RECORD_KEY or lost.key.startswith(CELL_PREFIX)
    return isinstance(lost, LostUnknown)
