"""Every message between clients and brokers, and between brokers, with its number on the wire.

A frame is a message (encoded by `wire.codec`), a request id, and a payload of whole batches where the docstring says so.
Fields may be added at the end, with a default; numbers are never used again. A request is answered by the message named after
it, or by `Failure`; a message called one-way has no answer. Offsets, epochs and times are non-negative 64-bit integers.
"""

from typing import Annotated, Literal, NamedTuple

import msgspec

from streamq.model.fields import U63, Id16, Identity, Key, Name, Port, Text, Value
from streamq.model.groups import Entry, GroupRegister, HeldTopic, Subscription
from streamq.model.ids import Ballot, Member
from streamq.model.limits import (
    GROUP_PARTITIONS_MAX,
    GROUP_SESSION_MS_MAX,
    GROUP_SESSION_MS_MIN,
    OFFSET_MAX,
    PARTITIONS_PER_TOPIC_MAX,
    PLACES_PER_REQUEST_MAX,
    TABLE_PAGE_IDS_MAX,
    TABLE_PAGE_PRODUCERS_MAX,
)
from streamq.model.metrics import NamedHistograms, NamedNumbers
from streamq.model.registers import BrokerRegister, Durability, PartitionRegister, Segment, TopicRegister, Voters
from streamq.model.tables import ProducerSnapshot, StoredId
from streamq.model.transactions import ABORTED_BLOCK, Transaction


class Message(msgspec.Struct, frozen=True, array_like=True):
    """The base of all messages."""


# --- handshake -------------------------------------------------------------------------------------------------------------


class Hello(Message, frozen=True, tag=1):
    """The first frame of whoever connected. Brokers name their cluster and themselves; clients leave both empty."""

    versions: tuple[U63, U63]
    features: tuple[Name, ...]
    software: Name
    cluster: Identity = b""
    broker: Name = ""
    incarnation: Identity = b""


class Welcome(Message, frozen=True, tag=2):
    """The answer to `Hello`: the version to speak from now on, and who answers."""

    version: U63
    features: tuple[Name, ...]
    software: Name
    cluster: Identity
    broker: Name
    incarnation: Identity


class Failure(Message, frozen=True, tag=3):
    """The answer to any request that was not carried out; `code` is one of `model.errors.CODES`."""

    code: Name
    message: Text
    hint: Text = ""
    sequencer: Name = ""
    """With code `not_sequencer` or `not_coordinator`: the broker that is, as far as known."""


class Heartbeat(Message, frozen=True, tag=4):
    """One-way, from broker to broker: I am alive. Any message says so too."""


class Ok(Message, frozen=True, tag=5):
    """The answer to a request that has nothing more to say."""


# --- clients: metadata -----------------------------------------------------------------------------------------------------


class BrokerAddress(NamedTuple):
    broker: Name
    host: Name
    port: Port
    rack: Name
    alive: bool
    """As seen by the broker that answers."""


class PartitionView(msgspec.Struct, frozen=True, array_like=True):
    """A hint (P-1): who was the sequencer of which epoch, as far as the broker that answers knows."""

    id: Id16
    epoch: U63
    sequencer: Name
    replicas: tuple[Name, ...]
    start_offset: U63


class TopicView(msgspec.Struct, frozen=True, array_like=True):
    """`error` is empty, or a code of `model.errors` (`unknown_topic`), and then nothing else counts."""

    name: Name
    partitions: Annotated[tuple[PartitionView, ...], msgspec.Meta(max_length=PARTITIONS_PER_TOPIC_MAX)]
    error: Name = ""


class Metadata(Message, frozen=True, tag=10):
    """Which brokers there are and where these topics' partitions live; no topics named: all."""

    topics: tuple[Name, ...]


class MetadataView(Message, frozen=True, tag=11):
    cluster: Identity
    brokers: tuple[BrokerAddress, ...]
    topics: tuple[TopicView, ...]


class CreateTopic(Message, frozen=True, tag=12):
    """Answered by `TopicCreated`. Zero leaves a number to the broker: min(3, brokers) replicas, majorities."""

    name: Name
    partitions: U63
    replicas: U63
    write: U63
    read: U63
    durability: Durability
    retention_bytes: U63 | None = None
    """Per partition, compressed, on one replica; None: for ever."""
    retention_ms: U63 | None = None
    dedup_ms: U63 | None = None
    """For how long the ids of records count; None: `DEDUP_MS_DEFAULT`, zero: records with ids are refused."""


class TopicCreated(Message, frozen=True, tag=13):
    topic: TopicRegister


class DeleteTopic(Message, frozen=True, tag=14):
    """Answered by `Ok`; the tombstone is written when it is."""

    name: Name


class ListTopics(Message, frozen=True, tag=15):
    """Answered by `Topics`, from the registers (not a hint)."""


class Topics(Message, frozen=True, tag=16):
    topics: tuple[TopicRegister, ...]


class DescribePartition(Message, frozen=True, tag=17):
    """Answered by `PartitionDescription`: the register by a quorum read, the tip by P-24, each replica asked."""

    topic: Name
    index: U63


class ReplicaView(msgspec.Struct, frozen=True, array_like=True):
    """What one replica said of itself; `state` is one word: serving, sealed, limbo, unreachable, not-opened, rejoined."""

    broker: Name
    local_tail: U63 | None
    high_watermark: U63 | None
    state: Name


class PartitionDescription(Message, frozen=True, tag=18):
    register: PartitionRegister
    high_watermark: U63 | None
    """From a quorum read of the tip; None with `tip_error` when R replicas did not answer."""
    tip_error: Text
    replicas: tuple[ReplicaView, ...]


class BrokerStatus(Message, frozen=True, tag=19):
    """Answered by `BrokerState`: how the broker that is asked does."""


class BrokerState(Message, frozen=True, tag=20):
    register: BrokerRegister
    state: Name
    """serving, starting, joining or stopping."""
    partitions: U63
    sequencing: U63
    limbo: U63
    counters: dict[Name, U63]
    """Those of the broker itself; `ReadMetrics` asks for all."""


class Stop(Message, frozen=True, tag=21):
    """Asks a broker to hand its partitions over and stop gracefully; answered by `Ok` before it goes. Loopback only."""


class ReadMetrics(Message, frozen=True, tag=22):
    """Answered by `Metrics`: what the broker that is asked has counted. Anybody may ask, whatever state it is in."""


class Metrics(Message, frozen=True, tag=23):
    """Counters only grow from the start of the process on; gauges are how things stand. `deploy/README.md` lists all names."""

    counters: NamedNumbers
    gauges: NamedNumbers
    histograms: NamedHistograms


class AlterTopic(Message, frozen=True, tag=132):
    """Answered by `TopicAltered`. Retention holds at once, quorums from the next epoch of each partition on (P-36)."""

    name: Name
    write: U63 = 0
    """Zero leaves it as it is; the same of `read`."""
    read: U63 = 0
    retention_bytes: U63 | None = None
    """None leaves it as it is, zero: for ever; the same of `retention_ms`."""
    retention_ms: U63 | None = None
    now: bool = False
    """Have each partition begin a new epoch for its quorums, where all its replicas are up."""
    dry_run: bool = False
    """Only say what would come of it."""
    dedup_ms: U63 | None = None
    """None leaves it as it is."""


class TopicAltered(Message, frozen=True, tag=133):
    before: TopicRegister
    after: TopicRegister
    pending: tuple[U63, ...] = ()
    """Partitions whose open epoch has other quorums than the topic now."""


class TrimPartition(Message, frozen=True, tag=134):
    """To the sequencer: have the log begin at `before`, at most the high watermark (P-41). Answered by `PartitionTrimmed`, which may take
    a while: until W replicas hold the idempotence table there in a checkpoint (P-34). May be asked again."""

    partition: Id16
    before: U63


class PartitionTrimmed(Message, frozen=True, tag=135):
    start_offset: U63


# --- clients: produce ------------------------------------------------------------------------------------------------------


class Produce(Message, frozen=True, tag=30):
    """Payload: as many batches as tickets, back to back. Answered one-way, ticket by ticket, by `Produced`, in any order."""

    tickets: tuple[U63, ...]


class Ack(NamedTuple):
    """`[base, base + records)` is on `copies` replicas of `of`, synced if `durable`.

    A repeat of a batch older than `DEDUP_BATCHES` is acked with base -1: it is in the log, where is not known any more (P-35).
    """

    ticket: U63
    base: Annotated[int, msgspec.Meta(ge=-1, le=OFFSET_MAX)]
    append_time: U63
    copies: U63
    of: U63
    durable: bool
    mark: U63 = 0
    """The highest mark that the batch's producer has in this partition up to it; in answer to a repeat perhaps of what followed it."""
    is_duplicate: bool = False
    """Of a record with an id: one of the same id was there, or on its way, and this one is not stored."""


class Nack(NamedTuple):
    """`code` says whether the batch was certainly not stored (retriable or refused) or its outcome is unknown (`unknown_outcome`)."""

    ticket: U63
    code: Name
    message: Text
    sequencer: Name
    """With `not_sequencer`: the broker that is, as far as known; else empty."""


class Produced(Message, frozen=True, tag=31):
    """One-way: outcomes of batches of this connection."""

    acks: tuple[Ack, ...]
    nacks: tuple[Nack, ...]


# --- clients: consume ------------------------------------------------------------------------------------------------------


class ReadTip(Message, frozen=True, tag=40):
    """A quorum read of the tip (P-24), which any broker can carry out. Answered by `TipRead`."""

    topic: Name
    index: U63


class TipRead(Message, frozen=True, tag=41):
    epoch: U63
    high_watermark: U63
    start_offset: U63
    answered: tuple[Name, ...]


class FindOffset(Message, frozen=True, tag=42):
    """The first batch whose largest record time is at or after `timestamp_ms`. Answered by `OffsetFound`: its base, or the tip if none."""

    partition: Id16
    timestamp_ms: U63


class OffsetFound(Message, frozen=True, tag=43):
    offset: U63


class Subscribe(Message, frozen=True, tag=44):
    """Opens a stream of `Records` on this request id, from the batch that contains `offset` on, as far as `credit_bytes` go.

    The broker serves what is below the high watermark that it knows (P-23), and ends the stream with `Failure`:
    `offset_trimmed`, `offset_ahead` (past what any quorum knows), `not_replica`, `unknown_partition`, `data_damaged`, `stopping`.
    """

    partition: Id16
    offset: U63
    credit_bytes: U63


class Credit(Message, frozen=True, tag=45):
    """One-way, on the stream's request id: the consumer is ready for so many bytes more."""

    credit_bytes: U63


class Unsubscribe(Message, frozen=True, tag=46):
    """One-way, on the stream's request id: no more, please."""


class Records(Message, frozen=True, tag=47):
    """On the stream's request id. Payload: whole batches in offset order without a hole; the first may begin before the offset asked for.

    Without payload it tells a new high watermark, or that the stream is alive.
    """

    epoch: U63
    high_watermark: U63
    start_offset: U63


class PlaceAsked(NamedTuple):
    partition: Id16
    offset: U63


class ReadTimes(Message, frozen=True, tag=130):
    """When the batches that hold these offsets were appended; below the start offset: the batch there. To a replica of all of them.

    Answered by `TimesRead`, from the headers: no batch is read or decompressed.
    """

    places: Annotated[tuple[PlaceAsked, ...], msgspec.Meta(max_length=PLACES_PER_REQUEST_MAX)]


class TimesRead(Message, frozen=True, tag=131):
    """In the order asked; None where this broker holds no such offset, or knows of none (yet): another replica may."""

    now_ms: U63
    """By the clock of the broker that answers, for ages that do not hang on the clock of who asks."""
    append_times: tuple[U63 | None, ...]


# --- brokers: replication --------------------------------------------------------------------------------------------------


class StoreRun(NamedTuple):
    """So many batches of one partition, all of `epoch`, in offset order, and the high watermark known for that epoch."""

    partition: Id16
    epoch: U63
    high_watermark: U63
    batches: U63


class Store(Message, frozen=True, tag=60):
    """One-way, sequencer to replica. Payload: the batches of all runs, back to back. No batches: only the high watermark (4.5)."""

    runs: tuple[StoreRun, ...]


StoreState = Literal["stored", "sealed", "gap", "not_opened", "limbo", "past_end"]


class StoredRun(NamedTuple):
    """`stored`: durable up to `local_tail`. `gap`: send again from `local_tail`. `sealed`, `past_end`, `limbo`: the rejection."""

    partition: Id16
    epoch: U63
    state: StoreState
    local_tail: U63


class Stored(Message, frozen=True, tag=61):
    """One-way, replica to sequencer. The connection says which incarnation speaks (P-10)."""

    runs: tuple[StoredRun, ...]


class Seal(Message, frozen=True, tag=62):
    """Answered by `Sealed`, once the mark is durable (P-16)."""

    partition: Id16
    epoch: U63
    base: U63


class Sealed(Message, frozen=True, tag=63):
    """A sealed replica's local tail in `epoch` (`base` if it has nothing), the high watermark it knows for it, and its state."""

    epoch: U63
    local_tail: U63
    high_watermark: U63
    limbo: bool
    end: U63 | None
    """The epoch's end, if the replica knows that it was closed."""


class Repair(Message, frozen=True, tag=64):
    """Payload: batches of `segment`, from the receiver's local tail on. Seals the epoch at its receiver. Answered by `Repaired`."""

    partition: Id16
    topic: Name
    index: U63
    segment: Segment


class Repaired(Message, frozen=True, tag=65):
    """Durable up to `local_tail`; or refused with the `end` that the receiver knows."""

    epoch: U63
    local_tail: U63
    end: U63 | None


class Open(Message, frozen=True, tag=66):
    """The register of a completed change: the last segment opens; the chain is there in full (step 6). Answered by `Opened`."""

    register: PartitionRegister


class Opened(Message, frozen=True, tag=67):
    epoch: U63


class Tip(Message, frozen=True, tag=68):
    """Part of a quorum read of the tip. Answered by `TipAnswer`."""

    partition: Id16
    epoch: U63
    base: U63


class TipAnswer(Message, frozen=True, tag=69):
    epoch: U63
    local_tail: U63
    sealed: bool
    high_watermark: U63
    limbo: bool
    start_offset: U63 = 0
    """As far as told there (P-41)."""
    table: U63 = 0
    """The position of the idempotence table that a checkpoint there holds durably (P-34)."""


class Copy(Message, frozen=True, tag=70):
    """Asks a replica for durable batches of one epoch from `offset` on, below `end`. Answered by `Copied`."""

    partition: Id16
    epoch: U63
    offset: U63
    end: U63


class Copied(Message, frozen=True, tag=71):
    """Payload: whole batches, at least one if the replica has it. `local_tail` is how far it could go on."""

    epoch: U63
    local_tail: U63


class TakeOver(Message, frozen=True, tag=72):
    """Asks a replica to take this partition over from `epoch` (P-20, P-21). Answered by `TakenOver`, or `Failure`."""

    topic: Name
    index: U63
    epoch: U63


class TakenOver(Message, frozen=True, tag=73):
    """The open segment afterwards, whoever won."""

    register: PartitionRegister


class ReadTable(Message, frozen=True, tag=74):
    """Asks a replica for its idempotence table (P-34), in pages. Answered by `Table`.

    The first page is asked for with `position` and `first` zero. The others name the position of the table that the first was of, and how
    many producers and ids came already; if the replica does not keep that table any more the answer is `Failure` (`conflict`): begin anew.
    """

    partition: Id16
    position: U63 = 0
    first: U63 = 0


class Table(Message, frozen=True, tag=75):
    """At most `TABLE_PAGE_PRODUCERS_MAX` producers, and `TABLE_PAGE_IDS_MAX` ids, of the table at `position`; `more` follow."""

    position: U63
    last_append_time: U63
    producers: Annotated[tuple[ProducerSnapshot, ...], msgspec.Meta(max_length=TABLE_PAGE_PRODUCERS_MAX)]
    more: bool
    ids: Annotated[tuple[StoredId, ...], msgspec.Meta(max_length=TABLE_PAGE_IDS_MAX)] = ()
    fencing_token: U63 = 0


class KeepTable(Message, frozen=True, tag=136):
    """One-way: make a checkpoint soon that holds the idempotence table as it is now; a trim waits for it (P-34)."""

    partition: Id16


# --- named producers ---------------------------------------------------------------------------------------------------------


class OpenProducer(Message, frozen=True, tag=120):
    """Raises the epoch of the producer with this name (P-33); the first time gives it its id. Answered by `ProducerOpened`.

    `attempt` is random, one for each opening: asked again with the same, to any broker, it opens once, as long as nobody else has opened
    since, and then once more. An open transaction of its former self is aborted by it.
    """

    name: Name
    attempt: Identity
    transaction_ms: U63 = 0
    """How old its transactions may become, 0 if it will have none."""


class ProducerOpened(Message, frozen=True, tag=121):
    producer: Id16
    epoch: U63
    decided: U63 = 0
    """The number of its last transaction; the next has the one after it."""


# --- transactions ------------------------------------------------------------------------------------------------------------


class EndTransaction(Message, frozen=True, tag=140):
    """Commits or aborts the transaction `number` of the named producer that was opened with `epoch`, if it is open. To any broker; it may
    be asked again. Answered by `TransactionEnded`."""

    name: Name
    epoch: U63
    number: U63
    commits: bool


class TransactionEnded(Message, frozen=True, tag=141):
    """How it ended, now or before."""

    committed: bool


class ReadOutcomes(Message, frozen=True, tag=142):
    """What became of a transaction of which a batch was read: answered by `OutcomesRead` as soon as it is decided, at the latest after
    `wait_ms`. `began_ms` is the append time of that batch: if it is older than transactions of its producer become, it is aborted."""

    transaction: Transaction
    began_ms: U63
    wait_ms: U63


class OutcomesRead(Message, frozen=True, tag=143):
    """Of the numbers from `first` to `decided` those in `aborted` are aborted, the others committed, for ever. Those above may be open."""

    first: U63
    decided: U63
    aborted: Annotated[tuple[U63, ...], msgspec.Meta(max_length=ABORTED_BLOCK)]


class ReadStable(Message, frozen=True, tag=144):
    """The last stable offset of a partition, by a quorum read of the tip. To any broker. Answered by `StableRead`."""

    topic: Name
    index: U63


class StableRead(Message, frozen=True, tag=145):
    """Below `offset` every transaction is decided, and `tip` was the high watermark. `transaction` is the open one that begins at the
    offset, of the producer `name`, at `began_ms`; None if there is none, and then the two offsets are equal."""

    offset: U63
    tip: U63
    start_offset: U63 = 0
    transaction: Transaction | None = None
    name: Name = ""
    began_ms: U63 = 0


class ReadStableHere(Message, frozen=True, tag=146):
    """To a replica: the same, of the log below `tip`, a high watermark. Answered by `StableRead`."""

    partition: Id16
    tip: U63


# --- brokers: registers (CASPaxos) -----------------------------------------------------------------------------------------


class Prepare(Message, frozen=True, tag=80):
    """Under voter configuration `number` (P-40). Answered by `Promise`."""

    number: U63
    key: Key
    ballot: Ballot


class Promise(Message, frozen=True, tag=81):
    """`ok`: promised; `accepted` and `value` are what it last accepted. Else `promised` is the ballot in the way."""

    ok: bool
    promised: Ballot | None
    accepted: Ballot | None
    value: Value | None


class Accept(Message, frozen=True, tag=82):
    """Answered by `Accepted`."""

    number: U63
    key: Key
    ballot: Ballot
    value: Value


class Accepted(Message, frozen=True, tag=83):
    ok: bool
    promised: Ballot | None


class ReadAccepted(Message, frozen=True, tag=84):
    """The first half of a quorum read (P-4). Answered by `Promise` with `ok`, without promising anything.

    `as_evidence`: what has this acceptor accepted, whatever its number and standing? It counts in no quorum; a broker asks it about its own
    `broker/<id>` before it trusts its directory (P-31).
    """

    number: U63
    key: Key
    as_evidence: bool = False


class ListKeys(Message, frozen=True, tag=85):
    """All keys with this prefix that have an accepted value, `after` in order, in pages. Answered by `Keys`."""

    number: U63
    prefix: Key
    after: Key


class Keys(Message, frozen=True, tag=86):
    keys: tuple[Key, ...]
    more: bool


class ReadVoters(Message, frozen=True, tag=87):
    """Answered by `VotersView`: the configuration that the acceptor has durably adopted (any broker answers)."""


class VotersView(Message, frozen=True, tag=88):
    voters: Voters
    ready: bool
    """Whether it answers prepares and reads under this number (P-40)."""


class AdoptVoters(Message, frozen=True, tag=89):
    """A decided content; the receiver makes it durable and answers with `VotersView`."""

    voters: Voters


class VotersReady(Message, frozen=True, tag=90):
    """To the replacement: the scan of this number is done for that incarnation (P-40). Answered by `VotersView`."""

    number: U63
    member: Member


class Rejoin(Message, frozen=True, tag=91):
    """From a broker with a new incarnation, to any broker of its cluster: replace my old incarnation among the voters and brokers.

    Answered by `VotersView` once the new configuration is decided; the steps after it are carried out by whoever answers.
    """

    register: BrokerRegister


# --- clients: groups -------------------------------------------------------------------------------------------------------

Entries = Annotated[tuple[Entry, ...], msgspec.Meta(max_length=GROUP_PARTITIONS_MAX)]


class JoinGroup(Message, frozen=True, tag=100):
    """To the group's coordinator, as all that a member asks; others answer `not_coordinator`. Answered by `GroupView`.

    Makes the group if there is none. `token` is drawn for this joining and names the member from now on; asked again with the same one,
    it joins once. `member` is empty, or the name of a static member, which takes the place of its former self.
    """

    group: Name
    token: Id16
    member: Name
    topics: Subscription
    session_ms: Annotated[int, msgspec.Meta(ge=GROUP_SESSION_MS_MIN, le=GROUP_SESSION_MS_MAX)]


class GroupView(Message, frozen=True, tag=101):
    """What the member has in this generation, whole."""

    generation: U63
    held: tuple[HeldTopic, ...]


class Attend(Message, frozen=True, tag=102):
    """I am alive, and know of this generation. Answered by `GroupView`, as soon as there is a newer one, at the latest after
    `wait_ms`."""

    group: Name
    token: Id16
    generation: U63
    wait_ms: U63


class CommitPositions(Message, frozen=True, tag=103):
    """Answered by `Committed` when the positions are stored (on W of the voters, as any register)."""

    group: Name
    token: Id16
    entries: Entries
    transaction: Transaction | None = None
    """The positions count if, and when, it is committed."""


class Committed(Message, frozen=True, tag=104):
    """`fenced`: those entries whose partition somebody else has got, without their position having been reached."""

    fenced: Entries


class LeaveGroup(Message, frozen=True, tag=105):
    """With the last positions. Answered by `Ok`."""

    group: Name
    token: Id16
    entries: Entries


class ListGroups(Message, frozen=True, tag=106):
    """Answered by `Groups`, from the registers (not a hint)."""


class Groups(Message, frozen=True, tag=107):
    names: tuple[Name, ...]


class ReadGroup(Message, frozen=True, tag=108):
    """Answered by `GroupRead`: the register by a quorum read, or `unknown_group`."""

    group: Name


class GroupRead(Message, frozen=True, tag=109):
    register: GroupRegister


class GroupPosition(NamedTuple):
    topic: Name
    partition: U63
    position: U63


class PlaceGroup(Message, frozen=True, tag=110):
    """Sets positions of a group without members, and makes the group if there is none. Answered by `GroupRead`."""

    group: Name
    positions: Annotated[tuple[GroupPosition, ...], msgspec.Meta(max_length=GROUP_PARTITIONS_MAX)]


class DeleteGroup(Message, frozen=True, tag=111):
    """Answered by `Ok`. Only a group without members goes."""

    group: Name


AnyMessage = (
    Hello | Welcome | Failure | Heartbeat | Ok
    | Metadata | MetadataView | CreateTopic | TopicCreated | DeleteTopic | ListTopics | Topics
    | DescribePartition | PartitionDescription | BrokerStatus | BrokerState | Stop | ReadMetrics | Metrics
    | AlterTopic | TopicAltered | TrimPartition | PartitionTrimmed
    | Produce | Produced
    | ReadTip | TipRead | FindOffset | OffsetFound | Subscribe | Credit | Unsubscribe | Records | ReadTimes | TimesRead
    | Store | Stored | Seal | Sealed | Repair | Repaired | Open | Opened | Tip | TipAnswer | Copy | Copied | TakeOver | TakenOver
    | ReadTable | Table | KeepTable
    | OpenProducer | ProducerOpened
    | EndTransaction | TransactionEnded | ReadOutcomes | OutcomesRead | ReadStable | StableRead | ReadStableHere
    | Prepare | Promise | Accept | Accepted | ReadAccepted | ListKeys | Keys | ReadVoters | VotersView | AdoptVoters | VotersReady | Rejoin
    | JoinGroup | GroupView | Attend | CommitPositions | Committed | LeaveGroup | ListGroups | Groups | ReadGroup | GroupRead
    | PlaceGroup | DeleteGroup
)  # fmt: skip
