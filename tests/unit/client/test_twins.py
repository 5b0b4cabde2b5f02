"""The blocking twins have every name and every parameter of the clients that they stand for, and no other: they cannot part unnoticed.

What differs on purpose stands in `ONLY_ASYNC` and `ONLY_BLOCKING`, each with its reason.
"""

import inspect
import re
from collections.abc import Iterator
from types import FunctionType

import pytest

import streamq_consumer
import streamq_consumer.sync
import streamq_consumer.typed
import streamq_producer
import streamq_producer.sync

TWINS: dict[str, tuple[type, type]] = {
    "Consumer": (streamq_consumer.Consumer, streamq_consumer.sync.Consumer),
    "DeadLetter": (streamq_consumer.DeadLetter, streamq_consumer.sync.DeadLetter),
    "Decoded": (streamq_consumer.typed.Decoded, streamq_consumer.sync.Decoded),
    "Delivery": (streamq_producer.Delivery, streamq_producer.sync.Delivery),
    "Producer": (streamq_producer.Producer, streamq_producer.sync.Producer),
    "TypedTopic": (streamq_producer.TypedTopic, streamq_producer.sync.TypedTopic),
}
ONLY_ASYNC = {
    "Consumer.__init__(host)": "a simulation's machine, whose event loop is the caller's; the blocking twin has a thread of its own",
    "Producer.__init__(host)": "as for the consumer",
    "Consumer.run(drain_s)": "what runs is in threads, which cannot be cancelled: their end is waited for",
    "Consumer.settings": "an attribute that the blocking twin leaves to the consumer in its thread",
    "Producer.settings": "as for the consumer",
    "Delivery.batch": "what the producer itself keeps there; the twin is made of a delivery, not of a batch",
    "Delivery.first": "as `batch`",
    "Delivery.__init__(batch)": "deliveries are made by producers; each kind of what it has",
    "Delivery.__init__(first)": "as `batch`",
    "Delivery.__init__(records)": "as `batch`",
    "Delivery.__init__(indexes)": "as `batch`",
}
ONLY_BLOCKING = {
    "Delivery.__init__(delivery)": "as for its twin: it is made of a delivery",
    "Delivery.__init__(portal)": "as `delivery`: the way into the thread of the event loop",
}
OTHER_TYPES = {
    "Consumer.run(handler)": "a plain function",
    "DeadLetter.__init__(producer)": "a blocking producer",
}
BLOCKING_NAMES = {"__aenter__": "__enter__", "__aexit__": "__exit__", "__aiter__": "__iter__", "__anext__": "__next__"}
MADE_WITH: dict[str, tuple[tuple[object, ...], dict[str, object]]] = {
    "Consumer": (("nowhere:1",), {"topics": ["t"]}),
    "DeadLetter": ((None, "t"), {}),
    "Producer": (("nowhere:1",), {}),
    "TypedTopic": ((None, "t", None), {}),
}


def is_own(name: str) -> bool:
    return not name.startswith("_") or name in BLOCKING_NAMES or name in BLOCKING_NAMES.values() or name == "__init__"


def members(kind: type) -> dict[str, object]:
    found = {name: value for base in reversed(kind.__mro__[:-1]) for name, value in vars(base).items() if is_own(name)}
    return {name: value for name, value in found.items() if base_of(kind, name) not in ("Generic", "Struct")}


def base_of(kind: type, name: str) -> str:
    return next(base.__name__ for base in kind.__mro__ if name in vars(base))


def surface(title: str, kind: type) -> Iterator[tuple[str, str]]:
    """Each name, and each parameter of each method, with its type and default, in words that are the same for both twins."""
    for name, member in members(kind).items():
        place = f"{title}.{BLOCKING_NAMES.get(name, name)}"
        if isinstance(member, property):
            yield place, "property: " + plain(inspect.signature(member.fget).return_annotation)  # type: ignore[arg-type]
        elif isinstance(member, FunctionType):
            signature = inspect.signature(member)
            yield place, "method: " + plain(signature.return_annotation)
            yield from ((f"{place}({p.name})", described(p)) for p in list(signature.parameters.values())[1:])
        else:
            yield place, "attribute"
    if "__init__" not in members(kind):
        yield f"{title}.__init__", "method: None"
        yield from ((f"{title}.__init__({p.name})", described(p)) for p in inspect.signature(kind).parameters.values())
    if title in MADE_WITH:
        words, named = MADE_WITH[title]
        yield from ((f"{title}.{name}", "attribute") for name in vars(kind(*words, **named)) if not name.startswith("_"))


def is_same(one: str, other: str) -> bool:
    """To read an attribute is to read a property."""
    return one == other or ("attribute" in (one, other) and "method" not in one + other)


def described(parameter: inspect.Parameter) -> str:
    return f"{parameter.kind.description}, {plain(parameter.annotation)} = {parameter.default!r}"


def plain(annotation: object) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\bAsync(?=Iterator|Generator)", "", re.sub(r"[\w.]+\.(?=\w)|['\"~]", "", text))


@pytest.mark.parametrize("title", TWINS)
def test_twins_have_the_same_names_parameters_types_and_defaults(title: str) -> None:
    ours, blocking = (dict(surface(title, kind)) for kind in TWINS[title])
    assert sorted(ours.keys() - blocking.keys() - ONLY_ASYNC.keys()) == [], "only under an event loop"
    assert sorted(blocking.keys() - ours.keys() - ONLY_BLOCKING.keys()) == [], "only blocking"
    parted = {
        place: (ours[place], blocking[place])
        for place in ours.keys() & blocking.keys() - OTHER_TYPES.keys()
        if not is_same(ours[place], blocking[place])
    }
    assert parted == {}


def test_what_is_excepted_is_so() -> None:
    """An exception that has become untrue would hide the next difference."""
    ours = {place: told for title, twins in TWINS.items() for place, told in surface(title, twins[0])}
    blocking = {place: told for title, twins in TWINS.items() for place, told in surface(title, twins[1])}
    assert {place for place in ONLY_ASYNC if place not in ours or place in blocking} == set()
    assert {place for place in ONLY_BLOCKING if place not in blocking or place in ours} == set()
    assert {place for place in OTHER_TYPES if place not in ours or ours[place] == blocking.get(place)} == set()


def test_modules_export_their_twins() -> None:
    assert set(streamq_consumer.sync.__all__) >= {"Consumer", "DeadLetter"}
    assert set(streamq_producer.sync.__all__) >= {"Delivery", "Producer", "TypedTopic"}
