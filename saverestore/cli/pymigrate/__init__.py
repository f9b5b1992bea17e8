"""`pymigrate`: move a running domain to another host; see `command`."""

from saverestore.cli.pymigrate.command import main

__all__ = ["main"]
