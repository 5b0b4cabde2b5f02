"""Clusters inside the test process: the real broker code over storage in memory.

    with streamq.testing.cluster(brokers=3) as cluster:      # in any test: plain, asyncio, trio
        Producer(cluster.bootstrap) ...
        cluster.kill("b1")

`cluster` runs the brokers in a thread with an event loop of its own. The pytest fixtures `streamq_cluster` and `streamq_session_cluster`
come with the package (`plugin`). `streamq.testing.in_process` is for tests under trio that want the brokers in their own event loop.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamq.testing.thread import ClusterInThread, cluster

__all__ = ["ClusterInThread", "cluster"]


def __getattr__(name: str) -> object:
    """Imported when used: whoever runs pytest where streamq is installed loads this module."""
    if name in __all__:
        from streamq.testing import thread

        return getattr(thread, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
