"""Asking a cluster from the command line: dead, silent and foreign addresses cost little and are named."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from streamq.cli.__main__ import main
from streamq.cli.admin import Admin, connect_first
from streamq.cli.settings import Bootstrap, bootstrap_of
from streamq.client.settings import Address
from streamq.model.errors import NotFoundError, StreamqError, UnavailableError, UnknownOutcomeError
from streamq.model.messages import BrokerStatus, DeleteTopic, Failure, Hello, ListTopics, Message, Ok, Topics, Welcome
from streamq.wire.framing import PREAMBLE, FrameReader, encode_frame

WELCOME = Welcome(version=1, features=(), software="test", cluster=bytes(16), broker="b1", incarnation=bytes(16))


class FakeBroker:
    """Answers each message with the next of `answers`; None closes the connection."""

    def __init__(self, answers: list[Message | None]) -> None:
        self.answers = answers
        self.asked: list[Message] = []

    def serve(self, connection: socket.socket) -> None:
        with connection:
            data = connection.recv(1 << 16)
            assert data.startswith(PREAMBLE)
            data, reader = data[len(PREAMBLE) :], FrameReader()
            while True:
                for frame in reader.feed(data):
                    answer: Message | None = WELCOME
                    if not isinstance(frame.message, Hello):
                        self.asked.append(frame.message)
                        answer = self.answers.pop(0)
                    if answer is None:
                        return
                    connection.sendall(b"".join(encode_frame(answer, request=frame.request, is_answer=True)))
                data = connection.recv(1 << 16)
                if not data:
                    return


@contextmanager
def listening(broker: FakeBroker | None = None, *, says: bytes = b"") -> Iterator[Address]:
    """A listener: with a broker behind it, or one that says something else, or nothing at all."""
    listener = socket.create_server(("127.0.0.1", 0))
    kept: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if broker is not None:
                threading.Thread(target=broker.serve, args=(connection,), daemon=True).start()
                continue
            kept.append(connection)
            if says:
                connection.sendall(says)

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield Address(*listener.getsockname()[:2])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in kept:
            connection.close()


def dead_address() -> Address:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Address(*probe.getsockname()[:2])


def bootstrap(*addresses: Address) -> Bootstrap:
    return Bootstrap(addresses, "the test")


def test_dead_and_silent_addresses_before_a_live_one_cost_less_than_a_second() -> None:
    with listening() as silent, listening(says=b"HTTP/1.1 400 Bad Request\r\n\r\n") as foreign, listening(FakeBroker([])) as live:
        begun = time.monotonic()
        connection = connect_first(bootstrap(dead_address(), silent, foreign, live))
        assert time.monotonic() - begun < 1
        assert connection.address == live
        connection.close()


def test_an_unreachable_cluster_is_told_with_what_was_tried() -> None:
    with listening() as silent, listening(says=b"x" * 1000) as foreign:
        dead = dead_address()
        begun = time.monotonic()
        with pytest.raises(UnavailableError) as refused:
            connect_first(bootstrap(dead, silent, foreign), timeout_s=0.6)
        assert time.monotonic() - begun < 2
        assert f"{dead}: connection refused" in refused.value.message
        assert f"{silent}: no answer in time" in refused.value.message
        assert f"{foreign}: is no streamq broker" in refused.value.message


def test_the_command_line_ends_with_4_when_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topic", "ls", "--bootstrap", str(dead_address())]) == 4
    assert "--bootstrap" in capsys.readouterr().err


def test_what_is_retriable_is_asked_again() -> None:
    broker = FakeBroker([Failure("not_ready", "starting"), Topics(())])
    with listening(broker) as address, Admin(bootstrap(address)) as admin:
        assert admin.ask(ListTopics(), Topics) == Topics(())
    assert len(broker.asked) == 2


def test_what_is_refused_is_raised_as_what_it_is() -> None:
    broker = FakeBroker([Failure("unknown_topic", "there is none", "make one")])
    with listening(broker) as address, Admin(bootstrap(address)) as admin, pytest.raises(NotFoundError) as refused:
        admin.ask(DeleteTopic("t"), Ok, is_change=True)
    assert refused.value.hint == "make one"


def test_a_question_is_asked_again_when_the_connection_breaks_a_change_is_not() -> None:
    broker = FakeBroker([None, Topics(()), None])
    with listening(broker) as address, Admin(bootstrap(address)) as admin:
        assert admin.ask(ListTopics(), Topics) == Topics(())
        with pytest.raises(UnknownOutcomeError):
            admin.ask(DeleteTopic("t"), Ok, is_change=True)
    assert [type(message) for message in broker.asked] == [ListTopics, ListTopics, DeleteTopic]


def test_an_answer_of_another_kind_is_an_error_not_a_crash() -> None:
    with listening(FakeBroker([Ok()])) as address, Admin(bootstrap(address)) as admin, pytest.raises(StreamqError) as refused:
        admin.ask(BrokerStatus(), Topics)
    assert refused.value.code == "protocol"


def test_addresses_of_both_families_are_understood() -> None:
    assert bootstrap_of("[::1]:1,h", origin="x").addresses == (Address("::1", 1), Address("h", 7700))
