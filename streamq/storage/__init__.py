"""A broker's durable state: journal, log files, checkpoints, identity; and an in-memory twin for simulation and tests."""
