"""Which of the kernel's congestion controls a TCP connection has: how it takes a packet that was lost.

Linux's usual one, cubic, takes each for a sign of congestion. On a long link that loses one in a thousand by itself
it leaves most of the link unused; bbr goes by the rate at which packets arrive. On short links there is nothing to
gain, and bbr takes more than its share of a switch that is full: so there the system's choice stays.
"""

from __future__ import annotations

import errno
import socket

from saverestore.errors import UsageError
from saverestore.transport.tcp_info import round_trip_us

LONG_US = 10_000
"""From here on a link is long: hosts of one site are nearer."""

FOR_LONG_LINKS = "bbr"
NAME_MAX = 16
"""TCP_CA_NAME_MAX of linux/net/tcp.h."""

AVAILABLE = "/proc/sys/net/ipv4/tcp_available_congestion_control"


def choose(made: socket.socket, wanted: str) -> None:
    """Of a TCP socket that is not connected yet: use this one. UsageError when the kernel has none of that name."""
    try:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, wanted.encode())
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        raise UsageError(
            f"this kernel has no TCP congestion control {wanted!r} ({AVAILABLE} has those that are loaded); no "
            "changes were made"
        ) from error


def check(wanted: str) -> None:
    """UsageError when the kernel has none of that name."""
    with socket.socket() as made:
        choose(made, wanted)


def suit(connected: socket.socket) -> None:
    """Where a packet takes long there and back, use what is made for that, if the kernel has it."""
    if (round_trip_us(connected) or 0) >= LONG_US:
        try:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, FOR_LONG_LINKS.encode())
        except OSError:  # it has not, or this process may not
            return


def in_use(connected: socket.socket) -> str:
    """The one that it has; "" where it is no TCP connection."""
    if connected.family not in (socket.AF_INET, socket.AF_INET6):
        return ""
    try:
        told = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, NAME_MAX)
    except OSError:  # closed meanwhile
        return ""
    return told.split(b"\0")[0].decode("ascii", "replace")
