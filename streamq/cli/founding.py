"""The founding of a cluster: its id, its brokers and their incarnations, and the first voters, drawn once and written once (P-31, P-40).

An empty directory never forms a cluster by itself. What is drawn here is written into each broker's directory by an explicit step: by
`cluster start` and `dev` for local clusters, by `cluster init` and `broker init` where brokers live on machines of their own. It is used
once: a broker whose directory was lost does not get the same identity again, it rejoins under a new incarnation.
"""

import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from streamq.broker.config import BrokerConfig
from streamq.model.errors import AlreadyExistsError, RefusedError
from streamq.model.registers import Voter, Voters
from streamq.storage.identity import create_identity

__all__ = ["BROKERS_MAX", "VOTERS_MAX", "Founding", "FoundingBroker", "config_text", "draw_founding", "found_directory", "load_founding"]

VOTERS_MAX: Final = 5
"""More voters make every metadata change slower and survive no more than two losses that anybody plans for."""
BROKERS_MAX: Final = 64


class FoundingBroker(msgspec.Struct, frozen=True):
    """A broker at its founding; `incarnation` is written as hex."""

    broker: str
    host: str
    port: int
    incarnation: str
    rack: str = ""


class Founding(msgspec.Struct, frozen=True):
    """All that the directories of a new cluster have to know. `founded` is set once every directory has its identity."""

    cluster: str
    brokers: tuple[FoundingBroker, ...]
    founded: bool = False

    @property
    def voters(self) -> Voters:
        """The configuration with number 1: the first brokers, up to five."""
        voters = (Voter(b.broker, bytes.fromhex(b.incarnation), b.host, b.port) for b in self.brokers[:VOTERS_MAX])
        return Voters(number=1, voters=tuple(voters))

    def broker(self, name: str) -> FoundingBroker | None:
        return next((b for b in self.brokers if b.broker == name), None)

    def write(self, path: Path) -> None:
        """In one rename, so that half a file never counts."""
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text(json.dumps(msgspec.to_builtins(self), indent=2) + "\n")
        temporary.replace(path)


def draw_founding(brokers: Sequence[tuple[str, str, int, str]]) -> Founding:
    """A new cluster of these (id, host, port, rack), with random ids. Raises RefusedError for ids or addresses that repeat."""
    if not 1 <= len(brokers) <= BROKERS_MAX:
        raise RefusedError(
            f"a cluster has 1 to {BROKERS_MAX} brokers, not {len(brokers)}", code="bad_request", hint="for example --brokers 3"
        )
    for kind, values in (("id", [name for name, *_ in brokers]), ("address", [(host, port) for _, host, port, _ in brokers])):
        repeated = next((value for i, value in enumerate(values) if value in values[:i]), None)
        if repeated is not None:
            raise RefusedError(
                f"two brokers have the {kind} {repeated!r}", code="bad_request", hint=f"give each broker an {kind} of its own"
            )
    return Founding(
        cluster=secrets.token_hex(16),
        brokers=tuple(
            FoundingBroker(broker=name, host=host, port=port, incarnation=secrets.token_hex(16), rack=rack)
            for name, host, port, rack in brokers
        ),
    )


def load_founding(path: Path) -> Founding:
    """Raises RefusedError (`bad_config`) if the file is no founding, FileNotFoundError if it is not there."""
    try:
        founding = msgspec.json.decode(path.read_bytes(), type=Founding)
        if len(founding.cluster) != 32 or not founding.brokers or any(len(bytes.fromhex(b.incarnation)) != 16 for b in founding.brokers):
            raise ValueError("an id is not 16 bytes in hex, or there is no broker")
        bytes.fromhex(founding.cluster)
    except (msgspec.MsgspecError, ValueError) as error:
        raise RefusedError(
            f"{path} does not describe a cluster: {error}",
            code="bad_config",
            hint="it is written by `streamq cluster init` or `cluster start`",
        ) from None
    return founding


def found_directory(config: BrokerConfig, founding: Founding) -> None:
    """Writes the identity into the broker's directory. Raises AlreadyExistsError (`wrong_directory`) unless it is empty or new."""
    broker = founding.broker(config.broker)
    if broker is None:
        known = ", ".join(b.broker for b in founding.brokers)
        raise RefusedError(
            f"the founding has no broker {config.broker!r}; it has {known}", code="bad_config", hint="use the founding of its cluster"
        )
    if config.address != (broker.host, broker.port):
        raise AlreadyExistsError(
            f"{config.broker} was announced at {broker.host}:{broker.port}, its configuration says {config.address[0]}:{config.address[1]}",
            code="precondition_failed",
            hint="make host (or advertised_host) and port the same as in `cluster init`",
        )
    create_identity(
        Path(config.data_directory),
        cluster=bytes.fromhex(founding.cluster),
        broker=broker.broker,
        incarnation=bytes.fromhex(broker.incarnation),
        first_voters=founding.voters,
    )


def config_text(broker: FoundingBroker, *, data_directory: Path | str, listen: str = "", settings: Sequence[str] = ()) -> str:
    """A broker's configuration file. `listen` where it listens at another address than it is reached by; `settings` are lines of TOML."""
    lines = [
        "# Every other setting has a default; deploy/broker.toml explains them all.",
        f"broker = {_quoted(broker.broker)}",
        f"data_directory = {_quoted(str(data_directory))}",
        f"host = {_quoted(listen or broker.host)}",
        f"port = {broker.port}",
    ]
    if listen and listen != broker.host:
        lines.append(f"advertised_host = {_quoted(broker.host)}")
    if broker.rack:
        lines.append(f"rack = {_quoted(broker.rack)}")
    return "\n".join([*lines, *settings]) + "\n"


def _quoted(text: str) -> str:
    """A TOML basic string: JSON's escapes are a subset of its own."""
    return json.dumps(text, ensure_ascii=False)
