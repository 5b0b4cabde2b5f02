"""A broker starts only on its own, newest, whole directory; anything else is one clear line, and nothing on the disk changes."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.local import LocalCluster, environment, local_cluster, wait_until


def run_broker(cluster: LocalCluster, config: Path, timeout_s: float = 20) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        cluster.command("broker", "run", "--config", str(config)), capture_output=True, env=environment(), timeout=timeout_s, check=False
    )


def test_only_the_own_directory_will_do(tmp_path: Path) -> None:
    with local_cluster() as cluster:
        cluster.run("topic", "create", "t")
        cluster.produce("t", [b"x"])
        cluster.cluster("stop")
        configs = {name: (cluster.directory / name / "broker.toml") for name in cluster.names}

        swapped = tmp_path / "swapped.toml"
        swapped.write_text(configs["b1"].read_text().replace(str(cluster.data("b1")), str(cluster.data("b2"))))
        done = run_broker(cluster, swapped)
        assert done.returncode == 7
        assert b"belongs to broker b2" in done.stderr

        unknown = tmp_path / "unknown.toml"
        unknown.write_text(configs["b1"].read_text() + "\nflush_byte = 5\n")
        done = run_broker(cluster, unknown)
        assert done.returncode == 2
        assert b"flush_byte" in done.stderr
        assert b"flush_bytes" in done.stderr

        empty = tmp_path / "empty.toml"
        empty.write_text(configs["b1"].read_text().replace(str(cluster.data("b1")), str(tmp_path / "nothing")))
        done = run_broker(cluster, empty)
        assert done.returncode == 3
        assert b"rejoin" in done.stderr
        assert not (tmp_path / "nothing").exists() or not list((tmp_path / "nothing").iterdir())

        taken = socket.socket()
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", cluster.port))
        taken.listen()
        done = run_broker(cluster, configs["b1"])
        assert done.returncode == 7
        assert b"in use" in done.stderr
        taken.close()

        cluster.start()
        assert cluster.tail("t") == [b"x"]


def test_an_older_copy_of_a_directory_is_refused_and_a_second_process_too(tmp_path: Path) -> None:
    with local_cluster() as cluster:
        cluster.run("topic", "create", "t")
        cluster.cluster("stop", "b1")
        shutil.copytree(cluster.data("b1"), tmp_path / "old")
        cluster.start("b1")
        cluster.produce("t", [b"after the copy"])
        second = run_broker(cluster, cluster.directory / "b1" / "broker.toml")
        assert second.returncode == 4
        assert b"lock" in second.stderr.lower() or b"open" in second.stderr.lower()
        cluster.kill("b1")
        shutil.rmtree(cluster.data("b1"))
        shutil.copytree(tmp_path / "old", cluster.data("b1"))
        refused = cluster.cluster("start", "b1", expect=None)
        assert refused.returncode == 7
        assert b"older copy" in refused.stderr
        assert cluster.tail("t") == [b"after the copy"]


def test_a_broker_of_another_cluster_is_turned_away() -> None:
    with local_cluster() as cluster, local_cluster(brokers=1) as other:
        other.cluster("stop")
        cluster.kill("b1")
        shutil.rmtree(cluster.data("b1"))
        shutil.copytree(other.data("b1"), cluster.data("b1"))
        process = cluster.start_command(
            "broker", "run", "--config", str(cluster.directory / "b1" / "broker.toml"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            own = cluster.address("b2")
            cluster.run("topic", "create", "t", "--replicas", "2", "--write-quorum", "2", "--read-quorum", "1", bootstrap=own)
            cluster.run("produce", "t", "-q", bootstrap=own, stdin=b"x\n")
            assert cluster.tail("t", bootstrap=own) == [b"x"]
            wait_until(lambda: "is of another cluster" in cluster.log("b2"), timeout_s=20, what="b2 is turned away by the stranger")
        finally:
            process.kill()
            process.wait()


@contextmanager
def small_file_system(directory: Path, megabytes: int) -> Iterator[None]:
    directory.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(directory)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=False)


@pytest.mark.long
def test_a_full_disk_refuses_new_batches_and_loses_nothing(tmp_path: Path) -> None:
    with (
        local_cluster(reserve_bytes=24 << 20, log_file_bytes=4 << 20, flush_bytes=4 << 20, cache_bytes=8 << 20) as cluster,
        small_file_system(tmp_path / "small", 130),
    ):
        cluster.run("topic", "create", "t", "--replicas", "3", "--write-quorum", "3", "--read-quorum", "1")
        cluster.cluster("stop", "b2")
        shutil.copytree(cluster.data("b2"), tmp_path / "small" / "data")
        shutil.rmtree(cluster.data("b2"))
        cluster.data("b2").symlink_to(tmp_path / "small" / "data")
        cluster.start("b2")
        cluster.produce("t", [b"before"])
        block = b"".join(os.urandom(500).hex().encode() + b"\n" for _ in range(50_000))
        done = cluster.run("produce", "t", "--compression", "none", "--timeout", "6", "-o", "json", expect=6, stdin=block * 3)
        assert b"acked" in done.stderr
        tailed = cluster.tail("t")
        assert tailed[0] == b"before"
        assert cluster.status()["b2"]["state"] == "serving", cluster.log("b2")[-3000:]
        for filler in (tmp_path / "small").glob("filler*"):
            filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=600m", str(tmp_path / "small")], check=True)
        time.sleep(2)
        wait_until(lambda: _accepts(cluster), timeout_s=20, what="batches are taken again once there is room")
        assert cluster.tail("t")[: len(tailed)] == tailed
        cluster.kill(*cluster.names)
        cluster.start()
        assert cluster.tail("t")[: len(tailed)] == tailed
        cluster.kill(*cluster.names)


def _accepts(cluster: LocalCluster) -> bool:
    return cluster.run("produce", "t", "--timeout", "5", "-q", stdin=b"room again\n", expect=None).returncode == 0
