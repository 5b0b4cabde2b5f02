"""`python -m streamq`: the same as the command `streamq`."""

import sys

from streamq.cli.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
