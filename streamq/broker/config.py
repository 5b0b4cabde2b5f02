"""The configuration of one broker process: read from a TOML file once, checked once, frozen from then on.

Nothing reads the environment or the file later. `deploy/broker.toml` shows every setting with its reason, and a test compares the two.
Who the other brokers are is not configured here: the directory's identity names the first voters, and the registers name the rest.
"""

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Final

import msgspec

from streamq.model.errors import RefusedError
from streamq.model.limits import CONNECTIONS_MAX, FRAME_PAYLOAD_BYTES_MAX, NAME_CHARS_MAX

__all__ = ["BrokerConfig", "load_config", "parse_config"]

MiB: Final = 1 << 20
NAME_PATTERN: Final = rf"^[A-Za-z0-9._-]{{1,{NAME_CHARS_MAX}}}$"
WILDCARD_HOSTS: Final = ("0.0.0.0", "::", "")
LOOPBACK_HOSTS: Final = ("127.0.0.1", "::1", "localhost")

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
PortOrUnset = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=7 * 24 * 3600)]
Bytes = Annotated[int, msgspec.Meta(ge=4096, le=1 << 50)]


class BrokerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one broker was told. Durations in seconds, sizes in bytes. `fault()` is None for every instance that `load_config` returns."""

    broker: Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
    """Its id, unique in the cluster and the same for ever; the data directory must be of the same id."""
    data_directory: str
    """Absolute path of the directory that holds everything; it belongs to this broker alone (P-31)."""

    # --- network

    host: str = "127.0.0.1"
    """Address to listen on. Loopback unless told otherwise: there is no authentication yet, and the broker warns about any other."""
    port: Port = 7700
    """Port to listen on, for clients and brokers alike."""
    advertised_host: str = ""
    """Name or address by which other brokers and clients reach this one; empty: `host`. Needed when `host` is a wildcard."""
    advertised_port: PortOrUnset = 0
    """Port by which others reach this one, where it is mapped; 0: `port`."""
    rack: Annotated[str, msgspec.Meta(max_length=NAME_CHARS_MAX)] = ""
    """Failure domain: replicas of a partition are spread over different racks where there are enough."""
    connections_max: Annotated[int, msgspec.Meta(ge=8, le=CONNECTIONS_MAX)] = CONNECTIONS_MAX
    """Connections served at a time, brokers' own aside; more are closed at once, so that memory and descriptors are bounded."""
    handshake_timeout_s: Seconds = 5.0
    """How long who connects may take to say who it is; a connection that stays silent is closed then."""

    # --- failures

    heartbeat_interval_s: Seconds = 0.1
    """How often a broker says something to each peer when it has nothing else to say."""
    silence_timeout_s: Seconds = 0.5
    """Silence after which a peer counts as unreachable and its partitions are taken over; lower reacts faster, errs more often (P-20)."""
    takeover_rank_delay_s: Seconds = 0.05
    """Replicas wait their turn to take over, rank times this, so that duels are rare (P-19)."""
    request_timeout_s: Seconds = 1.0
    """One request to a peer; longer than a group commit on a busy disk, short enough to try another broker."""
    register_timeout_s: Seconds = 5.0
    """One change or read of a metadata register, retries included; then the request that needed it fails as retriable."""
    preferred_return_after_s: Seconds = 5.0
    """How long a broker must be back, and complete, before the partitions it prefers are handed back to it."""
    stop_timeout_s: Seconds = 10.0
    """A graceful stop: time to hand partitions over and finish what was begun, before the process ends anyway."""

    # --- storage

    journal_file_bytes: Annotated[int, msgspec.Meta(ge=2 * FRAME_PAYLOAD_BYTES_MAX, le=1 << 32)] = 64 * MiB
    """Size of one preallocated journal file; a few of them are reused in turn, so this bounds what a restart must read."""
    log_file_bytes: Annotated[int, msgspec.Meta(ge=MiB, le=1 << 40)] = 64 * MiB
    """Size at which a partition's log file is closed and the next begun; retention and repair work on whole closed files."""
    cache_bytes: Bytes = 64 * MiB
    """Recent batches kept in memory, so that consumers at the tail and slow peers cost no disk reads."""
    flush_bytes: Bytes = 32 * MiB
    """Batches that wait in memory and journal before they are written to log files; more means larger writes and a longer restart."""
    flush_interval_s: Seconds = 1.0
    """The longest that a batch waits for its log file when little is coming in."""
    reserve_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 50)] = 64 * MiB
    """Free disk space below which new batches are refused, so that seals, promises and checkpoints still find room (P-15)."""

    @property
    def listens_beyond_loopback(self) -> bool:
        return self.host not in LOOPBACK_HOSTS

    @property
    def address(self) -> tuple[str, int]:
        """Host and port by which others reach this broker: what its register says."""
        return self.advertised_host or self.host, self.advertised_port or self.port

    def fault(self) -> str | None:
        """The first reason why these settings do not go together, None when they do."""
        if not Path(self.data_directory).is_absolute():
            return f"data_directory must be an absolute path, not {self.data_directory!r}"
        if self.address[0] in WILDCARD_HOSTS:
            return f"others cannot reach a broker at {self.address[0]!r}; set advertised_host to a name or address of this machine"
        if self.heartbeat_interval_s * 3 > self.silence_timeout_s:
            return (
                f"silence_timeout_s {self.silence_timeout_s} must be at least three times heartbeat_interval_s"
                f" {self.heartbeat_interval_s}, or one late heartbeat is a takeover"
            )
        if self.flush_bytes > self.cache_bytes:
            return f"flush_bytes {self.flush_bytes} must not exceed cache_bytes {self.cache_bytes}: what waits to be flushed is in memory"
        return None


def parse_config(text: str, *, source: str) -> BrokerConfig:
    """The configuration in a TOML text; `source` is what errors name. Raises RefusedError (`bad_config`) that names the key."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _refused(source, f"is not valid TOML: {error}", hint="see deploy/broker.toml for an example") from None
    known = BrokerConfig.__struct_fields__
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the settings are: {', '.join(known)}"
            raise _refused(source, f"has an unknown setting {key!r}", hint=hint)
    for key in ("broker", "data_directory"):
        if key not in table:
            raise _refused(source, f"lacks the setting {key!r}", hint=f'add a line like: {key} = "{_EXAMPLES[key]}"')
    try:
        config = msgspec.convert(table, BrokerConfig)
    except msgspec.ValidationError as error:
        raise _refused(source, _in_words(error), hint="see deploy/broker.toml for an example of every setting") from None
    if fault := config.fault():
        raise _refused(source, f"does not hold together: {fault}")
    return config


def load_config(path: str | Path) -> BrokerConfig:
    """The configuration in a file. Raises RefusedError (`bad_config`), also when the file cannot be read."""
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise _refused(str(path), f"cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise _refused(str(path), f"is not UTF-8 text: {error}") from None
    return parse_config(text, source=str(path))


_EXAMPLES: Final = {"broker": "b1", "data_directory": "/var/lib/streamq"}


def _in_words(error: msgspec.ValidationError) -> str:
    """msgspec says "Expected `int`, got `str` - at `$.port`"; people look for the name of the setting first."""
    reason, _, place = str(error).partition(" - at ")
    key = place.strip("`").removeprefix("$.") or "a setting"
    return f"setting {key!r}: {reason[:1].lower()}{reason[1:]}"


def _refused(source: str, reason: str, *, hint: str = "") -> RefusedError:
    return RefusedError(f"{source} {reason}", code="bad_config", hint=hint)
