"""The pytest fixtures that come with the package: a cluster in the test process, for tests of any kind."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from streamq.testing.thread import ClusterInThread

__all__ = ["streamq_cluster", "streamq_session_cluster"]


@pytest.fixture
def streamq_cluster() -> "Iterator[ClusterInThread]":
    """Three brokers of the test's own: it may kill them."""
    from streamq.testing.thread import cluster  # whoever runs pytest where streamq is installed loads this module

    with cluster(3) as running:
        yield running


@pytest.fixture(scope="session")
def streamq_session_cluster() -> "Iterator[ClusterInThread]":
    """Three brokers that all tests share, each with topics of names of its own."""
    from streamq.testing.thread import cluster

    with cluster(3) as running:
        yield running
