"""`pymigrate DOMAIN HOST`, and which other command a command line is."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING

from saverestore.cli import arguments, certificates, common, reporting, settings
from saverestore.cli.progress import coded_text
from saverestore.cli.pymigrate import certify, codec, link, receive, settle, several, xl
from saverestore.cli.pymigrate.request import in_force, request_of
from saverestore.words import counted, mib

if TYPE_CHECKING:
    from saverestore.engine.progress import SaveReport
    from saverestore.migrate.source_link import LinkReport
    from saverestore.migrate.ssh_child import Begun

PROG = "pymigrate"

DESCRIPTION = """\
Move a running domain, or several, to another host, live. At every moment at most one of the two hosts runs a domain.
Until the other host has all of it and has verified it, any failure, and Ctrl-C, leaves the domain running here and
nothing there.
"""

EPILOG = """\
other commands, each with its own --help:
  pymigrate receive           the other side; ssh starts it there
  pymigrate status            show the migrations that this host has taken part in
  pymigrate recover DOMAIN    after a crash of either side: settle what is open
  pymigrate cancel DOMAIN     end a migration that runs in another terminal
  pymigrate bwlimit DOMAIN RATE   change the bandwidth limit of a migration that runs in another terminal
  pymigrate make-ca, make-cert   certificates for tls://

examples:
  pymigrate web1 host2
  pymigrate --downtime-ms 300 --report web1.html web1 root@host2
  pymigrate --to-xl web1 host3          host3 has Xen and xl, and no pysave
  pymigrate --dry-run web1 host2        print all problems, on both hosts
  pymigrate web1 web2 db1 host2         two at a time; 'pymigrate --all host2' moves all domains of this host

HOST is a host for ssh; tls://HOST[:PORT], where both sides have certificates; unix:PATH; or tcp://HOST:PORT on a
network that both sides declare trusted. Disks must have the same path on both hosts, unless --config names other
paths. Disks that are not raw, and devices that belong to one host, are unsupported.

--to-xl is for a host without pysave: ssh starts 'xl migrate-receive' there. xl checks nothing beforehand and keeps no
journal. Up to the grant any failure leaves the domain running here, as usual. If the connection ends between the
grant and xl's report, nobody can ask xl: the domain stays here, suspended, until a person has looked there.
Options of the link, --back and --trust-network do not apply to it.

Defaults of many options may be set in the table [pymigrate] of /etc/xen/pysave.toml, which lists them.
"""

OTHERS = {
    "receive": (receive.receive_parser, receive.main),
    "recover": (settle.recover_parser, settle.recover),
    "status": (settle.status_parser, settle.status),
    "bwlimit": (link.bwlimit_parser, link.bwlimit),
    "cancel": (settle.cancel_parser, settle.cancel),
    "make-ca": (certify.make_ca_parser, certify.make_ca),
    "make-cert": (certify.make_cert_parser, certify.make_cert),
}
"""By the first word of a command line: the parser and the main function of what it is then."""


def command_parser() -> arguments.Parser:
    """What reads the command line, unless its first word is one of OTHERS."""
    parser = arguments.parser(PROG, DESCRIPTION, EPILOG)
    parser.others = {word: make for word, (make, _) in OTHERS.items()}
    domains = parser.add_argument(
        "domains", metavar="DOMAIN", nargs="*", help="number, name or UUID of a domain; one or more"
    )
    arguments.complete(domains, arguments.MIGRATE)
    parser.add_argument("host", metavar="HOST", help="the host that the domain moves to")
    _add_common(parser.add_argument_group("common options"))
    several.add_several(parser)
    _add_live(parser.add_argument_group("live rounds"))
    _add_hosts(parser.add_argument_group("the two hosts"))
    the_link = parser.add_argument_group("the link")
    link.add_link(the_link)
    codec.add_codec(the_link)
    _add_domain(parser.add_argument_group("the domain"))
    arguments.finish(parser)
    return parser


def _add_common(group: argparse._ArgumentGroup) -> None:
    group.add_argument("-p", "--paused", action="store_true", help="leave the domain paused there")
    group.add_argument(
        "--name",
        type=arguments.domain_name,
        metavar="NAME",
        help="name of the domain there, instead of the one it has here",
    )
    common.add_config(group, "give the domain this configuration there", "xl migrate -C FILE", "domain")
    common.add_dry_run(group, "migration")
    reporting.add_report(group, "migration")
    reporting.add_following(group, "migration")
    reporting.add_json(group, "migration")


def _add_live(group: argparse._ArgumentGroup) -> None:
    group.description = "Defaults match xl: 5 rounds, or fewer than 50 dirty pages left."
    group.add_argument(
        "--dirty",
        choices=("auto", "log", "digest"),
        default="auto",
        help="how dirty pages are tracked: log, the hypervisor's log-dirty (PVH and HVM; PV only where Xen has "
        "shadow paging); digest, by comparing contents, which works everywhere; auto (the default): log where there "
        "is one",
    )
    group.add_argument(
        "--downtime-ms",
        dest="downtime_s",
        metavar="N",
        type=arguments.milliseconds,
        help="suspend the domain as soon as the predicted downtime here is at most N ms",
    )
    common.add_round_limits(group)
    group.add_argument(
        "--on-stall",
        choices=("stop", "abort", "throttle"),
        default="stop",
        help="when a round leaves as many dirty pages as it sent: stop (the default) suspends the domain; abort ends "
        "the migration: exit code 3, the domain keeps running here; throttle lowers the domain's processor cap in "
        "steps first",
    )


def _add_hosts(group: argparse._ArgumentGroup) -> None:
    xl.add_to_xl(group)
    add_ssh(group)
    certificates.add_certificates(group)
    group.add_argument(
        "--trust-network",
        action="store_true",
        help="for tcp:// only: memory is sent in clear text, and neither side proves who it is; the receiver must "
        "have this option, too",
    )
    group.add_argument(
        "--back",
        metavar="ADDRESS",
        help="how HOST reaches this host after a crash, for 'pymigrate recover' there; default: this host's name",
    )
    group.add_argument(
        "--settle-for",
        metavar="SECONDS",
        type=arguments.timeout,
        default=60.0,
        help="how long to wait for HOST's answer to the grant, and then to keep asking for it; or to wait for xl's "
        "report; default 60. After that: exit code 7",
    )


def add_ssh(group: argparse._ArgumentGroup) -> None:
    """--ssh, of the commands that reach the other host."""
    group.add_argument(
        "--ssh",
        metavar="COMMAND",
        default=os.environ.get("PYMIGRATE_SSH", "ssh"),
        help="the program that reaches the other host, called with HOST and a command line; default: $PYMIGRATE_SSH, "
        "or ssh",
    )


def _add_domain(group: argparse._ArgumentGroup) -> None:
    common.add_toolstack(group)
    group.add_argument(
        "--suspend-timeout",
        metavar="SECONDS",
        type=arguments.timeout,
        help="how long the guest may take to suspend, counted from the request; default 60",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (`sys.argv` by default) and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in OTHERS:
        return OTHERS[words[0]][1](words[1:])
    parser = command_parser()
    given = settings.parse(parser, words)
    if given.name == "":
        parser.error("--name must not be empty")
    xl.check_to_xl(parser, given)
    given.image = None  # a migration makes none
    reporting.check_report(parser, given)
    if several.check(parser, given):
        return common.run(PROG, given, lambda: several.migrate_several(given))
    (given.domain,) = given.domains
    return run_one(given)


def run_one(given: argparse.Namespace) -> int:
    """One migration, of `given.domain`, with options that were checked: its exit code."""
    return common.run(PROG, given, lambda: _migrate(given))


def _migrate(given: argparse.Namespace) -> int | None:
    if given.to_xl:
        return xl.migrate_to_xl(given)
    from saverestore.migrate.ssh_child import begun

    # Before the rest is loaded, which takes a while on both hosts.
    with begun(given.host, given.ssh) as child:
        return _migrate_by(given, child)


def _migrate_by(given: argparse.Namespace, child: Begun) -> int | None:
    from saverestore.cli.progress import progress_for
    from saverestore.engine.progress import SaveReport
    from saverestore.migrate.peers import connecting_by
    from saverestore.migrate.source import dry_run, migrate_domain
    from saverestore.migrate.source_link import LinkReport
    from saverestore.report.facts import Facts, Outcome, facts_of_save

    connect = connecting_by(child)
    if given.dry_run:
        return common.print_findings(PROG, lambda: dry_run(request_of(given, given.domain), connect=connect))
    report, link_report = SaveReport(), LinkReport()
    handover_s: float | None = None

    def facts(outcome: Outcome) -> Facts:
        return facts_of_save(outcome, report) | {"link": asdict(link_report), "handover_s": handover_s}

    with reporting.reporting(PROG, given, given.domain, facts) as run:
        request = request_of(given, given.domain)
        run.know(in_force(given, request))
        with closing(run.followed(progress_for(PROG, quiet=given.quiet))) as progress:
            migrated = migrate_domain(
                request, progress, report, link_report=link_report, connect=connect, process_ends=True
            )
            handover_s = migrated.handover_s
    if not given.quiet:
        seconds = run.outcome.seconds
        common.say(
            f"{PROG}: {_summary(given, report, link_report, seconds, migrated.answer.state, migrated.handover_s)}"
        )
    return None


def _summary(
    given: argparse.Namespace,
    report: SaveReport,
    links: LinkReport,
    seconds: float,
    state: str,
    handover_s: float,
) -> str:
    text = (
        f"{given.domain} is {state} at {given.host}: {mib(report.stream_bytes)}, "
        f"{counted(report.pages_sent, 'page')}, {seconds:.1f} s; {counted(len(report.rounds), 'round')}"
    )
    if links.streams > 1:
        text += f"; {links.streams} connections"
    if links.fallback:
        text += "; over ssh"
    if links.reconnects or links.resent_pages:
        text += (
            f"; reconnected {counted(links.reconnects, 'time')} after {links.broken_s:.1f} s, "
            f"{counted(links.resent_pages, 'page')} sent again"
        )
    if gained := coded_text(report.coded):
        text += f"; {gained}"
    if report.downtime is None:
        return text
    sent_s = report.downtime.total_s
    return (
        f"{text}; downtime {sent_s + handover_s:.2f} s, {handover_s:.2f} s of it from the grant to the answer"
    )
