"""Tier 1: a synchronous world over the pure cores, with an event heap, a simulated network, simulated disks and a nemesis."""

from tests.sim.tier1.failing import account
from tests.sim.tier1.run import MUST_HAPPEN, run_seed

__all__ = ["MUST_HAPPEN", "account", "run_seed"]
