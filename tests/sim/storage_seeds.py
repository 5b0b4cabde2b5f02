"""Seeds of `storage_world`: one broker's real storage, life after life, under every fault of its disk."""

from typing import Final

import trio

from tests.sim.private_trio import run_seeded
from tests.sim.report import Report
from tests.sim.storage_world import StorageWorld, Violation

__all__ = ["MUST_HAPPEN", "account", "run_seed"]

LIVES: Final = 6
MUST_HAPPEN: Final = (
    "append", "reads", "epoch", "drop", "trim", "roll",
    "crash", "crash after", "rot", "lost", "misdirected", "sync", "full", "stop", "damaged ranges",
    "torn writes",
)  # fmt: skip


class _Run:
    def __init__(self, seed: int) -> None:
        self.world = StorageWorld(seed)
        self.violation: str | None = None
        self.virtual_s = 0.0

    async def main(self) -> None:
        began = trio.current_time()
        try:
            await self.world.run(LIVES)
        except Violation as found:
            self.violation = str(found)
        except BaseExceptionGroup as group:
            found, rest = group.split(Violation)
            if rest is not None or found is None:
                raise
            self.violation = "; ".join(map(str, found.exceptions))
        self.virtual_s = trio.current_time() - began


def run_seed(seed: int) -> Report:
    run = _Run(seed)
    run_seeded(run.main, seed=seed)
    counts = run.world.counts
    counts["torn writes"] = run.world.disk.torn_writes
    return Report(seed, counts, run.virtual_s, 0, len(run.world.disk.damage), run.violation)


def account(seed: int, *, is_shortened: bool = True) -> str:
    run = _Run(seed)
    run_seeded(run.main, seed=seed)
    return "\n".join([f"seed {seed}", run.violation or "holds", *run.world.story, f"again: python -m tests.sim replay storage {seed}"])
