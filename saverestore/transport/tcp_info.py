"""What the kernel knows of a TCP connection."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios

NUMBER, SMALL_NUMBER = struct.Struct("Q"), struct.Struct("I")
ROUND_TRIP_AT = 68
"""Where `struct tcp_info` has tcpi_rtt."""

BYTES_ACKED_AT, DELIVERY_RATE_AT = 120, 160
"""Where `struct tcp_info` has tcpi_bytes_acked, of Linux 4.1 and later, and tcpi_delivery_rate, of 4.9."""


def delivery_rate(connected: socket.socket) -> int | None:
    """At how many bytes per second the peer last received, by its acknowledgements; None where nobody knows.

    While this side sends too little to find out, it is the highest such rate seen since.
    """
    return _told(connected, DELIVERY_RATE_AT) or None


def round_trip_us(connected: socket.socket) -> int | None:
    """How long a packet takes there and back, smoothed, in microseconds; None where nobody knows."""
    return _told(connected, ROUND_TRIP_AT, SMALL_NUMBER)


def passed(connected: socket.socket) -> tuple[int, int] | None:
    """How many bytes the peer's kernel has acknowledged in all, and how many more this one has been given.

    What TLS adds counts, as does the end. None where nobody knows.
    """
    acknowledged = _told(connected, BYTES_ACKED_AT)
    try:
        return None if acknowledged is None else (acknowledged, queued_bytes(connected))
    except OSError:  # closed meanwhile
        return None


def queued_bytes(connected: socket.socket) -> int:
    """How much of what was written the peer's kernel does not have yet (SIOCOUTQ); the end counts as one byte.

    Only of what this kernel was given: who encrypts may still have some.
    """
    (queued,) = struct.unpack("i", fcntl.ioctl(connected, termios.TIOCOUTQ, bytes(4)))
    return int(queued)


def _told(connected: socket.socket, at: int, form: struct.Struct = NUMBER) -> int | None:
    """The number at this place of `struct tcp_info`; None where it is no TCP connection, or the kernel is older."""
    if connected.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        told = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, at + form.size)
    except OSError:  # closed meanwhile
        return None
    if len(told) < at + form.size:
        return None
    (number,) = form.unpack_from(told, at)
    return int(number)
