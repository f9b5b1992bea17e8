"""Certificates made for one migration: each side sends its own to the other over ssh, which accepts no other one.

Keys are in memory only.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import Self

from saverestore.migrate.messages import ProtocolError
from saverestore.transport.tls import Pinned
from saverestore.transport.tls_peers import Allowed, fingerprint_of


@dataclass(frozen=True)
class OwnCertificate:
    """This side's. `der`, `key`: as `certificates.make_unsaved` makes them."""

    der: bytes
    key: bytes = field(repr=False)

    @classmethod
    def made(cls, host: str) -> Self:
        """A new one. `host`: this host's name, for messages. UsageError where the package for it is missing."""
        from saverestore.transport.certificates import make_unsaved

        return cls(*make_unsaved(host))

    @property
    def text(self) -> str:
        """As it is sent to the other side."""
        return base64.b64encode(self.der).decode()

    def pinned(self, peer: str) -> tuple[Pinned, Allowed]:
        """What proves who this side is, to a peer that has told its certificate; and that nobody else may come.

        ProtocolError when that is no certificate.
        """
        try:
            der = base64.b64decode(peer, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ProtocolError("what the other host has sent as its certificate is none") from error
        pinned = Pinned(self.der, self.key, der)
        pinned.for_connecting()  # else the thread that listens would find out
        return pinned, Allowed("of this migration", frozenset({fingerprint_of(der)}), frozenset())
