"""Telling the network where a domain is now: else switches send its packets to the host that it came from.

Linux guests do it themselves, for their IPv4 addresses. Others stay unreachable until they send something. What is
sent is a reverse ARP request (RFC 903), as QEMU sends it: it has the MAC as its source, which is all that a switch
looks at, and speaks of no IP address, as nobody here knows one.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct

from saverestore.errors import ImageError
from saverestore.toolstack import config as configs
from saverestore.toolstack.config import GuestConfig
from saverestore.toolstack.domains import Domain
from saverestore.toolstack.given_config import NO_MAC
from saverestore.toolstack.host_fit import NET_CLASS, is_served_here
from saverestore.toolstack.userdata import userdata_path

LOG = logging.getLogger(__name__)

RARP = 0x8035
ETHERNET, IPV4, REVERSE_REQUEST = 1, 0x0800, 3
SHORTEST_FRAME = 60


def frame_of(mac: str) -> bytes:
    """From this MAC to everybody: who has an IP address for it?"""
    source = bytes.fromhex(mac.replace(":", ""))
    unknown = bytes(4)
    request = struct.pack(">HHBBH", ETHERNET, IPV4, len(source), len(unknown), REVERSE_REQUEST)
    frame = b"\xff" * 6 + source + struct.pack(">H", RARP) + request + (source + unknown) * 2
    return frame.ljust(SHORTEST_FRAME, b"\0")


def places(config: GuestConfig) -> list[tuple[str, str]]:
    """Its NICs that domain 0 has on a bridge of this host: bridge and MAC."""
    return [
        (nic["bridge"], nic["mac"])
        for nic in config.raw.get("nics") or []
        if nic.get("bridge")
        and nic.get("mac", NO_MAC) != NO_MAC
        and is_served_here(nic)
        and (NET_CLASS / nic["bridge"]).exists()
    ]


def announce(domain: Domain) -> None:
    """Send a frame for each NIC of a domain of libxl's, out of its bridge. What cannot be sent is a warning."""
    with contextlib.suppress(OSError, ImageError):  # it has no configuration, and so no NICs
        config = configs.parse(userdata_path(domain.domid, domain.info.uuid).read_bytes())
        for bridge, mac in places(config):
            try:
                with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sending:
                    sending.bind((bridge, RARP))
                    sending.send(frame_of(mac))
            except (OSError, ValueError) as error:  # whatever it is: the domain runs already
                LOG.warning("%s: its MAC %s could not be announced on %s: %s", domain, mac, bridge, error)
