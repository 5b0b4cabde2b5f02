"""What a broker once said that ended a client with an exception of no streamq, found by fuzzing."""

import pytest
import trio

from streamq.client.cluster import Cluster
from streamq.client.connection import dial
from streamq.client.settings import Address, Timeouts
from streamq.model.errors import UnavailableError


@pytest.mark.parametrize("host", ["\U0001f600", "é" * 255, "xn--é"])
async def test_a_host_that_can_be_no_name_is_a_broker_that_cannot_be_reached(host: str) -> None:
    """Any broker's register may hold it, and metadata tells it to every client."""
    with pytest.raises(UnavailableError), trio.fail_after(5):
        await dial(Address(host, 7700), timeouts=Timeouts())
    with pytest.raises(UnavailableError), trio.fail_after(15):
        async with Cluster(f"{host}:7700"):
            pass
