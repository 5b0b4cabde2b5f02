"""Codecs: what goes in comes back, and what is none of it is refused."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamq.client.codecs import Json, MsgPack, Structs, Text
from streamq.model.errors import DecodeError, RefusedError
from streamq_consumer import Record, decode
from streamq_producer.typed import encoded, encoded_many

scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text()
plain = st.recursive(scalars, lambda values: st.lists(values) | st.dictionaries(st.text(), values))


class Order(msgspec.Struct):
    item: str
    count: int


@given(st.text())
def test_text_comes_back(value: str) -> None:
    assert Text.decode(Text.encode(value)) == value


@given(plain)
def test_plain_values_come_back(value: Any) -> None:
    assert Json.decode(Json.encode(value)) == value
    assert MsgPack.decode(MsgPack.encode(value)) == value


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_structs_come_back_and_nothing_else_goes_in_or_out(encoding: Any) -> None:
    codec = Structs(Order, encoding=encoding)
    assert codec.decode(codec.encode(Order("pizza", 2))) == Order("pizza", 2)
    with pytest.raises(RefusedError) as refused:
        encoded(codec, "pizza")  # type: ignore[arg-type]
    assert refused.value.code == "bad_value"
    with pytest.raises(DecodeError):
        decode(Record("t", 0, 0, 0, None, b'{"item": 3}'), codec)


def test_a_record_that_cannot_be_decoded_says_where_it_is_and_is_kept() -> None:
    record = Record("t", 3, 14, 0, b"k", b"\xff")
    with pytest.raises(DecodeError, match="t/3@14") as failed:
        decode(record, Text)
    assert failed.value.record is record
    assert failed.value.exit_code == 8


def test_tombstones_pass_by_the_codec() -> None:
    assert encoded(Json, None) is None
    assert decode(Record("t", 0, 0, 0, b"k", None), Text).value is None
    with pytest.raises(RefusedError):
        encoded_many(Text, ["a", None])  # type: ignore[list-item]
