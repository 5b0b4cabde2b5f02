"""The pure state machines of one partition: replica, sequencer, takeover, tip read, idempotence. No I/O, clock or randomness inside."""
