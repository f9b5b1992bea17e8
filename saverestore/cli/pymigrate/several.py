"""`pymigrate --all HOST` and `pymigrate DOMAIN DOMAIN … HOST`: several migrations, each by a process of its own."""

from __future__ import annotations

import argparse
import time

from saverestore.cli import arguments, many
from saverestore.cli.many import Process, Result
from saverestore.cli.pymigrate.request import request_of

PROG = "pymigrate"

OF_SEVERAL = ("parallel", "within", "on_failure")
OF_ONE = ("name", "config", "report", "events", "metrics")
"""Options that describe one migration."""


def add_several(parser: arguments.Parser) -> None:
    """--all, and what goes with several domains."""
    group = parser.add_argument_group("several domains")
    group.description = "Not with --name, --config, --report, --events or --metrics."
    group.add_argument(
        "--all", action="store_true", help="migrate all domains of this host, in place of DOMAIN"
    )
    many.add_many(group, "migration")


def check(parser: arguments.Parser, given: argparse.Namespace) -> bool:
    """Whether there are several to be migrated; exits where the options do not fit that."""
    if given.all and given.domains:
        parser.error("--all excludes DOMAIN")
    if not given.all and not given.domains:
        parser.error("DOMAIN or HOST is missing")
    if twice := [name for name in given.domains if given.domains.count(name) > 1]:
        parser.error(f"{twice[0]} is named twice")
    is_one = len(given.domains) == 1
    for name in OF_SEVERAL if is_one else OF_ONE:
        if vars(given).get(name) and name not in given.from_settings:
            option = f"--{name.replace('_', '-')}"
            parser.error(
                f"{option} needs --all or several domains" if is_one else f"{option} is for one domain only"
            )
    return not is_one


def migrate_several(given: argparse.Namespace) -> int:
    """Migrate them, some at a time: the exit code of the first that could not be migrated."""
    request_of(given, "")  # what cannot be right for any of them is found before the first is begun
    known = _all_domains() if given.all else {name: name for name in given.domains}

    def start(name: str) -> Process:
        return Process(PROG, name, many.one_of(given, domain=known[name]))

    began = time.monotonic()
    done = "would be migrated" if given.dry_run else f"migrated to {given.host}"
    results = many.run_named(given, PROG, done, list(known), start, lambda one: _moved(one, given), began)
    return many.finish(given, PROG, done, results, began)


def _all_domains() -> dict[str, str]:
    """UUID of each domain of this host, by a name of its own: one that reboots meanwhile gets another number."""
    from saverestore.cli.all_domains import named_apart
    from saverestore.operations.host import opened_host

    with opened_host() as host:
        return {name: str(domain.info.uuid) for name, domain in named_apart(host.guests())}


def _moved(result: Result, given: argparse.Namespace) -> str:
    if given.dry_run:
        return f"would be migrated: {'; '.join(result.said.splitlines())}"
    downtime = result.facts.get("downtime")
    return f"is at {given.host}" + (
        "" if downtime is None else f"; downtime here {downtime['total_s']:.2f} s"
    )
