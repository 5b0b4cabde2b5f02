"""A member's questions and what becomes of their answers, without a cluster."""

from typing import Any, cast

import pytest

from streamq.client.cluster import Cluster
from streamq.client.host import THIS_MACHINE
from streamq.client.lifetime import Lifetime
from streamq.model.errors import GroupLostError
from streamq.model.groups import Held, HeldTopic
from streamq.model.messages import GroupView
from streamq_consumer.group import GroupReader, Reading
from streamq_consumer.membership import Place
from streamq_consumer.settings import GroupSettings
from tests.support.backends import both, run


class Idle:
    """A lifetime and a reading that note what they are told."""

    def __init__(self) -> None:
        self.started: list[object] = []
        self.closed: list[Place] = []

    def start(self, work: object, *arguments: object) -> None:
        self.started.append(work)

    def close(self, place: Place) -> int:
        self.closed.append(place)
        return 0

    def wake(self) -> None:
        pass


@both
def test_an_answer_that_comes_when_the_member_has_left_opens_nothing(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block is being left then, and a task that is started fails."""

    async def body() -> None:
        idle = Idle()
        group = GroupReader(cast(Cluster, None), cast(Lifetime, idle), THIS_MACHINE, GroupSettings(group="g"), ["t"], cast(Reading, idle))

        async def ask(*asked: Any, **how: Any) -> tuple[GroupView, float]:
            group._end(GroupLostError("this consumer has left"))
            return GroupView(1, (HeldTopic("t", (Held(0, 1, None, False),)),)), 0.0

        monkeypatch.setattr(group, "_ask", ask)
        await group._attend()
        assert idle.started == []
        assert group.membership.holds == {}

    run(backend, body)
