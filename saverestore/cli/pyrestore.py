"""`pyrestore`: bring a saved domain back."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from saverestore.cli import all_domains, arguments, certificates, common, many, reporting, settings
from saverestore.cli.common import STORE
from saverestore.errors import SaveRestoreError, UsageError
from saverestore.kernels.page import PAGE_SIZE
from saverestore.words import counted, mib

if TYPE_CHECKING:
    from saverestore.operations.requests import RestoreRequest

DESCRIPTION = """\
Restore a domain from an image that pysave or 'xl save' wrote: a new domain, which resumes where the saved one was
suspended. Prints the new domain's number, or a result with --json. On any error, and on Ctrl-C, no domain is left.
"""

EPILOG = """\
examples:
  pyrestore web1.img
  ssh backup cat web1.img | pyrestore -
  pyrestore --store web1                the newest image of web1 in /var/lib/xen/pysave
  pyrestore --store web1@2026-11-29     the newest of that day
  pyrestore --paused --name web1-old web1.img
  pyrestore --new-uuid --name web1-copy --config web1-copy.cfg web1.img
                                        a copy beside web1, with disks and MACs of its own

Devices are restored by libxl; the bare toolstack restores none besides the console. A process, pysave-watch, stays
behind, as one of 'xl restore' does: when the domain powers off, reboots or crashes, it does what the domain's
configuration says. See 'pysave-watch --help'.

Defaults of many options may be set in the table [pyrestore] of /etc/xen/pysave.toml, which lists them.
"""


def command_parser() -> arguments.Parser:
    """What reads the command line."""
    parser = arguments.parser("pyrestore", DESCRIPTION, EPILOG)
    image = parser.add_argument(
        "image",
        metavar="IMAGE",
        nargs="?",
        help="the image; '-' is standard input; tcp://[ADDRESS]:PORT and unix:PATH: listen there for one 'pysave', "
        "tcp:// at 127.0.0.1 unless an ADDRESS is given; fd:N is an open descriptor",
    )
    arguments.complete(image, arguments.FILE)
    usual = parser.add_argument_group("common options")
    usual.add_argument("-p", "--paused", action="store_true", help="leave the new domain paused")
    usual.add_argument(
        "--store",
        metavar="NAME[@WHEN]",
        help="in place of IMAGE: the newest image of this domain that 'pysave --store' made, or the newest of those "
        "whose time starts with WHEN (2026-11-29, 2026-11-29T05:58; UTC, as 'pyimage list' prints it). In another "
        f"directory than {STORE}: DIR/NAME[@WHEN]",
    )
    usual.add_argument(
        "--name",
        type=arguments.domain_name,
        metavar="NAME",
        help="name of the new domain, instead of the image's",
    )
    common.add_config(usual, "restore it with this configuration", "xl restore FILE IMAGE", "image")
    usual.add_argument(
        "--new-uuid",
        action="store_true",
        help="give the new domain a UUID of its own: a copy beside the original. It needs a name of its own "
        "(--name), and disks that no other domain writes to (--config)",
    )
    usual.add_argument(
        "--all",
        action="store_true",
        help="restore what 'pysave --all' saved and nobody has restored since; with --store DIR from another store",
    )
    common.add_dry_run(usual, "restore")
    reporting.add_report(usual, "restore")
    reporting.add_following(usual, "restore")
    reporting.add_json(usual, "restore")
    several = parser.add_argument_group("several domains, with --all")
    several.description = "Not with --name, --config, --new-uuid, --report, --events, --metrics or --tls."
    many.add_many(several, "restore")
    checks = parser.add_argument_group("checks")
    checks.add_argument(
        "--require-digest",
        action="store_true",
        help="refuse an image without a digest; a digest that is there is compared in any case",
    )
    checks.add_argument(
        "--force",
        action="store_true",
        help="restore even if this host lacks a disk, bridge or CPU feature, without which the guest may crash; even "
        "if a disk was written to after the save, or another domain writes to it: what is on it may be destroyed; "
        "with the bare toolstack: even if the domain loses its devices. Also on a Xen known to break restores",
    )
    sockets = parser.add_argument_group("sockets")
    certificates.add_tls(sockets)
    certificates.add_certificates(sockets)
    certificates.add_allow(sockets)
    other = parser.add_argument_group("the domain and its devices")
    common.add_toolstack(other)
    other.add_argument(
        "--no-watch",
        dest="watch",
        action="store_false",
        help="do not start pysave-watch: a domain that powers off, reboots or crashes then stays in that state",
    )
    arguments.finish(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (`sys.argv` by default) and return its exit code."""
    parser = command_parser()
    given = settings.parse(parser, argv)
    if given.name == "":
        parser.error("--name: the name must not be empty")
    all_domains.check_all(
        parser, given, "image", "name", "config", "new_uuid", "report", "events", "metrics", "tls"
    )
    if given.all:
        reporting.check_report(parser, given)
        return common.run("pyrestore", given, lambda: all_domains.restore_all(given))
    if (given.image is None) is (given.store is None):
        parser.error(
            "IMAGE is missing" if given.image is None else f"--store excludes IMAGE, '{given.image}'"
        )
    reporting.check_report(parser, given)
    return common.run("pyrestore", given, lambda: _restore(given))


def run_one(given: argparse.Namespace) -> int:
    """One restore of `--all`, with options that were checked: its exit code."""
    return common.run("pyrestore", given, lambda: _restore(given))


def _restore(given: argparse.Namespace) -> int | None:
    from saverestore.cli.progress import progress_for
    from saverestore.engine.progress import RestoreReport
    from saverestore.guest.kinds import this_host
    from saverestore.operations.restore import dry_run, restore_domain
    from saverestore.report.facts import facts_of_restore

    if given.dry_run:
        return common.print_findings("pyrestore", lambda: dry_run(_request(given)))
    report = RestoreReport()
    with reporting.reporting(
        "pyrestore", given, given.name, lambda outcome: facts_of_restore(outcome, report)
    ) as run:
        request = _request(given)
        run.know(given)
        with (
            helper_for(given.toolstack) as helper,
            closing(
                run.followed(progress_for("pyrestore", quiet=given.quiet, total_bytes=_size_of(given.image)))
            ) as progress,
        ):
            restored = restore_domain(request, progress, report, helper=helper, process_ends=True)
            run.outcome = replace(run.outcome, domain=restored.name)
    if not given.json:
        common.answer(str(restored.domid))
    if not given.quiet:
        state = "paused" if given.paused else "running"
        common.say(
            f"pyrestore: {restored.name} is {state} as domain {restored.domid}: "
            f"{counted(report.pages, 'page')} ({mib(report.pages * PAGE_SIZE)}), {run.outcome.seconds:.1f} s"
        )
        if this_host().wall_clock_stops:
            now = datetime.datetime.now(datetime.UTC)
            common.say(f"pyrestore: {clock_note(restored.name, report.saved_at, now)}")
    return None


def _request(given: argparse.Namespace) -> RestoreRequest:
    """What is asked for; of a store, `given.image` is found. UsageError for what cannot be right."""
    from saverestore.operations.requests import RestoreRequest
    from saverestore.transport.image_sockets import address_of

    if given.store is not None:
        from saverestore.operations.store import find

        given.image = str(find(given.store).path)
    request = RestoreRequest(
        image=given.image,
        paused=given.paused,
        name=given.name,
        config=common.config_of(given),
        new_uuid=given.new_uuid,
        force=given.force,
        require_digest=given.require_digest,
        toolstack=given.toolstack,
        watch=given.watch,
        only_pending=vars(given).get("is_one_of_all", False),
        tls=certificates.tls_of(given),
        allowed=certificates.allowed_of(given) if given.tls else None,
    )
    address = address_of(request.image, tls=request.tls)
    if given.dry_run and address is not None:
        raise UsageError(f"{request.image}: a dry run would use up the image that is being sent")
    return request


def clock_note(name: str, saved_at: datetime.datetime | None, now: datetime.datetime) -> str:
    """Return the note on the wall clock of an ARM guest: its counter continues where it stopped.

    On x86 Linux asks Xen for the time when it resumes; on ARM it does not.
    """
    from saverestore.operations.preflight import duration

    since = "since it was saved"
    if saved_at is not None and saved_at <= now:
        since = f"{since}, about {duration((now - saved_at).total_seconds())} ago"
    return (
        f"the wall clock of {name} was stopped {since}; Linux does not correct it: run NTP there, or date -s"
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
    from saverestore.transport.image_sockets import address_of
    from saverestore.transport.random_access import open_random_access

    if address_of(image) is not None:
        return None
    try:
        found = open_random_access(image)
    except SaveRestoreError:
        return None  # reported when it is opened to be restored
    if found is None:
        return None
    with found:
        return found.size


if __name__ == "__main__":
    sys.exit(main())
