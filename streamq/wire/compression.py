"""zstd and none; the only module that imports zstandard. Decompression is bounded by what the batch header announced."""

import threading
from typing import Final

import zstandard

from streamq.model.batches import COMPRESSION_NONE, COMPRESSION_ZSTD
from streamq.model.errors import CorruptDataError
from streamq.model.limits import BATCH_RAW_BYTES_MAX

__all__ = ["ZSTD_LEVELS", "compress", "decompress"]

ZSTD_LEVELS: Final = range(1, 20)
_local = threading.local()  # a compressor used by two threads at once crashes the process


def compress(raw: bytes, *, level: int) -> bytes:
    """One zstd frame at the level (1 to 19)."""
    compressors: dict[int, zstandard.ZstdCompressor] = _local.__dict__.setdefault("compressors", {})
    compressor = compressors.get(level)
    if compressor is None:
        compressor = compressors[level] = zstandard.ZstdCompressor(level=level)
    return compressor.compress(raw)


def decompress(payload: bytes, *, compression: int, raw_bytes: int) -> bytes:
    """Exactly `raw_bytes` bytes, or CorruptDataError: a bomb costs at most that much memory, and never over BATCH_RAW_BYTES_MAX."""
    if raw_bytes > BATCH_RAW_BYTES_MAX:
        raise CorruptDataError(f"a batch announces {raw_bytes} bytes, over the limit of {BATCH_RAW_BYTES_MAX}", code="data_damaged")
    if compression == COMPRESSION_NONE:
        raw = payload
    elif compression == COMPRESSION_ZSTD:
        decompressor = _local.__dict__.get("decompressor")
        if decompressor is None:
            decompressor = _local.decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 23)
        try:
            parameters = zstandard.get_frame_parameters(payload)
            if parameters.content_size not in (raw_bytes, zstandard.CONTENTSIZE_UNKNOWN):
                raise CorruptDataError(f"a batch of {raw_bytes} bytes holds a zstd frame of {parameters.content_size}", code="data_damaged")
            raw = decompressor.decompress(payload, max_output_size=raw_bytes)
        except zstandard.ZstdError as error:
            raise CorruptDataError(f"a batch does not decompress: {error}", code="data_damaged") from None
    else:
        raise CorruptDataError(f"compression {compression} is not known here", code="data_damaged")
    if len(raw) != raw_bytes:
        raise CorruptDataError(f"a batch of {raw_bytes} bytes decompressed to {len(raw)}", code="data_damaged")
    return raw
