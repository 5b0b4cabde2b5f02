"""The producer's side of one partition: what was sent where, what is sent again, and what is certain about each batch. Pure.

Batches get their sequence numbers when they are first sent, in the order added, and keep them as long as they are retried (P-33 to P-35).
A batch is *in doubt* once a connection broke, or a broker said `unknown_outcome`, with it outstanding: then it may be stored, and only the
answer to a repetition tells. Any other refusal is certain: that try stored nothing.

Who the sequencer is comes from hints. After trouble only the oldest batch is sent (a probe); the rest follows in order once it is acked,
so that a wrong guess costs one batch. A broker that is not the sequencer takes a probe for a report that the sequencer is unreachable
(P-20), so a broken connection leads straight to the next replica.

A batch that fails for good breaks the chain of sequences: the sequencer refuses what follows as a gap. Then no more is sent until the tries
under way are answered; what is certainly not stored goes on, in order, under a higher producer epoch from sequence 0, whose first batch
fences whatever is still on its way of the older one (P-33); what is in doubt cannot be resolved any more and is reported as unknown.

A named producer promises more: what it has stored of its positions is a prefix. So when one of its batches fails, nothing behind it is sent
any more: `failure` says why, and the producer is to be opened again.

Records with ids have a session of their own. Each is a batch with an id of its own, which makes it known however often it is sent, and
none waits for another, so they are not numbered, and come in no certain order when they are sent again.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from itertools import pairwise
from typing import Final

from streamq.model.errors import CODES, FencedError, NotFoundError, StreamqError, UnavailableError, UnknownOutcomeError, error_of
from streamq.model.ids import NO_PRODUCER, ProducerId
from streamq.model.messages import Ack, Nack
from streamq_producer.effects import Acked, Effect, Entry, Failed, Locate, Open, Transmit

__all__ = ["PartitionSession", "Route"]

PAUSE_S_MIN: Final = 0.005
PAUSE_S_MAX: Final = 0.2
PAUSE_GROWTH: Final = 1.5  # slow, so that the end of a takeover, which takes tens of milliseconds, is not missed by much
AVOID_S: Final = 0.5
"""A broker that was just lost is not believed to be the sequencer for so long, whatever others say."""
REACH_S: Final = 0.3
"""How long to wait for a connection before the next replica is asked; the dial goes on meanwhile."""
LOCATE_S: Final = 0.25
"""At most one question for metadata in this time."""
HOPS_MAX: Final = 3
"""Hints followed in a row before a pause."""
GAPS_MAX: Final = 3
"""A gap reported so often for the oldest batch is real."""
NEVER: Final = float("inf")

STAY: Final = frozenset({"busy", "disk_full", "conflict", "sequence_gap", "internal"})
"""Refusals after which the same broker is asked again; after the others, another one."""
GONE: Final = frozenset({"unknown_topic", "unknown_partition"})
"""Believed only when fresh metadata says so too."""


class Route(Enum):
    """Where the session stands with the broker that it takes for the sequencer."""

    LOCATING = "no replica is known; waits for metadata"
    REACHING = "a target is chosen; waits for its connection"
    PROBING = "connected after trouble; the oldest batch goes alone until it is acked"
    SENDING = "the target has acked, or is believed to; the whole window goes"
    PAUSING = "refused; waits a little before it tries again"


class PartitionSession:
    """Invariants: at most `in_flight` entries are in `_sent`, in the order of their sequences, which are consecutive when numbered and
    the chain is whole; `_waiting` holds entries never sent under the present producer epoch, in the order added; each entry leaves once.
    """

    def __init__(
        self,
        *,
        replicas: Sequence[str],
        sequencer: str,
        in_flight: int,
        tickets: Iterator[int],
        producer: ProducerId,
        producer_epoch: int = 0,
        name: str = "",
        are_identified: bool = False,
    ) -> None:
        """`producer` is a fresh producer id; NO_PRODUCER for batches that are not numbered, and not sent again when in doubt. With a `name`
        it is that producer's, and `producer_epoch` the one that it was opened with; the first batch added has to be the opening, and
        nothing is added behind it before it is acked. `are_identified`: the batches are records with ids, and `producer` is not used.
        """
        self.route = Route.LOCATING
        self.target = ""
        self.retries = 0
        self._replicas = tuple(replicas)
        self._in_flight = in_flight
        self._tickets = tickets
        self.producer = producer
        self.producer_epoch = producer_epoch
        self.mark = 0
        """The highest that acks have told."""
        self.failure: StreamqError | None = None
        """Of a named producer: why nothing is sent any more."""
        self._name = name
        self._is_idempotent = producer != NO_PRODUCER or are_identified
        self._is_numbered = self._is_idempotent and not are_identified
        self._next_sequence = 0
        self._sent: list[Entry] = []
        self._waiting: deque[Entry] = deque()
        self._tries: dict[int, tuple[Entry, str]] = {}
        self._avoided: dict[str, float] = {}
        self._chain_broken = False
        self._hint = sequencer
        self._trusts_hint = bool(sequencer)
        self._hops = 0
        self._pause = PAUSE_S_MIN
        self._until = NEVER
        self._locate_after = 0.0
        self._reason: StreamqError | None = None

    # --- what is asked of it -------------------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Nothing waits for an outcome."""
        return not self._sent and not self._waiting

    @property
    def is_healthy(self) -> bool:
        return self.route is Route.SENDING or self.is_idle

    @property
    def next_deadline(self) -> float:
        oldest = self._oldest()
        return min(self._until, oldest.deadline) if oldest is not None else NEVER

    def check(self) -> None:
        assert len(self._sent) <= self._in_flight
        numbers = [entry.sequence for entry in self._sent if entry.sequence is not None]
        assert len(numbers) == len(self._sent)
        assert not self._is_numbered or all(a < b for a, b in pairwise(numbers))
        assert self.route is not Route.PAUSING or self._until < NEVER
        assert self.target or self.route in (Route.LOCATING, Route.PAUSING)

    # --- inputs --------------------------------------------------------------------------------------------------------------

    def add(self, entry: Entry, now: float) -> list[Effect]:
        """A batch to send; `on_*` tell later what became of it."""
        self._waiting.append(entry)
        return self._go_on(now)

    def on_opened(self, broker: str, now: float) -> list[Effect]:
        if broker != self.target or self.route is not Route.REACHING:
            return []
        self.route = Route.SENDING if self._trusts_hint else Route.PROBING
        self._until = NEVER
        return self._go_on(now)

    def on_lost(self, broker: str, error: StreamqError, now: float) -> list[Effect]:
        """The connection to this broker is gone, or could not be had."""
        self._avoid(broker, now)
        effects: list[Effect] = []
        for ticket in [t for t, (_, where) in self._tries.items() if where == broker]:
            entry, _ = self._tries.pop(ticket)
            entry.tickets.remove(ticket)
            entry.doubt = True
            if not entry.tickets:
                entry.is_out = False
        if broker == self.target:
            for entry in self._sent:
                entry.is_out = False
            self._reason = error
            self._retarget(now, hint="", at_once=True)
        if not self._is_idempotent:
            effects += [self._fail(entry, _unknown(error)) for entry in list(self._sent) if entry.doubt and not entry.tickets]
        return effects + self._go_on(now)

    def on_ack(self, ack: Ack, now: float) -> list[Effect]:
        """True whenever it comes, also from a broker that is not the target any more."""
        entry, _ = self._tries.get(ack.ticket, (None, ""))
        if entry is None:
            return []
        if entry.is_out and entry.tickets[-1] == ack.ticket:
            self._pause, self._hops = PAUSE_S_MIN, 0
            if self.route is Route.PROBING:
                self.route = Route.SENDING
        self.mark = max(self.mark, ack.mark)
        self._forget(entry)
        return [Acked(entry, ack), *self._go_on(now)]

    def on_nack(self, nack: Nack, now: float) -> list[Effect]:
        entry, broker = self._tries.pop(nack.ticket, (None, ""))
        if entry is None:
            return []
        is_present = entry.is_out and entry.tickets[-1] == nack.ticket
        entry.tickets.remove(nack.ticket)
        if CODES.get(nack.code, StreamqError) in (UnknownOutcomeError, StreamqError):
            entry.doubt = True
            if not self._is_idempotent and not entry.tickets:
                return [self._fail(entry, error_of(nack.code, nack.message)), *self._go_on(now)]
        if not is_present:
            return self._go_on(now)
        entry.is_out = False
        code = "precondition_failed" if nack.code == "past_the_end" else nack.code
        self._reason = error_of(code, nack.message, sequencer=nack.sequencer)
        if self._name and isinstance(self._reason, FencedError):
            self._reason = _fenced(self._name)
        effects: list[Effect] = []
        if nack.code == "sequence_gap" and self._is_numbered:
            self._on_gap(entry, now)
        elif self._is_final(nack.code):
            # Said of a batch that is new to who knows all that is stored: no earlier try of it was, nor can be any more. (Of an offset
            # past the end the latter is not so.)
            is_said_of_new = nack.code == "precondition_failed" or (nack.code == "fenced" and not self._name)  # by a fencing token
            is_certain = is_said_of_new or not entry.may_be_stored
            effects.append(self._fail(entry, self._reason if is_certain else _unknown(self._reason)))
        elif nack.code in STAY:
            self._become_pausing(now)
        elif broker == self.target:
            self._retarget(now, hint=nack.sequencer, at_once=False)
        if nack.code in GONE:
            effects += self._locate(now)
        return effects + self._go_on(now)

    def on_view(self, replicas: Sequence[str], sequencer: str, now: float) -> list[Effect]:
        """Fresh metadata: a hint, followed when there is no better way."""
        self._replicas = tuple(replicas)
        if self.route in (Route.LOCATING, Route.PAUSING) and sequencer and self._may_be_target(sequencer, now):
            self._hint, self._trusts_hint = sequencer, False
            self._become_reaching(sequencer, now)
        return self._go_on(now)

    def on_gone(self, error: StreamqError) -> list[Effect]:
        """Fresh metadata does not have the partition. Metadata is a hint (P-1), so this counts only when a broker refused a batch for it
        too.
        """
        if self._reason is None or self._reason.code not in GONE:
            return []
        return self._fail_all(lambda entry: _unknown(error) if entry.may_be_stored else error)

    def on_time(self, now: float) -> list[Effect]:
        """To be called at `next_deadline`, at the latest soon after."""
        effects: list[Effect] = []
        while (oldest := self._oldest()) is not None and oldest.deadline <= now:
            effects.append(self._fail(oldest, self._expired(oldest)))
        if self._until <= now:
            self._until = NEVER
            if self.route is Route.PAUSING:
                self._resume(now)
                effects += self._locate(now)
            elif self.route is Route.REACHING:
                self._avoid(self.target, now)
                self._retarget(now, hint="", at_once=True)
        return effects + self._go_on(now)

    def give_up(self) -> list[Effect]:
        """Settles everything as it stands, for a producer that closes."""
        return self._fail_all(self._expired)

    # --- sending -------------------------------------------------------------------------------------------------------------

    def _go_on(self, now: float) -> list[Effect]:
        """Whatever can be done now: mend the chain, find a target, send."""
        if self.failure is not None:
            return self._fail_behind(self.failure)
        if self._chain_broken and not any(entry.is_out for entry in self._sent):
            effects = self._mend_chain()
            return effects + self._go_on(now)
        if self.is_idle:
            return []
        if self.route is Route.LOCATING:
            self._choose_target(now)
            if self.route is Route.LOCATING:
                return self._locate(now)
        if self.route is Route.REACHING and self._until == NEVER:
            self._until = now + REACH_S
            return [Open(self.target)]
        if self._chain_broken or self.route not in (Route.PROBING, Route.SENDING):
            return []
        entries = self._window()
        for entry in entries:
            ticket = next(self._tickets)
            self.retries += bool(entry.sequence is not None)
            if entry.sequence is None:
                entry.sequence = self._next_sequence
                self._next_sequence += self._is_numbered
            entry.tickets.append(ticket)
            entry.is_out = True
            self._tries[ticket] = (entry, self.target)
        self.check()
        return [Transmit(self.target, tuple(entries))] if entries else []

    def _window(self) -> list[Entry]:
        """What to send now; new entries move from waiting to sent."""
        size = 1 if self.route is Route.PROBING else self._in_flight
        while self._waiting and len(self._sent) < size:
            self._sent.append(self._waiting.popleft())
            self._sent[-1].is_out = False
        if not self._is_idempotent:  # never twice at once: nothing would recognise the repetition
            unanswered = sum(bool(entry.tickets) for entry in self._sent)
            return [entry for entry in self._sent if not entry.tickets][: max(0, size - unanswered)]
        return [entry for entry in self._sent[:size] if not entry.is_out]

    # --- where to ------------------------------------------------------------------------------------------------------------

    def _choose_target(self, now: float) -> None:
        if self._hint and self._may_be_target(self._hint, now):
            self._become_reaching(self._hint, now)
        elif self._replicas:
            self._trusts_hint = False
            self._become_reaching(self._next_replica(now), now)

    def _next_replica(self, now: float) -> str:
        """The replica after the present target, of those that were not just lost if there are any."""
        good = [b for b in self._replicas if self._may_be_target(b, now)] or list(self._replicas)
        if self.target in self._replicas:
            at = self._replicas.index(self.target)
            turn = (*self._replicas[at + 1 :], *self._replicas[: at + 1])
            return next(b for b in turn if b in good)
        return good[0]

    def _avoid(self, broker: str, now: float) -> None:
        self._avoided = {other: until for other, until in self._avoided.items() if until > now} | {broker: now + AVOID_S}

    def _may_be_target(self, broker: str, now: float) -> bool:
        return self._avoided.get(broker, 0.0) <= now

    def _retarget(self, now: float, *, hint: str, at_once: bool) -> None:
        """The target is not the sequencer, or does not say: go where the hint leads, or to the next replica."""
        self._trusts_hint = False
        self._hint = ""
        for entry in self._sent:
            entry.is_out = False
        if hint and hint != self.target and self._may_be_target(hint, now) and self._hops < HOPS_MAX:
            self._hops += 1
            self._become_reaching(hint, now)
        elif not self._replicas:
            self.route, self.target, self._until = Route.LOCATING, "", NEVER
        elif at_once and self._hops < HOPS_MAX:
            self._hops += 1
            self._become_reaching(self._next_replica(now), now)
        else:
            self.target = self._next_replica(now)
            self._become_pausing(now)

    def _become_reaching(self, broker: str, now: float) -> None:
        self.target, self.route, self._until = broker, Route.REACHING, NEVER

    def _become_pausing(self, now: float) -> None:
        if self.route is Route.PAUSING:
            return
        self.route, self._until, self._hops = Route.PAUSING, now + self._pause, 0
        self._pause = min(PAUSE_GROWTH * self._pause, PAUSE_S_MAX)
        self._trusts_hint = False

    def _resume(self, now: float) -> None:
        if self.target and self._may_be_target(self.target, now):
            self._become_reaching(self.target, now)
        elif self._replicas:
            self._become_reaching(self._next_replica(now), now)
        else:
            self.route = Route.LOCATING

    def _locate(self, now: float) -> list[Effect]:
        if self.is_idle or now < self._locate_after:
            return []
        self._locate_after = now + LOCATE_S
        return [Locate()]

    # --- outcomes ------------------------------------------------------------------------------------------------------------

    def _on_gap(self, entry: Entry, now: float) -> None:
        """P-35: something before it is missing there. An older batch that is under way explains it; else the chain is broken."""
        if self._sent[0] is entry:
            entry.gaps += 1
            if entry.gaps >= GAPS_MAX and self._name:  # a higher epoch is not for this producer to take
                self.failure = self.failure or _failure_of(None, self._reason)
            elif entry.gaps >= GAPS_MAX:
                self._chain_broken = True
            self._become_pausing(now)
        elif self.route is Route.SENDING:
            self.route = Route.PROBING

    def _mend_chain(self) -> list[Effect]:
        assert self._is_numbered
        self._chain_broken = False
        in_doubt = [entry for entry in self._sent if entry.may_be_stored]
        certain = [entry for entry in self._sent if not entry.may_be_stored]
        reason = self._reason or UnavailableError("the order of batches was broken", code="unavailable")
        effects: list[Effect] = []
        for entry in in_doubt:
            self._forget(entry)
            effects.append(Failed(entry, _unknown(reason)))
        for entry in reversed(certain):
            self._sent.remove(entry)
            entry.sequence, entry.gaps = None, 0
            self._waiting.appendleft(entry)
        self.producer_epoch, self._next_sequence = self.producer_epoch + 1, 0
        return effects

    def _is_final(self, code: str) -> bool:
        kind = CODES.get(code, StreamqError)
        return code not in GONE and not issubclass(kind, UnavailableError | UnknownOutcomeError) and kind is not StreamqError

    def _expired(self, entry: Entry) -> StreamqError:
        reason = self._reason or UnavailableError("no broker has answered", code="timed_out")
        if entry.may_be_stored:
            return _unknown(reason)
        return UnavailableError(f"not stored in time: {reason.message}", code="timed_out", hint=reason.hint)

    def _fail(self, entry: Entry, error: StreamqError) -> Failed:
        if self._name:
            self.failure = self.failure or _failure_of(self._reason, error)
        elif entry.sequence is not None and self._is_numbered:
            self._chain_broken = True
        self._forget(entry)
        return Failed(entry, error)

    def _fail_behind(self, failure: StreamqError) -> list[Effect]:
        """What was added behind a batch that failed, but for tries that will be answered yet."""
        behind = [entry for entry in [*self._sent, *self._waiting] if not entry.tickets]
        return [self._fail(entry, _unknown(failure) if entry.may_be_stored else failure) for entry in behind]

    def _fail_all(self, verdict: Callable[[Entry], StreamqError]) -> list[Effect]:
        return [self._fail(entry, verdict(entry)) for entry in [*self._sent, *self._waiting]]

    def _forget(self, entry: Entry) -> None:
        for ticket in entry.tickets:
            self._tries.pop(ticket, None)
        entry.tickets.clear()
        if entry.sequence is not None:
            self._sent.remove(entry)
        else:
            self._waiting.remove(entry)

    def _oldest(self) -> Entry | None:
        if self._sent and self._waiting:
            return min(self._sent[0], self._waiting[0], key=lambda entry: entry.deadline)
        return self._sent[0] if self._sent else self._waiting[0] if self._waiting else None


def _fenced(name: str) -> FencedError:
    return FencedError(
        f"another producer named {name!r} was opened", code="fenced", hint="only one of a name goes on: end this one, or name it otherwise"
    )


def _failure_of(reason: StreamqError | None, error: StreamqError | None) -> StreamqError:
    if isinstance(reason, FencedError):
        return reason
    hint = "open the producer again, and go on behind its position in this partition"
    return UnavailableError(f"nothing is sent behind a batch that failed: {error.message if error else ''}", code="unavailable", hint=hint)


def _unknown(reason: StreamqError) -> StreamqError:
    if isinstance(reason, NotFoundError | FencedError):
        return UnknownOutcomeError(f"it may be stored and may not: {reason.message}", code="unknown_outcome")
    hint = "look into the log, or send it again if a repetition does no harm"
    return UnknownOutcomeError(f"it was sent, and whether it is stored is unknown: {reason.message}", code="unknown_outcome", hint=hint)
