"""A link between two network name spaces by a process that passes packets on, for kernels without netem.

    TCP of one end ─► tun device ─► this process: rate, delay, loss ─► tun device ─► TCP of the other end

Packets have the usual 1500 bytes. It takes some of a processor, which neither contender has then.

    tun_link.py END END RATE DELAY LOSS QUEUE      bytes a second, seconds, 0 to 1, bytes

It prints a line once the link is there, and ends when its standard input does.
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import signal
import struct
import sys
import time
from collections import deque

TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x1001
"""Of linux/if_tun.h."""

LONGEST_PACKET = 1 << 16
AT_ONCE = 64


class Direction:
    """Packets that one end has sent and the other has not received yet."""

    def __init__(self, to: int, rate: float, delay_s: float, loss: float, queue_bytes: float) -> None:
        self._to, self._rate, self._delay_s, self._loss = to, rate, delay_s, loss
        self._longest_s = queue_bytes / rate
        self._free_at = 0.0
        self._on_the_way: deque[tuple[float, bytes]] = deque()

    def take(self, packet: bytes, now: float) -> None:
        """One that was sent. It is lost by chance, or when too many wait for the link."""
        begins_at = max(now, self._free_at)
        if begins_at - now > self._longest_s:
            return
        self._free_at = begins_at + len(packet) / self._rate
        if random.random() >= self._loss:
            self._on_the_way.append((self._free_at + self._delay_s, packet))

    def deliver(self, now: float) -> float | None:
        """Those that have arrived: when the next one does."""
        while self._on_the_way and self._on_the_way[0][0] <= now:
            os.write(self._to, self._on_the_way.popleft()[1])
        return self._on_the_way[0][0] if self._on_the_way else None


def opened(end: str) -> int:
    """A tun device of this name in the name space of this name."""
    from pyroute2 import netns

    netns.setns(end)
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", end.encode(), IFF_TUN_NO_PI))
    return descriptor


def main() -> None:
    """Pass on what comes, both ways."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C at the terminal is for who started this
    ends = [opened(end) for end in sys.argv[1:3]]
    rate, delay_s, loss, queue_bytes = map(float, sys.argv[3:7])
    directions = {
        here: Direction(there, rate, delay_s, loss, queue_bytes)
        for here, there in zip(ends, reversed(ends), strict=True)
    }
    print("ready", flush=True)
    timeout_s: float | None = None
    while True:
        ready, _, _ = select.select([0, *ends], [], [], timeout_s)
        if 0 in ready:
            return
        now = time.monotonic()
        for end in ready:
            for _ in range(AT_ONCE):
                try:
                    directions[end].take(os.read(end, LONGEST_PACKET), now)
                except BlockingIOError:
                    break
        next_at = [at for one in directions.values() if (at := one.deliver(now)) is not None]
        timeout_s = max(0.0, min(next_at) - time.monotonic()) if next_at else None


if __name__ == "__main__":
    main()
