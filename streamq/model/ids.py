"""Identities. An address is never an identity: a broker is named together with the incarnation of its data directory (P-10)."""

from typing import NamedTuple

from streamq.model.fields import U63, Identity, Name

__all__ = ["NO_PRODUCER", "Ballot", "Incarnation", "Member", "PartitionId", "ProducerId", "short"]

Incarnation = bytes
"""16 random bytes, drawn when a data directory is made or rejoins."""
PartitionId = bytes
"""16 random bytes, drawn when the partition is created (P-39)."""
ProducerId = bytes
"""16 random bytes; `NO_PRODUCER` for batches without idempotence."""

NO_PRODUCER: ProducerId = bytes(16)


class Member(NamedTuple):
    """A broker in one incarnation: what quorums count (P-10)."""

    broker: Name
    incarnation: Identity


class Ballot(NamedTuple):
    """A CASPaxos ballot, ordered by counter first; `start` is random for each start of the proposer (P-2)."""

    counter: U63
    proposer: Name
    start: Identity


def short(identity: bytes) -> str:
    """The first eight hex digits, for people to read."""
    return identity[:4].hex()
