"""Makes ``python -m detbox`` the same as ``detbox``."""

import sys

from detbox.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
