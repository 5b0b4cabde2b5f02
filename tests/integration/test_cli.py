"""The command line against real brokers: every byte, every exit code, every way to ask."""

import base64
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.local import LocalCluster, environment, free_port_range, local_cluster, wait_until


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster(3) as running:
        yield running


def objects(output: bytes) -> list[dict[str, object]]:
    return [json.loads(line) for line in output.splitlines()]


def error(done: subprocess.CompletedProcess[bytes]) -> dict[str, object]:
    [row] = objects(done.stderr)
    return row


# --- topics ----------------------------------------------------------------------------------------------------------------


def test_a_topic_from_creation_to_removal(cluster: LocalCluster) -> None:
    created = cluster.run("topic", "create", "life", "--partitions", "2", "-W", "3", "-R", "1").stdout.decode()
    assert "2 brokers lost for good" in created
    assert cluster.run("topic", "create", "life", expect=7).stdout == b""
    assert error(cluster.run("topic", "create", "life", "-o", "json", expect=7))["code"] == "topic_exists"
    [listed] = [row for row in objects(cluster.run("topic", "ls", "-o", "json").stdout) if row["topic"] == "life"]
    assert (listed["partitions"], listed["replicas"], listed["write_quorum"], listed["read_quorum"]) == (2, 3, 3, 1)
    [described] = objects(cluster.run("topic", "describe", "life", "-o", "json").stdout)
    for partition in described["partition_list"]:
        assert partition["high_watermark"] == 0
        assert partition["sequencer"] in cluster.names
        assert sorted(replica["broker"] for replica in partition["replicas"]) == cluster.names
    assert cluster.run("topic", "rm", "life", expect=2).stderr  # nobody to ask, and no --yes
    assert b"would remove" in cluster.run("topic", "rm", "life", "--dry-run").stderr
    cluster.run("topic", "rm", "life", "--yes")
    assert error(cluster.run("topic", "describe", "life", "-o", "json", expect=3))["code"] == "unknown_topic"


@pytest.mark.parametrize(
    ("words", "code", "exit_code"),
    [
        (["topic", "create", "bad", "--replicas", "3", "-W", "1", "-R", "2"], "bad_quorum", 2),
        (["topic", "create", "bad", "--replicas", "3", "-W", "4", "-R", "2"], "bad_quorum", 2),
        (["topic", "create", "bad", "--replicas", "3", "-W", "2", "-R", "4"], "bad_quorum", 2),
        (["topic", "create", "bad", "--replicas", "5"], "bad_quorum", 2),
        (["topic", "create", "bad", "-W", "1", "-R", "2"], "bad_quorum", 2),
        (["topic", "create", "bad name"], "bad_name", 2),
        (["topic", "create", "bad", "--partitions", "0"], "bad_request", 2),
        (["topic", "describe", "nope"], "unknown_topic", 3),
        (["topic", "rm", "nope", "--yes"], "unknown_topic", 3),
        (["tail", "nope"], "unknown_topic", 3),
        (["cluster", "status", "b9"], "unknown_broker", 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_what_is_wrong_is_refused_with_its_code(cluster: LocalCluster, words: list[str], code: str, exit_code: int) -> None:
    more = ["--data", str(cluster.directory)] if words[0] == "cluster" else []
    row = error(cluster.run(*words, *more, "-o", "json", expect=exit_code))
    assert row["code"] == code
    assert row["hint"]


def test_producing_to_an_unknown_topic_ends_with_3(cluster: LocalCluster) -> None:
    assert b"unknown_topic" in cluster.run("produce", "nope", stdin=b"x\n", expect=3).stderr
    assert b"unknown_topic" in cluster.run("produce", "nope", stdin=b"", expect=3).stderr
    cluster.run("topic", "create", "narrow")
    for stdin in (b"x\n", b""):
        assert b"unknown_partition" in cluster.run("produce", "narrow", "-p", "1", stdin=stdin, expect=3).stderr


def test_an_unreachable_bootstrap_ends_with_4_within_10_s(cluster: LocalCluster) -> None:
    for words, stdin in ((["topic", "ls"], b""), (["produce", "x"], b"x\n"), (["tail", "x"], b"")):
        begun = time.monotonic()
        done = cluster.run(*words, "--bootstrap", "127.0.0.1:1,192.0.2.1:7700", stdin=stdin, expect=4)
        assert time.monotonic() - begun < 11
        assert b"127.0.0.1:1" in done.stderr
        assert b"192.0.2.1:7700" in done.stderr


# --- produce and tail ------------------------------------------------------------------------------------------------------


def test_one_partition_comes_back_byte_for_byte(cluster: LocalCluster) -> None:
    cluster.run("topic", "create", "bytes")
    lines = [b"line %d" % i for i in range(50_000)] + [b"", b"\r", b"a\rb\r", b"\x00\xff\xfe", "ünïcödé".encode(), b" ", b"x" * 900_000]
    text = b"\n".join(lines) + b"\n"
    cluster.run("produce", "bytes", stdin=text)
    back = cluster.run("tail", "bytes", "--from", "start", "--exit-at-end").stdout
    assert hashlib.sha256(back).digest() == hashlib.sha256(text).digest()


def test_several_partitions_keep_the_multiset_and_the_order_of_each_key(cluster: LocalCluster) -> None:
    cluster.run("topic", "create", "keyed", "--partitions", "6")
    sent = [(b"k%d" % (i % 37), b"%d" % i) for i in range(20_000)]
    cluster.run("produce", "keyed", "--key-sep", ":", stdin=b"".join(key + b":" + value + b"\n" for key, value in sent))
    back = cluster.run("tail", "keyed", "--from", "start", "-F", r"%k:%v\n").stdout.splitlines()
    pairs = [tuple(line.split(b":")) for line in back]
    assert sorted(pairs) == sorted(sent)
    for number in range(37):
        key = b"k%d" % number
        assert [value for k, value in pairs if k == key] == [value for k, value in sent if k == key]


def test_a_record_with_an_id_is_stored_once_however_often_its_file_is_sent(cluster: LocalCluster, tmp_path: Path) -> None:
    cluster.run("topic", "create", "once", "--partitions", "3", "--dedup-window", "2h")
    assert b"ids of records count for 2h" in cluster.run("topic", "describe", "once").stdout
    lines = b"".join(b"u%d:line %d\n" % (i % 7, i) for i in range(100))
    cluster.run("produce", "once", "--key-sep", ":", "--id-from", "value", stdin=lines)
    again = cluster.run(
        "produce", "once", "--key-sep", ":", "--id-from", "value", "--receipts", f"{tmp_path}/r", stdin=lines + b"u1:more\n"
    )
    assert b"acked 101 (of which 100 were there already)" in again.stderr
    assert sum(bool(row.get("duplicate")) for row in objects((tmp_path / "r").read_bytes())) == 100
    assert len(cluster.run("tail", "once", "--from", "start", "--exit-at-end").stdout.splitlines()) == 101
    rows = b'{"key":"k","value":"1","headers":{"id":"x"}}\n{"key":"k","value":"2","headers":{"id":"x"}}\n{"key":"k","value":"3"}\n'
    half = cluster.run("produce", "once", "--format", "json", "--id-from", "header:id", stdin=rows, expect=6)
    assert b"acked 2 (of which 1 were there already), refused 1" in half.stderr
    cluster.run("topic", "alter", "once", "--dedup-window", "none")
    refused = cluster.run("produce", "once", "--id-from", "key", "-k", "k", stdin=b"x\n", expect=6)
    assert b"--dedup-window" in refused.stderr


def test_what_tail_prints_as_json_produce_reads_back_unchanged(cluster: LocalCluster) -> None:
    cluster.run("topic", "create", "there")
    cluster.run("topic", "create", "back")
    cluster.run("produce", "there", "-k", "ké", "-H", "a=b", "-H", "c=", stdin=b"text\n\xff\xfe\n\n")
    first = cluster.run("tail", "there", "-o", "json").stdout
    cluster.run("produce", "back", "--format", "json", stdin=first)
    second = objects(cluster.run("tail", "back", "-o", "json").stdout)
    assert [{**row, "topic": "there"} for row in second] == objects(first)
    assert second[0]["headers"] == {"a": "b", "c": ""}
    assert base64.b64decode(str(second[1]["value_base64"])) == b"\xff\xfe"


def test_receipts_and_summary_tell_where_each_record_is(cluster: LocalCluster, tmp_path: object) -> None:
    cluster.run("topic", "create", "receipts", "--partitions", "3")
    path = f"{tmp_path}/receipts"
    begun = time.time()
    done = cluster.run("produce", "receipts", "--receipts", path, "-o", "json", stdin=b"".join(b"%d\n" % i for i in range(5000)))
    [summary] = objects(done.stderr)
    assert (summary["acked"], summary["refused"], summary["unknown"]) == (5000, 0, 0)
    with open(path, "rb") as file:
        receipts = objects(file.read())
    assert sorted(receipt["record"] for receipt in receipts) == list(range(5000))
    assert all(begun <= receipt["acked_at"] <= time.time() for receipt in receipts)
    where = {(receipt["partition"], receipt["offset"]): receipt["record"] for receipt in receipts}
    for row in objects(cluster.run("tail", "receipts", "--from", "start", "-o", "json").stdout):
        assert int(str(row["value"])) == where.pop((row["partition"], row["offset"]))
    assert not where


def test_a_record_over_the_limit_goes_to_the_rejects_and_the_others_in(cluster: LocalCluster, tmp_path: object) -> None:
    cluster.run("topic", "create", "limits")
    path = f"{tmp_path}/rejects"
    done = cluster.run("produce", "limits", "--rejects", path, stdin=b"before\n" + b"x" * (3 << 20) + b"\nafter\n", expect=6)
    assert b"record_too_large" in done.stderr
    assert cluster.tail("limits") == [b"before", b"after"]
    with open(path, "rb") as file:
        [reject] = objects(file.read())
    assert (reject["record"], reject["outcome"], reject["code"]) == (1, "refused", "record_too_large")
    with open(path, "rb") as file:
        cluster.run("produce", "limits", "--format", "json", stdin=file.read(), expect=6)
    assert cluster.tail("limits") == [b"before", b"after"]  # its beginning is not taken for a record


def test_a_line_that_is_no_object_is_a_reject_too(cluster: LocalCluster) -> None:
    cluster.run("topic", "create", "objects")
    done = cluster.run("produce", "objects", "--format", "json", stdin=b'{"value":"a"}\nnonsense\n{"value":"b"}\n', expect=6)
    assert b"line 2" in done.stderr
    assert cluster.tail("objects") == [b"a", b"b"]


def test_empty_input_is_no_record_and_no_error(cluster: LocalCluster) -> None:
    cluster.run("topic", "create", "empty")
    assert cluster.run("produce", "empty").stdout == b""
    assert cluster.tail("empty") == []
    assert cluster.run("tail", "empty").stdout == b""


def test_ranges(cluster: LocalCluster) -> None:
    cluster.run("topic", "create", "ranges")
    cluster.produce("ranges", [b"%d" % i for i in range(100)])
    middle = time.time()
    time.sleep(0.05)
    cluster.produce("ranges", [b"%d" % i for i in range(100, 200)])

    def numbers(*words: str) -> list[int]:
        return [int(line) for line in cluster.run("tail", "ranges", *words).stdout.split()]

    assert numbers() == list(range(190, 200))
    assert numbers("-n", "3") == [197, 198, 199]
    assert numbers("--from=-25") == list(range(175, 200))
    assert numbers("--from", "150") == list(range(150, 200))
    assert numbers("--from", "0", "--until", "7") == list(range(7))
    assert numbers("--from", "start", "-n", "5") == list(range(5))
    assert numbers("--from", "end") == []
    assert numbers("--from", f"@{middle:.3f}") == list(range(100, 200))
    assert numbers("--from", "start", "--until", f"@{middle:.3f}") == list(range(100))
    assert numbers("--since", "1h") == list(range(200))
    assert numbers("--from", "start", "--grep", "^1?5$") == [5, 15]
    assert error(cluster.run("tail", "ranges", "--from", "201", "-o", "json", expect=7))["code"] == "offset_ahead"
    for broker in cluster.names:
        assert numbers("--from", "start", "--broker", broker) == list(range(200))
    cluster.run("tail", "ranges", "--broker", "b9", expect=3)
    cluster.run("tail", "ranges", "-p", "3", expect=3)


def test_the_last_ten_over_all_partitions_are_in_order_of_time(cluster: LocalCluster) -> None:
    cluster.run("topic", "create", "spread", "--partitions", "4")
    for number in range(20):
        cluster.produce("spread", [b"%d" % number], "-p", str(number % 4))
    assert cluster.run("tail", "spread").stdout.split() == [b"%d" % i for i in range(10, 20)]


def test_follow_prints_what_comes_and_ends_with_130(cluster: LocalCluster) -> None:
    cluster.run("topic", "create", "follow", "--partitions", "2")
    cluster.produce("follow", [b"old"])
    following = cluster.start_command("tail", "follow", "-f", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert following.stdout is not None
    assert following.stdout.readline() == b"old\n"
    for number in range(5):
        cluster.produce("follow", [b"new %d" % number])
        assert following.stdout.readline() == b"new %d\n" % number
    following.send_signal(signal.SIGINT)
    _, errors = following.communicate(timeout=10)
    assert following.returncode == 130
    assert b"6 record" in errors
    assert b"Traceback" not in errors


def test_a_reader_that_has_enough_ends_tail_quietly(cluster: LocalCluster) -> None:
    cluster.run("topic", "create", "pipe")
    cluster.produce("pipe", [b"%d" % i for i in range(200_000)])
    tail = cluster.start_command("tail", "pipe", "--from", "start", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert tail.stdout is not None
    assert tail.stdout.readline() == b"0\n"
    tail.stdout.close()
    assert tail.stderr is not None
    assert tail.stderr.read() == b""
    assert tail.wait(timeout=20) == 0


def test_an_interrupted_produce_stops_at_once_with_a_summary(cluster: LocalCluster) -> None:
    cluster.run("topic", "create", "interrupt")
    producing = cluster.start_command("produce", "interrupt", stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert producing.stdin is not None
    producing.stdin.write(b"one\ntwo\n")
    producing.stdin.flush()
    wait_until(lambda: cluster.tail("interrupt") == [b"one", b"two"], timeout_s=10, what="the records, while stdin stays open")
    begun = time.monotonic()
    producing.send_signal(signal.SIGINT)
    _, errors = producing.communicate(timeout=10)
    assert time.monotonic() - begun < 3
    assert producing.returncode == 130
    assert b"interrupted: acked 2" in errors


def test_rate_spreads_records_over_time(cluster: LocalCluster) -> None:
    cluster.run("topic", "create", "rate")
    begun = time.monotonic()
    cluster.produce("rate", [b"x"] * 300, "--rate", "200")
    assert 1.2 < time.monotonic() - begun < 10


# --- brokers ---------------------------------------------------------------------------------------------------------------


def test_status_tells_where_each_broker_is(cluster: LocalCluster) -> None:
    rows = cluster.status()
    assert sorted(rows) == cluster.names
    for name, row in rows.items():
        assert row["state"] == "serving"
        assert row["port"] == cluster.port + cluster.names.index(name)
        command = open(f"/proc/{row['pid']}/cmdline", "rb").read().split(b"\0")  # noqa: SIM115
        assert command[1:-1] == [b"-m", b"streamq", b"broker", b"run", b"--config", f"{row['directory']}/broker.toml".encode()]
        open_files = {os.readlink(f"/proc/{row['pid']}/fd/{number}") for number in (0, 1, 2)}
        assert open_files == {"/dev/null", f"{row['directory']}/broker.log"}


def test_a_second_start_starts_nothing(cluster: LocalCluster) -> None:
    before = {name: row["pid"] for name, row in cluster.status().items()}
    assert b"running already" in cluster.cluster("start").stdout
    assert {name: row["pid"] for name, row in cluster.status().items()} == before
    assert b"3 brokers" in cluster.cluster("start", "--brokers", "5", expect=7).stderr


def test_doctor_finds_nothing_wrong(cluster: LocalCluster) -> None:
    findings = objects(cluster.run("doctor", "-o", "json").stdout)
    assert {finding["check"] for finding in findings} >= {"version", "bootstrap", "topics", "broker b1"}
    assert not [finding for finding in findings if finding["verdict"] == "failed"]
    assert cluster.run("doctor", "--bootstrap", "127.0.0.1:1", expect=4).stdout


def test_doctor_tells_of_a_dead_broker_once(cluster: LocalCluster) -> None:
    cluster.run("topic", "create", "watched", "--partitions", "8")
    cluster.kill("b3")
    try:
        rows = objects(cluster.run("doctor", "-o", "json", expect=None).stdout)
    finally:
        cluster.start("b3")
    [replicas] = [row for row in rows if row["check"] == "replicas"]
    assert "b3 unreachable" in str(replicas["what"])
    assert not [row for row in rows if row["verdict"] == "ok" and row["hint"]]


def test_broker_ls(cluster: LocalCluster) -> None:
    rows = objects(cluster.run("broker", "ls", "-o", "json").stdout)
    assert [(row["broker"], row["state"]) for row in rows] == [(name, "serving") for name in cluster.names]


def test_broker_stats_tell_what_each_broker_has_counted(cluster: LocalCluster) -> None:
    cluster.run("topic", "create", "counted")
    cluster.produce("counted", [b"%d" % i for i in range(1_000)])
    sequencer = cluster.sequencer("counted")
    rows = {str(row["broker"]): row for row in objects(cluster.run("broker", "stats", "-o", "json").stdout)}
    assert sorted(rows) == cluster.names
    counters, histograms = rows[sequencer]["counters"], rows[sequencer]["histograms"]
    assert isinstance(counters, dict)
    assert isinstance(histograms, dict)
    assert counters["records_taken"] >= 1_000
    assert counters["process_cpu_seconds"] > 0
    assert 0 < histograms["ack_seconds"]["p50"] <= histograms["ack_seconds"]["max"] < 10
    text = cluster.run("broker", "stats", sequencer).stdout.decode()
    assert sequencer in text.splitlines()[0]
    assert "journal_sync_seconds" in text
    [row] = objects(cluster.run("broker", "stats", sequencer, "--watch", "0.2", "-n", "1", "-o", "json").stdout)
    assert 0.1 < float(str(row["seconds"])) < 5
    assert error(cluster.run("broker", "stats", "b9", "-o", "json", expect=3))["code"] == "unknown_broker"


def test_a_broker_that_is_up_does_not_rejoin(cluster: LocalCluster) -> None:
    done = cluster.run("broker", "rejoin", "b1", "--data", str(cluster.directory), "--yes", expect=7)
    assert b"is running" in done.stderr
    config = f"{cluster.directory}/b1/broker.toml"
    assert b"stop it before" in cluster.run("broker", "rejoin", "--config", config, "--yes", expect=7).stderr


def test_kill_pause_resume_stop_start() -> None:
    with local_cluster(3) as running:
        running.run("topic", "create", "t")
        running.produce("t", [b"1"])
        running.cluster("pause", "b1")
        assert running.status()["b1"]["state"] == "paused"
        running.produce("t", [b"2"])
        running.cluster("resume", "b1")
        wait_until(lambda: running.status()["b1"]["state"] == "serving", timeout_s=10, what="b1 serves")
        running.cluster("kill", "b2")
        assert running.status()["b2"]["state"] == "stopped"
        assert b"not running" in running.cluster("kill", "b2", expect=7).stderr
        running.produce("t", [b"3"])
        assert running.cluster("start").stdout.startswith(b"started b2\n")
        running.cluster("stop")
        assert {row["state"] for row in running.status().values()} == {"stopped"}
        running.cluster("start")
        assert running.tail("t") == [b"1", b"2", b"3"]


def test_a_port_in_use_and_a_foreign_directory_are_told(cluster: LocalCluster, tmp_path: object) -> None:

    def words(*more: str) -> list[str]:
        return ["cluster", "start", "--brokers", "1", "--data", f"{tmp_path}/other", *more]

    done = cluster.run(*words("--port", str(cluster.port)), expect=7)
    assert b"in use" in done.stderr
    assert b"--set has an unknown setting" in cluster.run(*words("--set", "prot=1"), expect=2).stderr
    cluster.run(*words("--port", str(free_port_range(1))))  # as the hint said; nothing was founded by the attempts before
    cluster.run("cluster", "kill", "b1", "--data", f"{tmp_path}/other")
    own, other = cluster.directory / "b1", cluster.directory / "b2"
    config = tmp_path / "wrong.toml"  # type: ignore[operator]
    config.write_text((own / "broker.toml").read_text().replace(str(own), str(other)).replace(f"port = {cluster.port}", "port = 1"))
    refused = cluster.run("broker", "run", "--config", str(config), expect=None)
    assert refused.returncode in (4, 7)
    assert b"Traceback" not in refused.stderr
    config.write_text('broker = "b1"\ndata_directory = "/nonexistent"\nprot = 1\n')
    assert b"did you mean 'port'?" in cluster.run("broker", "run", "--config", str(config), expect=2).stderr


@pytest.mark.long
def test_rejoin_ends_when_a_topic_lost_its_only_copy() -> None:
    with local_cluster(3) as running:
        running.run("topic", "create", "single", "--partitions", "3", "--replicas", "1")
        running.run("topic", "create", "copied")
        running.produce("copied", [b"1", b"2", b"3"])
        running.cluster("stop", "b2")
        shutil.rmtree(running.data("b2"))
        done = running.run("broker", "rejoin", "b2", "--data", str(running.directory), "--yes", "-o", "json", expect=6)
        [row] = objects(done.stdout)
        assert row["rejoined"]
        assert len(row["lost"]) == 1
        assert str(row["lost"]).startswith("['single/")
        assert running.tail("copied", "--broker", "b2") == [b"1", b"2", b"3"]


# --- commands that bring their own cluster ---------------------------------------------------------------------------------


def test_dev_runs_a_cluster_and_names_it_in_a_profile(tmp_path: object) -> None:
    variables = environment(XDG_CONFIG_HOME=f"{tmp_path}/config", STREAMQ_PORT=str(20_000 + os.getpid() % 10_000))
    command = [sys.executable, "-m", "streamq"]
    dev = subprocess.Popen(
        [*command, "dev", "--brokers", "2", "--data", f"{tmp_path}/data", "-o", "json"], stdout=subprocess.PIPE, env=variables
    )
    try:
        assert dev.stdout is not None
        ready = json.loads(dev.stdout.readline())
        assert ready["ready"]
        listed = subprocess.run([*command, "broker", "ls", "-o", "json"], env=variables, capture_output=True, check=True)
        assert [row["state"] for row in objects(listed.stdout)] == ["serving", "serving"]
    finally:
        dev.send_signal(signal.SIGINT)
        assert dev.wait(timeout=40) == 0
    status = subprocess.run(
        [*command, "cluster", "status", "--data", f"{tmp_path}/data", "-o", "json"], env=variables, capture_output=True, check=True
    )
    assert {row["state"] for row in objects(status.stdout)} == {"stopped"}


def test_demo_without_a_cluster_brings_its_own_and_leaves_nothing(tmp_path: object) -> None:
    variables = environment(XDG_CONFIG_HOME=f"{tmp_path}/config", TMPDIR=str(tmp_path), HOME=str(tmp_path))
    command = [sys.executable, "-m", "streamq", "demo", "--count", "200", "--rate", "1000", "-o", "json"]
    profile = [*command[:3], "profile", "add", "nowhere", "--bootstrap", "127.0.0.1:1"]
    subprocess.run(profile, env=variables, check=True, capture_output=True)
    done = subprocess.run(command, env=variables, capture_output=True, timeout=60, check=True)
    assert json.loads(done.stdout)["acked"] == 200
    assert os.listdir(str(tmp_path)) == ["config"]
