"""What becomes of transactions: the functions that change a producer's register, and how an outcome is read.

A transaction is atomic because its outcome is one number in one register: when `decided` reaches it, it is decided, committed unless it is
in `aborted`. Nothing else says so: no marker is written into a log, no sequencer is asked. A batch of a transaction carries its producer's
id and the number, and who reads it looks the outcome up, once; it never changes.

- A transaction is open from its first batch on, without having been announced: a number above `decided` is open, if it is anything.
- Its producer commits it only when all its batches are acked, so whoever sees the commit finds every batch below a high watermark.
- Anybody may abort one that is open, and the next is the only one that can be (`settle`): who finds it older than its producer said it
  would ever be; who wants a position that hangs on it (`groups.changes`); the next instance of the producer (`open_producer`).

The interleavings that this has to stand, and why it does:

1. A commit and an abort race. Both ask for `decided` = n - 1 in one register: one is first, the other is told how it ended.
2. A commit is sent again after a lost answer, by way of another broker, perhaps after later transactions. Its number is decided: the answer
   is the outcome, whatever the epoch is by then.
3. A zombie. The next instance raises the epoch and aborts the next number in the same change, whether or not anything carries it. A
   zombie can have begun no later number: it goes on from n to n + 1 only when it was told how n ended, and who is of an older epoch is
   told so only of what was committed (`ended`); of the number that the opening has aborted it hears that it is fenced. (Were it told
   "aborted", it would write under numbers that the next instance commits.) So whatever it writes is aborted, fenced by the log or not.
4. A batch of an aborted transaction comes late, from a socket's buffer or a retry. It carries a number that is decided: nobody gets it.
5. A batch of a committed one comes again. All of them were acked, so it is a repeat (P-35), or fenced.
6. A reader asks while a decided number moves from `aborted` to its block. The block has it before the producer's register loses it,
   and the reader reads the producer's register first.
7. A reader has seen a batch of n, and the register says that n is not decided: true at some moment of the quorum read. "Open" is an
   answer that is asked for again; "committed" and "aborted" are for ever.
8. Clocks. An abort for its age compares the time when a broker stamped a batch with another broker's now. A clock that is wrong aborts too
   early or too late, and nothing else.
"""

from collections.abc import Callable, Collection
from typing import Final, NamedTuple

import msgspec

from streamq.model.errors import FencedError, NotFoundError, RefusedError, UnavailableError
from streamq.model.registers import ProducerRegister
from streamq.model.transactions import ABORTED_BLOCK, AbortedRegister, TransactionalRegister

__all__ = [
    "ABORTED_KEPT_MAX",
    "Outcomes",
    "TooManyAbortedError",
    "abort_next",
    "end",
    "ended",
    "forget",
    "move_in",
    "name_producer",
    "needs_block",
    "outcomes",
    "settle",
]

ABORTED_KEPT_MAX: Final = 64
"""Numbers in a producer's register; with more, they are moved to blocks first."""

Change = Callable[[ProducerRegister | None], ProducerRegister]


class TooManyAbortedError(UnavailableError):
    """Move the aborted numbers to their blocks, then try again."""

    def __init__(self) -> None:
        super().__init__(f"{ABORTED_KEPT_MAX} aborted transactions have to be moved first", code="busy")


class Outcomes(NamedTuple):
    """Of the numbers from `first` to `decided`, those in `aborted` are aborted and all others committed; what is above is open."""

    first: int
    decided: int
    aborted: frozenset[int]

    def of(self, number: int) -> bool | None:
        """Whether it is committed; None while it is open. `first` must not be above it."""
        assert number >= self.first
        return None if number > self.decided else number not in self.aborted


def needs_block(register: ProducerRegister, number: int) -> bool:
    """Whether aborted numbers of the block of `number` may have been moved."""
    return register.moved >= number // ABORTED_BLOCK * ABORTED_BLOCK and register.moved > 0


def outcomes(register: ProducerRegister, number: int, block: AbortedRegister | None) -> Outcomes:
    """What is known of the block of `number`. `block` is its register, read after `register`, if `needs_block`."""
    first = number // ABORTED_BLOCK * ABORTED_BLOCK
    last = first + ABORTED_BLOCK - 1
    moved = block.numbers if block is not None else ()
    aborted = frozenset(n for n in (*register.aborted, *moved) if first <= n <= min(last, register.decided))
    return Outcomes(first, min(last, register.decided), aborted)


def abort_next(register: ProducerRegister) -> ProducerRegister:
    """Decides the next number, as aborted. Raises TooManyAbortedError."""
    if len(register.aborted) >= ABORTED_KEPT_MAX:
        raise TooManyAbortedError
    number = register.decided + 1
    return msgspec.structs.replace(register, decided=number, aborted=(*register.aborted, number))


def end(name: str, number: int, *, epoch: int, commits: bool) -> Change:
    """The producer's own end of a transaction. One that is decided stays as it is: the register tells how.

    Raises FencedError for an epoch that another instance has followed, RefusedError for a number that cannot be open.
    """

    def change(current: ProducerRegister | None) -> ProducerRegister:
        register = _need(name, current)
        if number <= register.decided:
            return register
        if epoch != register.epoch:
            raise _fenced(name)
        _need_next(register, number)
        return msgspec.structs.replace(register, decided=number) if commits else abort_next(register)

    return change


def ended(name: str, register: ProducerRegister, known: Outcomes, number: int, *, epoch: int) -> bool:
    """What an instance is told of its transaction after `end` has led to `register`: whether it is committed. Raises FencedError: it
    goes on with no other one (3)."""
    is_committed = known.of(number)
    assert is_committed is not None
    if not is_committed and epoch != register.epoch:
        raise _fenced(name)
    return is_committed


def settle(name: str, number: int) -> Change:
    """Aborts the transaction if it is open. Raises RefusedError for a number that cannot be."""

    def change(current: ProducerRegister | None) -> ProducerRegister:
        register = _need(name, current)
        if number <= register.decided:
            return register
        _need_next(register, number)
        return abort_next(register)

    return change


def forget(name: str, numbers: Collection[int]) -> Change:
    """Takes these out of `aborted`: their blocks have them, durably."""

    def change(current: ProducerRegister | None) -> ProducerRegister:
        register = _need(name, current)
        kept = tuple(number for number in register.aborted if number not in numbers)
        return msgspec.structs.replace(register, aborted=kept, moved=max(register.moved, *numbers))

    return change


def move_in(numbers: Collection[int]) -> Callable[[AbortedRegister | None], AbortedRegister]:
    """These are in their block from now on."""

    def change(current: AbortedRegister | None) -> AbortedRegister:
        known = current.numbers if current is not None else ()
        return AbortedRegister(tuple(sorted({*known, *numbers})))

    return change


def name_producer(name: str) -> Callable[[TransactionalRegister | None], TransactionalRegister]:
    def change(current: TransactionalRegister | None) -> TransactionalRegister:
        return current if current is not None else TransactionalRegister(name)

    return change


def _fenced(name: str) -> FencedError:
    return FencedError(
        f"another producer named {name!r} was opened: its transactions go on, this one's are aborted",
        code="fenced",
        hint="only one of a name goes on: end this one, or name it otherwise",
    )


def _need(name: str, current: ProducerRegister | None) -> ProducerRegister:
    if current is None or not current.is_transactional:
        raise NotFoundError(f"there are no transactions of a producer named {name!r}", code="not_found")
    return current


def _need_next(register: ProducerRegister, number: int) -> None:
    if number != register.decided + 1:
        raise RefusedError(f"transaction {register.decided + 1} is the next of its producer, not {number}", code="bad_request")
