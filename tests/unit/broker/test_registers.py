"""`Registers`: what callers may rely on, with brokers down, paused and duelling."""

import pytest
import trio

from streamq.model.errors import NotFoundError, RefusedError, UnavailableError, UnknownOutcomeError
from streamq.model.limits import REGISTER_BYTES_MAX
from streamq.model.messages import Accept, Prepare
from streamq.model.registers import BrokerRegister, ClusterRegister, broker_key
from tests.support.register_brokers import CLUSTER, cluster
from tests.support.register_network import append, ids


async def test_a_change_is_read_back_by_every_broker(autojump_clock: trio.testing.MockClock) -> None:
    async with cluster(3) as world:
        one, two, three = (world.brokers[name].registers for name in ("b1", "b2", "b3"))
        assert await one.get("k") is None
        assert ids(await one.change("k", append("c1"))) == ["c1"]
        assert ids(await two.change("k", append("c2"))) == ["c1", "c2"]
        assert ids(await three.get("k")) == ["c1", "c2"]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
async def test_clusters_of_every_size_work(count: int, autojump_clock: trio.testing.MockClock) -> None:
    async with cluster(count) as world:
        for broker in world.brokers.values():
            await broker.registers.change("k", append(broker.name))
        assert len(ids(await world.brokers["b1"].registers.get("k"))) == count
        known = await world.brokers["b1"].registers.get_as(ClusterRegister, "cluster")
        assert known == ClusterRegister(CLUSTER, tuple(sorted(world.brokers)))


async def test_an_undisturbed_change_is_two_round_trips_and_a_read_one(autojump_clock: trio.testing.MockClock) -> None:
    async with cluster(3) as world:
        registers = world.brokers["b1"].registers
        await registers.change("k", append("c1"))
        await trio.sleep(0.1)
        world.requests.clear()
        before = trio.current_time()
        await registers.change("k", append("c2"))
        assert trio.current_time() - before < 0.006  # two round trips of 2 ms, and two syncs
        assert dict(world.requests) == {"Prepare": 2, "Accept": 2}
        await trio.sleep(0.1)
        world.requests.clear()
        before = trio.current_time()
        await registers.get("k")
        assert trio.current_time() - before < 0.003
        assert dict(world.requests) == {"ReadAccepted": 2}


async def test_a_read_makes_the_change_after_it_warm(autojump_clock: trio.testing.MockClock) -> None:
    """A broker that has read a register meets no ballot in its way: a takeover reads, then changes."""
    async with cluster(3) as world:
        for change in range(5):
            await world.brokers["b1"].registers.change("k", append(f"c{change}"))
        await trio.sleep(0.1)
        other = world.brokers["b2"].registers
        await other.get("k")
        world.requests.clear()
        await other.change("k", append("d"))
        assert dict(world.requests) == {"Prepare": 2, "Accept": 2}


@pytest.mark.parametrize("silent", ["paused", "killed"])
async def test_one_silent_voter_costs_nothing(silent: str, autojump_clock: trio.testing.MockClock) -> None:
    async with cluster(3) as world:
        registers = world.brokers["b1"].registers
        await registers.change("k", append("c0"))
        if silent == "paused":
            world.paused.add("b3")
        else:
            world.kill("b3")
        before = trio.current_time()
        for change in range(10):
            await registers.change("k", append(f"c{change + 1}"))
            await registers.get("k")
        assert trio.current_time() - before < 0.1
        assert len(ids(await registers.get("k"))) == 11


async def test_without_a_majority_nothing_is_changed_and_the_error_says_who_is_missing(autojump_clock: trio.testing.MockClock) -> None:
    async with cluster(3) as world:
        registers = world.brokers["b1"].registers
        world.kill("b2")
        world.paused.add("b3")
        before = trio.current_time()
        with pytest.raises(UnavailableError, match=r"b2.*refused"):
            await registers.change("k", append("c1"), deadline_s=3)
        with pytest.raises(UnavailableError):
            await registers.get("k", deadline_s=0.5)
        with pytest.raises(UnavailableError):
            await registers.list("k", deadline_s=0.5)
        assert 3.9 <= trio.current_time() - before < 4.5
        world.paused.clear()
        assert await registers.get("k") is None


async def test_a_change_whose_acceptances_are_lost_is_of_unknown_outcome(autojump_clock: trio.testing.MockClock) -> None:
    """It may have happened: here it did, and a retry of the same change recognises it (P-5)."""
    async with cluster(3) as world:
        registers = world.brokers["b1"].registers
        world.lose = lambda source, target, message: isinstance(message, Accept)
        with pytest.raises(UnknownOutcomeError):
            await registers.change("k", append("c1"), deadline_s=0.5)
        world.lose = lambda source, target, message: False
        assert ids(await registers.change("k", append("c1"))) == ["c1"]


async def test_lost_answers_are_made_up_for_within_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    async with cluster(3) as world:
        world.lose = lambda source, target, message: world.random.random() < 0.3
        for change in range(10):
            with trio.fail_after(60):
                while True:
                    try:
                        await world.brokers["b1"].registers.change("k", append(f"c{change}"))
                        break
                    except UnknownOutcomeError:
                        pass
        world.lose = lambda source, target, message: False
        assert ids(await world.brokers["b2"].registers.get("k")) == [f"c{change}" for change in range(10)]


@pytest.mark.parametrize("seed", range(5))
async def test_five_proposers_that_duel_all_finish(seed: int, autojump_clock: trio.testing.MockClock) -> None:
    """Equal delays, one register: bounded attempts, every change applied exactly once (P-5, pitfall 37)."""
    async with cluster(5, seed=seed) as world:
        world.requests.clear()
        with trio.fail_after(4):
            async with trio.open_nursery() as nursery:
                for broker in world.brokers.values():
                    for change in range(2):
                        nursery.start_soon(broker.registers.change, "k", append(f"{broker.name}.{change}"))
        values = ids(await world.brokers["b1"].registers.get("k"))
        assert sorted(values) == sorted(f"{name}.{change}" for name in world.brokers for change in range(2))
        assert world.requests["Prepare"] < 10 * 4 * 25


async def test_a_change_that_gives_up_leaves_the_register_as_it_is(autojump_clock: trio.testing.MockClock) -> None:
    """… and what it saw is certain by then, so the refusal is no rumour."""
    async with cluster(3) as world:
        registers = world.brokers["b1"].registers

        def refuse(value: bytes | None) -> bytes:
            raise NotFoundError(f"saw {value!r}", code="unknown_topic")

        with pytest.raises(NotFoundError, match="None"):
            await registers.change("k", refuse)
        # An acceptor alone holds a value that was never chosen: whoever refuses because of it makes it certain first.
        await world.brokers["b2"].registers.get("k")
        number, ballot = 1, world.brokers["b2"].registers.voting.new_attempt("k", append("c1")).ballot
        for message in (Prepare(number, "k", ballot), Accept(number, "k", ballot, b"c1")):
            await world.brokers["b2"].local.answer(message)
        world.paused.add("b3")
        with pytest.raises(NotFoundError, match="c1"):
            await registers.change("k", refuse)
        world.paused = {"b2"}
        assert await registers.get("k") == b"c1"


async def test_a_value_over_the_limit_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    async with cluster(1) as world:
        with pytest.raises(RefusedError):
            await world.brokers["b1"].registers.change("k", lambda _: bytes(REGISTER_BYTES_MAX + 1))


async def test_list_names_every_key_written_whoever_is_down(autojump_clock: trio.testing.MockClock) -> None:
    """The union over a majority, page by page."""
    async with cluster(3) as world:
        names = [f"topic/t{index:05}" for index in range(1_030)]

        async def write(name: str) -> None:
            await world.brokers[world.random.choice(["b1", "b2"])].registers.change(name, append("x"))

        world.paused.add("b3")
        for batch in range(0, len(names), 103):
            async with trio.open_nursery() as nursery:
                for name in names[batch : batch + 103]:
                    nursery.start_soon(write, name)
        world.paused = {"b2"}
        assert await world.brokers["b1"].registers.list("topic/") == names
        assert await world.brokers["b3"].registers.list("topic/t0000") == names[:10]
        assert await world.brokers["b3"].registers.list("nothing/") == []


async def test_hints_carry_only_what_was_completed(autojump_clock: trio.testing.MockClock) -> None:
    """P-1: what a change or a quorum read returned, newest last, and nothing that an acceptor merely accepted."""
    async with cluster(3) as world:
        one, two = world.brokers["b1"].registers, world.brokers["b2"].registers
        told: list[tuple[str, bytes]] = []
        end = two.subscribe("k", lambda key, value: told.append((key, value)))
        await one.change("k1", append("c1"))
        assert two.cached("k1") is None
        assert told == []
        await two.get("k1")
        await two.get("k1")
        await two.change("k1", append("c2"))
        await two.change("other", append("c"))
        assert told == [("k1", b"c1"), ("k1", b"c1,c2")]
        assert two.cached("k1") == b"c1,c2"
        end()
        await two.change("k1", append("c3"))
        assert len(told) == 2


async def test_typed_values(autojump_clock: trio.testing.MockClock) -> None:
    async with cluster(1) as world:
        registers = world.brokers["b1"].registers
        mine = await registers.get_as(BrokerRegister, broker_key("b1"))
        assert mine is not None
        assert mine.starts == 1
        moved = await registers.change_as(
            BrokerRegister, broker_key("b1"), lambda r: BrokerRegister("b1", mine.incarnation, "new", 1, "", 1)
        )
        assert registers.cached_as(BrokerRegister, broker_key("b1")) == moved
        assert moved.host == "new"


async def test_brokers_that_restart_keep_every_chosen_value(autojump_clock: trio.testing.MockClock) -> None:
    async with cluster(3, seed=7) as world:
        for round_ in range(6):
            await world.brokers["b1"].registers.change("k", append(f"c{round_}"))
            for name in list(world.brokers) if round_ == 3 else [world.random.choice(["b1", "b2", "b3"])]:
                world.kill(name)
            for name in [name for name in world.disks if name not in world.brokers]:
                await world.start(name)
            await world.until_joined(*world.brokers)
        assert ids(await world.brokers["b2"].registers.get("k")) == [f"c{round_}" for round_ in range(6)]
