"""The immutable vocabulary that every other part shares: ids, limits, quorum arithmetic, batches, registers, messages, errors.

Nothing here performs I/O, reads a clock or draws randomness.
"""
