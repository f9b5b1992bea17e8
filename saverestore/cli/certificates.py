"""--cert, --key, --ca and --allow: the files by which two hosts know each other over TLS."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from saverestore.cli import arguments

if TYPE_CHECKING:
    from saverestore.transport.tls import Credentials
    from saverestore.transport.tls_peers import Allowed

FOLDER = "/etc/xen/pymigrate"
"""As `transport.tls.FOLDER`, which is not loaded to print a help text; a test holds the two together."""

FILES = {
    "cert": "this host's certificate",
    "key": "the private key of this host's certificate, without a passphrase",
    "ca": "the certificate of the CA that issued the other side's certificate",
}


def add_tls(group: argparse._ArgumentGroup) -> None:
    """--tls, of commands that take an image's address."""
    group.add_argument(
        "--tls",
        action="store_true",
        help="with tcp://HOST:PORT: by TLS 1.3, with certificates on both sides; without it, memory crosses the "
        "network in clear text",
    )


def tls_of(given: argparse.Namespace) -> Credentials | None:
    """What --tls asks for."""
    return credentials_of(given) if given.tls else None


def add_certificates(group: argparse._ArgumentGroup) -> None:
    """--cert, --key and --ca, of commands that may speak TLS."""
    for name, what in FILES.items():
        _add_file(group, name, f"for TLS: {what}; default: {FOLDER}/{name}.pem")


def add_allow(group: argparse._ArgumentGroup) -> None:
    """--allow, of commands that listen."""
    _add_file(
        group,
        "allow",
        "for TLS: the certificates that may connect: a name or SHA-256 fingerprint a line; default: "
        f"{FOLDER}/allowed",
    )


def _add_file(group: argparse._ArgumentGroup, name: str, text: str) -> None:
    arguments.complete(group.add_argument(f"--{name}", metavar="FILE", help=text), arguments.FILE)


def credentials_of(given: argparse.Namespace) -> Credentials:
    """The files that were named, and the usual ones for the others."""
    from saverestore.transport.tls import Credentials

    return Credentials(**{name: Path(path) for name in FILES if (path := getattr(given, name)) is not None})


def allowed_of(given: argparse.Namespace) -> Allowed:
    """The list that was named, or the usual one. Errors are those of `read_allowed`."""
    from saverestore.transport.tls_peers import ALLOWED, read_allowed

    return read_allowed(Path(given.allow or ALLOWED))
