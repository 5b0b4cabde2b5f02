"""What storage counts. `deploy/README.md` says what each name means; a test keeps the two the same."""

from streamq.model.metrics import Histogram, MetricSet

__all__ = ["StorageMetrics"]

US_PER_S = 1_000_000


class StorageMetrics(MetricSet):
    """`journal_…` is added to by who writes to the journal or makes a file for it, `log_read_…` by the event loop, the rest by flushes."""

    def __init__(self) -> None:
        self.journal_groups = 0
        self.journal_entries = 0
        self.journal_bytes = 0
        self.journal_syncs = 0
        self.journal_sync_seconds = Histogram(US_PER_S)
        self.journal_group_bytes = Histogram()
        self.journal_group_entries = Histogram()
        self.journal_files_begun = 0
        self.journal_files_made = 0
        self.journal_made_bytes = 0
        self.flushes = 0
        self.flush_seconds = Histogram(US_PER_S)
        self.log_bytes = 0
        self.checkpoint_bytes = 0
        self.log_read_bytes = 0
        self.log_read_seconds = Histogram(US_PER_S)

    def wrote_group(self, entries: int, size: int) -> None:
        """A group of the journal, of so many bytes with its padding; one without entries is a mark."""
        self.journal_bytes += size
        if entries:
            self.journal_groups += 1
            self.journal_entries += entries
            self.journal_group_bytes.record(size)
            self.journal_group_entries.record(entries)
