"""What a simulated disk holds: a file's bytes and the names of files, each as processes see them and as a power loss would leave them."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

__all__ = ["ROOT", "SECTOR", "Names", "SimulatedFile"]

ROOT: Final = Path("/simulated")
SECTOR: Final = 512


class _Change(NamedTuple):
    """A write of bytes at an offset, or (None) the file's end moved there."""

    offset: int
    written: bytes | None


class SimulatedFile:
    """`content` is what reads see, the cache; `durable` is on the medium; `_unsynced` changes lead from there to the content.

    But where the medium was damaged or a write got lost: there the cache may hold what the medium does not, until it is dropped.
    """

    def __init__(self) -> None:
        self.content = bytearray()
        self.durable = bytearray()
        self._unsynced: list[_Change] = []

    def write(self, offset: int, written: bytes) -> None:
        _put(self.content, offset, written)
        self._unsynced.append(_Change(offset, written))

    def truncate(self, size: int) -> None:
        _resize(self.content, size)
        self._unsynced.append(_Change(size, None))

    def write_in_vain(self, offset: int, written: bytes) -> None:
        """The cache has it, the medium never gets it: its blocks there stay what they were."""
        _put(self.content, offset, written)
        if len(self.content) > len(self._as_synced()):
            self._unsynced.append(_Change(len(self.content), None))

    def sync(self) -> None:
        for change in self._unsynced:
            _apply(self.durable, change)
        self._unsynced.clear()

    def lose(self, chance: Random) -> int:
        """The cache goes. What was synced stays, and any of the sectors written since, some of them torn anywhere. Returns how many writes
        are there in part."""
        torn = 0
        for change in self._unsynced:
            if change.written is None:
                if chance.random() < 0.5:
                    _resize(self.durable, change.offset)
            else:
                torn += self._lose_some(change.offset, change.written, chance)
        self._unsynced.clear()
        self.content = bytearray(self.durable)
        return torn

    def _lose_some(self, offset: int, written: bytes, chance: Random) -> bool:
        cuts = [0, *range(SECTOR - offset % SECTOR, len(written), SECTOR), len(written)]
        share = chance.choice((0.0, 0.5, 0.9, 1.0))
        kept = 0
        for first, last in pairwise(cuts):
            if chance.random() < share:
                torn = chance.random() < 0.1
                end = chance.randint(first, last) if torn else last
                _put(self.durable, offset + first, written[first:end])
                kept += end - first
        return 0 < kept < len(written)

    def damage(self, offset: int, wrong: bytes) -> None:
        """The medium holds these bytes now. So does the cache, but where something newer is on its way to the medium."""
        wrong = wrong[: max(0, len(self.durable) - offset)]
        _put(self.durable, offset, wrong)
        self.drop_cache(offset, len(wrong))

    def drop_cache(self, offset: int, length: int) -> None:
        """The next read of this range, as far as it is not on its way to the medium, comes from there."""
        self.content[offset : offset + length] = self._as_synced()[offset : offset + length]

    def _as_synced(self) -> bytearray:
        if not self._unsynced:
            return self.durable
        view = bytearray(self.durable)
        for change in self._unsynced:
            _apply(view, change)
        return view


def _apply(target: bytearray, change: _Change) -> None:
    if change.written is None:
        _resize(target, change.offset)
    else:
        _put(target, change.offset, change.written)


def _put(target: bytearray, offset: int, written: bytes) -> None:
    if len(target) < offset:
        target.extend(bytes(offset - len(target)))
    target[offset : offset + len(written)] = written


def _resize(target: bytearray, size: int) -> None:
    del target[size:]
    target.extend(bytes(size - len(target)))


class Table:
    """Files and directories by name."""

    def __init__(self, files: dict[Path, SimulatedFile], directories: dict[Path, None]) -> None:
        self.files = files
        self.directories = directories

    def copy(self) -> "Table":
        return Table(dict(self.files), dict(self.directories))

    def rename(self, source: Path, target: Path, file: SimulatedFile | None) -> None:
        """The file, or (None) a directory with whatever is in it."""
        if file is not None:
            self.files.pop(source, None)
            self.files[target] = file
            return
        for path in [path for path in self.files if source in path.parents]:
            self.files[target / path.relative_to(source)] = self.files.pop(path)
        for path in [path for path in self.directories if path == source or source in path.parents]:
            del self.directories[path]
            self.directories[target / path.relative_to(source)] = None


class _NameChange(NamedTuple):
    directories: tuple[Path, ...]
    """Those whose entries it changes."""
    apply: Callable[[Table], object]


class Names:
    """`now`, and what a power loss leaves: of the changes since a directory was synced, a beginning (per directory)."""

    def __init__(self) -> None:
        self.now = Table({}, {ROOT: None})
        self._durable = self.now.copy()
        self._unsynced: list[_NameChange] = []

    def link(self, path: Path, file: SimulatedFile) -> None:
        self._change((path.parent,), lambda table: table.files.__setitem__(path, file))

    def unlink(self, path: Path) -> None:
        self._change((path.parent,), lambda table: table.files.pop(path, None))

    def rename(self, source: Path, target: Path) -> None:
        file = self.now.files.get(source)
        self._change((source.parent, target.parent), lambda table: table.rename(source, target, file))

    def make_directory(self, directory: Path) -> None:
        self._change((directory.parent,), lambda table: table.directories.__setitem__(directory, None))

    def remove_directory(self, directory: Path) -> None:
        self._change((directory.parent,), lambda table: table.directories.pop(directory, None))

    def sync(self, directory: Path) -> None:
        """Changes to its entries are durable."""
        for change in self._unsynced:
            if directory in change.directories:
                change.apply(self._durable)
        self._unsynced = [change for change in self._unsynced if directory not in change.directories]

    def lose(self, chance: Random, *, keeps: bool | None) -> None:
        """A power loss: it keeps all changes, or none but the synced ones, or (None) some."""
        lost: dict[Path, None] = {}
        share = chance.choice((0.0, 0.5, 0.9, 1.0)) if keeps is None else float(keeps)
        for change in self._unsynced:
            if any(directory in lost for directory in change.directories) or chance.random() >= share:
                lost.update(dict.fromkeys(change.directories))
            else:
                change.apply(self._durable)
        self._unsynced.clear()
        table = self._durable
        table.files = {path: file for path, file in table.files.items() if self._is_reachable(path, table)}
        table.directories = {path: None for path in table.directories if path == ROOT or self._is_reachable(path, table)}
        self.now = table.copy()

    def forget(self, path: Path) -> None:
        """The file's name is gone, durably."""
        del self.now.files[path]
        self._durable.files.pop(path, None)

    def _is_reachable(self, path: Path, table: Table) -> bool:
        return path.parent == ROOT or (path.parent in table.directories and self._is_reachable(path.parent, table))

    def _change(self, directories: tuple[Path, ...], apply: Callable[[Table], object]) -> None:
        apply(self.now)
        self._unsynced.append(_NameChange(directories, apply))
