"""What benchmarks send: the same seed makes the same lines, of the size asked for, about as compressible as logs are."""

from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from streamq.cli.bench.payload import lines_of, made_up_lines
from streamq.model.errors import RefusedError


@given(st.integers(1, 2_000), st.integers(0, 10))
def test_lines_have_the_size_and_are_the_seeds(size: int, seed: int) -> None:
    lines = made_up_lines(size, seed=seed, count=5)
    assert {len(line) for line in lines} == {size}
    assert lines == made_up_lines(size, seed=seed, count=5)


def test_lines_compress_as_logs_do() -> None:
    raw = b"".join(made_up_lines(100, seed=1))
    ratio = len(raw) / len(zstandard.ZstdCompressor(level=1).compress(raw))
    assert 2 < ratio < 6


def test_a_files_lines_are_the_records(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"one\n\ntwo\r\nthree")
    assert lines_of(str(tmp_path / "log")) == [b"one", b"", b"two\r", b"three"]


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"")
    with pytest.raises(RefusedError, match="no lines"):
        lines_of(str(tmp_path / "log"))
