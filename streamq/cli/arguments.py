"""What the grammars of the command line are made of: a parser that raises, verbs that name their functions, kinds of numbers.

A verb names its function as text, `module:function` below `streamq.cli`; it is imported when the verb is used, so that `--help`,
`--version` and completion answer at once. Each function takes the parsed options and returns the exit code.
"""

import argparse
import re
from typing import Final, NoReturn

from streamq.model.errors import RefusedError

__all__ = [
    "VERB", "Parser", "Verbs", "add_cluster_options", "add_group", "add_verb", "help_format", "natural", "parse_size", "parse_span",
    "positive_float", "positive_int", "size_or_none", "span_or_none",
]  # fmt: skip

VERB: Final = "verb"
"""The option that holds the function of the verb that was typed."""

Verbs = argparse._SubParsersAction


def help_format(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=28)


class Parser(argparse.ArgumentParser):
    """Raises what is wrong instead of ending the process, so that it is told like every other error."""

    def error(self, message: str) -> NoReturn:
        raise RefusedError(message, code="usage", hint=f"{self.prog} --help")

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Also takes what a list leaves behind options: `produce TOPIC --rate 5 FILE`."""
        found, rest = super().parse_known_args(args, namespace)
        lists = [action.dest for action in self._actions if not action.option_strings and action.nargs in ("*", "+")]
        if lists and not any(text.startswith("-") and text != "-" for text in rest):
            setattr(found, lists[-1], [*getattr(found, lists[-1]), *rest])
            rest = []
        return found, rest


def positive_int(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def natural(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return number


def positive_float(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e12:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


_size: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([kKMGT]?)(i?)B?")
_powers: Final = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_size(text: str) -> int:
    """Bytes: 262144, 64KiB, 1MiB, 20GB; without the i a thousand counts as a thousand."""
    found = _size.fullmatch(text.strip())
    number = float(found[1]) * (1024 if found[3] else 1000) ** _powers[found[2]] if found else 0.0
    if not 1 <= number < 1e15:
        raise argparse.ArgumentTypeError(f"{text} is no size; write for example 64KiB or 20GB")
    return int(number)


_span: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(ms|s|m|h|d|w)")
SPANS_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}


def parse_span(text: str) -> int:
    """Milliseconds: 500ms, 90s, 30m, 12h, 7d, 2w. A number alone does not say of what."""
    found = _span.fullmatch(text.strip())
    number = float(found[1]) * SPANS_MS[found[2]] if found else 0.0
    if not 1 <= number < 1e15:
        raise argparse.ArgumentTypeError(f"{text} is no span of time; write for example 7d, 12h or 90s")
    return int(number)


def size_or_none(text: str) -> int:
    """As `parse_size`; zero for none."""
    return 0 if text.strip() == "none" else parse_size(text)


def span_or_none(text: str) -> int:
    """As `parse_span`; zero for none."""
    return 0 if text.strip() == "none" else parse_span(text)


positive_int.__name__, natural.__name__, positive_float.__name__ = "number", "number", "number"
parse_size.__name__, parse_span.__name__ = "size", "span"
size_or_none.__name__, span_or_none.__name__ = "size", "span"


def add_group(commands: "Verbs[Parser]", name: str, help_text: str) -> "Verbs[Parser]":
    group = commands.add_parser(name, help=help_text, description=help_text, allow_abbrev=False)
    return group.add_subparsers(metavar="VERB", title="verbs", required=True)


def add_verb(commands: "Verbs[Parser]", name: str, function: str, help_text: str, *, output: bool = True, epilog: str = "") -> Parser:
    verb = commands.add_parser(
        name,
        help=help_text,
        description=help_text[:1].upper() + help_text[1:] + ".",
        epilog=epilog,
        formatter_class=help_format,
        allow_abbrev=False,
    )
    verb.set_defaults(**{VERB: function})
    if output:
        verb.add_argument("-o", "--output", choices=("text", "json"), default="text", help="json: one object a line, errors included")
    return verb


def add_cluster_options(verb: "argparse._ActionsContainer") -> None:
    verb.add_argument("--bootstrap", metavar="HOST:PORT[,…]", help="brokers to ask first; any broker of the cluster will do")
    verb.add_argument("--profile", metavar="NAME", help="the cluster with this name (streamq profile ls)")
