"""streamq: a quorum-replicated stream and log ingestion service."""

__all__ = ["__version__"]
__version__ = "0.1.0"
