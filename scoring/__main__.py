"""`python -m scoring`: score every picture of a folder or bucket."""

from __future__ import annotations

import sys

from scoring.cli import main

# Worker processes import this module again, under another name.
if __name__ == "__main__":
    sys.exit(main())
