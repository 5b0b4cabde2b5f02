"""Finding a cluster, asking any of its brokers, and going on when some are dead or paused."""

import anyio
import pytest

from streamq.client.cluster import Cluster
from streamq.client.settings import Timeouts
from streamq.model.errors import NotFoundError, ProtocolError, UnavailableError
from streamq.model.messages import ReadTip, TipRead
from tests.support.backends import both, run
from tests.support.fake_cluster import fake_cluster

DEAD = "127.0.0.1:1"


@both
def test_a_dead_or_paused_first_address_costs_little(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            cluster.create("t")
            cluster.brokers["b1"].pause()
            started = anyio.current_time()
            async with Cluster(f"{DEAD},{cluster.bootstrap}") as client:
                assert (await client.topic("t")).name == "t"
                assert set(client.brokers) == {"b1", "b2", "b3"}
            assert anyio.current_time() - started < 0.8

    run(backend, body)


@both
def test_when_nobody_answers_each_address_is_named_with_its_reason(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster(1) as cluster:
            cluster.brokers["b1"].pause()
            address = cluster.brokers["b1"].address
            started = anyio.current_time()
            with pytest.raises(UnavailableError) as caught:
                async with Cluster(f"{DEAD},{address}", timeouts=Timeouts(handshake_s=0.3)):
                    pass
            assert anyio.current_time() - started < 2
            assert f"{DEAD}: connection refused" in caught.value.message
            assert f"{address}: no answer within 0.3 s" in caught.value.message

    run(backend, body)


@both
def test_a_bootstrap_that_hangs_is_given_up_in_time(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster(1) as cluster:
            cluster.brokers["b1"].pause()
            started = anyio.current_time()
            with pytest.raises(UnavailableError, match=r"no answer within 0\.4 s"):
                async with Cluster(cluster.bootstrap, timeouts=Timeouts(bootstrap_s=0.4)):
                    pass
            assert anyio.current_time() - started < 1

    run(backend, body)


@both
def test_a_question_is_answered_by_another_broker_when_one_is_paused_or_dies(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            cluster.create("t")
            async with Cluster(cluster.brokers["b1"].address) as client:
                await client.metadata()
                cluster.brokers["b1"].pause()
                started = anyio.current_time()
                assert (await client.request(ReadTip("t", 0), TipRead)).epoch == 1
                assert anyio.current_time() - started < 0.6
                cluster.brokers["b2"].kill()
                assert (await client.request(ReadTip("t", 0), TipRead)).epoch == 1

    run(backend, body)


@both
def test_a_broker_that_was_down_is_found_again(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster(1) as cluster:
            cluster.create("t")
            broker = cluster.brokers["b1"]
            async with Cluster(cluster.bootstrap) as client:
                broker.kill()
                with pytest.raises(UnavailableError, match="refused"):
                    await client.request(ReadTip("t", 0), TipRead, timeout_s=0.3)
                await broker.start()
                assert (await client.request(ReadTip("t", 0), TipRead)).epoch == 1

    run(backend, body)


@both
def test_a_broker_that_is_named_is_asked_and_no_other(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster:
            cluster.create("t")
            async with Cluster(cluster.brokers["b1"].address) as client:
                await client.request(ReadTip("t", 0), TipRead, broker="b3")
                assert ReadTip("t", 0) in cluster.brokers["b3"].requests
                with pytest.raises(NotFoundError, match="known: b1, b2, b3"):
                    await client.request(ReadTip("t", 0), TipRead, broker="b9")
                cluster.brokers["b3"].kill()
                with pytest.raises(UnavailableError):
                    await client.request(ReadTip("t", 0), TipRead, broker="b3", timeout_s=0.3)

    run(backend, body)


@both
def test_many_who_want_a_broker_share_one_dial(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster() as cluster, Cluster(cluster.brokers["b1"].address) as client:
            await client.metadata()
            async with anyio.create_task_group() as tasks:
                for _ in range(50):
                    tasks.start_soon(client.connection, "b2")
            assert cluster.brokers["b2"].dials == 1

    run(backend, body)


@both
def test_the_address_that_was_dialled_keeps_working(backend: str) -> None:
    """Whatever a broker advertises."""

    async def body() -> None:
        async with fake_cluster(1) as cluster:
            cluster.create("t")
            bootstrap = cluster.bootstrap
            broker = cluster.brokers["b1"]
            async with Cluster(bootstrap) as client:
                real, broker.port = broker.port, 1
                await client.metadata()
                assert client.brokers["b1"].port == 1
                for connection in list(client._connections.values()):
                    connection.close()
                assert (await client.connection("b1")).address.port == real

    run(backend, body)


@both
def test_brokers_of_another_cluster_are_not_mixed_in(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster(1) as cluster, fake_cluster(1) as other:
            cluster.create("t")
            async with Cluster(f"{cluster.bootstrap},{other.bootstrap}") as client:
                cluster.brokers["b1"].kill()
                await anyio.sleep(0.1)
                with pytest.raises(UnavailableError, match="belongs to another cluster"):
                    await client.request(ReadTip("t", 0), TipRead, timeout_s=0.5)

    run(backend, body)


@both
def test_an_unknown_topic_is_not_found(backend: str) -> None:
    async def body() -> None:
        async with fake_cluster(1) as cluster, Cluster(cluster.bootstrap) as client:
            with pytest.raises(NotFoundError):
                await client.topic("nope")

    run(backend, body)


@both
def test_a_port_that_speaks_something_else_is_told_apart(backend: str) -> None:
    async def body() -> None:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")

        async def talk(stream: anyio.abc.SocketStream) -> None:
            async with stream:
                await stream.send(b"220 mail.example.org ESMTP ready to take your letters\r\n")
                await anyio.sleep(1)

        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, talk)
            port = listener.extra(anyio.abc.SocketAttribute.local_port)
            with pytest.raises(ProtocolError, match="does not speak streamq"):
                async with Cluster(f"127.0.0.1:{port}"):
                    pass
            tasks.cancel_scope.cancel()

    run(backend, body)
