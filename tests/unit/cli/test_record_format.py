"""Printing records and reading them back."""

import json
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamq.cli.record_format import compile_format, for_people, parse_record, record_fields, rejected_line, to_json
from streamq.model.errors import RefusedError


class Record(NamedTuple):
    topic: str = "orders"
    partition: int = 3
    offset: int = 17
    timestamp: int = 1_700_000_000_123
    key: bytes | None = b"u1"
    value: bytes | None = b"pizza"
    headers: dict[str, bytes] = {}  # noqa: RUF012 (never changed)


contents = st.none() | st.binary(max_size=30) | st.text(max_size=20).map(str.encode)


@given(contents, contents, st.dictionaries(st.text(max_size=5), st.binary(max_size=10), max_size=3), st.integers(0, 2**40))
@settings(max_examples=100)
def test_an_object_is_read_back_unchanged(key: bytes | None, value: bytes | None, headers: dict[str, bytes], timestamp: int) -> None:
    line = to_json(Record(key=key, value=value, headers=headers, timestamp=timestamp))
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert parse_record(line) == (value, key, headers or None, timestamp)


def test_an_object_is_flat_and_readable() -> None:
    row = json.loads(to_json(Record()))
    assert row == {"topic": "orders", "partition": 3, "offset": 17, "timestamp": 1_700_000_000_123, "key": "u1", "value": "pizza"}
    assert record_fields(b"\xff", None, None) == {"value_base64": "/w==", "key": None}


@pytest.mark.parametrize("line", [b"", b"[]", b"{", b'{"value": 3}', b'{"value_base64": "not base64"}', b"\xff"])
def test_what_is_no_record_is_refused(line: bytes) -> None:
    with pytest.raises(RefusedError) as refused:
        parse_record(line)
    assert refused.value.code == "bad_request"


@pytest.mark.parametrize(
    ("form", "printed"),
    [
        (r"%t/%p@%o %k %v\n", b"orders/3@17 u1 pizza\n"),
        (r"%K %V %d%%", b"2 5 1700000000123%"),
        (r"%h %H\t", b"a=b,c=d 2\t"),
        (r"\x00\\%v", b"\0\\pizza"),
        (r"%d{%Y}", b"2023"),
        ("{%v}", b"{pizza}"),
        ("", b""),
    ],
)
def test_formats(form: str, printed: bytes) -> None:
    assert compile_format(form)(Record(headers={"a": b"b", "c": b"d"})) == printed


@pytest.mark.parametrize("form", ["%z", "100%", r"\q", "\\"])
def test_a_letter_that_is_none_is_named(form: str) -> None:
    with pytest.raises(RefusedError) as refused:
        compile_format(form)
    assert refused.value.code == "usage"


def test_a_line_for_people_sends_no_control_characters_to_the_terminal() -> None:
    line = for_people(Record(value=b"\x1b[2Jx\ny\xff", key=None), colours=False, topic_width=6)
    assert line.isprintable()
    assert "orders/3@17" in line


def test_a_format_may_hold_bytes_that_are_no_text() -> None:
    assert compile_format(r"\n%v%t{x}".replace("x", "\udcfe") + "\udcff")(Record()) == b"\npizzaorders{\xfe}\xff"


@pytest.mark.parametrize("line", [b"no object", b"\xff", b""])
def test_a_line_that_was_refused_is_never_read_back_as_a_record(line: bytes) -> None:
    row = json.dumps({"record": 4, "outcome": "refused", **rejected_line(line)})
    with pytest.raises(RefusedError) as refused:
        parse_record(row.encode())
    assert "mend the line" in refused.value.message
