"""Options for the link between the two hosts, and `pymigrate bwlimit`, which changes one of a running migration."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from saverestore.cli import arguments, common
from saverestore.words import rate_text

if TYPE_CHECKING:
    from saverestore.migrate.source_link import LinkOptions
    from saverestore.transport.sockets import Address

PROG = "pymigrate"

MOST_BY_DEFAULT = 4
"""Connections. A guess: nothing was measured yet."""

BWLIMIT = """\
Change the bandwidth limit of a migration that another process of this host works on. RATE is 50MiB/s, 50MB/s or
400Mbit/s, for example; none lifts the limit. The change takes effect at once. Prints the new limit and the old one.
"""


def add_link(group: argparse._ArgumentGroup) -> None:
    """Options for the link."""
    group.add_argument(
        "--bwlimit",
        metavar="RATE",
        type=arguments.rate_or_none,
        help="send no faster than this, the last round included: 50MiB/s, 50MB/s or 400Mbit/s, at least 64KiB/s; or "
        "none (the default)",
    )
    group.add_argument(
        "--streams",
        metavar="N",
        type=arguments.streams,
        help="how many connections, 1 to 16; default: one for each core, 4 at most",
    )
    group.add_argument(
        "--resume-for",
        metavar="SECONDS",
        type=arguments.seconds_or_0,
        default=60.0,
        help="how long to wait for a new connection when the last one breaks while the domain runs; then the "
        "migration resumes where it was. 0: the migration fails at once, as it does over ssh alone; default 60",
    )
    group.add_argument(
        "--silence",
        metavar="SECONDS",
        type=arguments.silence,
        default=10.0,
        help="a connection on which nothing arrives for this long counts as broken; 2 to 600, default 10",
    )
    which = group.add_mutually_exclusive_group()
    which.add_argument(
        "--source",
        metavar="ADDRESS",
        help="the address of this host that connections leave from; not for ssh, which has BindAddress",
    )
    which.add_argument(
        "--interface",
        metavar="IF",
        help="the network interface that connections leave by, whatever the routes are; not for ssh, which has "
        "BindInterface",
    )
    group.add_argument(
        "--dscp",
        metavar="CLASS",
        type=arguments.dscp,
        help="mark packets from this host with this class for routers: 0 to 63, or a name: cs1, af11, ef, le; not "
        "for ssh, which has IPQoS",
    )
    group.add_argument(
        "--congestion",
        metavar="NAME",
        help="the kernel's TCP congestion control for what this host sends, as bbr or cubic; not for ssh. Default: "
        "bbr where a packet takes 10 ms or more there and back and the kernel has it; otherwise what the system uses",
    )
    beside = group.add_mutually_exclusive_group()
    beside.add_argument(
        "--over-ssh",
        action="store_true",
        help="send everything over the one ssh connection. By default ssh only begins the migration: data goes over "
        "TLS connections to a port of HOST, with certificates made for this migration, and over ssh where that port "
        "cannot be reached",
    )
    beside.add_argument(
        "--data-address",
        metavar="ADDRESS",
        help="with HOST by ssh: where TLS connections go, such as another network of HOST; default: the address at "
        "which ssh arrived there",
    )


def by_way(given: argparse.Namespace, destination: Address) -> Address:
    """The address, with the way that was asked for. UsageError where ssh chooses it, or the kernel lacks it."""
    from saverestore.errors import UsageError
    from saverestore.migrate.source_link import takes_several
    from saverestore.transport import congestion
    from saverestore.transport.sockets import Way

    way = Way(given.source or "", given.interface or "", given.dscp, given.congestion or "")
    if way != Way() and not takes_several(destination, over_ssh=given.over_ssh):
        raise UsageError(
            f"{destination.text}: source address, interface, class and congestion control are for connections that "
            "pymigrate makes; ssh has options of its own, BindAddress, BindInterface and IPQoS; no changes were made"
        )
    if way.congestion:
        congestion.check(way.congestion)
    return replace(destination, way=way)


def options_of(given: argparse.Namespace, destination: Address) -> LinkOptions:
    """What was asked for. UsageError for what cannot be had by that address."""
    from saverestore.errors import UsageError
    from saverestore.migrate.source_link import LinkOptions, takes_several
    from saverestore.transport.cores import usable_cores

    if destination.kind != "ssh" and (given.over_ssh or given.data_address):
        raise UsageError(f"{destination.text}: --over-ssh and --data-address are for a host by ssh")
    several = takes_several(destination, over_ssh=given.over_ssh)
    if given.streams is None:
        streams = min(MOST_BY_DEFAULT, usable_cores()) if several else 1
    elif given.streams > 1 and not several:
        raise UsageError(f"{destination.text}: there is one connection only; no changes were made")
    else:
        streams = given.streams
    return LinkOptions(
        streams=streams,
        resume_for_s=given.resume_for,
        silence_s=given.silence,
        bwlimit=given.bwlimit,
        over_ssh=given.over_ssh,
        data_address=given.data_address or "",
    )


def bwlimit_parser() -> arguments.Parser:
    """What reads the command line of `bwlimit`."""
    examples = "examples:\n  pymigrate bwlimit web1 20MiB/s\n  pymigrate bwlimit web1 none\n"
    parser = arguments.parser(f"{PROG} bwlimit", BWLIMIT, examples)
    domain = parser.add_argument(
        "domain", metavar="DOMAIN", help="name or UUID of the domain, or of the migration"
    )
    arguments.complete(domain, arguments.DOMAIN)
    parser.add_argument("rate", metavar="RATE", type=arguments.rate_or_none, help="the new limit, or none")
    arguments.finish(parser)
    return parser


def bwlimit(argv: Sequence[str]) -> int:
    """Run `pymigrate bwlimit`."""
    given = bwlimit_parser().parse_args(argv)
    return common.run(PROG, given, lambda: _bwlimit(given))


def _bwlimit(given: argparse.Namespace) -> None:
    from saverestore.migrate.journal import Journals
    from saverestore.migrate.limiting import change_limit
    from saverestore.migrate.recovery import found

    journals = Journals()
    logs, errors = found(journals, given.domain)
    if errors and not logs:
        raise errors[0]
    before = change_limit(logs, given.domain, given.rate, journals=journals)
    if not given.quiet:
        common.say(f"{PROG}: {given.domain}: {_shown(given.rate)}, before: {_shown(before)}")


def _shown(rate: int | None) -> str:

    return "no limit" if rate is None else rate_text(rate)
