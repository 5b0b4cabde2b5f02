"""What producers, consumers and the command line share to reach a cluster: connections, and which broker to ask. On anyio.

Internal to the distribution: applications import `streamq_producer` and `streamq_consumer`. Brokers do not use it.
"""
