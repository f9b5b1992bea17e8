"""`pymigrate receive`: the side that the domain comes to."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from saverestore.cli import arguments, common

if TYPE_CHECKING:
    from saverestore.transport.connection import Connection

DESCRIPTION = """\
Receive a domain that 'pymigrate' sends, or answer to its recovery: one connection, on standard input and output. ssh
starts this; start it yourself only to listen.
"""

EPILOG = """\
examples:
  pymigrate receive --listen unix:/run/migrate.sock
  pymigrate receive --listen tcp://10.0.0.2:8700 --trust-network
"""


def receive_parser() -> arguments.Parser:
    """What reads the command line."""
    parser = arguments.parser("pymigrate receive", DESCRIPTION, EPILOG)
    group = parser.add_argument_group("options")
    group.add_argument(
        "--listen",
        metavar="ADDRESS",
        help="accept one connection at unix:PATH or tcp://HOST:PORT instead",
    )
    group.add_argument(
        "--trust-network",
        action="store_true",
        help="for tcp:// only: memory arrives in clear text, and neither side proves who it is; the source must have "
        "this option, too",
    )
    arguments.finish(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run it."""
    given = receive_parser().parse_args(argv)
    return common.run("pymigrate", given, lambda: _receive(given))


def _receive(given: argparse.Namespace) -> None:
    from saverestore.cli.progress import progress_for
    from saverestore.cli.pyrestore import helper_for
    from saverestore.migrate.channel import Channel
    from saverestore.migrate.destination import receive
    from saverestore.operations.host import opened_host

    quiet = given.quiet or (given.listen is None and not given.verbose)
    with (
        helper_for("auto") as helper,  # before there are threads, or a connection that it would keep open
        opened_host(process_ends=True) as host,
        _connection(given) as connection,
        Channel(connection) as channel,
        closing(progress_for("pymigrate", quiet=quiet)) as progress,
    ):
        received = receive(channel, host, progress, helper=helper)
    if received.name is not None and not quiet:
        common.say(f"pymigrate: {received.name} is here as domain {received.domid}")


@contextmanager
def _connection(given: argparse.Namespace) -> Iterator[Connection]:
    from saverestore.migrate import addresses

    if given.listen is None:
        with addresses.of_standard_streams("the source") as connection:
            yield connection
        return
    address = addresses.parse(given.listen)
    addresses.check_trusted(address, trusted=given.trust_network)
    with addresses.listening(address) as connection:
        yield connection
