"""Options for the link between the two hosts, and `pymigrate bwlimit`, which changes one of a running migration."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from saverestore.cli import arguments, common

PROG = "pymigrate"

BWLIMIT = """\
Change the bandwidth limit of a migration that another process of this host works on. RATE is as 50MiB/s, 50MB/s or
400Mbit/s; none lifts the limit. It holds at once. Prints the limit before.
"""


def add_link(group: argparse._ArgumentGroup) -> None:
    """Options for the link."""
    group.add_argument(
        "--bwlimit",
        metavar="RATE",
        type=arguments.rate,
        help="send at most so much, the last round included: 50MiB/s, 50MB/s or 400Mbit/s; at least 64KiB/s. "
        "Default: no limit",
    )


def bwlimit_parser() -> arguments.Parser:
    """What reads the command line of `bwlimit`."""
    examples = "examples:\n  pymigrate bwlimit web1 20MiB/s\n  pymigrate bwlimit web1 none\n"
    parser = arguments.parser(f"{PROG} bwlimit", BWLIMIT, examples)
    parser.add_argument("domain", metavar="DOMAIN", help="name or UUID of the domain, or of the migration")
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
    return "no limit" if rate is None else f"{rate / (1 << 20):.1f} MiB/s"
