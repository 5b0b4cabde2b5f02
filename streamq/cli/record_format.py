"""How a record is printed: value and newline, an object a line, a line for people, or by a format of the user's own; and the way back.

The object is flat: topic, partition, offset, timestamp, key and value as text, or as `key_base64` and `value_base64` where the bytes are
not UTF-8; `headers` and `headers_base64` likewise, left out when there are none. `parse_record` reads it back unchanged.
"""

import base64
import binascii
import datetime
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, Protocol

import msgspec

from streamq.model.errors import RefusedError

__all__ = [
    "ParsedRecord",
    "PrintableRecord",
    "compile_format",
    "for_people",
    "parse_record",
    "record_fields",
    "rejected_line",
    "to_json",
]


class PrintableRecord(Protocol):
    """What is needed of a consumer's record. `timestamp` is in milliseconds since 1970."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Mapping[str, bytes]: ...


class ParsedRecord(NamedTuple):
    """What `produce` sends of an object; None as a timestamp means now."""

    value: bytes | None
    key: bytes | None
    headers: dict[str, bytes] | None
    timestamp: int | None


def record_fields(value: bytes | None, key: bytes | None, headers: Mapping[str, bytes] | None) -> dict[str, object]:
    """Value, key and headers as they stand in an object."""
    fields: dict[str, object] = {}
    _put(fields, "key", key)
    _put(fields, "value", value)
    texts: dict[str, str] = {}
    binaries: dict[str, str] = {}
    for name, content in (headers or {}).items():
        try:
            texts[name] = content.decode("utf-8")
        except UnicodeDecodeError:
            binaries[name] = base64.b64encode(content).decode("ascii")
    if texts:
        fields["headers"] = texts
    if binaries:
        fields["headers_base64"] = binaries
    return fields


def rejected_line(line: bytes) -> dict[str, object]:
    """A line that is no record, for the file of what was refused: `parse_record` never takes it for one."""
    fields: dict[str, object] = {}
    _put(fields, "rejected_line", line)
    return fields


def _put(fields: dict[str, object], name: str, content: bytes | None) -> None:
    if content is None:
        fields[name] = None
        return
    try:
        fields[name] = content.decode("utf-8")
    except UnicodeDecodeError:
        fields[f"{name}_base64"] = base64.b64encode(content).decode("ascii")


def to_json(record: PrintableRecord) -> bytes:
    """One line with its newline."""
    place = {"topic": record.topic, "partition": record.partition, "offset": record.offset, "timestamp": record.timestamp}
    return msgspec.json.encode(place | record_fields(record.value, record.key, record.headers)) + b"\n"


class _Object(msgspec.Struct):
    """The fields of an object that `produce --format json` looks at; others may be there."""

    value: str | None = None
    value_base64: str | None = None
    key: str | None = None
    key_base64: str | None = None
    headers: dict[str, str] | None = None
    headers_base64: dict[str, str] | None = None
    timestamp: int | None = None
    rejected_line: str | None = None
    rejected_line_base64: str | None = None


_object_decoder: Final = msgspec.json.Decoder(_Object)


def parse_record(line: bytes) -> ParsedRecord:
    """The record that an object describes. Raises RefusedError (`bad_request`)."""
    try:
        found = _object_decoder.decode(line)
        if found.rejected_line is not None or found.rejected_line_base64 is not None:
            raise ValueError("the object tells of a line that was refused; mend the line and send that")
        headers = {name: text.encode("utf-8") for name, text in (found.headers or {}).items()}
        headers |= {name: base64.b64decode(text, validate=True) for name, text in (found.headers_base64 or {}).items()}
        return ParsedRecord(
            value=_content(found.value, found.value_base64),
            key=_content(found.key, found.key_base64),
            headers=headers or None,
            timestamp=found.timestamp,
        )
    except (msgspec.MsgspecError, binascii.Error, UnicodeError, ValueError) as error:
        raise RefusedError(f"no record: {error}", code="bad_request", hint='for example {"key":"u1","value":"text"}') from None


def _content(text: str | None, encoded: str | None) -> bytes | None:
    if encoded is not None:
        return base64.b64decode(encoded, validate=True)
    return None if text is None else text.encode("utf-8")


# --- formats ---------------------------------------------------------------------------------------------------------------

Part = bytes | Callable[[PrintableRecord], bytes]

LETTERS: Final[dict[str, Callable[[PrintableRecord], bytes]]] = {
    "t": lambda record: record.topic.encode(),
    "p": lambda record: b"%d" % record.partition,
    "o": lambda record: b"%d" % record.offset,
    "k": lambda record: record.key or b"",
    "v": lambda record: record.value or b"",
    "K": lambda record: b"%d" % len(record.key or b""),
    "V": lambda record: b"%d" % len(record.value or b""),
    "d": lambda record: b"%d" % record.timestamp,
    "h": lambda record: b",".join(name.encode() + b"=" + content for name, content in (record.headers or {}).items()),
    "H": lambda record: b"%d" % len(record.headers or {}),
}
ESCAPES: Final = {"n": b"\n", "t": b"\t", "r": b"\r", "0": b"\0", "\\": b"\\"}
_token: Final = re.compile(
    r"%(?P<letter>.)(?:\{(?P<argument>[^}]*)\})?|\\x(?P<hex>[0-9a-fA-F]{2})|\\(?P<escape>.)|(?P<text>[^%\\]+)|(?P<bad>[%\\])", re.S
)


def compile_format(text: str) -> Callable[[PrintableRecord], bytes]:
    """A function that prints a record in this format. Raises RefusedError (`usage`) that names the letter which is none."""
    parts: list[Part] = []
    for token in _token.finditer(text):
        letter, argument, hexadecimal, escape, plain = token.group("letter", "argument", "hex", "escape", "text")
        if plain is not None:
            parts.append(os.fsencode(plain))
        elif hexadecimal is not None:
            parts.append(bytes.fromhex(hexadecimal))
        elif escape is not None and escape in ESCAPES:
            parts.append(ESCAPES[escape])
        elif letter == "%":
            parts.append(b"%" + (b"{%s}" % os.fsencode(argument) if argument is not None else b""))
        elif letter == "d" and argument is not None:
            parts.append(_time_printer(argument))
        elif letter in LETTERS:
            parts.append(LETTERS[letter])
            if argument is not None:
                parts.append(b"{%s}" % os.fsencode(argument))
        else:
            raise RefusedError(
                f"the format {text!r} has {token[0]!r}, which means nothing",
                code="usage",
                hint=f"letters are {' '.join('%' + known for known in LETTERS)} %%; for example '%t/%p@%o %k %v\\n'",
            )
    return lambda record: b"".join([part if isinstance(part, bytes) else part(record) for part in parts])


def _time_printer(pattern: str) -> Callable[[PrintableRecord], bytes]:
    try:
        _local_time(0).strftime(pattern)
    except (UnicodeError, ValueError):
        raise RefusedError(f"the format has {pattern!r} for a time", code="usage", hint="for example %d{%Y-%m-%d %H:%M:%S}") from None
    return lambda record: _local_time(record.timestamp).strftime(pattern).encode()


def for_people(record: PrintableRecord, *, colours: bool, topic_width: int) -> str:
    """An aligned line: time, place, key, value; control characters are shown, not sent to the terminal."""
    time = _local_time(record.timestamp).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    place = f"{record.topic}/{record.partition}@{record.offset}"
    width = topic_width + 10
    key = _shown(record.key) if record.key is not None else "-"
    value = _shown(record.value) if record.value is not None else "(null)"
    if not colours:
        return f"{time}  {place:<{width}}  {key:<8}  {value}"
    return f"\x1b[2m{time}\x1b[0m  \x1b[36m{place:<{width}}\x1b[0m  \x1b[33m{key:<8}\x1b[0m  {value}"


def _shown(content: bytes) -> str:
    text = content.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def _local_time(timestamp_ms: int) -> datetime.datetime:
    try:
        return datetime.datetime.fromtimestamp(timestamp_ms / 1000).astimezone()
    except (OverflowError, ValueError, OSError):
        return datetime.datetime.max  # a producer may say any time
