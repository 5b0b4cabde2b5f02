"""Creating topics: what is refused before any broker is asked, and what is said about losses."""

from typing import Any

import pytest

from streamq.cli.output import survival
from streamq.cli.topic import check_name, topic_request
from streamq.model.errors import RefusedError
from streamq.model.limits import DEDUP_MS_MAX, DEDUP_MS_MIN, RETENTION_BYTES_MIN, RETENTION_MS_MIN
from streamq.model.quorum import Quorum


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ä", "x" * 201, "a\n", "-o json"])
def test_illegal_names_are_refused(name: str) -> None:
    with pytest.raises(RefusedError) as refused:
        check_name(name)
    assert refused.value.code == "bad_name"


@pytest.mark.parametrize("name", ["a", "x" * 200, "a.b_c-D9", "."])
def test_legal_names_are_taken(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("replicas", range(-1, 12))
def test_numbers_that_are_no_quorum_are_refused_with_an_example_that_is_one(replicas: int) -> None:
    """Everything `Quorum.fault` refuses is refused, nothing else, and what the hint says is sound."""
    for write in range(-1, 12):
        for read in range(-1, 12):
            sound = min(replicas, write, read) >= 1 and Quorum(replicas, write, read).fault() is None
            if sound:
                request = topic_request("t", partitions=1, replicas=replicas, write=write, read=read)
                assert (request.replicas, request.write, request.read) == (replicas, write, read)
                continue
            with pytest.raises(RefusedError) as refused:
                topic_request("t", partitions=1, replicas=replicas, write=write, read=read)
            assert refused.value.code == "bad_quorum"
            words = refused.value.hint.split()
            numbers = [int(words[words.index(flag) + 1]) for flag in ("--replicas", "--write-quorum", "--read-quorum")]
            assert Quorum(*numbers).fault() is None


def test_what_is_not_said_is_left_to_the_broker() -> None:
    request = topic_request("t", partitions=6, replicas=None, write=None, read=None)
    assert (request.replicas, request.write, request.read) == (0, 0, 0)


@pytest.mark.parametrize("partitions", [-1, 0, 2001])
def test_partitions_are_bounded(partitions: int) -> None:
    with pytest.raises(RefusedError):
        topic_request("t", partitions=partitions, replicas=None, write=None, read=None)


def test_survival_is_told_in_numbers_of_brokers() -> None:
    told = survival(replicas=3, write=2, read=2)
    assert told == {
        "acked_records": "1 broker lost for good",
        "append": "1 broker down",
        "takeover": "1 broker down",
        "tip_reads": "1 broker down",
    }
    assert "cannot be replaced" in survival(replicas=3, write=1, read=3)["append"]
    assert survival(replicas=1, write=1, read=1)["acked_records"] == "no broker lost for good"
    assert "only 1 broker if the sequencer is among them" in survival(replicas=5, write=2, read=4)["append"]


def test_retention_is_refused_below_what_files_can_do() -> None:
    quorum: dict[str, Any] = {"partitions": 1, "replicas": None, "write": None, "read": None}
    request = topic_request("t", **quorum, retention_bytes=RETENTION_BYTES_MIN, retention_ms=RETENTION_MS_MIN)
    assert (request.retention_bytes, request.retention_ms) == (RETENTION_BYTES_MIN, RETENTION_MS_MIN)
    assert topic_request("t", **quorum).retention_bytes is None
    assert [topic_request("t", **quorum, dedup_ms=ms).dedup_ms for ms in (None, 0, DEDUP_MS_MIN, DEDUP_MS_MAX)] == [
        None, 0, DEDUP_MS_MIN, DEDUP_MS_MAX,
    ]  # fmt: skip
    windows = ({"dedup_ms": DEDUP_MS_MIN - 1}, {"dedup_ms": DEDUP_MS_MAX + 1})
    for short in ({"retention_bytes": RETENTION_BYTES_MIN - 1}, {"retention_ms": RETENTION_MS_MIN - 1}, *windows):
        with pytest.raises(RefusedError) as refused:
            topic_request("t", **quorum, **short)
        assert refused.value.code == "bad_request"
