"""`pymigrate DOMAIN HOST`, and which other command a command line is."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from saverestore.cli import common, limits, reporting
from saverestore.cli.pymigrate import receive, settle
from saverestore.errors import ExitCode

if TYPE_CHECKING:
    from saverestore.engine.progress import SaveReport

PROG = "pymigrate"

DESCRIPTION = """\
Move a running domain to another host, live. At every moment at most one of the two hosts runs it. Until the other
host has all of it and has verified it, any failure, and Ctrl-C, leaves the domain running here and nothing there.
"""

EPILOG = """\
other commands, each with --help of its own:
  pymigrate receive           the other side; ssh starts it there
  pymigrate status            migrations that this host has taken part in
  pymigrate recover DOMAIN    after a crash of either side: settle what is open
  pymigrate cancel DOMAIN     give a migration up that runs in another terminal

examples:
  pymigrate web1 host2
  pymigrate --downtime-ms 300 --report web1.html web1 root@host2
  pymigrate --dry-run web1 host2        all that stands in the way, on both hosts

HOST is a host for ssh, unix:PATH, or tcp://HOST:PORT on a network that both sides call trusted. Migrating domains
with disks, network interfaces or a device model is not supported yet: use 'xl migrate'.
"""


def add_ssh(parser: argparse.ArgumentParser) -> None:
    """--ssh, of the commands that reach the other host."""
    parser.add_argument(
        "--ssh",
        metavar="COMMAND",
        default=os.environ.get("PYMIGRATE_SSH", "ssh"),
        help="what reaches the other host, called with HOST and a command line; default: $PYMIGRATE_SSH, or 'ssh'",
    )
    parser.add_argument(
        "--trust-network",
        action="store_true",
        help="for tcp:// only: memory passes in clear, nobody is asked who they are; the receiver must say so, too",
    )


def _parser() -> common.Parser:
    parser = common.parser(PROG, DESCRIPTION, EPILOG)
    parser.add_argument("domain", metavar="DOMAIN", help="number, name or UUID of the domain")
    parser.add_argument("host", metavar="HOST", help="the host that it is to run on")
    parser.add_argument("-p", "--paused", action="store_true", help="leave the domain paused there")
    parser.add_argument("--name", metavar="NAME", help="call it NAME there")
    parser.add_argument(
        "--dirty",
        choices=("auto", "log", "digest"),
        default="auto",
        help="how dirty pages are tracked: 'log', the hypervisor's record (PVH; PV only where Xen has shadow "
        "paging); 'digest', comparing contents, works everywhere; default 'auto': log where it can be had",
    )
    _add_limits(parser)
    parser.add_argument(
        "--suspend-timeout",
        metavar="SECONDS",
        type=limits.seconds,
        help="how long the guest may take to answer and to suspend; default 60 for each",
    )
    parser.add_argument(
        "--settle-for",
        metavar="SECONDS",
        type=limits.seconds,
        default=60.0,
        help="how long to ask again when HOST does not answer to the grant; default 60. Then exit code 7",
    )
    parser.add_argument(
        "--back",
        metavar="ADDRESS",
        help="how HOST reaches this host after a crash, for 'pymigrate recover' there; default: this host's name",
    )
    add_ssh(parser)
    common.add_toolstack(parser)
    common.add_dry_run(parser, "migration")
    reporting.add_report(parser, "migration")
    return parser


def _add_limits(parser: argparse.ArgumentParser) -> None:
    live = parser.add_argument_group(
        "when rounds end", "defaults match xl: 5 rounds, or fewer than 50 dirty pages"
    )
    live.add_argument(
        "--downtime-ms",
        dest="downtime_s",
        metavar="N",
        type=limits.milliseconds,
        help="suspend the domain as soon as its predicted downtime here is at most N ms",
    )
    live.add_argument(
        "--max-rounds",
        metavar="N",
        type=limits.rounds,
        help="rounds at most; default 5, or 30 with --downtime-ms or --on-stall throttle",
    )
    live.add_argument(
        "--max-time", metavar="SECONDS", type=limits.seconds, help="begin no round later than this"
    )
    live.add_argument(
        "--on-stall",
        choices=("stop", "abort", "throttle"),
        default="stop",
        help="when a round leaves as many dirty pages as it sent: 'stop', the default, suspends the domain; 'abort' "
        "gives the migration up: exit code 3; 'throttle' lowers the domain's processor cap step by step first",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (`sys.argv` by default) and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    others = {
        "receive": receive.main,
        "recover": settle.recover,
        "status": settle.status,
        "cancel": settle.cancel,
    }
    if words and words[0] in others:
        return others[words[0]](words[1:])
    parser = _parser()
    arguments = parser.parse_args(words)
    if arguments.name == "":
        parser.error("--name: a domain needs a name that is not empty")
    arguments.image = arguments.host
    reporting.check_report(parser, arguments)
    return common.run(PROG, arguments, lambda: _migrate(arguments))


def _migrate(arguments: argparse.Namespace) -> int | None:
    from saverestore.cli.progress import progress_for
    from saverestore.engine.policy import Limits, OnStall
    from saverestore.engine.progress import SaveReport
    from saverestore.migrate import addresses
    from saverestore.migrate.source import MigrateRequest, dry_run, migrate_domain
    from saverestore.report.facts import facts_of_save

    destination = addresses.parse(arguments.host)
    addresses.check_trusted(destination, trusted=arguments.trust_network)
    request = MigrateRequest(
        domain=arguments.domain,
        destination=destination,
        name=arguments.name,
        paused=arguments.paused,
        dirty=arguments.dirty,
        limits=Limits(
            max_rounds=arguments.max_rounds,
            max_time_s=arguments.max_time,
            downtime_s=arguments.downtime_s,
            on_stall=OnStall(arguments.on_stall),
        ),
        suspend_timeout_s=arguments.suspend_timeout,
        toolstack=arguments.toolstack,
        settle_for_s=arguments.settle_for,
        back=arguments.back,
        ssh=addresses.words_of(arguments.ssh),
    )
    if arguments.dry_run:
        return common.print_findings(PROG, dry_run(request))
    report = SaveReport()
    with (
        reporting.reporting(
            PROG, arguments, arguments.domain, lambda outcome: facts_of_save(outcome, report)
        ),
        closing(progress_for(PROG, quiet=arguments.quiet)) as progress,
    ):
        migrated = migrate_domain(request, progress, report, process_ends=True)
    answer = migrated.answer
    if answer.error:
        common.say(
            f"{PROG}: {arguments.domain} is at {arguments.host}, but could not be started there: {answer.error}"
        )
        return ExitCode.XEN
    if not arguments.quiet:
        common.say(f"{PROG}: {_summary(arguments, report, answer.state, migrated.handover_s)}")
    return None


def _summary(arguments: argparse.Namespace, report: SaveReport, state: str, handover_s: float) -> str:
    text = (
        f"{arguments.domain} is {state} at {arguments.host}: {report.stream_bytes >> 20} MiB, "
        f"{report.pages_sent} pages, {report.total_s:.1f} s; {len(report.rounds)} rounds"
    )
    if report.downtime is None:
        return text
    sent_s = report.downtime.total_s
    return (
        f"{text}; downtime {sent_s + handover_s:.2f} s, {handover_s:.2f} s of it from the grant to the answer"
    )
