"""Tier 2: the real broker, producer and consumer code in one trio run: virtual clock, simulated network and disks."""

from tests.sim.tier2.failing import account
from tests.sim.tier2.run import MUST_HAPPEN, run_seed

__all__ = ["MUST_HAPPEN", "account", "run_seed"]
