"""The broker process: disk, TCP, the system's clock and randomness, signals, exit codes."""

import logging
import os
import signal
import sys
from pathlib import Path

import trio

from streamq.broker.app import Stopping, run_broker
from streamq.broker.config import BrokerConfig
from streamq.broker.node import SystemClock
from streamq.broker.usage import process_usage
from streamq.model.errors import StreamqError
from streamq.net.network import TcpNetwork
from streamq.storage.disk_storage import DiskSettings, DiskStorage
from streamq.storage.identity import expect, load_identity
from streamq.storage.interface import Storage, StorageFailedError

__all__ = ["main"]


def main(config: BrokerConfig) -> int:
    """The broker process. Returns the exit code; every error is one line that says what to do."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname).1s %(message)s")
    try:
        directory = Path(config.data_directory)
        expect(load_identity(directory), directory, broker=config.broker)
        storage = DiskStorage.open(directory, settings=_settings(config))
        trio.run(_process, config, storage)
    except (StreamqError, StorageFailedError, KeyboardInterrupt) as error:
        return _report(error, config)
    except BaseExceptionGroup as group:
        first = _first(group)
        if not isinstance(first, (StreamqError, StorageFailedError, KeyboardInterrupt)):
            raise
        return _report(first, config)
    return 0


def _settings(config: BrokerConfig) -> DiskSettings:
    return DiskSettings(
        journal_file_bytes=config.journal_file_bytes,
        log_file_bytes=config.log_file_bytes,
        cache_bytes=config.cache_bytes,
        flush_bytes=config.flush_bytes,
        flush_interval_s=config.flush_interval_s,
        reserve_bytes=config.reserve_bytes,
    )


async def _process(config: BrokerConfig, storage: Storage) -> None:
    stop = Stopping()

    async def on_signal() -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                stop()

    def serving() -> None:
        host, port = config.address
        print(f"streamq broker {config.broker} serving on {host}:{port} (pid {os.getpid()})", file=sys.stderr, flush=True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(on_signal)
        await run_broker(config, storage, TcpNetwork(), SystemClock(), stop=stop, on_serving=serving, usage=process_usage)
        nursery.cancel_scope.cancel()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _report(error: BaseException, config: BrokerConfig) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, StreamqError):
        hint = f"\n  try: {error.hint}" if error.hint else ""
        print(f"streamq: broker {config.broker} cannot serve [{error.code}]: {error}{hint}", file=sys.stderr)
        return error.exit_code
    print(f"streamq: the storage failed, so this broker stops; nothing more is acked: {error}", file=sys.stderr)
    return 1
