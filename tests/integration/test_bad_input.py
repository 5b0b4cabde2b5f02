"""Nothing that a remote side sends, or leaves unsent, crashes or stalls a broker, or makes it grow or log without bound."""

import json
import os
import random
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from streamq.model.batches import BatchHeader
from streamq.model.ids import NO_PRODUCER
from streamq.model.messages import Heartbeat, Hello, Metadata, MetadataView, Open, Produce, Produced, Records, Seal, Subscribe, Welcome
from streamq.model.registers import PartitionRegister
from streamq.wire.batch_format import encode_batch
from streamq.wire.framing import PREAMBLE, Frame, FrameReader, encode_frame
from streamq.wire.records import pack_rows
from tests.integration.local import LocalCluster, local_cluster

MEMORY_GROWTH_MAX = 100 << 20
LOG_BYTES_MAX = 64 << 10


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster() as running:
        running.run("topic", "create", "t")
        running.produce("t", [b"before"])
        yield running


class Raw:
    """A socket to b1 that may misbehave."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.socket = socket.create_connection(("127.0.0.1", cluster.port), timeout=10)
        self.reader = FrameReader()
        self.arrived: deque[Frame] = deque()

    def hello(self) -> "Raw":
        self.send(PREAMBLE, *encode_frame(Hello((1, 1), (), "test"), request=1))
        assert isinstance(self.frame().message, Welcome)
        return self

    def send(self, *parts: bytes) -> None:
        self.socket.sendall(b"".join(parts))

    def frame(self) -> Frame:
        """The next one that is no heartbeat: whoever is kept waiting hears those, too."""
        while True:
            while self.arrived:
                frame = self.arrived.popleft()
                if not isinstance(frame.message, Heartbeat):
                    return frame
            data = self.socket.recv(1 << 16)
            if not data:
                raise EOFError
            self.arrived.extend(self.reader.feed(data))

    def is_closed_by_the_broker(self) -> bool:
        try:
            while self.socket.recv(1 << 16):
                pass
        except ConnectionResetError:
            pass
        except TimeoutError:
            return False
        return True


def resident(cluster: LocalCluster, name: str = "b1") -> int:
    for line in Path(f"/proc/{cluster.pid(name)}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise AssertionError


def check_healthy(cluster: LocalCluster, memory_before: int, log_before: int) -> None:
    cluster.produce("t", [b"still here"])
    assert cluster.tail("t", bootstrap=cluster.address("b1"))[-1] == b"still here"
    assert resident(cluster) - memory_before < MEMORY_GROWTH_MAX
    assert len(cluster.log("b1")) - log_before < LOG_BYTES_MAX


HELLO = b"".join(encode_frame(Hello((1, 1), (), "t"), request=1))
GARBAGE = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\x00" * 100,
    PREAMBLE[:-1] + b"\x02" + HELLO,
    PREAMBLE + b"\xff" * 64,
    PREAMBLE + struct.pack("<IIIB3xI", 0xFFFF_FFFF, 0, 1, 0, 0),
    PREAMBLE + struct.pack("<IIIB3xI", 10, 0xFFFF_FFFF, 1, 0, 0),
    PREAMBLE + b"".join(encode_frame(Metadata(()), request=1)),
    PREAMBLE + HELLO[:-3] + b"xyz",
]


@pytest.mark.parametrize("first", GARBAGE)
def test_garbage_on_the_port_ends_that_connection_only(cluster: LocalCluster, first: bytes) -> None:
    raw = Raw(cluster)
    raw.send(first)
    assert raw.is_closed_by_the_broker()
    cluster.produce("t", [b"x"])


def test_a_flood_of_garbage_is_logged_within_a_bound(cluster: LocalCluster) -> None:
    memory, log = resident(cluster), len(cluster.log("b1"))
    rng = random.Random(3)
    for i in range(400):
        raw = Raw(cluster)
        raw.send(rng.randbytes(50) if i % 2 else PREAMBLE + HELLO + rng.randbytes(50))
        raw.socket.close()
    check_healthy(cluster, memory, log)


def test_an_unknown_version_is_told_which_ones_there_are(cluster: LocalCluster) -> None:
    raw = Raw(cluster)
    raw.send(PREAMBLE, *encode_frame(Hello((7, 9), (), "t"), request=1))
    failure = raw.frame().message
    assert getattr(failure, "code", "") == "wrong_version"
    assert "1 to 1" in failure.message


def test_frames_after_the_handshake_that_make_no_sense_end_the_connection(cluster: LocalCluster) -> None:
    good = b"".join(encode_frame(Metadata(("t",)), request=2))
    tag = msgspec.msgpack.encode([999, 1, 2])
    import google_crc32c

    def framed(header: bytes) -> bytes:
        prefix = struct.pack("<IIIB3x", len(header), 0, 5, 0)
        return prefix + struct.pack("<I", google_crc32c.value(prefix + header)) + header

    for bad in (
        good[:-1] + bytes([good[-1] ^ 1]),
        framed(tag),
        framed(b"\xc1"),
        framed(b"\x91" * 5_000),
        framed(msgspec.msgpack.encode([10, [7] * 10])),
        b"".join(encode_frame(Seal(b"p" * 16, 1, 0), request=3)),
        b"".join(encode_frame(Open(PartitionRegister(b"p" * 16, "x", 0, (), 1, 1, "fsync", 0, ())), request=3)),
        b"".join(encode_frame(Produced((), ()))),
    ):
        raw = Raw(cluster).hello()
        raw.send(bad)
        assert raw.is_closed_by_the_broker()
    cluster.produce("t", [b"x"])


def partition_of(raw: Raw) -> tuple[bytes, str]:
    raw.send(*encode_frame(Metadata(("t",)), request=2))
    view = raw.frame().message
    assert isinstance(view, MetadataView)
    return view.topics[0].partitions[0].id, view.topics[0].partitions[0].sequencer


def test_bad_batches_are_refused_one_by_one_and_the_connection_lives(cluster: LocalCluster) -> None:
    raw = Raw(cluster).hello()
    partition, _ = partition_of(raw)
    raw_rows = pack_rows([(None, None, b"v", None)])
    header = BatchHeader(partition, 1, 0, len(raw_rows), 0, NO_PRODUCER, 0, 0, 0, 0, 0, 0, 0, compression=0)
    good = encode_batch(header, raw_rows)
    stamped = encode_batch(msgspec.structs.replace(header, epoch=9, base=77, append_time=1), raw_rows)
    elsewhere = encode_batch(msgspec.structs.replace(header, partition=b"z" * 16), raw_rows)
    bad = [
        good.head + good.payload[:-1] + b"\x00",  # a valid header with a wrong checksum of the payload
        good.head[:50] + b"\xff" + good.head[51:] + good.payload,
        good.head,
        os.urandom(300),
        stamped.head + stamped.payload,
        elsewhere.head + elsewhere.payload,
        b"",
    ]
    for ticket, payload in enumerate(bad):
        raw.send(*encode_frame(Produce((ticket,)), payload=[payload]))
        answer = raw.frame().message
        while not isinstance(answer, Produced):
            answer = raw.frame().message
        assert [n.ticket for n in answer.nacks] == [ticket]
        assert answer.nacks[0].code in ("bad_batch", "not_sequencer")
    raw.send(*encode_frame(Metadata(("t",)), request=9))
    assert isinstance(raw.frame().message, MetadataView)


def test_connections_that_say_nothing_or_half_a_frame_cost_little_and_are_bounded(cluster: LocalCluster) -> None:
    memory, log = resident(cluster), len(cluster.log("b1"))
    silent = [Raw(cluster) for _ in range(100)]
    half = [Raw(cluster).hello() for _ in range(25)]
    for raw in half:
        raw.socket.settimeout(0.2)
        try:  # 6 MiB of a frame of 7: together far more than the budget for incomplete frames
            raw.send(struct.pack("<IIIB3xI", 10, 7 << 20, 1, 0, 0))
            raw.send(bytes(6 << 20))
        except (TimeoutError, BrokenPipeError, ConnectionResetError):
            pass
    check_healthy(cluster, memory, log)
    for raw in (*silent, *half):
        raw.socket.close()
    check_healthy(cluster, memory, log)


def test_a_client_that_never_reads_is_fed_no_more_than_its_credit(cluster: LocalCluster) -> None:
    rng = random.Random(5)
    cluster.produce("t", [rng.randbytes(400).hex().encode() for _ in range(60_000)], "--compression", "none")
    memory, log = resident(cluster), len(cluster.log("b1"))
    greedy = []
    for _ in range(20):
        raw = Raw(cluster).hello()
        raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        partition, _ = partition_of(raw)
        for request in range(10, 30):
            raw.send(*encode_frame(Subscribe(partition, 0, 1 << 60), request=request))
        greedy.append(raw)
    time.sleep(2)
    check_healthy(cluster, memory, log)
    for raw in greedy:
        raw.socket.close()


def test_a_subscription_past_the_tip_or_below_zero_is_refused(cluster: LocalCluster) -> None:
    raw = Raw(cluster).hello()
    partition, _ = partition_of(raw)
    raw.send(*encode_frame(Subscribe(partition, 1 << 40, 1000), request=5))
    frame = raw.frame()
    while isinstance(frame.message, Records):
        frame = raw.frame()
    assert getattr(frame.message, "code", "") == "offset_ahead"
    raw.send(*encode_frame(Subscribe(b"?" * 16, 0, 1000), request=6))
    assert getattr(raw.frame().message, "code", "") == "unknown_partition"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("topic", "create", "x", "--replicas", "3", "--write-quorum", "1", "--read-quorum", "2"), 2, b"exceed"),
        (("topic", "create", "x", "--write-quorum", "4"), 2, b"write quorum"),
        (("topic", "create", "x", "--read-quorum", "9"), 2, b"read quorum"),
        (("topic", "create", "x", "--replicas", "5"), 2, b"5 replicas"),
        (("topic", "create", "no spaces"), 2, b"orders"),
        (("topic", "create", "t"), 7, b"exists"),
        (("topic", "describe", "nothing"), 3, b"nothing"),
        (("topic", "rm", "nothing", "--yes"), 3, b"nothing"),
        (("produce", "nothing"), 3, b"nothing"),
        (("tail", "nothing"), 3, b"nothing"),
        (("tail", "t", "--from", "999999999"), 7, b"tip"),
        (("tail", "t", "--from", "yesterdayish"), 2, b"yesterdayish"),
        (("tail", "t", "--partition", "7"), 3, b"7"),
    ],
)
def test_the_command_line_says_what_is_wrong(cluster: LocalCluster, words: tuple[str, ...], code: int, says: bytes) -> None:
    done = cluster.run(*words, expect=code, stdin=b"x\n")
    assert says in done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stdout == b""


def test_an_unreachable_bootstrap_fails_within_ten_seconds_and_says_what_was_tried(cluster: LocalCluster) -> None:
    began = time.monotonic()
    done = cluster.run("tail", "t", "--bootstrap", "127.0.0.1:1,127.0.0.1:2", expect=4)
    assert time.monotonic() - began < 10
    assert b"127.0.0.1:1" in done.stderr
    assert b"127.0.0.1:2" in done.stderr


def test_a_record_over_the_limit_is_refused_and_the_others_are_acked(cluster: LocalCluster, tmp_path: Path) -> None:
    rejects = tmp_path / "rejects"
    cluster.run("topic", "create", "limits")
    cluster.run("produce", "limits", "--rejects", str(rejects), stdin=b"a\n" + b"x" * (2 << 20) + b"\nb\n", expect=6)
    assert cluster.tail("limits") == [b"a", b"b"]
    [rejected] = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert rejected["outcome"] == "refused"
    assert rejected["code"] == "record_too_large"
    assert "line 2" in rejected["message"]


def test_empty_input_is_fine_and_an_empty_line_is_a_record(cluster: LocalCluster) -> None:
    cluster.run("topic", "create", "empties")
    cluster.run("produce", "empties", stdin=b"")
    cluster.run("produce", "empties", stdin=b"\n\r\n\nlast")
    assert cluster.tail("empties") == [b"", b"\r", b"", b"last"]
