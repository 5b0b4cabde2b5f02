"""Bytes to messages and back, without I/O: framing, codec, batch format, compression."""
