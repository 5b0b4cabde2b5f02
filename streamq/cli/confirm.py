"""Destructive verbs ask on a terminal, and need --yes elsewhere."""

import sys

from streamq.model.errors import RefusedError

__all__ = ["confirm"]


def confirm(question: str, *, yes: bool) -> None:
    """Returns when the answer is yes. Raises RefusedError when it is not, or when there is nobody to ask."""
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise RefusedError(
            f"not done, since nobody can be asked: {question}", code="usage", hint="add --yes; --dry-run shows what would happen"
        )
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise RefusedError("nothing was done", code="usage")
