"""Inputs that found something, as files: one a finding, named by target and content; each in `FOUND` is a test (`test_found`)."""

import hashlib
from pathlib import Path
from typing import Final

__all__ = ["FOUND", "load", "save"]

FOUND: Final = Path(__file__).parent / "found"
LINE: Final = 120


def save(folder: Path, target: str, data: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{target}-{hashlib.sha256(data).hexdigest()[:12]}.hex"
    digits = data.hex()
    path.write_text("\n".join(digits[at : at + LINE] for at in range(0, len(digits), LINE)) + "\n")
    return path


def load(path: Path) -> tuple[str, bytes]:
    """The target's name, and the input."""
    return path.stem.rpartition("-")[0], bytes.fromhex(path.read_text())
