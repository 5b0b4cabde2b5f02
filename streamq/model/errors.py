"""One error tree for clients and brokers: an exception class per reaction, a code per reason.

`CODES` is the one table of codes; on the wire an error is its code, a message that says what and why, and a hint that says what to do.
"""

from typing import ClassVar, Final

__all__ = [
    "CODES",
    "AlreadyExistsError",
    "CorruptDataError",
    "DecodeError",
    "FencedError",
    "GroupLostError",
    "HandlerError",
    "NotCoordinatorError",
    "NotFoundError",
    "NotSequencerError",
    "OffsetError",
    "ProtocolError",
    "RefusedError",
    "StreamqError",
    "TransactionAbortedError",
    "UnavailableError",
    "UnknownOutcomeError",
    "error_of",
]


class StreamqError(Exception):
    """The base of every error that streamq raises on purpose.

    `code` is a word of `CODES`, `hint` says what to do (may be empty). `exit_code` is what the command line ends with.
    """

    exit_code: ClassVar[int] = 1
    code: str
    hint: str

    def __init__(self, message: str, *, code: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint

    @property
    def message(self) -> str:
        return str(self.args[0])


class RefusedError(StreamqError):
    """The request is wrong as it is; sending it again does not help. Nothing was stored."""

    exit_code = 2


class NotFoundError(StreamqError):
    """The topic, partition or broker does not exist. Nothing was stored."""

    exit_code = 3


class UnavailableError(StreamqError):
    """Not possible now, possible later: retry. Nothing was stored."""

    exit_code = 4


class NotSequencerError(UnavailableError):
    """Ask `sequencer` instead (empty when unknown). Nothing was stored."""

    sequencer: str

    def __init__(self, message: str, *, code: str = "not_sequencer", hint: str = "", sequencer: str = "") -> None:
        super().__init__(message, code=code, hint=hint)
        self.sequencer = sequencer


class NotCoordinatorError(UnavailableError):
    """Ask `coordinator` about this group instead (empty when unknown). Nothing was changed."""

    coordinator: str

    def __init__(self, message: str, *, code: str = "not_coordinator", hint: str = "", coordinator: str = "") -> None:
        super().__init__(message, code=code, hint=hint)
        self.coordinator = coordinator


class UnknownOutcomeError(StreamqError):
    """It may have happened and may not have. An idempotent producer that retries finds out (P-14)."""

    exit_code = 4


class FencedError(StreamqError):
    """A newer producer of the same id has taken this one's place (P-35), or an append with a higher token is stored. Nothing was stored."""

    exit_code = 7


class GroupLostError(StreamqError):
    """This consumer is no member of its group any more. What it handled and could not commit comes again, at another member."""

    exit_code = 7

    def __init__(self, message: str, *, code: str = "group_lost", hint: str = "") -> None:
        super().__init__(message, code=code, hint=hint)


class TransactionAbortedError(StreamqError):
    """The transaction was aborted before it could be committed. Nothing of it is ever read, none of its positions counts: do it again."""

    exit_code = 7

    def __init__(self, message: str, *, code: str = "transaction_aborted", hint: str = "") -> None:
        super().__init__(message, code=code, hint=hint)


class HandlerError(StreamqError):
    """The application's handler has failed on `record` for good; `__cause__` is its own error. The record is not done."""

    record: object

    def __init__(self, message: str, *, code: str = "handler_failed", hint: str = "", record: object = None) -> None:
        super().__init__(message, code=code, hint=hint)
        self.record = record


class AlreadyExistsError(StreamqError):
    """What was to be created exists, or a condition that the request makes does not hold. Nothing was changed."""

    exit_code = 7


class OffsetError(StreamqError):
    """The offset asked for is trimmed (`offset_trimmed`) or past the tip (`offset_ahead`)."""

    exit_code = 7


class CorruptDataError(StreamqError):
    """Bytes that fail their checksum and could not be repaired; never handed out."""

    exit_code = 8


class DecodeError(StreamqError):
    """A record's value is none of what the application's codec reads; `record` is the record as it is."""

    exit_code = 8
    record: object

    def __init__(self, message: str, *, code: str = "undecodable", hint: str = "", record: object = None) -> None:
        super().__init__(message, code=code, hint=hint)
        self.record = record


class ProtocolError(StreamqError):
    """The other side does not speak this protocol, or broke it. The connection is closed."""

    exit_code = 1


CODES: Final[dict[str, type[StreamqError]]] = {
    # refused: wrong as it is
    "bad_request": RefusedError,
    "usage": RefusedError,
    "bad_name": RefusedError,
    "bad_quorum": RefusedError,
    "bad_config": RefusedError,
    "bad_batch": RefusedError,
    "record_too_large": RefusedError,
    "bad_value": RefusedError,
    "sequence_gap": RefusedError,
    "limit_reached": RefusedError,
    "not_authorised": RefusedError,
    # not found
    "not_found": NotFoundError,
    "unknown_topic": NotFoundError,
    "unknown_partition": NotFoundError,
    "unknown_broker": NotFoundError,
    "unknown_group": NotFoundError,
    # retriable
    "unavailable": UnavailableError,
    "timed_out": UnavailableError,
    "busy": UnavailableError,
    "disk_full": UnavailableError,
    "stopping": UnavailableError,
    "not_replica": UnavailableError,
    "conflict": UnavailableError,
    "not_ready": UnavailableError,
    "wrong_number": UnavailableError,
    "not_sequencer": NotSequencerError,
    "not_coordinator": NotCoordinatorError,
    # it may have happened
    "unknown_outcome": UnknownOutcomeError,
    # others
    "fenced": FencedError,
    "group_lost": GroupLostError,
    "transaction_aborted": TransactionAbortedError,
    "handler_failed": HandlerError,
    "group_in_use": AlreadyExistsError,
    "topic_exists": AlreadyExistsError,
    "precondition_failed": AlreadyExistsError,
    "past_the_end": AlreadyExistsError,
    "wrong_directory": AlreadyExistsError,
    "wrong_cluster": AlreadyExistsError,
    "offset_trimmed": OffsetError,
    "offset_ahead": OffsetError,
    "data_damaged": CorruptDataError,
    "undecodable": DecodeError,
    "protocol": ProtocolError,
    "wrong_version": ProtocolError,
    "failed": StreamqError,
    "internal": StreamqError,
}


def error_of(code: str, message: str, *, hint: str = "", sequencer: str = "") -> StreamqError:
    """The exception that stands for an error received; an unknown code (a newer peer's) becomes a plain `StreamqError`."""
    kind = CODES.get(code, StreamqError)
    if kind is NotSequencerError:
        return NotSequencerError(message, code=code, hint=hint, sequencer=sequencer)
    if kind is NotCoordinatorError:
        return NotCoordinatorError(message, code=code, hint=hint, coordinator=sequencer)
    return kind(message, code=code, hint=hint)
