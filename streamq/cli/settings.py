"""Where the cluster is: flag, then environment, then profile, then the default. And the profiles themselves.

Profiles are one small JSON file, `$XDG_CONFIG_HOME/streamq/profiles.json`, replaced in one rename.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from streamq.client.settings import DEFAULT_PORT, Address, parse_bootstrap
from streamq.model.errors import NotFoundError, RefusedError

__all__ = [
    "DEFAULT_BOOTSTRAP",
    "DEFAULT_PORT",
    "Address",
    "Bootstrap",
    "Profiles",
    "bootstrap_of",
    "find_bootstrap",
    "local_data_directory",
    "new_cluster_port",
]

DEFAULT_BOOTSTRAP: Final = f"127.0.0.1:{DEFAULT_PORT}"


class Bootstrap(NamedTuple):
    """Addresses to try, and where they were found, for errors to name."""

    addresses: tuple[Address, ...]
    origin: str

    def __str__(self) -> str:
        return ",".join(map(str, self.addresses))


def bootstrap_of(text: str, *, origin: str) -> Bootstrap:
    """Raises RefusedError that names the origin."""
    try:
        return Bootstrap(parse_bootstrap(text), origin)
    except RefusedError as error:
        raise RefusedError(f"{origin}: {error.message}", code="bad_request", hint=error.hint) from None


class Profiles:
    """Named clusters. `current` is the one used when nothing else says which; empty when there is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.current = ""
        self.bootstraps: dict[str, str] = {}
        try:
            content = json.loads(path.read_text("utf-8"))
            self.bootstraps = {str(name): str(bootstrap) for name, bootstrap in content["profiles"].items()}
            self.current = str(content["current"])
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RefusedError(
                f"the profiles in {path} cannot be read: {error!r}", code="bad_config", hint=f"repair the file, or remove it: rm {path}"
            ) from None

    @classmethod
    def load(cls, environment: Mapping[str, str] = os.environ) -> "Profiles":
        home = environment.get("XDG_CONFIG_HOME") or str(Path(environment.get("HOME", "~")).expanduser() / ".config")
        return cls(Path(home) / "streamq" / "profiles.json")

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=".profiles-")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"current": self.current, "profiles": self.bootstraps}, file, indent=2)
            file.write("\n")
        os.replace(name, self.path)

    def bootstrap(self, name: str, *, origin: str) -> Bootstrap:
        """Raises NotFoundError (`not_found`): there is no such profile."""
        if name not in self.bootstraps:
            known = ", ".join(sorted(self.bootstraps)) or "none"
            raise NotFoundError(
                f"{origin} names the profile {name!r}, which does not exist; there are: {known}",
                code="not_found",
                hint="`streamq profile ls` lists them; `streamq profile add NAME --bootstrap HOST:PORT` makes one",
            )
        return bootstrap_of(self.bootstraps[name], origin=f"profile {name!r}")


def find_bootstrap(*, flag: str | None, profile: str | None, environment: Mapping[str, str] = os.environ) -> Bootstrap:
    """The first that is there: --bootstrap, --profile, STREAMQ_BOOTSTRAP, STREAMQ_PROFILE, the current profile, the default."""
    if flag is not None:  # an empty one, as of an unset variable, must not mean some other cluster
        return bootstrap_of(flag, origin="--bootstrap")
    if profile is not None:
        return Profiles.load(environment).bootstrap(profile, origin="--profile")
    if text := environment.get("STREAMQ_BOOTSTRAP"):
        return bootstrap_of(text, origin="STREAMQ_BOOTSTRAP")
    profiles = Profiles.load(environment)
    if name := environment.get("STREAMQ_PROFILE"):
        return profiles.bootstrap(name, origin="STREAMQ_PROFILE")
    if profiles.current:
        return profiles.bootstrap(profiles.current, origin="the current profile")
    return bootstrap_of(DEFAULT_BOOTSTRAP, origin="the default")


def local_data_directory(flag: str | None, environment: Mapping[str, str] = os.environ) -> Path:
    """Where a local cluster keeps its data: --data, STREAMQ_DATA, or a directory of the user's own."""
    if chosen := flag or environment.get("STREAMQ_DATA"):
        return Path(chosen).absolute()
    home = environment.get("XDG_DATA_HOME") or str(Path(environment.get("HOME", "~")).expanduser() / ".local" / "share")
    return Path(home).absolute() / "streamq" / "local"


def new_cluster_port(environment: Mapping[str, str] = os.environ) -> int:
    """The first port of a new local cluster when --port does not say it: STREAMQ_PORT, or the default."""
    text = environment.get("STREAMQ_PORT", "")
    if not text:
        return DEFAULT_PORT
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 1 << 16):
        raise RefusedError(f"STREAMQ_PORT is {text!r}, which is no port", code="usage", hint="export STREAMQ_PORT=7700")
    return int(text)
