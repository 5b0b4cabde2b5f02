"""Sizes and spans of time as they are typed."""

import argparse

import pytest

from streamq.cli.arguments import parse_size, parse_span
from streamq.cli.output import span


@pytest.mark.parametrize(("text", "expected"), [("1", 1), ("10GB", 10**10), ("512MiB", 512 << 20), ("1.5k", 1_500), ("2TiB", 2 << 40)])
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("500ms", 500), ("90s", 90_000), ("1.5h", 5_400_000), ("7d", 604_800_000), ("1w", 604_800_000)]
)
def test_spans(text: str, expected: int) -> None:
    assert parse_span(text) == expected


@pytest.mark.parametrize("text", ["", "7", "d", "-7d", "7 days", "0s", "7D", "1e3s", "99999999999999w"])
def test_what_is_no_span_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_span(text)


@pytest.mark.parametrize("text", ["1ms", "1500ms", "90s", "61m", "25h", "7d"])
def test_a_span_is_told_as_it_may_be_typed(text: str) -> None:
    assert span(parse_span(text)) == text
