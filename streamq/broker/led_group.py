"""One group that this broker coordinates: what waits to be changed goes into its register together, members wait for news of it.

All changes of a group are made by one task, one after the other, each with everything that has come in the meantime: a hundred members
that commit at once cost as many rounds of the register as one.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Final

import trio

from streamq.broker.node import Node
from streamq.groups.changes import Step, TopicSeen, UndecidedError, apply_steps, expire, lost, orphans, refresh, settled
from streamq.groups.sessions import CONFIRMED_WITHIN, Sessions
from streamq.model.errors import NotCoordinatorError, StreamqError, UnavailableError
from streamq.model.groups import GroupRegister, group_key, held_by
from streamq.model.messages import GroupView
from streamq.model.transactions import Transaction

__all__ = ["LedGroup"]

log = logging.getLogger(__name__)

WAITING_MAX: Final = 4_096
"""Steps of one group that wait for its next change."""
CONFIRM_PART: Final = CONFIRMED_WITHIN / 3
"""Of the shortest session: how often a group in which nothing changes is looked at, whether it still is this broker's."""
CONFIRM_S_MAX: Final = 5.0
REFRESH_S: Final = 30.0
"""How often topics are looked at that may have been created again."""
IDLE_S: Final = 60.0
"""A group without members is left alone after so long."""
FAILED_PAUSE_S: Final = 0.2
STALL_S: Final = 0.5
"""A wake-up that comes so late says that this process stood still."""


class _Waiting:
    __slots__ = ("done", "outcome", "step")

    def __init__(self, step: Step) -> None:
        self.step = step
        self.done = trio.Event()
        self.outcome: object = None


class LedGroup:
    """Invariant: `register` is what the last change or look has read, in which this broker is the coordinator, unless `is_over`."""

    def __init__(
        self,
        node: Node,
        register: GroupRegister,
        seen: Callable[[tuple[str, ...]], Awaitable[Sequence[TopicSeen]]],
        settle: Callable[[Collection[Transaction]], Awaitable[Mapping[Transaction, bool]]],
    ) -> None:
        """`settle` aborts transactions that are open, and tells which are committed."""
        now = trio.current_time()
        self.name = register.name
        self.register = register
        self.is_over = False
        self._node = node
        self._seen = seen
        self._settle = settle
        self._sessions = Sessions(_session_lengths(register), now)
        self._confirmed_at = now
        self._busy_at = now
        self._refreshed_at = now
        self._waiting: list[_Waiting] = []
        self._wanted = trio.Event()
        self._holdings = _holdings(register)
        self._changed_at = {member.number: register.generation for member in register.members}
        """In which generation what a member has changed last: who has what it had before need not hear of a newer one."""
        self._news: dict[bytes, trio.Event] = {}
        """Of members that wait for such a change."""
        self._ending: StreamqError = UnavailableError(f"broker {node.broker} is no longer coordinator of {self.name!r}", code="not_ready")

    # --- for members ---------------------------------------------------------------------------------------------------------

    def on_heard(self, token: bytes) -> None:
        self._sessions.on_heard(token, trio.current_time())

    async def carry_out(self, step: Step) -> object:
        """The step's outcome, once it is in the register. Raises what it refused with, or why the register could not be changed.

        Cancelled, the step may still be carried out.
        """
        if self.is_over:
            raise self._ending.with_traceback(None)
        if len(self._waiting) >= WAITING_MAX:
            raise UnavailableError(f"{WAITING_MAX} changes of group {self.name!r} wait already", code="busy")
        waiting = _Waiting(step)
        self._waiting.append(waiting)
        self._wanted.set()
        await waiting.done.wait()
        if isinstance(waiting.outcome, StreamqError):
            raise waiting.outcome.with_traceback(None)
        return waiting.outcome

    async def attend(self, token: bytes, *, generation: int, wait_s: float) -> GroupView:
        """What the member has, as soon as that is not what it had in `generation`, or after `wait_s`. Raises GroupLostError,
        NotCoordinatorError, or UnavailableError while it is not certain that this broker still coordinates."""
        self.on_heard(token)
        with trio.move_on_after(wait_s):
            while not self.is_over and self._has_what_it_had(token, generation):
                await self._news.setdefault(token, trio.Event()).wait()
        if self.is_over:
            raise self._ending.with_traceback(None)
        member = self.register.member(token)
        if member is None:
            raise lost(self.name)
        # Only who was certain lately may tell a member to go on (groups.sessions).
        if trio.current_time() > self._confirmed_at + CONFIRMED_WITHIN * member.session_ms / 1000:
            raise UnavailableError(f"the register of group {self.name!r} could not be read lately", code="not_ready", hint="try again")
        return GroupView(self.register.generation, held_by(self.register, member.number))

    def _has_what_it_had(self, token: bytes, generation: int) -> bool:
        member = self.register.member(token)
        return member is not None and self._changed_at[member.number] <= generation

    # --- the one task --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until another broker coordinates, the group is gone, or nothing was asked for a while."""
        try:
            while not self.is_over:
                await self._wait()
                if not await self._turn():
                    return
        finally:
            self._end(self._ending)

    async def _wait(self) -> None:
        due = min(self._sessions.next_deadline, self._confirm_at)
        with trio.move_on_at(due) as scope:
            await self._wanted.wait()
        late_s = trio.current_time() - due
        if scope.cancelled_caught and late_s > STALL_S:
            self._sessions.on_stall(late_s)

    async def _turn(self) -> bool:
        """One change with everything that waits; False when this is over."""
        self._wanted = trio.Event()
        taken, self._waiting = self._waiting, []
        now = trio.current_time()
        gone = self._sessions.expired(now)
        if gone:
            log.info("group %s: %d members were not heard of for their sessions", self.name, len(gone))
        try:
            steps = [waiting.step for waiting in taken]
            if gone:
                steps.append(expire(gone))
            if now >= self._refreshed_at + REFRESH_S and self.register.topics:
                self._refreshed_at = now
                steps.append(refresh(await self._seen(tuple(topic.name for topic in self.register.topics))))
            if orphaned := orphans(self.register):
                steps.append(settled(await self._settle(orphaned)))
            if steps:
                await self._change(steps, taken)
            elif now >= self._confirm_at:
                await self._confirm()
        except StreamqError as error:
            for waiting in taken:
                waiting.outcome = error
                waiting.done.set()
            if isinstance(error, NotCoordinatorError) or error.code == "unknown_group":
                self._end(error)
                return False
            log.info("group %s: %s", self.name, error)
            await trio.sleep(FAILED_PAUSE_S)
        return bool(self.register.members or self._waiting) or trio.current_time() < self._busy_at + IDLE_S

    async def _change(self, steps: list[Step], taken: list[_Waiting]) -> None:
        began = trio.current_time()
        outcomes: list[object] = []
        change = apply_steps(self.name, steps, outcomes, by=self._node.broker, group_id=self.register.id)
        register = await self._node.registers.change_as(GroupRegister, group_key(self.name), change)
        self._busy_at = trio.current_time()
        self._learn(register, began)
        again: list[_Waiting] = []
        undecided: set[Transaction] = set()
        for waiting, outcome in zip(taken, outcomes, strict=False):
            if isinstance(outcome, UndecidedError):
                undecided |= outcome.transactions
                again.append(waiting)
                continue
            waiting.outcome = outcome
            waiting.done.set()
        if orphans(register):
            self._wanted.set()
        if again:
            await self._decide(undecided, again)

    async def _decide(self, undecided: Collection[Transaction], again: list[_Waiting]) -> None:
        """Applies steps once more that pending positions were in the way of, in one change with what became of these."""
        steps = [settled(await self._settle(undecided)), *(waiting.step for waiting in again)]
        outcome_of_settled = _Waiting(steps[0])
        await self._change(steps, [outcome_of_settled, *again])

    async def _confirm(self) -> None:
        began = trio.current_time()
        register = await self._node.registers.get_as(GroupRegister, group_key(self.name))
        if register is None or register.deleted or register.id != self.register.id or register.coordinator != self._node.broker:
            by = register.coordinator if register is not None else ""
            raise NotCoordinatorError(f"broker {by} coordinates group {self.name!r} now", coordinator=by)
        self._learn(register, began)

    @property
    def _confirm_at(self) -> float:
        return self._confirmed_at + min(CONFIRM_S_MAX, CONFIRM_PART * self._sessions.shortest_s)

    def _learn(self, register: GroupRegister, began: float) -> None:
        """`began`: it is certain that this broker coordinated at some time after that."""
        self._confirmed_at = began
        is_news = register.generation != self.register.generation
        self.register = register
        self._sessions.on_members(_session_lengths(register), trio.current_time())
        if is_news:
            self._tell_whom_it_concerns()

    def _tell_whom_it_concerns(self) -> None:
        """In a group of many members that come and go, hardly any of them gets or loses anything by it."""
        register = self.register
        before, self._holdings = self._holdings, _holdings(register)
        self._changed_at = {
            number: self._changed_at[number] if number in self._changed_at and held == before.get(number, []) else register.generation
            for number, held in ((member.number, self._holdings.get(member.number, [])) for member in register.members)
        }
        same = {member.token for member in register.members if self._changed_at[member.number] < register.generation}
        for token in [token for token in self._news if token not in same]:
            self._news.pop(token).set()

    def _end(self, error: StreamqError) -> None:
        self.is_over = True
        self._ending = error
        for waiting in self._waiting:
            waiting.outcome = error
            waiting.done.set()
        self._waiting.clear()
        for news in self._news.values():
            news.set()


def _holdings(register: GroupRegister) -> dict[int, list[tuple[str, int, int, bool]]]:
    """By member, what a view shows of what it has, but the positions: partitions, since when, and whether it is to let go of them."""
    holdings: dict[int, list[tuple[str, int, int, bool]]] = {}
    for topic in register.topics:
        for index, partition in enumerate(topic.partitions):
            holdings.setdefault(partition.holder, []).append((topic.name, index, partition.since, partition.target != partition.holder))
    return holdings


def _session_lengths(register: GroupRegister) -> dict[bytes, float]:
    return {member.token: member.session_ms / 1000 for member in register.members}
