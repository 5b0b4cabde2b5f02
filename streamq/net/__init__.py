"""Connections between brokers and from clients: streams behind a small interface, and requests multiplexed over them."""
