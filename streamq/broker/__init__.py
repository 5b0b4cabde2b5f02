"""The trio shell of a broker: the only place where cores, storage, registers and connections meet."""
