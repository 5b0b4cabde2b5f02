"""The simulations by their names, and one seed of one of them.

Not in `__main__`, since the processes that run seeds have to be able to import it.
"""

import traceback
from typing import Final

from tests.sim import storage_seeds, tier1, tier2
from tests.sim.report import Report
from tests.sim.tier2 import grouped, remade, transacted

TIERS: Final = {"tier1": tier1, "tier2": tier2, "storage": storage_seeds, "topics": remade, "groups": grouped, "transactions": transacted}


def run_safely(tier: str, seed: int) -> Report:
    """An exception is a violation too: of the code under test or of the simulation, somebody has to look."""
    try:
        return TIERS[tier].run_seed(seed)
    except Exception:
        return Report(seed, violation=f"an exception\n{traceback.format_exc()}")
