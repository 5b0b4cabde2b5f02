"""Transactions as values: their names, and the registers that say what became of them.

A transaction is a number of a named producer. Its outcome lies in the producer's register (`ProducerRegister`: `decided`, `aborted`); the
numbers of aborted transactions that became too many for that are moved to registers of their own, a block of numbers each.
`metadata.transactions` has the functions that change them, and tells why that is right.
"""

from typing import Annotated, Final, NamedTuple

import msgspec

from streamq.model.fields import U63, Id16, Name
from streamq.model.ids import ProducerId

__all__ = [
    "ABORTED_BLOCK",
    "NO_TRANSACTION",
    "AbortedRegister",
    "Transaction",
    "TransactionalRegister",
    "aborted_key",
    "transactional_key",
]

ABORTED_BLOCK: Final = 4_096
"""Consecutive numbers that share a register, if any of them has to be moved there."""
NO_TRANSACTION: Final = 0
"""The number of none."""


class Transaction(NamedTuple):
    """The producer that it is of, and its number there: 1, 2, 3, …, one after the other."""

    producer: Id16
    number: U63


class TransactionalRegister(msgspec.Struct, frozen=True, array_like=True):
    """`txn/<producer id>`: written once, the name of the producer whose register tells the outcomes."""

    name: Name


class AbortedRegister(msgspec.Struct, frozen=True, array_like=True):
    """`txn/<producer id>/<block>`: the aborted among these `ABORTED_BLOCK` numbers that were moved here; it only grows."""

    numbers: Annotated[tuple[U63, ...], msgspec.Meta(max_length=ABORTED_BLOCK)]


def transactional_key(producer: ProducerId) -> str:
    return f"txn/{producer.hex()}"


def aborted_key(producer: ProducerId, number: int) -> str:
    """The register of the block in which `number` lies."""
    return f"txn/{producer.hex()}/{number // ABORTED_BLOCK}"
