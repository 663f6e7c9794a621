"""`python -m srlib VERB ...`: the command line of `srlib.cli`."""

import sys

from srlib.cli import main

if __name__ == "__main__":
    sys.exit(main())
