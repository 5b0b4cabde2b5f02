"""The functions that change registers: from a value (None: never written) to the next one, pure, and safe to apply twice (P-5).

Each compares what it depends on (an epoch, an id, an incarnation), never a version, and recognises its own earlier application. A function
that cannot be applied raises a StreamqError, except where the caller rather wants to see who won: then it returns the value unchanged and
says so. Deletions write tombstones that keep the ids (P-6); ids are random and never come again, so nothing deleted is created a second
time by a retry.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from streamq.metadata.transactions import abort_next
from streamq.model.errors import AlreadyExistsError, NotFoundError, RefusedError, UnavailableError
from streamq.model.ids import Incarnation, Member, PartitionId, ProducerId
from streamq.model.limits import CHAIN_SEGMENTS_MAX, PRODUCER_EPOCH_MAX
from streamq.model.registers import BrokerRegister, ClusterRegister, PartitionRegister, ProducerRegister, Segment, TopicRegister, Voters

__all__ = [
    "alter_topic",
    "close_and_open",
    "create_partition",
    "create_topic",
    "decide_voters",
    "delete_partition",
    "delete_topic",
    "directory_fault",
    "join",
    "name_holders",
    "open_producer",
    "register_broker",
    "take_settings",
    "trim",
    "wrong_directory",
]

T = TypeVar("T")
Change = Callable[[T | None], T]


# --- topics ----------------------------------------------------------------------------------------------------------------


def create_topic(topic: TopicRegister, *, over: bytes | None) -> Change[TopicRegister]:
    """Writes `topic` over nothing, or over the tombstone with the id `over` that the caller has read. Raises topic_exists.

    Naming the tombstone makes it happen at most once: after a creation, a deletion and a second creation a late retry finds another id.
    """

    def change(current: TopicRegister | None) -> TopicRegister:
        if current is not None and current.id == topic.id:
            return current
        if _is_free(current, over):
            return topic
        raise AlreadyExistsError(f"topic {topic.name} exists", code="topic_exists", hint="choose another name, or remove it first")

    return change


def create_partition(register: PartitionRegister, *, over: PartitionId | None) -> Change[PartitionRegister]:
    """As `create_topic`. Whoever finds a topic without one of its partitions may create it: the first creation of an id stays."""
    assert register.chain
    assert register.fault() is None

    def change(current: PartitionRegister | None) -> PartitionRegister:
        if current is not None and current.id == register.id:
            return current
        if _is_free(current, over):
            return register
        raise AlreadyExistsError(f"partition {register.topic}/{register.index} exists", code="topic_exists")

    return change


def _is_free(current: TopicRegister | PartitionRegister | None, over: bytes | None) -> bool:
    return over is None if current is None else current.deleted and current.id == over


def delete_topic(name: str, *, topic_id: bytes) -> Change[TopicRegister]:
    """Leaves a tombstone. A topic that is gone already, or has another id now, is left as it is (success)."""

    def change(current: TopicRegister | None) -> TopicRegister:
        if current is None:
            raise _unknown_topic(name)
        return msgspec.structs.replace(current, deleted=True) if current.id == topic_id else current

    return change


def delete_partition(tombstone: PartitionRegister) -> Change[PartitionRegister]:
    """Leaves a tombstone without a chain, even where the partition was never written: a late creation then finds its id gone (P-6)."""
    assert tombstone.deleted

    def change(current: PartitionRegister | None) -> PartitionRegister:
        if current is None:
            return tombstone
        return msgspec.structs.replace(current, deleted=True, chain=()) if current.id == tombstone.id else current

    return change


def alter_topic(altered: TopicRegister) -> Change[TopicRegister]:
    """Writes `altered`, which was made of the value with one alteration less. Raises unknown_topic, and conflict when somebody else altered
    the topic in between: whoever asks again sees what it has become."""

    def change(current: TopicRegister | None) -> TopicRegister:
        if current is None or current.deleted or current.id != altered.id:
            raise _unknown_topic(altered.name)
        if current == altered:
            return current
        if current.settings + 1 != altered.settings:
            raise UnavailableError(
                f"topic {altered.name} was altered by somebody else at the same time", code="conflict", hint="look at it and try again"
            )
        return altered

    return change


# --- partitions ------------------------------------------------------------------------------------------------------------


def take_settings(topic: TopicRegister, index: int) -> Change[PartitionRegister]:
    """Gives the partition the settings of its topic, unless it has newer ones. The open segment keeps its own quorum (P-36)."""

    def change(current: PartitionRegister | None) -> PartitionRegister:
        register = _living(current, topic.name, index, topic.partitions[index])
        if register.settings >= topic.settings:
            return register
        return msgspec.structs.replace(
            register,
            write=topic.write,
            read=topic.read,
            retention_bytes=topic.retention_bytes,
            retention_ms=topic.retention_ms,
            settings=topic.settings,
            dedup_ms=topic.dedup_ms,
        )

    return change


def close_and_open(
    topic: str,
    index: int,
    *,
    partition: PartitionId,
    epoch: int,
    end: int,
    opened: Segment,
    holders: tuple[Member, ...] | None = None,
) -> Change[PartitionRegister]:
    """Step 5 of a takeover: closes `epoch` at `end` and appends `opened` (`epoch + 1`), if `epoch` is last and open (P-5, P-8).

    `holders`: who holds all of the closed segment, when replacements stored it (step 4); None leaves its replicas as they are.
    The caller won exactly if the segment `opened.epoch` of the value returned has its attempt id; otherwise somebody else did, and the
    value is the winner's: it drops its result, `end` with it. Raises unknown_topic, and limit_reached when the chain is full.
    """
    assert opened.epoch == epoch + 1
    assert opened.base == end
    assert opened.is_open

    def change(current: PartitionRegister | None) -> PartitionRegister:
        register = _living(current, topic, index, partition)
        last = register.last
        if last.epoch != epoch or not last.is_open:
            return register
        closed = msgspec.structs.replace(last, end=end, replicas=last.replicas if holders is None else holders)
        chain = _without_trimmed((*register.chain[:-1], closed, opened), register.start_offset)
        if len(chain) > CHAIN_SEGMENTS_MAX:
            raise RefusedError(
                f"partition {topic}/{index} has {len(register.chain)} segments, the most there may be",
                code="limit_reached",
                hint="trim the partition: its trimmed segments leave the chain",
            )
        changed = msgspec.structs.replace(register, chain=chain)
        assert changed.fault() is None
        return changed

    return change


def name_holders(
    topic: str, index: int, *, partition: PartitionId, gone: Mapping[int, Member], holder: Member
) -> Change[PartitionRegister]:
    """Names `holder`, which holds all of these closed segments, in the place of the member that `gone` says of each epoch (P-22).

    A segment stays as it is when `holder` is named already, or `gone` is not any more, or it is open or trimmed: look at the result.
    """

    def change(current: PartitionRegister | None) -> PartitionRegister:
        register = _living(current, topic, index, partition)
        chain = tuple(_renamed(segment, gone[segment.epoch], holder) if segment.epoch in gone else segment for segment in register.chain)
        return msgspec.structs.replace(register, chain=chain)

    return change


def _renamed(segment: Segment, gone: Member, holder: Member) -> Segment:
    if segment.is_open or gone not in segment.replicas:
        return segment
    # One broker is one holder, whatever its incarnations: two entries of one disk would count as two copies.
    if any(member.broker == holder.broker and member != gone for member in segment.replicas):
        return segment
    return msgspec.structs.replace(segment, replicas=tuple(holder if member == gone else member for member in segment.replicas))


def trim(topic: str, index: int, *, partition: PartitionId, start_offset: int) -> Change[PartitionRegister]:
    """Raises the start offset (it only grows) and drops closed segments below it. The caller knows a high watermark at or above it
    (P-41)."""

    def change(current: PartitionRegister | None) -> PartitionRegister:
        register = _living(current, topic, index, partition)
        start = max(register.start_offset, start_offset)
        return msgspec.structs.replace(register, start_offset=start, chain=_without_trimmed(register.chain, start))

    return change


def _without_trimmed(chain: tuple[Segment, ...], start_offset: int) -> tuple[Segment, ...]:
    """The last two segments always stay, so that a replica one epoch behind learns its epoch's end from any value."""
    first = 0
    while first < len(chain) - 2 and (end := chain[first].end) is not None and end <= start_offset:
        first += 1
    return chain[first:]


def _living(current: PartitionRegister | None, topic: str, index: int, partition: PartitionId) -> PartitionRegister:
    if current is None or current.deleted or current.id != partition:  # P-39
        raise NotFoundError(f"partition {topic}/{index} does not exist (any more)", code="unknown_partition")
    return current


def _unknown_topic(name: str) -> NotFoundError:
    return NotFoundError(f"topic {name} does not exist", code="unknown_topic", hint="`streamq topic ls` shows those that do")


# --- named producers -------------------------------------------------------------------------------------------------------


def open_producer(name: str, *, fresh: ProducerId, attempt: bytes, timeout_ms: int = 0) -> Change[ProducerRegister]:
    """Raises the epoch by one, once for each attempt as long as nobody else has opened since. `fresh` is the id if this is the first time.

    Each epoch belongs to one attempt. An attempt that is applied again after another's gets a second epoch, above the other's, and uses
    that one: its first is never told to anybody. Raises limit_reached.

    `timeout_ms` is how old its transactions may become, 0 if it has none. The next one of an instance before is aborted in this very
    change, if there ever were any (`metadata.transactions`, 3). Raises TooManyAbortedError.
    """

    def change(current: ProducerRegister | None) -> ProducerRegister:
        if current is None:
            return ProducerRegister(fresh, 1, attempt, timeout_ms)
        if current.attempt == attempt:
            return current
        if current.epoch >= PRODUCER_EPOCH_MAX:
            raise RefusedError(f"producer {name!r} was opened {current.epoch} times, the most there may be", code="limit_reached")
        opened = abort_next(current) if current.is_transactional else current
        return msgspec.structs.replace(opened, epoch=opened.epoch + 1, attempt=attempt, timeout_ms=timeout_ms or opened.timeout_ms)

    return change


# --- brokers and voters ----------------------------------------------------------------------------------------------------


def register_broker(mine: BrokerRegister, *, replaces: Incarnation) -> Change[BrokerRegister]:
    """Writes this start of this directory (P-31). Raises wrong_directory when the register knows a later start of it, or when another
    directory took the broker's place: any incarnation but the one that this directory set out to replace (empty: none)."""

    def change(current: BrokerRegister | None) -> BrokerRegister:
        fault = directory_fault(current, mine=mine, replaces=replaces)
        if fault is not None:
            raise wrong_directory(mine.broker, fault)
        return mine

    return change


def directory_fault(
    known: BrokerRegister | None, *, mine: BrokerRegister, replaces: Incarnation | None, is_this_start_unknown: bool = False
) -> str | None:
    """What a known value of `broker/<id>` says against this directory; None if nothing.

    `replaces` None: it has not yet looked whom it replaces, so another incarnation says nothing. `is_this_start_unknown`: this start has
    not written the register yet, so its own number of starts there is another's (the same directory, copied).
    """
    if known is None:
        return None
    if known.incarnation != mine.incarnation:
        if replaces is None or known.incarnation == replaces:
            return None
        return "another data directory has taken this broker's place"
    if known.starts > mine.starts or (is_this_start_unknown and known.starts == mine.starts):
        return f"the cluster has seen start {known.starts} of this broker, and this is start {mine.starts}: the directory is an older copy"
    return None


def wrong_directory(broker: str, fault: str) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"{fault}; {broker} does not serve from it",
        code="wrong_directory",
        hint="start it on its newest directory, or admit this one anew with `streamq broker rejoin`",
    )


def join(cluster: bytes, broker: str) -> Change[ClusterRegister]:
    """Adds the broker to `cluster`. Raises wrong_cluster."""

    def change(current: ClusterRegister | None) -> ClusterRegister:
        if current is None:
            return ClusterRegister(id=cluster, brokers=(broker,))
        if current.id != cluster:
            raise AlreadyExistsError(
                f"broker {broker} belongs to cluster {cluster.hex()}, and this is cluster {current.id.hex()}", code="wrong_cluster"
            )
        return msgspec.structs.replace(current, brokers=tuple(sorted({*current.brokers, broker})))

    return change


def decide_voters(content: Voters) -> Change[Voters]:
    """Write-once: a content that is there already stays, whatever it is (P-40)."""

    def change(current: Voters | None) -> Voters:
        return content if current is None else current

    return change
