"""Members of a group against real brokers: a storm of rebalances, and what commits and joins cost.

    python -m tests.storm rebalances --minutes 10       50 members join, leave, hang, are stopped and killed over 32 partitions under load
    python -m tests.storm commits --pairs 10            ingest with and without a group that commits 1,000 partitions all the time
    python -m tests.storm joins                         how long the 100th member takes to join

Each ends with 1 when something does not hold. `rebalances` judges every record by `tests.sim.group_observer`.
"""

import argparse
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2] / folder) for folder in ("producers", "consumers")]

from tests.storm.costs import measure_commits, measure_joins  # noqa: E402
from tests.storm.rebalances import Storm  # noqa: E402


def main() -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m tests.storm", description=__doc__, formatter_class=form)
    verbs = parser.add_subparsers(dest="verb", required=True)
    rebalances = verbs.add_parser("rebalances")
    rebalances.add_argument("--minutes", type=float, default=10.0, help="of storm; a calm as long as each storm comes before it")
    rebalances.add_argument("--members", type=int, default=50)
    rebalances.add_argument("--partitions", type=int, default=32)
    rebalances.add_argument("--rate", type=float, default=1000.0, help="records a second")
    rebalances.add_argument("--seed", type=int, default=1)
    commits = verbs.add_parser("commits")
    commits.add_argument("--pairs", type=int, default=10)
    commits.add_argument("--partitions", type=int, default=1000)
    commits.add_argument("--seconds", type=float, default=4.0)
    joins = verbs.add_parser("joins")
    joins.add_argument("--members", type=int, default=100)
    joins.add_argument("--partitions", type=int, default=1000)
    options = parser.parse_args()
    if options.verb == "rebalances":
        storm = Storm(members=options.members, partitions=options.partitions, rate=options.rate, seed=options.seed)
        return storm.run(minutes=options.minutes)
    if options.verb == "commits":
        return measure_commits(pairs=options.pairs, partitions=options.partitions, seconds=options.seconds)
    return measure_joins(members=options.members, partitions=options.partitions)


if __name__ == "__main__":
    sys.exit(main())
