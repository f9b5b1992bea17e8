"""`python -m saverestore.cli.pyimage`."""

import sys

from saverestore.cli.pyimage.command import main

sys.exit(main())
