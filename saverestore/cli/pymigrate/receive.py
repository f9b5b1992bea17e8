"""`pymigrate receive`: the side that the domain comes to."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from saverestore.cli import common

if TYPE_CHECKING:
    from saverestore.transport.connection import Connection

DESCRIPTION = """\
Take a domain that 'pymigrate' sends, or answer to its recovery: one connection, on standard input and output. ssh
starts this; nobody else needs to, but to listen.
"""

EPILOG = """\
examples:
  pymigrate receive --listen unix:/run/migrate.sock
  pymigrate receive --listen tcp://10.0.0.2:8700 --trust-network
"""


def parser() -> common.Parser:
    """Its options."""
    made = common.parser("pymigrate receive", DESCRIPTION, EPILOG)
    made.add_argument(
        "--listen",
        metavar="ADDRESS",
        help="take one connection at unix:PATH or tcp://HOST:PORT instead",
    )
    made.add_argument(
        "--trust-network",
        action="store_true",
        help="for tcp:// only: memory comes in clear, and nobody is asked who they are; the source must say so, too",
    )
    return made


def main(argv: Sequence[str]) -> int:
    """Run it."""
    arguments = parser().parse_args(argv)
    return common.run("pymigrate", arguments, lambda: _receive(arguments))


def _receive(arguments: argparse.Namespace) -> None:
    from saverestore.cli.progress import progress_for
    from saverestore.cli.pyrestore import helper_for
    from saverestore.migrate.channel import Channel
    from saverestore.migrate.destination import receive
    from saverestore.operations.host import opened_host

    quiet = arguments.quiet or (arguments.listen is None and not arguments.verbose)
    with (
        helper_for("auto") as helper,  # before there are threads, or a connection that it would keep open
        opened_host(process_ends=True) as host,
        _connection(arguments) as connection,
        Channel(connection) as channel,
        closing(progress_for("pymigrate", quiet=quiet)) as progress,
    ):
        received = receive(channel, host, progress, helper=helper)
    if received.name is not None and not quiet:
        common.say(f"pymigrate: {received.name} is here as domain {received.domid}")


@contextmanager
def _connection(arguments: argparse.Namespace) -> Iterator[Connection]:
    from saverestore.migrate import addresses

    if arguments.listen is None:
        with addresses.of_standard_streams("the source") as connection:
            yield connection
        return
    address = addresses.parse(arguments.listen)
    addresses.check_trusted(address, trusted=arguments.trust_network)
    with addresses.listening(address) as connection:
        yield connection
