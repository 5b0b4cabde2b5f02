"""The whole command line: what can be typed, and which function carries it out.

A verb names its function as text, `module:function` below `streamq.cli`; it is imported when the verb is used, so that `--help`,
`--version` and completion answer at once. Each function takes the parsed options and returns the exit code.
"""

import argparse
from collections.abc import Sequence
from typing import Final

from streamq.cli.arguments import (
    VERB,
    Parser,
    Verbs,
    add_cluster_options,
    add_group,
    add_verb,
    help_format,
    natural,
    parse_size,
    parse_span,
    positive_float,
    positive_int,
    size_or_none,
    span_or_none,
)
from streamq.cli.bench.grammar import add_bench

__all__ = ["VERB", "parser", "positive_float", "positive_int", "wants_json"]

EPILOG: Final = """\
exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 unavailable or timed out (retry), 5 not authorised,
            6 partly done, 7 precondition failed, 8 data corrupt, 130 interrupted
the cluster is found by --bootstrap, --profile, STREAMQ_BOOTSTRAP, STREAMQ_PROFILE, the current profile, or on 127.0.0.1:7700
"""


def parser() -> argparse.ArgumentParser:
    root = Parser(
        prog="streamq",
        description="A quorum-replicated stream and log ingestion service.",
        epilog=EPILOG,
        formatter_class=help_format,
        allow_abbrev=False,
    )
    root.add_argument("--version", action="store_true", help="print the version")
    commands = root.add_subparsers(metavar="COMMAND", title="commands")
    _add_local(commands)
    _add_cluster(add_group(commands, "cluster", "brokers of a cluster on this machine, as background processes"))
    _add_broker(add_group(commands, "broker", "one broker: run it, found it, bring it back"))
    _add_topic(add_group(commands, "topic", "create, list, describe, alter, trim and remove topics"))
    _add_produce(commands)
    _add_tail(commands)
    _add_consume(commands)
    _add_consumer_groups(add_group(commands, "group", "consumer groups: who reads what, how far they are, and where they go on"))
    _add_export(commands)
    _add_log(add_group(commands, "log", "look at a broker's data directory while it is stopped"))
    add_bench(add_group(commands, "bench", "measure a cluster of its own, or one that runs"))
    doctor = add_verb(commands, "doctor", "doctor:run", "check this machine and the cluster, and explain what is wrong")
    add_cluster_options(doctor)
    _add_profile(add_group(commands, "profile", "names for clusters, so that commands find them"))
    completion = add_verb(commands, "completion", "completion:run", "print a script that completes commands in a shell", output=False)
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    return root


def _destructive(verb: Parser) -> None:
    verb.add_argument("--yes", "-y", action="store_true", help="do not ask")
    verb.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")


def _founding_options(verb: Parser) -> None:
    verb.add_argument("--brokers", type=positive_int, metavar="N", help="how many, for a new cluster (3)")
    verb.add_argument("--data", metavar="DIR", help="where the cluster's data is (STREAMQ_DATA, or a directory of your own)")
    verb.add_argument(
        "--port", type=positive_int, metavar="PORT", help="port of the first broker of a new cluster; the others follow (7700)"
    )
    verb.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a line for the configuration of a new cluster's brokers (deploy/broker.toml)",
    )


def _add_local(commands: "Verbs[Parser]") -> None:
    dev = add_verb(commands, "dev", "dev:run", "run a local cluster in the foreground until Ctrl-C")
    _founding_options(dev)
    demo = add_verb(
        commands,
        "demo",
        "demo:run",
        "produce made-up log lines and show how they arrive; without a cluster, on one of its own that it removes",
    )
    add_cluster_options(demo)
    demo.add_argument("--topic", default="demo", help="topic, created when it does not exist (demo)")
    demo.add_argument("--rate", type=positive_float, default=200.0, metavar="N", help="records per second (200)")
    demo.add_argument("--seed", type=int, default=1, metavar="N", help="the same seed makes the same lines (1)")
    demo.add_argument("--count", type=natural, default=1000, metavar="N", help="how many records; 0 goes on until Ctrl-C (1000)")


def _add_cluster(verbs: "Verbs[Parser]") -> None:
    start = add_verb(
        verbs, "start", "cluster:start", "start a cluster, or what is not running of the one that is there; returns when it serves"
    )
    _founding_options(start)
    start.add_argument("broker", nargs="*", default=[], metavar="BROKER", help="only these (b1, b2, …)")
    for name, help_text in (
        ("stop", "stop brokers gracefully: all, or those named"),
        ("status", "show the brokers: id, pid, port, directory and state"),
        ("kill", "end brokers with SIGKILL, as a crash would"),
        ("pause", "stop brokers with SIGSTOP, as a hanging machine would"),
        ("resume", "let paused brokers go on"),
    ):
        verb = add_verb(verbs, name, f"cluster:{name}", help_text)
        verb.add_argument("--data", metavar="DIR", help="where the cluster's data is (STREAMQ_DATA, or a directory of your own)")
        verb.add_argument("broker", nargs="*", default=[], metavar="BROKER", help="b1, b2, …")
        if name in ("kill", "pause", "resume"):
            verb.add_argument("--all", action="store_true", help="every broker")
    init = add_verb(verbs, "init", "cluster:init", "found a cluster on several machines: write what each broker has to be given")
    init.add_argument(
        "--broker", action="append", required=True, metavar="ID=HOST:PORT[/RACK]", help="a broker and where others reach it; repeat it"
    )
    init.add_argument(
        "--data-directory", default="/var/lib/streamq/{broker}", metavar="DIR", help="on its machine (/var/lib/streamq/{broker})"
    )
    init.add_argument("--listen", default="0.0.0.0", metavar="HOST", help="address to listen on (0.0.0.0)")
    init.add_argument("--directory", required=True, metavar="DIR", help="where to write ID.toml for each broker, and founding.json")


def _add_broker(verbs: "Verbs[Parser]") -> None:
    run = add_verb(verbs, "run", "broker:run", "run one broker in the foreground")
    run.add_argument("--config", required=True, metavar="FILE", help="its configuration (deploy/broker.toml explains it)")
    init = add_verb(verbs, "init", "broker:init", "give a broker's new directory its place in a new cluster, once")
    init.add_argument("--config", required=True, metavar="FILE")
    init.add_argument("--founding", required=True, metavar="FILE", help="founding.json of `streamq cluster init`")
    ls = add_verb(verbs, "ls", "broker:ls", "list the brokers of the cluster and how they do")
    add_cluster_options(ls)
    stats = add_verb(
        verbs,
        "stats",
        "broker_stats:run",
        "show what brokers have counted since their start: traffic, syncs, latencies, takeovers, memory",
        epilog="what each name means: deploy/README.md",
    )
    add_cluster_options(stats)
    stats.add_argument("broker", nargs="*", default=[], metavar="BROKER", help="only these (all)")
    stats.add_argument("--watch", type=positive_float, metavar="SECONDS", help="show again and again what changes, per second")
    stats.add_argument("-n", "--count", type=positive_int, metavar="N", help="with --watch: stop after so many times")
    rejoin = add_verb(
        verbs, "rejoin", "broker:rejoin", "bring back a broker whose directory is lost, damaged or an old copy, under a new incarnation"
    )
    add_cluster_options(rejoin)
    rejoin.add_argument("broker", nargs="?", metavar="BROKER", help="a broker of the local cluster: it is started and waited for")
    rejoin.add_argument("--data", metavar="DIR", help="where the local cluster's data is")
    rejoin.add_argument("--config", metavar="FILE", help="instead: the configuration of a broker that is started in another way")
    rejoin.add_argument("--wait", type=positive_float, default=600.0, metavar="SECONDS", help="until all its data is copied again (600)")
    _destructive(rejoin)


def _add_topic(verbs: "Verbs[Parser]") -> None:
    example = "example: streamq topic create orders --partitions 6 --replicas 3 --write-quorum 2 --read-quorum 2"
    create = add_verb(verbs, "create", "topic:create", "create a topic; prints which losses it survives", epilog=example)
    create.add_argument("topic", metavar="NAME", help="1 to 200 of A-Z a-z 0-9 . _ -")
    create.add_argument("--partitions", type=int, default=1, metavar="N", help="1 to 2000 (1)")
    create.add_argument("--replicas", type=int, metavar="N", help="copies of every record (3, or one a broker)")
    create.add_argument("--write-quorum", "-W", type=int, metavar="W", help="copies on disk before a record is acked (a majority)")
    create.add_argument(
        "--read-quorum",
        "-R",
        type=int,
        metavar="R",
        help="replicas asked for the committed offset; W + R > N (a majority, or more where W is small)",
    )
    create.add_argument("--durability", choices=("fsync", "memory"), default="fsync", help="what a copy is: on disk, or in memory (fsync)")
    create.add_argument(
        "--retention-bytes", type=parse_size, metavar="SIZE", help="per partition and replica, compressed: 10GB, 512MiB (for ever)"
    )
    create.add_argument("--retention-time", type=parse_span, metavar="TIME", help="since records were appended: 7d, 12h, 90s (for ever)")
    create.add_argument(
        "--dedup-window", type=span_or_none, metavar="TIME|none", help="how long ids of records count; none: they are refused (10m)"
    )
    ls = add_verb(verbs, "ls", "topic:ls", "list the topics")
    describe = add_verb(
        verbs, "describe", "topic:describe", "show partitions, replicas and committed offsets, and which losses the topic survives"
    )
    describe.add_argument("topic", metavar="NAME")
    rm = add_verb(verbs, "rm", "topic:rm", "remove topics with all their records")
    rm.add_argument("topic", nargs="+", metavar="NAME")
    _destructive(rm)
    alter = add_verb(
        verbs,
        "alter",
        "alter:run",
        "change what a topic keeps, and its quorums",
        epilog="retention holds at once, quorums from the next epoch of each partition on\n"
        "example: streamq topic alter orders --retention-time 7d",
    )
    alter.add_argument("topic", metavar="NAME")
    alter.add_argument("--retention-bytes", type=size_or_none, metavar="SIZE|none", help="per partition and replica; none: for ever")
    alter.add_argument("--retention-time", type=span_or_none, metavar="TIME|none", help="since records were appended; none: for ever")
    alter.add_argument(
        "--dedup-window", type=span_or_none, metavar="TIME|none", help="how long ids of records count; none: they are refused"
    )
    alter.add_argument("--write-quorum", "-W", type=positive_int, metavar="W", help="copies on disk before a record is acked")
    alter.add_argument("--read-quorum", "-R", type=positive_int, metavar="R", help="replicas asked for the committed offset; W + R > N")
    alter.add_argument("--now", action="store_true", help="begin a new epoch of each partition for its quorums; producers wait a moment")
    alter.add_argument("--dry-run", action="store_true", help="show what would change, and change nothing")
    for refused in ("--replicas", "--partitions"):
        alter.add_argument(refused, help=argparse.SUPPRESS)
    trim = add_verb(
        verbs,
        "trim",
        "trim:run",
        "remove the oldest records for good: the log begins later then",
        epilog="example: streamq topic trim orders --before 7d",
    )
    trim.add_argument("topic", metavar="NAME")
    trim.add_argument(
        "--before", required=True, metavar="OFFSET|TIME|end", help="the first that stays; a TIME as for tail: 7d is 7 days ago"
    )
    trim.add_argument("-p", "--partition", type=natural, metavar="N", help="only this one; needed with an OFFSET if there are several")
    _destructive(trim)
    for verb in (create, ls, describe, alter, trim, rm):
        add_cluster_options(verb)


def _add_produce(commands: "Verbs[Parser]") -> None:
    produce = add_verb(commands, "produce", "produce:run", "send lines of files or of stdin as records; ends when all are acked")
    produce.add_argument("topic", metavar="TOPIC")
    produce.add_argument("file", nargs="*", default=[], metavar="FILE", help="instead of stdin; - is stdin")
    add_cluster_options(produce)
    produce.add_argument("--format", choices=("lines", "json"), default="lines", help="json: objects as `tail -o json` prints them")
    produce.add_argument("-k", "--key", metavar="KEY", help="key of every record")
    produce.add_argument("--key-sep", metavar="SEP", help="a line is key, separator, value; one without the separator has no key")
    produce.add_argument("-H", "--header", action="append", default=[], metavar="NAME=VALUE", help="a header of every record; repeat it")
    produce.add_argument("-p", "--partition", type=natural, metavar="N", help="to this partition")
    produce.add_argument(
        "--id-from",
        metavar="key|value|header:NAME",
        help="what of a record is its id: of those with equal ids, within the topic's window, one is stored",
    )
    produce.add_argument("--rate", type=positive_float, metavar="N", help="at most so many records per second")
    produce.add_argument("--compression", default="zstd", metavar="zstd[:LEVEL]|none", help="of batches (zstd:1)")
    produce.add_argument(
        "--timeout", type=positive_float, default=30.0, metavar="SECONDS", help="for one record to be acked, retries included (30)"
    )
    produce.add_argument(
        "--resume", metavar="NAME", help="each line of one FILE once: started again with this name, go on where the last run ended"
    )
    produce.add_argument("--receipts", metavar="FILE", help="write a JSON line a record: partition, offset, when acked")
    produce.add_argument("--rejects", metavar="FILE", help="write what was not acked, a JSON line a record with its outcome")
    produce.add_argument("-q", "--quiet", action="store_true", help="no progress, no summary")


FORMAT_LETTERS = (
    "-F letters: %t topic, %p partition, %o offset, %k key, %v value, %h headers, %d time (%d{%H:%M:%S} formats it),\n"
    "            %K and %V the lengths of key and value, %H the number of headers, %% a percent sign;\n"
    "            \\n \\t \\r \\\\ \\0 \\xHH as usual\n"
)


def _add_tail(commands: "Verbs[Parser]") -> None:
    formats = (
        f"{FORMAT_LETTERS}"
        "places:     start, end, N (an offset), -N (so many records before the end, over all partitions; write --from=-N),\n"
        "            TIME (2026-01-31T12:00, 12:00, @SECONDS, or 5m, 2h, 3d ago)\n"
        "            without --from or --since: the last records before --until, or before the end"
    )
    tail = add_verb(commands, "tail", "tail:run", "print the last records of topics, or follow them", epilog=formats)
    tail.add_argument("topic", nargs="+", metavar="TOPIC")
    add_cluster_options(tail)
    tail.add_argument("-f", "--follow", action="store_true", help="go on with what comes")
    tail.add_argument("--exit-at-end", action="store_true", help="stop at the tip that was read at the start (so it does without -f)")
    tail.add_argument("--from", dest="start", metavar="PLACE", help="where to begin (the last 10 records)")
    tail.add_argument("--since", metavar="TIME", help="begin at this time, or so long ago: 5m")
    tail.add_argument("--until", metavar="PLACE", help="end before this offset or time; with -f, when that time has come")
    tail.add_argument("-n", "--count", type=natural, metavar="N", help="stop after so many records")
    tail.add_argument("-p", "--partition", action="append", type=natural, metavar="N", help="only this partition; repeat it")
    tail.add_argument("--key", metavar="KEY", help="only records with this key")
    tail.add_argument("--grep", metavar="REGEX", help="only records whose value matches")
    tail.add_argument("--broker", metavar="ID", help="read the data from this replica")
    tail.add_argument("--uncommitted", action="store_true", help="also what belongs to open and aborted transactions")
    tail.add_argument("-F", "--format", metavar="FORMAT", help="print each record so, for example '%%t/%%p@%%o %%k %%v\\n'")


def _add_consume(commands: "Verbs[Parser]") -> None:
    consume = add_verb(
        commands,
        "consume",
        "consume:run",
        "print records as a member of a group, which shares the partitions and remembers how far it is",
        epilog=FORMAT_LETTERS,
    )
    consume.add_argument("topic", nargs="+", metavar="TOPIC")
    add_cluster_options(consume)
    consume.add_argument("-g", "--group", required=True, metavar="GROUP", help="made when its first member comes")
    consume.add_argument(
        "--from", dest="start", default="start", metavar="PLACE", help="start, end or a time, where the group has no position yet (start)"
    )
    consume.add_argument("--member", metavar="NAME", help="a name of its own: started again, this member has the same partitions")
    consume.add_argument(
        "--session", type=positive_float, default=10.0, metavar="SECONDS", help="after which a member that is not heard of is given up (10)"
    )
    consume.add_argument("-n", "--count", type=natural, metavar="N", help="stop after so many records")
    consume.add_argument("-F", "--format", metavar="FORMAT", help="print each record so, for example '%%t/%%p@%%o %%k %%v\\n'")


def _add_consumer_groups(verbs: "Verbs[Parser]") -> None:
    ls = add_verb(verbs, "ls", "group:ls", "list the groups")
    describe = add_verb(verbs, "describe", "group:describe", "show members, who has which partition, positions and how far behind they are")
    lag = add_verb(verbs, "lag", "group:lag", "show how many records, and how long, the group is behind")
    lag.add_argument("-w", "--watch", action="store_true", help="again every 2 s, until Ctrl-C")
    seek = add_verb(
        verbs,
        "seek",
        "group:seek",
        "set the positions of a group without members",
        epilog="positions are saved by `streamq group describe GROUP -o json > FILE` and set back by `--to FILE`",
    )
    seek.add_argument(
        "--to", required=True, metavar="PLACE", help="start, end, an offset, --to=-N (records before each end), a time, or a file"
    )
    seek.add_argument("--topic", action="append", default=[], metavar="TOPIC", help="only this topic, or one that is new to it; repeat it")
    seek.add_argument("-p", "--partition", action="append", default=[], type=natural, metavar="N", help="only this partition; repeat it")
    _destructive(seek)
    rm = add_verb(verbs, "rm", "group:rm", "remove groups with their positions")
    _destructive(rm)
    for verb in (describe, lag, seek):
        verb.add_argument("group", metavar="GROUP")
    rm.add_argument("group", nargs="+", metavar="GROUP")
    for verb in (ls, describe, lag, seek, rm):
        add_cluster_options(verb)


def _add_export(commands: "Verbs[Parser]") -> None:
    export = add_verb(
        commands,
        "export",
        "export:run",
        "write the records of a topic to stdout, whole, for `streamq import`",
        epilog="example: streamq export orders > orders.sqexport\nplaces: start, end, N (an offset), TIME as for tail",
    )
    export.add_argument("topic", metavar="TOPIC")
    add_cluster_options(export)
    export.add_argument("--from", dest="start", metavar="PLACE", help="where to begin (start)")
    export.add_argument("--since", metavar="TIME", help="begin at this time, or so long ago: 5m")
    export.add_argument("--until", metavar="PLACE", help="end before this offset or time (the tip when it begins)")
    export.add_argument("-p", "--partition", action="append", type=natural, metavar="N", help="only this partition; repeat it")
    export.add_argument("--broker", metavar="ID", help="read the data from this replica")
    read_back = add_verb(
        commands,
        "import",
        "importing:run",
        "send the records of an export to a topic; keys, headers and times are kept, and partitions if there are as many",
    )
    read_back.add_argument("topic", metavar="TOPIC")
    read_back.add_argument("file", nargs="?", default="-", metavar="FILE", help="instead of stdin")
    add_cluster_options(read_back)
    read_back.add_argument("--keep-partitions", action="store_true", help="to the same partition, also when the topic has more of them")
    read_back.add_argument(
        "--timeout", type=positive_float, default=30.0, metavar="SECONDS", help="for one record to be acked, retries included (30)"
    )
    for verb in (export, read_back):
        verb.add_argument("-q", "--quiet", action="store_true", help="no progress, no summary")


def _add_log(verbs: "Verbs[Parser]") -> None:
    verify = add_verb(verbs, "verify", "log:verify", "check every byte that a stopped broker holds, and name each range that is damaged")
    dump = add_verb(verbs, "dump", "log:dump", "show what a stopped broker holds")
    dump.add_argument("--files", action="store_true", help="list the files: kind, range and state of each")
    dump.add_argument("--entries", action="store_true", help="with --files: the entries of each journal file, with their byte ranges")
    dump.add_argument("-n", "--count", type=natural, metavar="N", help="stop after so many rows")
    for verb in (verify, dump):
        verb.add_argument("directory", metavar="DIR", help="data directory, or a local broker's directory with broker.toml in it")


def _add_profile(verbs: "Verbs[Parser]") -> None:
    add_verb(verbs, "ls", "profile:ls", "list the profiles")
    use = add_verb(verbs, "use", "profile:use", "make a profile the current one")
    use.add_argument("name", metavar="NAME")
    add = add_verb(verbs, "add", "profile:add", "make or change a profile")
    add.add_argument("name", metavar="NAME")
    add.add_argument("--bootstrap", required=True, metavar="HOST:PORT[,…]")
    rm = add_verb(verbs, "rm", "profile:rm", "remove a profile")
    rm.add_argument("name", metavar="NAME")


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether `-o json` was typed, also on a line that cannot be parsed."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=True)
    return any(one in ("-ojson", "--output=json") or (one in ("-o", "--output") and two == "json") for one, two in pairs)
