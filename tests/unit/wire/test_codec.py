"""Messages come back as they were, take and ignore fields as versions come and go, and nothing malformed gets through."""

import contextlib
import typing

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamq.model.errors import ProtocolError
from streamq.model.ids import Ballot, Member
from streamq.model.messages import AnyMessage, Failure, Prepare, Seal, TipAnswer
from streamq.model.registers import PartitionRegister, Segment
from streamq.wire.codec import decode_message, decode_value, encode, encode_message

KINDS = typing.get_args(AnyMessage)


def test_every_message_has_a_number_of_its_own() -> None:
    tags = [kind.__struct_config__.tag for kind in KINDS]
    assert len(set(tags)) == len(tags)


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_no_bytes_crash_the_decoder(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        decode_message(data)


@given(
    st.recursive(
        st.none() | st.integers(-5, 2**64 - 1) | st.binary(max_size=20) | st.text(max_size=5),
        lambda x: st.lists(x, max_size=6),
        max_leaves=12,
    )
)
@settings(max_examples=300)
def test_no_well_formed_value_of_the_wrong_shape_crashes_the_decoder(value: object) -> None:
    for kind in KINDS:
        try:
            decode_message(msgspec.msgpack.encode([kind.__struct_config__.tag, value, value]))
        except ProtocolError:
            continue


def test_later_versions_may_add_fields_at_the_end() -> None:
    seal = [62, b"p" * 16, 3, 40]
    assert decode_message(msgspec.msgpack.encode([*seal, "new", {"field": 1}])) == Seal(b"p" * 16, 3, 40)


def test_missing_trailing_fields_take_their_defaults() -> None:
    assert decode_message(msgspec.msgpack.encode([3, "busy", "later"])) == Failure("busy", "later")


@pytest.mark.parametrize("field", [-1, 1 << 63, "1", None, 1.5])
def test_offsets_outside_their_range_are_refused(field: object) -> None:
    with pytest.raises(ProtocolError):
        decode_message(msgspec.msgpack.encode([69, 1, field, False, 0, False]))


def test_identities_have_sixteen_bytes() -> None:
    with pytest.raises(ProtocolError):
        decode_message(msgspec.msgpack.encode([62, b"short", 1, 0]))


def test_deep_nesting_is_refused_and_does_not_exhaust_the_stack() -> None:
    with pytest.raises(ProtocolError):
        decode_message(b"\x91" * 100_000 + b"\xc0")


def test_messages_and_registers_come_back_as_they_were() -> None:
    prepare = Prepare(1, "topic/x", Ballot(3, "b1", b"s"))
    assert decode_message(encode_message(prepare)) == prepare
    assert decode_message(encode_message(TipAnswer(2, 9, True, 7, False))) == TipAnswer(2, 9, True, 7, False)
    segment = Segment(1, 0, None, (Member("b1", b"i" * 16),), 1, 1, "fsync", "b1", b"a" * 16)
    register = PartitionRegister(b"p" * 16, "t", 0, ("b1",), 1, 1, "fsync", 0, (segment,))
    again = decode_value(PartitionRegister, encode(register))
    assert again == register
    assert isinstance(again.last.replicas[0], Member)
    with pytest.raises(ProtocolError):
        decode_value(PartitionRegister, b"\xc0")
