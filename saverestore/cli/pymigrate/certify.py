"""`pymigrate make-ca` and `pymigrate make-cert`: certificates for tls://, where a site has no CA of its own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from saverestore.cli import arguments, certificates, common

PROG = "pymigrate"

MAKE_CA = """\
Make a CA that certifies Xen hosts, for tls://: DIR/ca.pem, and its private key DIR/ca-key.pem. Whoever has that key
can receive domains, and send them: keep DIR on one machine, and off the hosts.
"""

MAKE_CERT = """\
Make a certificate for a host, issued by the CA in DIR: DIR/NAME/cert.pem, key.pem and ca.pem. Copy them to
/etc/xen/pymigrate/ of that host. Prints the certificate's fingerprint, a line for the list of who may connect.
"""

DAYS = 825
CA_DAYS = 3650


def make_ca_parser() -> arguments.Parser:
    """What reads the command line of `make-ca`."""
    examples = "examples:\n  pymigrate make-ca /root/xen-ca\n"
    parser = arguments.parser(f"{PROG} make-ca", MAKE_CA, examples)
    _add_folder(parser, "the CA's directory; created if it does not exist")
    group = parser.add_argument_group("options")
    _add_days(group, CA_DAYS)
    arguments.finish(parser)
    return parser


def make_ca(argv: Sequence[str]) -> int:
    """Run `pymigrate make-ca`."""
    given = make_ca_parser().parse_args(argv)
    return common.run(PROG, given, lambda: _make_ca(given))


def _make_ca(given: argparse.Namespace) -> None:
    from saverestore.transport.certificates import make_ca as make

    cert = make(given.folder, days=given.days)
    if not given.quiet:
        common.say(f"{PROG}: {cert} is the CA's certificate; its key is {given.folder / 'ca-key.pem'}")


def make_cert_parser() -> arguments.Parser:
    """What reads the command line of `make-cert`."""
    examples = (
        "examples:\n  pymigrate make-cert /root/xen-ca host2 host2.example.org 10.0.0.2\n"
        f"  ssh root@host2 mkdir -p {certificates.FOLDER}\n"
        f"  scp /root/xen-ca/host2/*.pem root@host2:{certificates.FOLDER}/\n"
    )
    parser = arguments.parser(f"{PROG} make-cert", MAKE_CERT, examples)
    _add_folder(parser, "the CA's directory")
    parser.add_argument(
        "names",
        metavar="NAME",
        nargs="+",
        help="the host's names and addresses: all by which it is reached. Its directory is named after the first",
    )
    group = parser.add_argument_group("options")
    _add_days(group, DAYS)
    arguments.finish(parser)
    return parser


def make_cert(argv: Sequence[str]) -> int:
    """Run `pymigrate make-cert`."""
    given = make_cert_parser().parse_args(argv)
    return common.run(PROG, given, lambda: _make_cert(given))


def _make_cert(given: argparse.Namespace) -> None:
    from saverestore.transport.certificates import make_cert as make

    folder, fingerprint = make(given.folder, given.names, days=given.days)
    common.answer(f"{fingerprint}  # {given.names[0]}")
    if not given.quiet:
        common.say(f"{PROG}: {folder} has the files for {certificates.FOLDER} of {given.names[0]}")


def _add_folder(parser: arguments.Parser, text: str) -> None:
    arguments.complete(parser.add_argument("folder", metavar="DIR", type=Path, help=text), arguments.FILE)


def _add_days(group: argparse._ArgumentGroup, default: int) -> None:
    group.add_argument(
        "--days",
        metavar="N",
        type=arguments.days,
        default=default,
        help=f"how long the certificate is valid; default {default}",
    )
