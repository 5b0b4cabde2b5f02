"""The entry point: parses, imports the verb's module, and turns every way in which it can end into an exit code."""

import errno
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence

from streamq import __version__
from streamq.cli.grammar import VERB, parser, wants_json
from streamq.cli.output import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, exit_code_of, print_error
from streamq.model.errors import NotFoundError, StreamqError, UnavailableError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code. No traceback reaches a user; STREAMQ_DEBUG=1 asks for it."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _mend_standard_streams()
    try:
        return _run(arguments)
    except SystemExit as ended:  # --help
        return ended.code if isinstance(ended.code, int) else EXIT_FAILED
    except BaseException as error:
        return _ended_by(error, as_json=wants_json(arguments))


def _mend_standard_streams() -> None:
    """One that was closed is the null device; what a terminal's encoding lacks is shown by its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (as long as the process)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _run(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    if options.version:
        print(f"streamq {__version__}")
        return 0
    verb: str | None = getattr(options, VERB, None)
    if verb is None:
        parser().print_help(sys.stderr)
        return EXIT_USAGE
    module, function = verb.split(":")
    run: Callable[[object], int] = getattr(importlib.import_module(f"streamq.cli.{module}"), function)
    exit_code = run(options)
    sys.stdout.flush()
    return exit_code


def _ended_by(error: BaseException, *, as_json: bool) -> int:
    leaf = _first_leaf(error)
    if isinstance(leaf, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if isinstance(leaf, BrokenPipeError):
        # Whoever reads has enough. Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if os.environ.get("STREAMQ_DEBUG"):
        raise error
    if isinstance(leaf, StreamqError):
        failure = leaf
    elif isinstance(leaf, OSError):
        failure = _system_error(leaf)
    else:
        text = f"{type(leaf).__name__}: {leaf}"
        failure = StreamqError(f"this is a bug in streamq: {text}", code="internal", hint="STREAMQ_DEBUG=1 shows where; please report it")
    print_error(failure, as_json=as_json)
    return exit_code_of(failure)


def _system_error(error: OSError) -> StreamqError:
    what = f"{error.filename}: " if error.filename else ""
    text = f"{what}{error.strerror or error}"
    if isinstance(error, FileNotFoundError):
        return NotFoundError(text, code="not_found", hint="check the path")
    if error.errno == errno.ENOSPC:
        return UnavailableError(text, code="disk_full", hint="make room and try again")
    return StreamqError(text, code="failed", hint="put that right and try again")


def _first_leaf(error: BaseException) -> BaseException:
    """What a group is about: an interrupt before anything else, then an error of ours, then the first."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = [_first_leaf(one) for one in error.exceptions]
    for kind in (KeyboardInterrupt, StreamqError):
        for leaf in leaves:
            if isinstance(leaf, kind):
                return leaf
    return leaves[0]


if __name__ == "__main__":
    sys.exit(main())
