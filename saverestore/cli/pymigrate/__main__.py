"""`python -m saverestore.cli.pymigrate`."""

import sys

from saverestore.cli.pymigrate.command import main

sys.exit(main())
