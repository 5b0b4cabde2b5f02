"""A cluster of real processes under a nemesis, and the verdict of the history checkers. Ends with 1 if anything promised did not hold.

    python -m tests.nemesis --minutes 30 --seed 1 --brokers 3
    python -m tests.nemesis --minutes 15 --seed 1 --brokers 5 --write 3

The seed decides which faults come in which order and how long they last. Where it may, the run puts itself into namespaces of its own
(network, mounts, processes), which end with it; elsewhere network faults and the full disk are left out, and it says so.
"""

import argparse
import json
import signal
import sys
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("producers", "consumers")]

from tests.nemesis import network  # noqa: E402
from tests.nemesis.faults import KINDS  # noqa: E402
from tests.nemesis.report import table  # noqa: E402
from tests.nemesis.run import Plan, run  # noqa: E402


def main() -> int:
    options = _options()
    if not options.no_namespaces and not network.is_inside():
        reason = network.why_not()
        if not reason:
            return network.enter("tests.nemesis", sys.argv[1:])
        print(f"network faults and the full disk are left out: {reason}")
    signal.signal(signal.SIGTERM, _interrupt)
    plan = Plan(
        seconds=options.seconds or options.minutes * 60,
        seed=options.seed,
        brokers=options.brokers,
        write=options.write or options.brokers // 2 + 1,
        partitions=options.partitions,
        kinds=options.kinds,
    )
    report = run(plan)
    print(table(report))
    if options.json:
        options.json.write_text(json.dumps(report._asdict(), indent=2) + "\n")
    return 1 if report.violations else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, help="instead of --minutes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--brokers", type=int, default=3)
    parser.add_argument("--write", type=int, help="W; a majority if not given")
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument(
        "--kinds", type=_kinds, default=(), help=f"only these, separated by commas; of {', '.join(kind.name for kind in KINDS)}"
    )
    parser.add_argument("--json", type=Path, help="write the report to this file, too")
    parser.add_argument("--no-namespaces", action="store_true", help="stay on the loopback interface")
    return parser.parse_args()


def _kinds(words: str) -> tuple[str, ...]:
    kinds = tuple(words.split(","))
    if unknown := set(kinds) - {kind.name for kind in KINDS}:
        raise argparse.ArgumentTypeError(f"there is no {', '.join(sorted(unknown))}")
    return kinds


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
