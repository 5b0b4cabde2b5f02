"""The `streamq` command. `grammar` says what can be typed; the module that it names carries the verb out and is imported only then.

Records go to stdout and nothing else does; everything else goes to stderr. Exit codes and the shape of an error are in `output`.
"""
