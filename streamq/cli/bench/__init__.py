"""`streamq bench`: measures a cluster, its own or one that runs.

Each run is one client process (`bench.worker`) that gets a `Plan` and gives back an `Outcome`, so that its CPU time and memory are the
client's alone and every run begins with a fresh producer. The command itself starts brokers and clients, watches the disk, hurts brokers
where that is the point, and reports.
"""
