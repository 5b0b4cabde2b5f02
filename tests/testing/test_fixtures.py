"""What users get for their own tests: a cluster in their process, quickly, whatever kind of test it is."""

import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from streamq.model.errors import AlreadyExistsError, RefusedError
from streamq.model.messages import Hello
from streamq.testing import cluster
from streamq.wire.framing import PREAMBLE, encode_frame
from streamq_consumer.sync import Consumer
from streamq_producer.sync import Producer
from tests.integration.local import environment

USERS_TESTS = """
    import anyio
    import pytest
    import trio
    from streamq_consumer import Consumer
    from streamq_consumer.sync import Consumer as BlockingConsumer
    from streamq_producer import Producer
    from streamq_producer.sync import Producer as BlockingProducer


    def test_plain(streamq_cluster):
        streamq_cluster.create_topic("t", partitions=2)
        with BlockingProducer(streamq_cluster.bootstrap) as producer:
            producer.send("t", b"1", partition=1)
            streamq_cluster.kill("b2")
            producer.send("t", b"2", partition=1)
        with BlockingConsumer(streamq_cluster.bootstrap, topics=["t"]) as consumer:
            assert [record.value for record in consumer.fetch(10, timeout=5)][0] == b"1"


    async def there_and_back(bootstrap, topic):
        async with Producer(bootstrap) as producer:
            await producer.send(topic, b"x")
        async with Consumer(bootstrap, topics=[topic], group="g") as consumer:
            async for record in consumer:
                return record.value


    @pytest.mark.parametrize("backend", ["asyncio", "trio"])
    def test_event_loops(streamq_session_cluster, backend):
        streamq_session_cluster.create_topic(backend)
        assert anyio.run(there_and_back, streamq_session_cluster.bootstrap, backend, backend=backend) == b"x"


    @pytest.mark.anyio
    async def test_marked(streamq_session_cluster, anyio_backend_name):
        streamq_session_cluster.create_topic("marked-" + anyio_backend_name)
        assert await there_and_back(streamq_session_cluster.bootstrap, "marked-" + anyio_backend_name) == b"x"
"""


def test_a_users_tests_of_every_kind_pass_with_the_fixtures(tmp_path: Path) -> None:
    (tmp_path / "test_users.py").write_text(textwrap.dedent(USERS_TESTS))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "streamq.testing.plugin", "-p", "no:cacheprovider", str(tmp_path)]
    if _is_installed():
        del command[4:6]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "5 passed" in done.stdout, done.stdout


def _is_installed() -> bool:
    from importlib.metadata import entry_points

    return any(point.value == "streamq.testing.plugin" for point in entry_points(group="pytest11"))


def test_the_plugin_costs_other_peoples_test_runs_nothing_to_speak_of() -> None:
    code = "import sys, pytest; before = set(sys.modules); import streamq.testing.plugin; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60, check=True)
    assert "trio" not in done.stdout
    assert len(done.stdout.split(",")) < 10, done.stdout


def test_a_cluster_starts_in_well_under_a_second_and_leaves_no_thread() -> None:
    threads = set(threading.enumerate())
    took = []
    for _ in range(3):
        began = time.perf_counter()
        with cluster(3) as running:
            took.append(time.perf_counter() - began)
            running.create_topic("t")
    assert min(took) < 0.3, took
    assert {thread for thread in threading.enumerate() if thread.is_alive()} <= threads


def test_clusters_beside_each_other_and_brokers_that_come_back() -> None:
    with cluster(3) as one, cluster(1) as other:
        for running in (one, other):
            running.create_topic("t")
            with pytest.raises(AlreadyExistsError):
                running.create_topic("t")
        with Producer(one.bootstrap) as producer:
            for broker in one.brokers:
                one.kill(broker)
                producer.send("t", broker.encode())
                one.start(broker)
        with Consumer(one.bootstrap, topics=["t"]) as consumer:
            assert [record.value for _, record in zip(range(3), consumer, strict=False)] == [b"b1", b"b2", b"b3"]
        with Consumer(other.bootstrap, topics=["t"]) as consumer:
            assert consumer.fetch(10, timeout=0.1) == []


@pytest.mark.parametrize("fault", ["pause", "isolate"])
def test_a_broker_that_is_silent_is_gone_without_and_comes_back(fault: str) -> None:
    """The sequencer itself: who waits for it must not notice, and it must not take the old epoch for its own."""
    with cluster(3) as running:
        running.create_topic("t")
        with Producer(running.bootstrap) as producer:
            producer.send("t", b"0")
            for number, broker in enumerate(running.brokers, start=1):
                getattr(running, fault)(broker)
                producer.send("t", b"%d" % number)
                running.heal() if fault == "isolate" else running.resume(broker)
                producer.send("t", b"%d again" % number)
        with Consumer(running.bootstrap, topics=["t"]) as consumer:
            values = [record.value for _, record in zip(range(7), consumer, strict=False)]
            assert values == [b"0", b"1", b"1 again", b"2", b"2 again", b"3", b"3 again"]


@pytest.mark.parametrize("fault", ["pause", "isolate"])
def test_nothing_is_acked_while_too_few_brokers_hear(fault: str) -> None:
    with cluster(3) as running:
        running.create_topic("t", replicas=3, write_quorum=2)
        with Producer(running.bootstrap) as producer:
            producer.send("t", b"0")
            for broker in ("b1", "b2"):
                getattr(running, fault)(broker)
            delivery = producer.enqueue("t", b"1")
            time.sleep(0.5)
            assert not delivery.is_settled
            for broker in ("b1", "b2"):
                running.resume(broker)
            running.heal()
            assert delivery.receipt().offset == 1


def test_a_connection_to_a_silent_broker_is_neither_refused_nor_answered() -> None:
    with cluster(1) as running:
        host, port = running.bootstrap.split(":")
        for silence, end in ((running.pause, running.resume), (running.isolate, lambda _: running.heal())):
            silence("b1")
            with socket.create_connection((host, int(port)), timeout=5) as connection:
                connection.sendall(PREAMBLE + b"".join(encode_frame(Hello((1, 1), (), "test"), request=1)))
                connection.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    connection.recv(1)
                end("b1")
                connection.settimeout(5)
                assert connection.recv(1)


def test_a_paused_broker_cannot_be_stopped_but_killed() -> None:
    with cluster(3) as running:
        running.create_topic("t")
        running.pause("b2")
        with pytest.raises(RefusedError):
            running.stop("b2")
        running.kill("b2")
        running.start("b2")
        with Producer(running.bootstrap) as producer:
            running.kill("b1")
            producer.send("t", b"by the two others")
