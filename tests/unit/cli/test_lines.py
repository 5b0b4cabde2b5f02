"""Splitting into records: byte for byte, whatever pieces the input comes in."""

from hypothesis import given, settings
from hypothesis import strategies as st

from streamq.cli.lines import LineSplitter

LIMIT = 200
pieces = st.lists(st.binary(max_size=40) | st.sampled_from([b"\n", b"\n\n", b"\r\n", b"a\nb", b"x" * 150, b""]), max_size=30)


def split(parts: list[bytes], limit: int = LIMIT) -> tuple[dict[int, bytes], LineSplitter]:
    splitter = LineSplitter(line_bytes_max=limit)
    runs = [run for part in parts for run in splitter.feed(part)] + splitter.end()
    return {first + i: line for first, lines in runs for i, line in enumerate(lines)}, splitter


def expected(whole: bytes) -> list[bytes]:
    lines = whole.split(b"\n")
    return lines[:-1] if lines[-1] == b"" else lines


@given(pieces)
@settings(max_examples=100)
def test_what_comes_out_joined_by_newlines_is_what_went_in(parts: list[bytes]) -> None:
    """Only \\n splits; \\r stays, empty lines are records, a last line without its newline too; too long ones are named, not sent."""
    numbered, splitter = split(parts)
    wanted = dict(enumerate(expected(b"".join(parts))))
    assert numbered == {number: line for number, line in wanted.items() if len(line) <= LIMIT}
    assert {t.number: t.length for t in splitter.too_long} == {number: len(line) for number, line in wanted.items() if len(line) > LIMIT}
    assert splitter.count == len(wanted)


def test_a_line_without_end_is_not_kept_in_memory() -> None:
    splitter = LineSplitter(line_bytes_max=LIMIT)
    for _ in range(1000):
        assert splitter.feed(b"x" * 1000) == []
        assert sum(map(len, splitter._rest)) <= LIMIT
    [run] = splitter.feed(b"\nnext\n")
    assert run == (1, [b"next"])
    assert splitter.too_long[0].length == 1_000_000


def test_nothing_is_no_record() -> None:
    assert split([])[0] == {}
    assert split([b""])[0] == {}
    assert split([b"\n"])[0] == {0: b""}
