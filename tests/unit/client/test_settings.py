"""Addresses and times."""

import pytest

from streamq.client.settings import Address, Timeouts, parse_bootstrap
from streamq.model.errors import RefusedError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost:7700", [("localhost", 7700)]),
        ("a:1, b:2 ,a:1", [("a", 1), ("b", 2)]),
        ("host", [("host", 7700)]),
        ("[::1]:80", [("::1", 80)]),
        ("[::1]", [("::1", 7700)]),
        (["a:1", "b:2,c:3"], [("a", 1), ("b", 2), ("c", 3)]),
    ],
)
def test_bootstrap_is_any_list_of_addresses(text: str | list[str], expected: list[tuple[str, int]]) -> None:
    assert list(parse_bootstrap(text)) == expected


@pytest.mark.parametrize("text", ["", " , ", "a:", ":1", "a:0", "a:65536", "a:x", "a b:1", "a:-1", "a:²"])
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(RefusedError) as caught:
        parse_bootstrap(text)
    assert "localhost:7700" in caught.value.hint


def test_an_address_is_shown_as_it_is_given() -> None:
    assert str(Address("::1", 80)) == "[::1]:80"
    assert str(Address("b1", 80)) == "b1:80"


def test_a_timeout_of_nothing_is_refused() -> None:
    with pytest.raises(RefusedError):
        Timeouts(silence_s=0)
