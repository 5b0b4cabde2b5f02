"""Clusters inside the test process: the real broker code over storage in memory."""

from streamq.testing.cluster import BrokerInProcess, ClusterInProcess, cluster

__all__ = ["BrokerInProcess", "ClusterInProcess", "cluster"]
