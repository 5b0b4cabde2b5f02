"""Every decoder under raw bytes, valid encodings made wrong, and valid encodings of wild values. See `target` for what is asked of them."""

import ast
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamq
from streamq.model.limits import BATCH_RAW_BYTES_MAX
from streamq.model.messages import Message
from streamq.wire.compression import compress
from tests.fuzz.mutation import mutate
from tests.fuzz.target import Target, attempt, measured
from tests.fuzz.targets import MESSAGES, TARGETS
from tests.fuzz.wild import Wild

SOURCES = Path(streamq.__file__).parent
DECODERS = (
    "decode_",
    "unpack_",
    "split_batches",
    "load_identity",
    "receive_hello",
    "greet",
    "recover",
    "decompress",
    "records_of",
    "error_of",
)
quick = settings(max_examples=6, deadline=None, database=None)
every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
seeds = st.integers(0, (1 << 32) - 1)


@pytest.fixture(autouse=True, scope="module")
def _memory_is_measured() -> Iterator[None]:
    with measured():
        yield


@every_target
def test_any_bytes_are_decoded_or_refused(target: Target) -> None:
    @quick
    @given(st.binary(max_size=300))
    def holds(data: bytes) -> None:
        attempt(target, data)

    holds()


@every_target
def test_a_valid_encoding_made_wrong_is_decoded_or_refused(target: Target) -> None:
    @settings(quick, max_examples=10)
    @given(st.randoms(use_true_random=False), seeds)
    def holds(rng: random.Random, seed: int) -> None:
        valid = target.valid(Wild(random.Random(seed)))
        attempt(target, mutate(rng, valid))

    holds()


@every_target
def test_a_valid_encoding_is_accepted(target: Target) -> None:
    @quick
    @given(seeds)
    def holds(seed: int) -> None:
        assert attempt(target, target.valid(Wild(random.Random(seed)))).is_accepted

    holds()


def test_every_message_has_a_target_and_a_number_of_its_own() -> None:
    assert set(MESSAGES) == set(Message.__subclasses__())
    assert {f"message.{kind.__name__}" for kind in MESSAGES} <= set(TARGETS)
    numbers = [kind.__struct_config__.tag for kind in MESSAGES]
    assert len(set(numbers)) == len(numbers)


def test_every_decoder_of_the_packages_is_called_by_a_target() -> None:
    called = {
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for path in Path(__file__).parent.glob("*targets.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    }
    folders = [SOURCES / folder for folder in ("wire", "model", "net", "storage")] + [
        SOURCES.parent / "consumers",
        SOURCES.parent / "producers",
    ]
    defined = {
        node.name
        for folder in folders
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith(DECODERS)
    }
    assert len(defined) > 15
    assert defined - called == set()


def test_a_bomb_costs_what_its_header_announces() -> None:
    """Some hundred bytes that decompress to many records, each as costly as the format allows."""
    count = 100_000
    raw = b"\xdd" + count.to_bytes(4, "big") + b"\x94\xc0\xc0\xc0\x80" * count
    payload = compress(raw, level=19)
    assert len(payload) < 500
    assert attempt(TARGETS["compressed"], len(raw).to_bytes(4, "little") + b"\1" + payload).is_accepted
    assert attempt(TARGETS["records"], count.to_bytes(4, "little") + raw).is_accepted
    too_large = compress(bytes(BATCH_RAW_BYTES_MAX + 1), level=19)
    for announced in (1, BATCH_RAW_BYTES_MAX, BATCH_RAW_BYTES_MAX + 1, (1 << 32) - 1):
        assert not attempt(TARGETS["compressed"], announced.to_bytes(4, "little") + b"\1" + too_large).is_accepted


def test_a_target_that_lies_is_caught() -> None:
    """Of the checks: a decoder that takes too much memory, and one that raises what it does not document."""

    def greedy(data: bytes) -> object:
        return bytearray(len(data) * 1_000_000)

    def sloppy(data: bytes) -> object:
        return data[0]

    valid = TARGETS["records"].valid
    with pytest.raises(AssertionError, match="bytes of memory"):
        attempt(Target("greedy", greedy, valid, ()), b"x")
    with pytest.raises(IndexError):
        attempt(Target("sloppy", sloppy, valid, (ValueError,)), b"")
    assert not attempt(Target("strict", sloppy, valid, (IndexError,)), b"").is_accepted
