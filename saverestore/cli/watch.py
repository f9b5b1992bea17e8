"""`pysave-watch`: what `xl create` leaves behind for a domain, for those that pyrestore made."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from saverestore.cli import arguments
from saverestore.cli.remedies import in_full
from saverestore.errors import ExitCode, SaveRestoreError, UsageError

if TYPE_CHECKING:
    import argparse

PROG = "pysave-watch"

DESCRIPTION = """\
Watch a domain: when it powers off, reboots or crashes, do what its configuration says (on_poweroff, on_reboot,
on_crash, on_watchdog): destroy it with its devices, start it again, write a core dump (/var/lib/xen/dump/NAME), or
leave it. A domain is started again only if no other domain writes to its disks by then, and every ten seconds at
most. pyrestore starts this for each domain it restores, as 'xl create' and 'xl restore' do for theirs. It then writes
to /var/log/xen/pysave-watch-NAME.log, and ends when the domain no longer exists.
"""

EPILOG = """\
examples:
  pysave-watch web1                       watch it as long as this runs
  nohup pysave-watch web1 >>web1.log 2>&1 &
"""

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def command_parser() -> arguments.Parser:
    """What reads the command line."""
    import argparse

    parser = arguments.parser(PROG, DESCRIPTION, EPILOG)
    domain = parser.add_argument("domain", metavar="DOMAIN", help="number or name of the domain")
    arguments.complete(domain, arguments.DOMAIN)
    parser.add_argument("--ready-fd", metavar="FD", type=int, help=argparse.SUPPRESS)
    parser.add_argument(
        "--late",
        metavar="UUID",
        help="do not watch: for ten minutes, resume DOMAIN, a number, if it suspends and still has this UUID. pysave "
        "starts this when a guest has taken the request to suspend but does not suspend in time",
    )
    arguments.finish(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (`sys.argv` by default) and return its exit code."""
    given = command_parser().parse_args(argv)
    level = logging.WARNING if given.quiet else logging.DEBUG if given.verbose else logging.INFO
    logging.basicConfig(stream=sys.stderr, format=f"%(asctime)s {PROG}: %(message)s", level=level)
    # Python would heed a signal only when libxl's call returns, which may take months.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return _watch(given)
    except (SaveRestoreError, OSError, ImportError) as error:
        text = in_full(error, PROG)
        logging.error("%s", text)
        _notify_starter(given, text)
        return error.exit_code if isinstance(error, SaveRestoreError) else ExitCode.XEN


def _watch(given: argparse.Namespace) -> int:
    if given.late is not None:
        return _resume_if_late(given)
    from saverestore.toolstack.watch import load, watch_domain
    from saverestore.toolstack.watcher import READY

    load()  # what takes time, before there is a domain
    domain = given.domain if given.ready_fd is None else _from_starter()
    if not domain and given.ready_fd is not None:
        return ExitCode.DONE  # none came to be
    watch_domain(domain, ready=lambda: _notify_starter(given, READY), undisturbed=_undisturbed)
    return ExitCode.DONE


def _from_starter() -> str:
    """The number of the domain, once there is one; nothing when its starter has ended, or wants no watcher.

    A line, not all up to the end: a process that the starter has forked may have the pipe as well.
    """
    with open(0, "rb", closefd=False) as standard_input:
        return standard_input.readline().decode().strip()


def _resume_if_late(given: argparse.Namespace) -> int:
    import uuid

    from saverestore.operations.late import resume_if_late

    try:
        domid, domain_uuid = int(given.domain), uuid.UUID(given.late)
    except ValueError as error:
        raise UsageError(f"--late: {error}") from error
    logging.info("domain %d: %s", domid, resume_if_late(domid, domain_uuid))
    return ExitCode.DONE


def _notify_starter(given: argparse.Namespace, text: str) -> None:
    """Once, to whoever waits for it; who may have gone."""
    if given.ready_fd is not None:
        with contextlib.suppress(OSError):
            os.write(given.ready_fd, text.encode())
            os.close(given.ready_fd)
        given.ready_fd = None


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Heed what would end this process when this is done.

    By handlers, not by the mask: scripts and device models that libxl starts would inherit that.
    """
    come: list[int] = []
    before = {number: signal.signal(number, lambda number, _: come.append(number)) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for came in come:
            os.kill(os.getpid(), came)


if __name__ == "__main__":
    sys.exit(main())
