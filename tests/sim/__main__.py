"""The one command of the simulations.

    python -m tests.sim tier1 --seeds 20000 --jobs 2        a synchronous world over the pure cores
    python -m tests.sim tier2 --minutes 30                  the real broker, producer and consumer in one trio run
    python -m tests.sim storage --seeds 500                 one broker's real storage under every fault of its disk
    python -m tests.sim topics --seeds 200                  topics removed and made again while brokers are away
    python -m tests.sim groups --seeds 100                  members of consumer groups that crash, hang and are cut off
    python -m tests.sim transactions --seeds 100            read, transform, write by processes that die at every stage
    python -m tests.sim mutants                             the code with one rule broken, and the seeds that it takes to notice
    python -m tests.sim replay tier2 144                    one seed, shortened, with a time line

Prints seeds/s, virtual hours, counters and the verdict. Ends with 1 after a violation, and when something that has to happen did not:
such a run has proved nothing (pitfall 60).
"""

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final

sys.path[:0] = [str(Path(__file__).parents[2] / folder) for folder in ("producers", "consumers")]

from tests.sim import mutants  # noqa: E402
from tests.sim.report import Report  # noqa: E402
from tests.sim.tiers import TIERS, run_safely  # noqa: E402

PROGRESS_S: Final = 30.0
FAILURES_MAX: Final = 3
"""After so many violations there is enough to look at."""
SEEDS_PER_PROCESS: Final = {"tier1": 5_000, "tier2": 50, "storage": 500, "topics": 50, "groups": 30, "transactions": 30}
"""Whole clusters that have ended leave garbage behind that slows down what comes after them."""
CHUNK: Final = {"tier1": 20, "tier2": 1, "storage": 4, "topics": 2, "groups": 1, "transactions": 1}


def seeds(first: int, number: int | None, until: float | None) -> Iterator[int]:
    for seed in range(first, first + number) if number is not None else count(first):
        if until is not None and time.monotonic() >= until:
            return
        yield seed


class Total:
    """The sum over all reports."""

    def __init__(self, tier: str, jobs: int) -> None:
        self.tier = tier
        self.jobs = jobs
        self.began = time.monotonic()
        self.told = self.began
        self.seeds = self.faults = self.messages = 0
        self.faults_least = sys.maxsize
        self.virtual_s = 0.0
        self.virtual_least_s = float("inf")
        self.counters: Counter[str] = Counter()
        self.failed: list[Report] = []

    def add(self, report: Report) -> None:
        self.seeds += 1
        self.faults += report.faults
        self.messages += report.messages
        self.virtual_s += report.virtual_s
        self.counters.update(report.counters)
        if report.violation is None:
            self.faults_least = min(self.faults_least, report.faults)
            self.virtual_least_s = min(self.virtual_least_s, report.virtual_s)
        else:
            self.failed.append(report)
            lines = report.violation.splitlines()
            print(f"seed {report.seed}: {lines[0]} {lines[-1] if len(lines) > 1 else ''}", flush=True)
        if time.monotonic() - self.told >= PROGRESS_S:
            self.told = time.monotonic()
            print(self.line(), flush=True)

    def line(self) -> str:
        took = time.monotonic() - self.began
        return (
            f"{self.tier}: {self.seeds} seeds in {took:.0f} s ({self.seeds / took:.2f} seeds/s with {self.jobs} jobs), "
            f"{self.virtual_s / 3600:.1f} virtual hours, {self.messages} messages ({self.messages / took:.0f}/s), "
            f"{self.faults} faults, {len(self.failed)} violations"
        )

    def missing(self) -> list[str]:
        return [name for name in TIERS[self.tier].MUST_HAPPEN if not self.counters[name]]

    def verdict(self) -> int:
        print(self.line())
        if self.seeds > len(self.failed):
            print(f"each seed at least {self.virtual_least_s:.1f} virtual seconds and {self.faults_least} faults")
        for name, number in sorted(self.counters.items()):
            print(f"    {number:12,}  {name}")
        if self.failed:
            print(f"FAILED: {', '.join(f'seed {report.seed}' for report in self.failed)}")
            return 1
        if missing := self.missing():
            print(f"FAILED: nothing was proved, since these never happened: {', '.join(missing)}")
            return 1
        print("PASSED: no violation")
        return 0


def run(options: argparse.Namespace) -> int:
    tier = TIERS[options.command]
    one = partial(run_safely, options.command)
    number = options.seeds if options.seeds is not None or options.minutes is not None else 100
    until = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    total = Total(options.command, options.jobs)
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=SEEDS_PER_PROCESS[options.command]) as pool:
        for report in _reports(pool, one, seeds(options.seed, number, until), CHUNK[options.command] * options.jobs * 4):
            total.add(report)
            if len(total.failed) >= FAILURES_MAX:
                break
        pool.terminate()
    code = total.verdict()
    if total.failed and not options.no_account:
        print(tier.account(total.failed[0].seed))
    return code


def _reports(pool: "multiprocessing.pool.Pool", run_seed: Callable[[int], Report], of: Iterator[int], window: int) -> Iterator[Report]:
    """Bounded work ahead, so that time runs out when it should."""
    waiting: list[multiprocessing.pool.AsyncResult[Report]] = []
    for seed in of:
        waiting.append(pool.apply_async(run_seed, (seed,)))
        if len(waiting) >= window:
            yield waiting.pop(0).get()
    for result in waiting:
        yield result.get()


def hunt_mutants(rules: list[str]) -> int:
    """For each mutant the seeds that it takes, from 0 on; as a table for tests/README.md."""
    print("| mutant | rule | simulation | seeds needed | what it shows |\n| --- | --- | --- | --- | --- |")
    escaped = 0
    for mutant in mutants.MUTANTS:
        if not rules or mutant.rule in rules:
            catch = mutants.hunt(mutant, 0, mutant.within)
            print(mutants.table_row(mutant, catch), flush=True)
            escaped += catch is None
    print(f"FAILED: {escaped} mutants were not caught" if escaped else "PASSED: every mutant was caught")
    return 1 if escaped else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for tier in TIERS:
        of = commands.add_parser(tier, help=f"runs seeds of {tier}")
        of.add_argument("--seeds", type=int, help="how many; 100 if neither this nor --minutes is given")
        of.add_argument("--minutes", type=float, help="for how long at most")
        of.add_argument("--seed", type=int, default=0, help="the first seed")
        of.add_argument("--jobs", type=int, default=multiprocessing.cpu_count(), help="processes")
        of.add_argument("--no-account", action="store_true", help="does not run a failed seed again for its time line")
    replay = commands.add_parser("replay", help="one seed that failed, with a time line")
    replay.add_argument("tier", choices=list(TIERS))
    replay.add_argument("seed", type=int)
    replay.add_argument("--whole", action="store_true", help="with all its faults, not the fewest that still fail")
    mutant = commands.add_parser("mutants", help="the code with one rule broken: how many seeds it takes to notice")
    mutant.add_argument("rules", nargs="*", help="only of these, like P-16; all if none is given")
    options = parser.parse_args()
    if options.command == "mutants":
        return hunt_mutants(options.rules)
    if options.command == "replay":
        print(TIERS[options.tier].account(options.seed, is_shortened=not options.whole))
        return 0
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
