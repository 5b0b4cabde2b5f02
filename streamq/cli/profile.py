"""`streamq profile`: names for clusters, of which one is the current."""

import argparse

from streamq.cli.output import print_rows
from streamq.cli.settings import Profiles, bootstrap_of
from streamq.model.errors import NotFoundError

__all__ = ["add", "ls", "rm", "use"]


def ls(options: argparse.Namespace) -> int:
    profiles = Profiles.load()
    rows = [
        {"profile": name, "bootstrap": bootstrap, "current": name == profiles.current}
        for name, bootstrap in sorted(profiles.bootstraps.items())
    ]
    if options.output != "json":
        rows = [{**row, "current": "*" if row["current"] else ""} for row in rows]
    print_rows(
        rows,
        columns=("current", "profile", "bootstrap"),
        as_json=options.output == "json",
        empty="no profiles yet: streamq profile add NAME --bootstrap HOST:PORT",
    )
    return 0


def use(options: argparse.Namespace) -> int:
    profiles = _load_with(options.name)
    profiles.current = options.name
    profiles.save()
    print(f"the current profile is {options.name} ({profiles.bootstraps[options.name]})")
    return 0


def add(options: argparse.Namespace) -> int:
    bootstrap_of(options.bootstrap, origin="--bootstrap")
    profiles = Profiles.load()
    profiles.bootstraps[options.name] = options.bootstrap
    profiles.current = profiles.current or options.name
    profiles.save()
    print(f"profile {options.name}: {options.bootstrap}{' (current)' if profiles.current == options.name else ''}")
    return 0


def rm(options: argparse.Namespace) -> int:
    profiles = _load_with(options.name)
    del profiles.bootstraps[options.name]
    if profiles.current == options.name:
        profiles.current = ""
    profiles.save()
    print(f"removed profile {options.name}")
    return 0


def _load_with(name: str) -> Profiles:
    profiles = Profiles.load()
    if name not in profiles.bootstraps:
        known = ", ".join(sorted(profiles.bootstraps)) or "none"
        raise NotFoundError(f"there is no profile {name!r}; there are: {known}", code="not_found", hint="streamq profile ls")
    return profiles
