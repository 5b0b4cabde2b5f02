"""Two small programs of users, run as they stand against real brokers of which one is killed meanwhile."""

import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.integration.local import environment, local_cluster, wait_until

EXAMPLES = Path(__file__).parents[1] / "examples"
RECORDS = 3_000
KEYS = 7


def test_a_service_and_a_program_go_on_when_a_broker_is_killed() -> None:
    with local_cluster(3) as cluster:
        for topic in ("orders", "invoices"):
            cluster.run("topic", "create", topic, "--partitions", "4")
        variables = environment(STREAMQ_BOOTSTRAP=cluster.bootstrap)
        service = subprocess.Popen([sys.executable, EXAMPLES / "asyncio_service.py"], env=variables, stderr=subprocess.PIPE)
        program = subprocess.Popen([sys.executable, EXAMPLES / "trio_program.py", str(RECORDS)], env=variables, stdout=subprocess.PIPE)
        try:
            lines = [b"k%d:%d" % (i % KEYS, i) for i in range(RECORDS)]
            cluster.produce("orders", lines[: RECORDS // 3], "--key-sep", ":")
            cluster.kill("b2")
            cluster.produce("orders", lines[RECORDS // 3 :], "--key-sep", ":")
            out, _ = program.communicate(timeout=60)
            assert program.returncode == 0
            counted = dict(line.split() for line in out.decode().splitlines())
            assert {key: int(number) for key, number in counted.items()} == Counter(f"k{i % KEYS}" for i in range(RECORDS))
            wait_until(lambda: len(set(cluster.tail("invoices"))) == RECORDS, timeout_s=60, what="an invoice for each order")
            service.send_signal(signal.SIGTERM)
            _, said = service.communicate(timeout=30)
            assert service.returncode == 0, said
            assert b"drained" in said
            assert set(cluster.tail("invoices")) == {b"invoice for %d" % i for i in range(RECORDS)}
        finally:
            for process in (service, program):
                process.kill()
                process.wait()


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short(example: Path) -> None:
    assert len(example.read_text().splitlines()) < 40
