"""An export comes back as it was, however it is cut into pieces; damage anywhere is noticed, and so is an end that is missing."""

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamq.model.errors import CorruptDataError
from streamq.wire import export_format
from streamq.wire.export_format import DataBlock, ExportHead, ExportReader, ExportWriter
from streamq_consumer import Record

contents = st.none() | st.binary(max_size=40)
records = st.builds(
    lambda partition, gap, timestamp, key, value, headers: (partition, gap, timestamp, key, value, headers),
    st.integers(0, 4),
    st.integers(1, 3),
    st.integers(0, (1 << 63) - 1),
    contents,
    contents,
    st.dictionaries(st.text(max_size=8), st.binary(max_size=20), max_size=3),
)


def made(rows: list[tuple[int, int, int, bytes | None, bytes | None, dict[str, bytes]]]) -> list[Record]:
    """Offsets of each partition rise, with gaps as a range by time leaves them."""
    ends: dict[int, int] = {}
    result = []
    for partition, gap, timestamp, key, value, headers in rows:
        ends[partition] = offset = ends.get(partition, -1) + gap
        result.append(Record("t", partition, offset, timestamp, key, value, headers))
    return result


def write(exported: list[Record]) -> bytes:
    writer = ExportWriter()
    return b"".join([writer.begin(ExportHead("t", 5)), writer.add(exported[:3]), writer.add(exported[3:]), writer.end()])


def read(data: bytes, *, piece: int = 1 << 20) -> tuple[ExportReader, list[Record]]:
    reader = ExportReader()
    got: list[Record] = []
    for at in range(0, len(data), piece):
        for block in reader.feed(data[at : at + piece]):
            got += [Record("t", block.partition, r.offset, r.timestamp, r.key, r.value, r.headers or {}) for r in block.records]
    reader.end()
    return reader, got


@given(st.lists(records, max_size=30), st.integers(1, 200))
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_back(rows: list, piece: int) -> None:  # type: ignore[type-arg]
    exported = made(rows)
    reader, got = read(write(exported), piece=piece)
    assert reader.head == ExportHead("t", 5)
    assert reader.is_complete
    for partition in range(5):
        assert [r for r in got if r.partition == partition] == [r for r in exported if r.partition == partition]
    assert sum(reader.counts.values()) == len(exported)


def feed_all(data: bytes, got: list[DataBlock], *, piece: int = 64) -> None:
    reader = ExportReader()
    for first in range(0, len(data), piece):
        for block in reader.feed(data[first : first + piece]):
            got.append(block)  # noqa: PERF402 (an error comes in between)
    reader.end()


@given(st.lists(records, min_size=1, max_size=12), st.data())
@settings(max_examples=100, deadline=None)
def test_a_byte_that_is_wrong_or_a_part_that_is_missing_is_noticed(rows: list, data: st.DataObject) -> None:  # type: ignore[type-arg]
    """Whatever was handed out before is right, and in order."""
    exported = made(rows)
    whole = write(exported)
    at = data.draw(st.integers(0, len(whole) - 1))
    damage = data.draw(st.sampled_from(["flip", "cut", "remove", "repeat", "append"]))
    broken = {
        "flip": whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :],
        "cut": whole[:at],
        "remove": whole[: at // 2] + whole[at // 2 + 1 :],
        "repeat": whole[: at + 1] + whole[: at + 1] if at + 1 < len(whole) else whole + whole,
        "append": whole + b"\0",
    }[damage]
    got: list[DataBlock] = []
    with pytest.raises(CorruptDataError) as noticed:
        feed_all(broken, got)
    for block in got:
        expected = [r for r in exported if r.partition == block.partition]
        assert [r.offset for r in block.records] == [r.offset for r in expected][: len(block.records)]
    assert noticed.value.code == "data_damaged"
    assert ("no record was read" in noticed.value.message) == (not got)


@example(b"")
@example(export_format.MAGIC)
@example(b"SQB1" * 30)
@given(st.binary(max_size=200))
@settings(max_examples=60)
def test_what_is_no_export_is_never_one(data: bytes) -> None:
    with pytest.raises(CorruptDataError):
        feed_all(export_format.MAGIC * (len(data) % 2) + data, [])


def test_what_is_good_before_damage_is_handed_out() -> None:
    writer = ExportWriter()
    good = b"".join([writer.begin(ExportHead("t", 1)), writer.add([Record("t", 0, 7, 1, b"k", b"v")]), writer._close(0)])
    got: list[DataBlock] = []
    with pytest.raises(CorruptDataError, match=r"1 record\(s\) were read before it: partition 0 up to offset 7"):
        feed_all(good + bytes(30), got, piece=1_000)
    assert [record.value for block in got for record in block.records] == [b"v"]


def test_blocks_that_are_whole_and_in_the_wrong_place_are_noticed() -> None:
    """A block that is left out, or one of another export, has a number that is wrong or an end that does not fit."""
    writer = ExportWriter()
    begin = writer.begin(ExportHead("t", 2))
    blocks = []
    for offset in range(2):
        writer.add([Record("t", 0, offset, 1, None, b"x")])
        blocks.append(writer._close(0))
    end = writer.end()
    assert read(begin + b"".join(blocks) + end)[0].is_complete
    foreign = ExportWriter().begin(ExportHead("t", 2))[8:]
    for wrong in (begin + blocks[1] + end, begin + blocks[0] + end, begin + blocks[1] + blocks[0] + end, begin + foreign + end):
        with pytest.raises(CorruptDataError):
            read(wrong)
    odd = ExportWriter()
    written = odd.begin(ExportHead("t", 2)) + odd.add([Record("t", 0, 0, 1, None, b"x")]) + odd._close(0)
    odd.counts = {0: 5}
    with pytest.raises(CorruptDataError, match="should have 5"):
        read(written + odd.end())
    with pytest.raises(CorruptDataError, match="version 2"):
        read(ExportWriter().begin(msgspec.structs.replace(ExportHead("t", 2), version=2)))


def test_memory_stays_bounded_over_many_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_format, "GATHERED_BYTES_MAX", 50_000)
    monkeypatch.setattr(export_format, "BLOCK_RAW_BYTES", 10_000)
    writer = ExportWriter()
    out = [writer.begin(ExportHead("t", 200))]
    exported = [Record("t", i % 200, i // 200, i, None, bytes(300)) for i in range(2_000)]
    for record in exported:
        out.append(writer.add([record]))
        assert writer._gathered_bytes <= 50_000
    out.append(writer.add([Record("t", 0, 10, 1, None, bytes(1 << 20), {"h": b"x"})]))
    reader, got = read(b"".join([*out, writer.end()]), piece=1_000)
    assert len(got) == 2_001
    assert len(reader.counts) == 200
