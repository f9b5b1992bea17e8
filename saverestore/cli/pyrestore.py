"""`pyrestore`: bring a saved domain back."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace

from saverestore.cli import common, reporting
from saverestore.errors import SaveRestoreError

DESCRIPTION = """\
Restore a domain from an image that pysave or 'xl save' wrote, into a fresh domain that goes on where the saved
one stopped. Prints the new domain's number. On any error, and on Ctrl-C, no domain is left behind.
"""

EPILOG = """\
examples:
  pyrestore web1.img
  ssh backup cat web1.img | pyrestore -
  pyrestore --paused --name web1-copy web1.img

Devices come back by libxl; the bare toolstack brings none besides the console. A process stays behind, as one of 'xl
restore' does, and sees to the domain when it powers off, reboots or crashes, as its configuration says; see
'pyxc-watch --help'.
"""


def _parser() -> common.Parser:
    parser = common.parser("pyrestore", DESCRIPTION, EPILOG)
    parser.add_argument("image", metavar="IMAGE", help="the image, or '-' for standard input")
    parser.add_argument("-p", "--paused", action="store_true", help="leave the new domain paused")
    parser.add_argument("--name", metavar="NAME", help="call it NAME instead of what the image says")
    parser.add_argument(
        "--force",
        action="store_true",
        help="restore also what this host lacks something for: with the bare toolstack, its devices, which the guest "
        "then loses; disks and bridges that are not there; disks that were written to after the save, which the "
        "guest may then damage; features of the CPU, without which it may crash",
    )
    parser.add_argument(
        "--require-digest",
        action="store_true",
        help="refuse an image without a digest: one that has it is compared with it in any case",
    )
    parser.add_argument(
        "--no-watch",
        dest="watch",
        action="store_false",
        help="leave no process behind: when the domain powers off, reboots or crashes it stays as it is then",
    )
    common.add_toolstack(parser)
    common.add_dry_run(parser, "restore")
    reporting.add_report(parser, "restore")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (`sys.argv` by default) and return its exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.name == "":
        parser.error("--name: a domain needs a name that is not empty")
    reporting.check_report(parser, arguments)
    return common.run("pyrestore", arguments, lambda: _restore(arguments))


def _restore(arguments: argparse.Namespace) -> int | None:
    from saverestore.cli.progress import progress_for
    from saverestore.engine.progress import RestoreReport
    from saverestore.guest.kinds import this_host
    from saverestore.operations.requests import RestoreRequest
    from saverestore.operations.restore import dry_run, restore_domain
    from saverestore.report.facts import facts_of_restore

    request = RestoreRequest(
        image=arguments.image,
        paused=arguments.paused,
        name=arguments.name,
        force=arguments.force,
        require_digest=arguments.require_digest,
        toolstack=arguments.toolstack,
        watch=arguments.watch,
    )
    if arguments.dry_run:
        return common.print_findings("pyrestore", dry_run(request))
    report = RestoreReport()
    with (
        reporting.reporting(
            "pyrestore", arguments, arguments.name, lambda outcome: facts_of_restore(outcome, report)
        ) as run,
        helper_for(arguments.toolstack) as helper,
        closing(
            progress_for("pyrestore", quiet=arguments.quiet, total_bytes=_size_of(arguments.image))
        ) as progress,
    ):
        restored = restore_domain(request, progress, report, helper=helper, process_ends=True)
        run.outcome = replace(run.outcome, domain=restored.name)
    common.answer(str(restored.domid))
    if not arguments.quiet:
        state = "paused" if arguments.paused else "running"
        common.say(
            f"pyrestore: {restored.name} is {state} as domain {restored.domid}: "
            f"{report.stream_bytes >> 20} MiB, {report.pages} pages, {report.total_s:.1f} s"
        )
        if this_host().wall_clock_stops:
            now = datetime.datetime.now(datetime.UTC)
            common.say(f"pyrestore: {clock_note(restored.name, report.saved_at, now)}")
    return None


def clock_note(name: str, saved_at: datetime.datetime | None, now: datetime.datetime) -> str:
    """Return what is to be told of the wall clock of an ARM guest: its counter goes on where it stopped.

    On x86 Linux asks Xen for the time when it goes on; on ARM it does not.
    """
    from saverestore.operations.preflight import duration

    since = "since it was saved"
    if saved_at is not None and saved_at <= now:
        since = f"{since}, about {duration((now - saved_at).total_seconds())} ago"
    return (
        f"the wall clock of {name} stood still {since}; Linux does not correct it: run NTP there, or date -s"
    )


def helper_for(toolstack: str) -> AbstractContextManager[Mapping[str, str]]:
    """A save helper for libxl that waits, where one may be needed."""
    from saverestore.guest.kinds import this_host

    if toolstack == "bare" or not this_host().libxl_restores:
        return nullcontext({})
    from saverestore.helper import session
    from saverestore.process.ready import ready_helper

    return ready_helper(session.run, session.load_restore)


def _size_of(image: str) -> int | None:
    """The image's length in bytes, decompressed, where that is known before it is read."""
    from saverestore.transport.random_access import open_random_access

    try:
        found = open_random_access(image)
    except SaveRestoreError:
        return None  # told when it is opened for good
    if found is None:
        return None
    with found:
        return found.size


if __name__ == "__main__":
    sys.exit(main())
