"""The bandwidth limit of a migration: held to while it runs, and changed from outside."""

from __future__ import annotations

from collections.abc import Sequence

from saverestore.errors import ErrorName, UsageError
from saverestore.migrate.cancelling import source_at_work
from saverestore.migrate.channel import Channel
from saverestore.migrate.control_socket import Fields, ask
from saverestore.migrate.data import MessageSink
from saverestore.migrate.handover import Role
from saverestore.migrate.journal import Journals
from saverestore.migrate.records import Log
from saverestore.transport.paced import SMALLEST_RATE, PacedSink

CHANGE = "bwlimit"
"""The request over the control socket: `rate`, in bytes per second or null, for no limit."""


class LimitedSink(PacedSink):
    """What the image is written to: the peer gets it as DATA, at a rate at most. `rate`: bytes per second, or None.

    The kernel holds to it where it has the TCP connection; else this sink does.
    """

    def __init__(self, channel: Channel, rate: int | None) -> None:
        super().__init__(MessageSink(channel), None)
        self._channel = channel
        self.limit(rate)

    def limit(self, rate: int | None) -> None:
        """Hold to another rate from now on; from any thread."""
        self.limited_to = rate
        self.change(None if self._channel.connection.pace(rate) else rate)

    def requested(self, request: Fields) -> Fields:
        """Another process asks for a CHANGE: the rate before."""
        rate = request.get("rate")
        if rate is not None and not (type(rate) is int and SMALLEST_RATE <= rate < 1 << 63):
            raise UsageError(f"{rate} is not a rate", name=ErrorName.USAGE)
        before = self.limited_to
        self.limit(rate)
        return {"before": before}


def change_limit(logs: Sequence[Log], domain: str, rate: int | None, *, journals: Journals) -> int | None:
    """Have the migration of which this host is the source hold to another rate, in bytes per second: the one before.

    `logs`: the journals of the domain. None: no limit. DomainError when none is under way, when the domain has been
    granted, so that nothing is left to be sent, or when the process at work does not answer.
    """
    log, pid = source_at_work(logs, domain, journals=journals)
    answer = ask(Role.SOURCE, log.head.migration, {"what": CHANGE, "rate": rate}, pid=pid)
    before = answer.get("before")
    return None if before is None else int(before)
