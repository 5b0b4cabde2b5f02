"""What can be typed behind `streamq bench`."""

import argparse
from typing import Final

from streamq.cli.arguments import (
    Parser,
    Verbs,
    add_cluster_options,
    add_verb,
    natural,
    parse_size,
    positive_float,
    positive_int,
)

__all__ = ["add_bench"]

KiB: Final = 1 << 10


def add_bench(verbs: "Verbs[Parser]") -> None:
    _add_produce(verbs)
    _add_consume(verbs)
    _add_latency(verbs)
    _add_fan_in(verbs)
    _add_partitions(verbs)
    _add_failover(verbs)
    _add_restart(verbs)
    _add_soak(verbs)


def _bench_verb(
    verbs: "Verbs[Parser]", name: str, function: str, help_text: str, *, seconds: float = 5.0, runs: bool = True, plot: bool = True
) -> Parser:
    verb = add_verb(verbs, name, f"bench.{function}", help_text)
    cluster = verb.add_argument_group("cluster", "one of its own, which is removed afterwards, unless a running one is named")
    add_cluster_options(cluster)
    cluster.add_argument("--data", metavar="DIR", help="below which its own cluster keeps its data meanwhile (the temporary directory)")
    cluster.add_argument("--brokers", type=positive_int, metavar="N", help="of its own cluster (3)")
    cluster.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of its own brokers")
    cluster.add_argument(
        "--disk-budget", type=parse_size, default=20 * 10**9, metavar="SIZE", help="never take more of the disk, over all brokers (20GB)"
    )
    if runs:
        verb.add_argument("--runs", type=positive_int, default=1, metavar="N", help="so many, each by a client process of its own (1)")
    if seconds:
        verb.add_argument("--seconds", type=positive_float, default=seconds, metavar="S", help=f"of load, measured ({seconds:g})")
    verb.add_argument("--record-bytes", type=_record_bytes, default=100, metavar="SIZE", help="of each made-up record (100)")
    verb.add_argument("--payload", default="", metavar="FILE", help="its lines are the records, instead of made-up ones")
    verb.add_argument("--seed", type=int, default=1, metavar="N", help="the same seed makes the same records (1)")
    if plot:
        verb.add_argument("--plot", type=_plot_file, metavar="FILE", help="throughput and latency over time, .svg or .png")
    return verb


def _add_produce(verbs: "Verbs[Parser]") -> None:
    produce = _bench_verb(verbs, "produce", "verbs:produce", "how many records go in, with one producer")
    produce.add_argument(
        "--api", choices=("enqueue", "enqueue-many", "send"), default="enqueue", help="a record at a time, lists of 5,000, or one in flight"
    )
    produce.add_argument("--records", type=positive_int, default=0, metavar="N", help="so many, instead of --seconds")
    _load_options(produce)
    _batch_options(produce)
    produce.add_argument("--rate", type=positive_float, default=0.0, metavar="N", help="at most so many records per second")
    produce.add_argument(
        "--raw", type=_raw_bytes, default=0, metavar="SIZE", help="brokers alone: a minimal client sends ready-made batches of this size"
    )
    produce.add_argument("--window", type=positive_int, default=0, metavar="N", help="batches in flight with --raw (8 MiB, at most 32)")
    _stored_option(produce)


def _add_consume(verbs: "Verbs[Parser]") -> None:
    consume = _bench_verb(
        verbs, "consume", "verbs:consume", "how many records come out, with one consumer, from the start, record by record", seconds=60.0
    )
    consume.add_argument("--records", type=positive_int, default=5_000_000, metavar="N", help="are stored first (5,000,000)")
    _load_options(consume)
    _batch_options(consume)
    consume.add_argument(
        "--from-disk", action="store_true", help="before each run brokers are started anew and the pages of their files dropped"
    )
    consume.add_argument("--while-producing", action="store_true", help="for --seconds, while another process produces; both are measured")
    consume.add_argument("--seeks", type=natural, default=0, metavar="N", help="instead: how long it takes to go elsewhere, so many times")
    consume.add_argument("--by", choices=("offset", "time"), default="offset", help="where --seeks go")
    _stored_option(consume)


def _add_latency(verbs: "Verbs[Parser]") -> None:
    latency = _bench_verb(verbs, "latency", "verbs:latency", "how long until a record is acked, with one in flight or at a fixed rate")
    latency.add_argument("--records", type=positive_int, default=0, metavar="N", help="so many, instead of --seconds")
    _load_options(latency)
    _batch_options(latency)
    latency.add_argument(
        "--rate",
        type=positive_float,
        default=0.0,
        metavar="N",
        help="records per second, whatever happens to earlier ones; latency counts from when a record was due",
    )


def _add_fan_in(verbs: "Verbs[Parser]") -> None:
    fan_in = _bench_verb(verbs, "fan-in", "verbs:fan_in", "how many acks many small senders get, each with one record in flight")
    _load_options(fan_in)
    _batch_options(fan_in)
    how = fan_in.add_mutually_exclusive_group()
    how.add_argument("--tasks", type=positive_int, default=64, metavar="N", help="so many, sharing one producer (64)")
    how.add_argument("--producers", type=positive_int, default=0, metavar="N", help="so many, each with a producer of its own")
    how.add_argument("--connections", type=positive_int, default=0, metavar="N", help="so many connections of a minimal client")


def _add_partitions(verbs: "Verbs[Parser]") -> None:
    partitions = _bench_verb(verbs, "partitions", "partitions:run", "what many partitions cost, loaded and idle", plot=False)
    partitions.add_argument(
        "--partitions", type=_counts, default=[1, 1000], metavar="N,…", help="the same load into so many, one after the other (1,1000)"
    )
    partitions.add_argument(
        "--api", choices=("enqueue", "enqueue-many"), default="enqueue-many", help="a record at a time, or lists of 5,000"
    )
    partitions.add_argument("--warm-up", type=_seconds, default=1.0, metavar="S", help="of load before what is measured (1)")
    partitions.add_argument("--idle", type=_idle, default=2000, metavar="N", help="then the CPU that so many cost idle (2000; 0: not)")
    partitions.add_argument("--idle-seconds", type=positive_float, default=10.0, metavar="S", help="how long that is watched (10)")
    _batch_options(partitions)


def _add_failover(verbs: "Verbs[Parser]") -> None:
    failover = _bench_verb(
        verbs, "failover", "failover:run", "how long until records are acked again when their sequencer is gone", seconds=0.0, runs=False
    )
    failover.add_argument(
        "--kind",
        choices=("kill", "stop", "silent"),
        default="kill",
        help="SIGKILL, SIGSTOP, or a network that goes silent (through a forwarder, which costs throughput)",
    )
    failover.add_argument("--rounds", type=positive_int, default=10, metavar="N", help="so many, partition after partition (10)")
    failover.add_argument("--partitions", type=_partitions, default=1, metavar="N", help="of the topic (1)")
    _offered_options(failover, share=0.5)
    _batch_options(failover)


def _add_restart(verbs: "Verbs[Parser]") -> None:
    restart = _bench_verb(
        verbs, "restart", "restart:run", "how long until all serves again after a SIGKILL of all brokers", seconds=0.0, plot=False
    )
    restart.add_argument("--partitions", type=_partitions, default=1, metavar="N", help="of the topic (1)")
    restart.add_argument("--stored", type=parse_size, default=10**9, metavar="SIZE", help="in all directories together (1GB)")
    restart.add_argument("--cold", action="store_true", help="the system forgets the pages of their files before they are started")


def _add_soak(verbs: "Verbs[Parser]") -> None:
    soak = _bench_verb(
        verbs, "soak", "soak:run", "what a fixed load shows after minutes or hours that seconds do not", seconds=0.0, runs=False
    )
    soak.add_argument("--minutes", type=positive_float, default=10.0, metavar="M", help="of load (10)")
    soak.add_argument("--partitions", type=_partitions, default=1, metavar="N", help="of the topic (1)")
    _offered_options(soak, share=0.5)
    _batch_options(soak)


def _offered_options(verb: Parser, *, share: float) -> None:
    verb.add_argument("--share", type=_share, default=share, metavar="X", help=f"of the maximum load, measured first ({share:g})")
    verb.add_argument("--rate", type=positive_float, default=0.0, metavar="N", help="instead of --share: records per second")


def _load_options(verb: Parser) -> None:
    verb.add_argument("--partitions", type=_partitions, default=1, metavar="N", help="of the topic (1)")
    verb.add_argument("--warm-up", type=_seconds, default=0.5, metavar="S", help="of load before what is measured (0.5)")


def _batch_options(verb: Parser) -> None:
    verb.add_argument("--compression", default="zstd", metavar="zstd[:LEVEL]|none", help="of batches (zstd:1)")
    verb.add_argument("--batch-bytes", type=parse_size, default=256 * KiB, metavar="SIZE", help="of a batch before compression (256KiB)")


def _stored_option(verb: Parser) -> None:
    verb.add_argument("--stored", type=parse_size, default=0, metavar="SIZE", help="first fill the brokers with so much, all together")


def _record_bytes(text: str) -> int:
    number = parse_size(text)
    if number > 1 << 20:
        raise argparse.ArgumentTypeError(f"{text} is more than a record may have, 1MiB")
    return number


def _raw_bytes(text: str) -> int:
    number = parse_size(text)
    if not KiB <= number <= 4 << 20:
        raise argparse.ArgumentTypeError(f"{text} is not 1KiB to 4MiB")
    return number


def _partitions(text: str) -> int:
    number = positive_int(text)
    if number > 2_000:
        raise argparse.ArgumentTypeError(f"a topic has at most 2000 partitions, not {text}")
    return number


def _counts(text: str) -> list[int]:
    return [_partitions(part) for part in text.split(",")]


def _idle(text: str) -> int:
    return 0 if text == "0" else _partitions(text)


def _share(text: str) -> float:
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share: above 0, at most 1")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is no time in seconds")
    return number


def _plot_file(text: str) -> str:
    if not text.endswith((".svg", ".png")):
        raise argparse.ArgumentTypeError(f"{text} ends neither in .svg nor in .png")
    return text


_partitions.__name__ = _counts.__name__ = _idle.__name__ = _share.__name__ = "number"
_seconds.__name__ = "seconds"
_record_bytes.__name__ = _raw_bytes.__name__ = "size"
