"""What the kernel knows of a TCP connection."""

from __future__ import annotations

import socket
import struct

DELIVERY_RATE = struct.Struct("Q")
DELIVERY_RATE_AT = 160
"""Where `struct tcp_info` has tcpi_delivery_rate, of Linux 4.9 and later."""


def delivery_rate(connected: socket.socket) -> int | None:
    """At how many bytes per second the peer last received, by its acknowledgements; None where nobody knows.

    While this side sends too little to find out, it is the highest such rate seen since.
    """
    if connected.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        told = connected.getsockopt(
            socket.IPPROTO_TCP, socket.TCP_INFO, DELIVERY_RATE_AT + DELIVERY_RATE.size
        )
    except OSError:  # closed meanwhile
        return None
    if len(told) < DELIVERY_RATE_AT + DELIVERY_RATE.size:
        return None
    (rate,) = DELIVERY_RATE.unpack_from(told, DELIVERY_RATE_AT)
    return int(rate) or None
