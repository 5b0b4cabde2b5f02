"""Places in a log as people write them."""

import datetime

import pytest

from streamq.cli.places import AtOffset, AtTime, End, FromEnd, Start, parse_place, parse_time
from streamq.model.errors import RefusedError

NOW_MS = 1_700_000_000_000


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("start", Start()),
        ("end", End()),
        ("0", AtOffset(0)),
        ("1234", AtOffset(1234)),
        ("-10", FromEnd(10)),
        ("5m", AtTime(NOW_MS - 300_000)),
        ("1.5h", AtTime(NOW_MS - 5_400_000)),
        ("@1700000000.25", AtTime(NOW_MS + 250)),
        ("@1700000000250", AtTime(NOW_MS + 250)),
        ("2023-11-14T22:13:20+00:00", AtTime(NOW_MS)),
        ("2023-11-14T22:13:20Z", AtTime(NOW_MS)),
        ("99999999w", AtTime(0)),
    ],
)
def test_places(text: str, place: object) -> None:
    assert parse_place(text, option="--from", now_ms=NOW_MS) == place
    assert type(parse_place(text, option="--from", now_ms=NOW_MS)) is type(place)


def test_a_time_without_a_zone_is_local() -> None:
    moment = datetime.datetime(2023, 11, 14, 12, 30)
    assert parse_place("2023-11-14T12:30", option="--from", now_ms=NOW_MS) == AtTime(round(moment.timestamp() * 1000))
    today = datetime.datetime.fromtimestamp(NOW_MS / 1000).replace(hour=9, minute=5, second=0, microsecond=0)
    assert parse_place("9:05", option="--from", now_ms=NOW_MS) == AtTime(round(today.timestamp() * 1000))


@pytest.mark.parametrize("text", ["", "soon", "5 m", "25:00", "99999999999999999999", "9999999999999999999", "--1", "2023-13-01"])
def test_anything_else_is_refused_with_examples(text: str) -> None:
    with pytest.raises(RefusedError) as refused:
        parse_place(text, option="--from", now_ms=NOW_MS)
    assert refused.value.code == "usage"
    assert refused.value.hint


def test_what_is_no_time_is_told_with_times_only() -> None:
    with pytest.raises(RefusedError) as refused:
        parse_time("5", option="--since", now_ms=NOW_MS)
    assert refused.value.message == "--since: '5' is no time"
    assert "offset" not in refused.value.hint
