"""Which directories a cluster takes back, and how a broker that lost its own comes in again (P-3, P-31, P-40)."""

import pytest
import trio

from streamq.metadata.acceptor import Standing
from streamq.model.errors import AlreadyExistsError, CorruptDataError
from streamq.model.messages import Accept, AdoptVoters, ListKeys, VotersReady
from streamq.model.registers import BrokerRegister, broker_key
from streamq.storage.interface import LostState, LostUnknown
from tests.support.register_brokers import World, cluster, incarnation
from tests.support.register_network import append, ids


async def rejoin(world: World, name: str, number: int) -> None:
    """`streamq broker rejoin`: a new directory in a new incarnation, knowing the voters of today."""
    today = next(broker.local.voters for broker in world.brokers.values())
    world.format(name, number=number, voters=today)
    await world.start(name)


async def test_a_founder_waits_until_the_others_have_looked_for_its_name(autojump_clock: trio.testing.MockClock) -> None:
    """Two of three founders are a majority, but a directory without any state cannot count as one of them (P-31)."""
    async with trio.open_nursery() as nursery:
        world = World(nursery, count=3)
        for name in ("b1", "b2"):
            world.format(name)
            await world.start(name)
        await trio.sleep(5)
        assert all(broker.joined is None for broker in world.brokers.values())
        world.format("b3")
        await world.start("b3")
        await world.until_joined("b1", "b2", "b3", within_s=2)
        nursery.cancel_scope.cancel()


async def test_a_founder_that_comes_back_empty_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    """The same identity on a second, empty directory: its promises are gone, so it must not answer (P-3)."""
    async with cluster(3) as world:
        await world.brokers["b2"].registers.change("k", append("c1"))
        world.kill("b1")
        world.format("b1")
        await world.start("b1")
        with pytest.raises(AlreadyExistsError, match="new") as raised:
            await world.until_joined("b1")
        assert raised.value.code == "wrong_directory"
        assert "rejoin" in raised.value.hint
        assert not world.brokers["b1"].local.is_proved


async def test_an_older_copy_of_a_directory_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    async with cluster(3) as world:
        world.kill("b1")
        copy = world.disks["b1"]
        for _ in range(2):
            await world.start("b1")
            await world.until_joined("b1")
            world.kill("b1")
        world.disks["b1"] = copy
        await world.start("b1")
        with pytest.raises(AlreadyExistsError, match="older copy"):
            await world.until_joined("b1")
        assert not world.brokers["b1"].local.is_proved


@pytest.mark.parametrize("down", [(), ("b3",)])
async def test_restarts_join_at_once_with_a_majority_up(down: tuple[str, ...], autojump_clock: trio.testing.MockClock) -> None:
    async with cluster(3) as world:
        await world.brokers["b1"].registers.change("k", append("c1"))
        for name in list(world.brokers):
            world.kill(name)
        up = [name for name in world.disks if name not in down]
        for name in up:
            await world.start(name)
        before = trio.current_time()
        await world.until_joined(*up)
        assert trio.current_time() - before < 0.5
        assert ids(await world.brokers["b2"].registers.get("k")) == ["c1"]


async def test_a_broker_that_lost_its_directory_is_re_admitted(autojump_clock: trio.testing.MockClock) -> None:
    """Afterwards another directory can be lost without losing a register."""
    async with cluster(3) as world:
        keys = [f"k{index}" for index in range(40)]
        for key in keys:
            await world.brokers["b1"].registers.change(key, append("c1"))
        world.kill("b1")
        await rejoin(world, "b1", 2)
        await world.until_joined("b1")
        replaced = world.brokers["b1"]
        assert replaced.local.standing is Standing.READY
        assert replaced.local.voters.number == 2
        assert {broker.local.voters.number for broker in world.brokers.values()} == {2}
        assert all(replaced.local.accepted(key) == b"c1" for key in keys)

        world.kill("b2")
        await rejoin(world, "b2", 2)
        await world.until_joined("b2")
        world.kill("b3")
        assert world.brokers["b2"].local.voters.number == 3
        for key in keys:
            assert await world.brokers["b2"].registers.get(key) == b"c1"
        register = await world.brokers["b2"].registers.get_as(BrokerRegister, broker_key("b1"))
        assert register is not None
        assert register.incarnation == incarnation("b1", 2)


async def test_the_old_directory_of_a_re_admitted_broker_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    async with cluster(3) as world:
        world.kill("b1")
        old = world.disks["b1"]
        await rejoin(world, "b1", 2)
        await world.until_joined("b1")
        world.kill("b1")
        world.disks["b1"] = old
        await world.start("b1")
        with pytest.raises(AlreadyExistsError, match="place"):
            await world.until_joined("b1")


async def test_changes_go_on_while_a_voter_is_re_admitted(autojump_clock: trio.testing.MockClock) -> None:
    async with cluster(3, seed=3) as world:
        world.kill("b1")
        changes: list[str] = []
        longest = 0.0

        async def change_on() -> None:
            nonlocal longest
            while True:
                began = trio.current_time()
                await world.brokers["b2"].registers.change("k", append(f"c{len(changes)}"))
                changes.append(f"c{len(changes)}")
                longest = max(longest, trio.current_time() - began)
                await trio.sleep(0.002)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(change_on)
            await trio.sleep(0.05)
            await rejoin(world, "b1", 2)
            await world.until_joined("b1")
            await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
        value = ids(await world.brokers["b1"].registers.get("k"))
        assert value[: len(changes)] == changes
        assert longest < 1.0


async def test_a_carrier_that_dies_is_replaced_by_another(autojump_clock: trio.testing.MockClock) -> None:
    """The configuration was decided and told; the broker that scanned is killed. The replacement asks the next one."""
    async with cluster(5) as world:
        for index in range(20):
            await world.brokers["b1"].registers.change(f"k{index}", append("c1"))
        world.kill("b1")
        carried: list[str] = []

        def lose(source: str, target: str, message: object) -> bool:
            if isinstance(message, ListKeys | VotersReady) and source not in carried:
                carried.append(source)
            return bool(carried) and source == carried[0]

        world.lose = lose
        await rejoin(world, "b1", 2)
        while not carried:
            await trio.sleep(0.001)
        world.kill(carried[0])
        await trio.sleep(1)
        assert world.brokers["b1"].local.standing is Standing.ADMITTED
        await world.start(carried[0])
        world.lose = lambda source, target, message: False
        await world.until_joined("b1", within_s=60)
        assert world.brokers["b1"].local.standing is Standing.READY


async def test_a_replacement_that_is_lost_again_needs_a_number_of_its_own(autojump_clock: trio.testing.MockClock) -> None:
    async with cluster(3) as world:
        await world.brokers["b1"].registers.change("k", append("c1"))
        world.kill("b1")
        world.lose = lambda source, target, message: isinstance(message, ListKeys)
        await rejoin(world, "b1", 2)
        while world.brokers["b1"].local.standing is not Standing.ADMITTED:
            await trio.sleep(0.01)
        world.kill("b1")
        world.lose = lambda source, target, message: False
        await rejoin(world, "b1", 3)
        await world.until_joined("b1", within_s=60)
        assert world.brokers["b1"].local.voters.number == 3
        assert world.brokers["b1"].local.accepted("k") == b"c1"


async def test_no_two_voters_are_replaced_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """With two of three lost nobody is re-admitted, and nothing is decided: that is an operator's matter."""
    async with cluster(3) as world:
        for name in ("b1", "b2"):
            world.kill(name)
        for name in ("b1", "b2"):
            world.format(name, number=2)
            await world.start(name)
        await trio.sleep(15)
        assert all(world.brokers[name].joined is None for name in ("b1", "b2"))
        assert world.brokers["b3"].local.voters.number == 1


@pytest.mark.parametrize("lost", [LostState("acceptor/k"), LostState("voters"), LostUnknown("a torn disk")])
async def test_lost_acceptor_state_is_healed_under_a_new_incarnation(
    lost: LostState | LostUnknown, autojump_clock: trio.testing.MockClock
) -> None:
    """The directory keeps its identity; only the acceptor starts anew (P-3), and a crash in between changes nothing."""
    async with cluster(3) as world:
        await world.brokers["b1"].registers.change("k", append("c1"))
        await trio.sleep(0.1)
        world.kill("b1", lost=[lost])
        await world.start("b1")
        await trio.sleep(0.01)
        world.kill("b1")
        await world.start("b1")
        await world.until_joined("b1")
        broker = world.brokers["b1"]
        assert broker.local.member.incarnation != incarnation("b1")
        assert broker.joined is not None
        assert broker.joined.incarnation == incarnation("b1")
        assert broker.local.accepted("k") == b"c1"
        assert broker.local.voters.number == 2


async def test_the_only_voter_cannot_heal_itself(autojump_clock: trio.testing.MockClock) -> None:
    async with cluster(1) as world:
        world.kill("b1", lost=[LostUnknown("a torn disk")])
        await world.start("b1")
        with pytest.raises(CorruptDataError):
            await world.until_joined("b1")


async def test_a_survivor_that_was_not_told_learns_the_number_when_it_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    """b3 voted for number 2 and never heard that it was decided; b1 and b2 act under it already."""
    async with cluster(3) as world:
        world.kill("b1")
        world.block = lambda source, target, message: isinstance(message, AdoptVoters) and target == "b3"
        await rejoin(world, "b1", 2)
        with trio.fail_after(5):
            while world.brokers["b1"].local.standing is not Standing.ADMITTED:
                await trio.sleep(0.01)
        third = world.brokers["b3"]
        assert (world.brokers["b2"].local.voters.number, third.local.voters.number) == (2, 1)
        assert world.brokers["b1"].joined is None
        await third.registers.change("k", append("c1"))
        assert third.local.voters.number == 2
        await world.until_joined("b1")
        assert ids(await world.brokers["b1"].registers.get("k")) == ["c1"]


async def test_a_broker_that_is_no_voter_registers(autojump_clock: trio.testing.MockClock) -> None:
    async with cluster(3) as world:
        world.format("b9")
        await world.start("b9")
        await world.until_joined("b9")
        assert world.brokers["b9"].local.standing is Standing.OUTSIDE
        await world.brokers["b9"].registers.change("k", append("c1"))
        register = await world.brokers["b1"].registers.get_as(BrokerRegister, broker_key("b9"))
        assert register == world.brokers["b9"].joined
        world.kill("b9")
        await rejoin(world, "b9", 2)
        await world.until_joined("b9")


async def test_nothing_leaves_an_acceptor_before_it_is_durable(autojump_clock: trio.testing.MockClock) -> None:
    """P-3, with a disk that is slow: the answer comes after the sync, and a crash before it has lost nothing that was told."""
    async with cluster(1) as world:
        broker = world.brokers["b1"]
        ballot = broker.registers.voting.new_attempt("k", append("c1")).ballot
        told: list[object] = []
        broker.local.submit(Accept(1, "k", ballot, b"c1"), told.append)
        assert told == []
        await trio.sleep(0.001)
        assert len(told) == 1
