"""A journal on a simulated disk, and what a restart reads from it."""

import os
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from streamq.model.batches import COMPRESSION_NONE, Batch, BatchHeader
from streamq.model.ids import NO_PRODUCER
from streamq.storage.interface import Lost, LostBatches, LostState
from streamq.storage.journal import Journal
from streamq.storage.journal_files import FOLDER
from streamq.storage.journal_format import JournalEntry, JournalPosition, StateEntry
from streamq.storage.journal_recovery import Recovered, Replayed, recover
from streamq.wire.batch_format import encode_batch
from tests.sim.disk import ROOT, SimulatedDisk

__all__ = [
    "DIRECTORY",
    "FILE_BYTES",
    "INCARNATION",
    "LIMBO",
    "Lab",
    "Read",
    "batch_of",
    "expected_loss",
    "flat",
    "partition_id",
    "three_groups",
]

DIRECTORY = ROOT
INCARNATION = b"i" * 16
LIMBO = StateEntry("limbo", b"recorded")
FILE_BYTES = 1 << 20


def partition_id(number: int) -> bytes:
    return number.to_bytes(2, "big") * 8


def batch_of(partition: int, base: int, payload: bytes, *, records: int = 1, epoch: int = 1) -> Batch:
    header = BatchHeader(
        partition_id(partition), records, 0, len(payload), 0, NO_PRODUCER, 0, 0, 1, 1, epoch, base, 1, compression=COMPRESSION_NONE
    )
    return encode_batch(header, payload)


class Read(NamedTuple):
    recovered: Recovered
    replayed: list[Replayed]

    @property
    def entries(self) -> list[JournalEntry]:
        return [entry for entry in self.replayed if isinstance(entry, Batch | StateEntry)]

    @property
    def lost(self) -> tuple[Lost, ...]:
        return self.recovered.lost


class Lab:
    """Starts count up by themselves. `journal` is the one open now."""

    def __init__(self, *, seed: int = 1, file_bytes: int = FILE_BYTES, files: int = 2) -> None:
        self.disk = SimulatedDisk(Random(seed))
        self.file_bytes = file_bytes
        self.starts = 1
        self.journal = Journal.create(
            DIRECTORY, incarnation=INCARNATION, start_number=1, file_bytes=file_bytes, files=files, ops=self.disk.ops
        )

    def read(self, replay_from: JournalPosition | None = None, *, incarnation: bytes = INCARNATION) -> Read:
        replayed: list[Replayed] = []

        def deliver(entries: Sequence[Replayed], end: JournalPosition) -> None:
            replayed.extend(entries)

        recovered = recover(
            DIRECTORY, incarnation=incarnation, replay_from=replay_from, start_number=self.starts + 1, deliver=deliver, ops=self.disk.ops
        )
        return Read(recovered, replayed)

    def restart(self, replay_from: JournalPosition | None = None, *, limbo: Sequence[JournalEntry] = ()) -> Read:
        """Reads, resumes and, if there is a limbo to record, writes it as the first group."""
        read = self.read(replay_from)
        self.starts += 1
        self.journal = Journal.resume(DIRECTORY, read.recovered, incarnation=INCARNATION, file_bytes=self.file_bytes, ops=self.disk.ops)
        if limbo:
            self.journal.write_group(limbo)
        return read

    def path(self, sequence: int) -> Path:
        """The physical file with that sequence number."""
        names = {file.sequence: file.name for file in self.read().recovered.files}
        return DIRECTORY / names[sequence]

    @property
    def folder(self) -> Path:
        return DIRECTORY / FOLDER


def three_groups(lab: Lab) -> tuple[list[list[JournalEntry]], list[JournalPosition]]:
    """Groups of a batch, a state and a batch each; the ends of the groups, with the beginning of the first."""
    groups: list[list[JournalEntry]] = [
        [batch_of(1, 2 * i, os.urandom(3000)), StateEntry(f"s{i}", b"value %d" % i), batch_of(2, i, os.urandom(100), epoch=3)]
        for i in range(3)
    ]
    ends = [JournalPosition(1, 4096)]
    ends += [lab.journal.write_group(group) for group in groups]
    return groups, ends


def flat(groups: list[list[JournalEntry]]) -> list[JournalEntry]:
    return [entry for group in groups for entry in group]


def expected_loss(entry: JournalEntry) -> LostBatches | LostState:
    if isinstance(entry, Batch):
        return LostBatches(entry.header.partition, entry.header.epoch, entry.base, entry.end)
    return LostState(entry.key)
