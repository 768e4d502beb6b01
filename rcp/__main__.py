"""`python -m rcp` is the command `rcp`."""

import sys

from rcp.cli import main

sys.exit(main())
