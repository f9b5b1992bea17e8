"""`pymigrate receive`: the side that the domain comes to."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from typing import TYPE_CHECKING

from saverestore.cli import arguments, certificates, common, settings
from saverestore.cli.pymigrate import xl
from saverestore.errors import UsageError

if TYPE_CHECKING:
    from saverestore.migrate.linking import OpenDoor
    from saverestore.migrate.receiving import Received
    from saverestore.operations.host import Host
    from saverestore.transport.connection import Connection

DESCRIPTION = """\
Receive a domain that 'pymigrate' sends, or answer a 'pymigrate recover': one connection, on standard input and
output. ssh starts this; start it yourself only to listen. With --from-xl, receive a domain that stock 'xl migrate'
sends.
"""

EPILOG = """\
examples:
  pymigrate receive --listen tls://0.0.0.0
  pymigrate receive --listen unix:/run/migrate.sock
  pymigrate receive --listen tcp://10.0.0.2:8700 --trust-network

An ssh key that may do this and nothing else, in root's authorized_keys:
  restrict,command="pymigrate receive" ssh-ed25519 AAAA... root@host1

Started by ssh, it listens at a port of its own for TLS connections of this migration, with certificates that both
sides make for it and exchange over ssh. --ports, --data-listen, --cert, --key, --ca and --allow may be set in the
table [pymigrate-receive] of /etc/xen/pysave.toml.

When the domain is this host's, a frame (reverse ARP) goes out of the bridge of each of its NICs, so that switches
send its packets here. Linux guests announce their IPv4 addresses, too.

--from-xl, on the host that has the domain, which needs no pysave ('-s ""' makes xl run its last argument as it is):
  xl migrate -s '' web1 'exec ssh host2 pymigrate receive --from-xl'
If the connection ends before xl's permission has come, the domain stays here, paused, and xl may have its copy
suspended: xl cannot be asked, so a person has to look there, see 'pymigrate recover --help'.
"""


def receive_parser() -> arguments.Parser:
    """What reads the command line."""
    parser = arguments.parser("pymigrate receive", DESCRIPTION, EPILOG)
    group = parser.add_argument_group("options")
    group.add_argument(
        "--listen",
        metavar="ADDRESS",
        help="accept one connection at tls://ADDRESS[:PORT], unix:PATH or tcp://ADDRESS:PORT instead; tls:// has "
        "port 8701 by default",
    )
    group.add_argument(
        "--tls",
        action="store_true",
        help="speak TLS on standard input, which is a connection that systemd or inetd has accepted",
    )
    group.add_argument(
        "--ports",
        metavar="LOW-HIGH",
        type=arguments.ports,
        default=(0, 0),
        help="listen for further connections of a migration at one of these ports, for a firewall; default: the "
        "kernel chooses one",
    )
    group.add_argument(
        "--data-listen",
        metavar="ADDRESS",
        help="started by ssh: the address to listen at for TLS connections; default: the one at which ssh arrived",
    )
    xl.add_from_xl(group)
    certificates.add_certificates(group)
    certificates.add_allow(group)
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
    parser = receive_parser()
    given = settings.parse(parser, argv)
    if given.tls and given.listen is not None:
        parser.error("--tls is for standard input, and excludes --listen")
    is_by_ssh = not given.tls and given.listen is None
    if given.data_listen is not None and not is_by_ssh and "data_listen" not in given.from_settings:
        parser.error("--data-listen is for a receiver that ssh starts, and excludes --tls and --listen")
    xl.check_from_xl(parser, given)
    return common.run("pymigrate", given, lambda: _receive(given))


FORCED = "SSH_ORIGINAL_COMMAND"
"""sshd's: what the other side wanted to run, where its key may run this and nothing else."""


def check_asked_for(wanted: str) -> str:
    """What ssh was asked to run: `wanted` where its key is not restricted.

    UsageError when that is something else than to receive: whoever asked would take what we say for its output.
    """
    from saverestore.migrate.ssh_child import RECEIVE
    from saverestore.migrate.xl_words import asked_for

    asked = os.environ.get(FORCED, wanted)
    if asked.split() != wanted.split() and (wanted == RECEIVE or asked_for(asked) is None):
        raise UsageError(f"this key may run '{wanted}' and nothing else")
    return asked


def _receive(given: argparse.Namespace) -> None:
    from saverestore.migrate.ssh_child import RECEIVE

    asked = check_asked_for(f"{RECEIVE} --from-xl" if given.from_xl else RECEIVE)
    if given.from_xl:
        xl.receive_from_xl(given, asked, _opened())
        return
    quiet = given.quiet or (given.listen is None and not given.verbose)
    incoming = _incoming(given)
    with ExitStack() as stack:
        if given.tls:  # whoever connects is known before anything is made ready for them
            connection = stack.enter_context(incoming)
        opened = stack.enter_context(_opened())
        if not given.tls:
            connection = stack.enter_context(incoming)
        received = _received(connection, opened, _door_of(given), quiet)
    if received.name is not None and not quiet:
        common.say(f"pymigrate: {received.name} is here as domain {received.domid}")


@contextmanager
def _opened() -> Iterator[tuple[Mapping[str, str], Host]]:
    """The helper that waits, and the host."""
    from saverestore.cli.pyrestore import helper_for
    from saverestore.operations.host import opened_host

    # The helper before there are threads, or a connection that it would keep open.
    with helper_for("auto") as helper, opened_host(process_ends=True) as host:
        yield helper, host


def _received(
    connection: Connection, opened: tuple[Mapping[str, str], Host], door: OpenDoor | None, quiet: bool
) -> Received:
    from saverestore.cli.progress import progress_for
    from saverestore.migrate.channel import Channel
    from saverestore.migrate.destination import receive

    helper, host = opened
    with Channel(connection) as channel, closing(progress_for("pymigrate", quiet=quiet)) as progress:
        return receive(channel, host, progress, helper=helper, open_door=door)


def _door_of(given: argparse.Namespace) -> OpenDoor | None:
    """How the source reaches this process by further connections; None where it cannot."""
    from saverestore.migrate import addresses
    from saverestore.migrate.linking import door_beside_ssh, door_of

    kind = "tls" if given.tls else "ssh"
    if given.listen is not None:
        kind = addresses.parse_listening(given.listen).kind
    if kind == "tls":
        tls = certificates.credentials_of(given), certificates.allowed_of(given)
        return door_of(tls, ports=given.ports)
    if kind == "ssh":
        arrived_at = addresses.ssh_arrived_at(os.environ)
        return door_beside_ssh(given.data_listen or arrived_at, told=arrived_at, ports=given.ports)
    return door_of(None, ports=given.ports) if kind == "tcp" else None


def _incoming(given: argparse.Namespace) -> AbstractContextManager[Connection]:
    """What waits for the connection when it is entered. UsageError at once for what cannot be right."""
    from saverestore.migrate import addresses

    credentials = certificates.credentials_of(given)
    if given.tls:
        return addresses.standard_input(credentials, certificates.allowed_of(given))
    if given.listen is None:
        return addresses.standard_streams("the source")
    address = addresses.parse_listening(given.listen, tls=credentials)
    addresses.check_trusted(address, trusted=given.trust_network)
    if address.kind != "tls":
        return addresses.listening(address)
    credentials.for_listening()  # Xen need not be opened to find that a file is missing
    return addresses.listening(address, allowed=certificates.allowed_of(given))
