"""`pymigrate --to-xl` and `pymigrate receive --from-xl`: the other side is stock xl."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from typing import TYPE_CHECKING

from saverestore.cli import arguments, common, reporting
from saverestore.cli.pymigrate.request import in_force, request_of
from saverestore.words import counted, mib

if TYPE_CHECKING:
    from saverestore.operations.host import Host

PROG = "pymigrate"

NOT_WITH_XL = {
    "--back": "back",
    "--trust-network": "trust_network",
    "--bwlimit": "bwlimit",
    "--codec": "codec",
    "--streams": "streams",
    "--source": "source",
    "--interface": "interface",
    "--dscp": "dscp",
    "--congestion": "congestion",
    "--over-ssh": "over_ssh",
    "--data-address": "data_address",
    "--resume-for": "resume_for",
    "--silence": "silence",
}
"""Options that need a pymigrate at the other side, and where a command line has them."""


def add_to_xl(group: argparse._ArgumentGroup) -> None:
    """--to-xl, of the source."""
    group.add_argument(
        "--to-xl",
        action="store_true",
        help="HOST has no pysave: ssh starts stock 'xl migrate-receive' there; see below for what xl cannot promise",
    )


def check_to_xl(parser: arguments.Parser, given: argparse.Namespace) -> None:
    """End with an error where an option does not go with --to-xl."""
    for option, name in NOT_WITH_XL.items():
        unset = (None, False, parser.get_default(name))
        if given.to_xl and getattr(given, name) not in unset and name not in given.from_settings:
            parser.error(f"--to-xl excludes {option}: xl is reached by ssh, and has no pymigrate")


def migrate_to_xl(given: argparse.Namespace) -> int | None:
    """Run `pymigrate --to-xl`, with options that were checked."""
    from saverestore.cli.progress import progress_for
    from saverestore.engine.progress import SaveReport
    from saverestore.migrate import to_xl
    from saverestore.report.facts import Facts, Outcome, facts_of_save

    if given.dry_run:
        return common.print_findings(PROG, lambda: to_xl.dry_run_to_xl(request_of(given, given.domain)))
    report = SaveReport()
    handover_s: float | None = None

    def facts(outcome: Outcome) -> Facts:
        return facts_of_save(outcome, report) | {"handover_s": handover_s}

    with reporting.reporting(PROG, given, given.domain, facts) as run:
        request = request_of(given, given.domain)
        run.know(in_force(given, request))
        with closing(run.followed(progress_for(PROG, quiet=given.quiet))) as progress:
            migrated = to_xl.migrate_to_xl(request, progress, report, process_ends=True)
            handover_s = migrated.handover_s
    if not given.quiet:
        assert report.downtime is not None
        downtime_s = report.downtime.total_s + migrated.handover_s
        common.say(
            f"{PROG}: {given.domain} is {migrated.answer.state} at {given.host}: {mib(report.stream_bytes)}, "
            f"{counted(report.pages_sent, 'page')}, {run.outcome.seconds:.1f} s; "
            f"{counted(len(report.rounds), 'round')}; downtime {downtime_s:.2f} s, "
            f"{migrated.handover_s:.2f} s of it from the grant to xl's report"
        )
    return None


def add_from_xl(group: argparse._ArgumentGroup) -> None:
    """--from-xl, of the receiver."""
    group.add_argument(
        "--from-xl",
        action="store_true",
        help="the source is stock 'xl migrate', on standard input and output",
    )
    group.add_argument("-p", "--paused", action="store_true", help="with --from-xl: leave the domain paused")


def check_from_xl(parser: arguments.Parser, given: argparse.Namespace) -> None:
    """End with an error where an option does not go with --from-xl."""
    if given.from_xl and (given.tls or given.listen is not None):
        parser.error("--from-xl is for standard input and output, and excludes --tls and --listen")
    if given.paused and not given.from_xl:
        parser.error("--paused needs --from-xl; otherwise the source decides")


def receive_from_xl(
    given: argparse.Namespace, asked: str, opened: AbstractContextManager[tuple[Mapping[str, str], Host]]
) -> None:
    """Run `pymigrate receive --from-xl`. `asked`: what ssh was asked to run. `opened`: the helper, and this host."""
    from saverestore.cli.progress import progress_for
    from saverestore.migrate import addresses, from_xl
    from saverestore.migrate.xl_peer import IMAGE_S, XlSender
    from saverestore.migrate.xl_words import AskedFor, asked_for

    wanted = asked_for(asked) or AskedFor()
    wanted = replace(wanted, paused=wanted.paused or given.paused)
    quiet = given.quiet or not given.verbose
    source = os.environ.get("SSH_CONNECTION", "").partition(" ")[0] or "the source"
    with (
        opened as (helper, host),
        addresses.standard_streams(source, timeout_s=IMAGE_S) as connection,
        closing(progress_for(PROG, quiet=quiet)) as progress,
    ):
        received = from_xl.receive_from_xl(XlSender(connection), wanted, host, progress, helper=helper)
    if not quiet:
        common.say(f"{PROG}: {received.name} is here as domain {received.domid}")
