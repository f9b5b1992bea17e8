"""`pymigrate recover`, `status` and `cancel`: what is made of migrations by their journals."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from saverestore.cli import common
from saverestore.cli.remedies import in_full
from saverestore.errors import exit_code_of

if TYPE_CHECKING:
    from saverestore.migrate.journal import Journals
    from saverestore.migrate.records import Log

PROG = "pymigrate"

RECOVER = """\
Settle migrations that were cut short, on either host. What this host can decide by itself is decided; where it
depends on the other host, that is asked. Nothing is started that the other host may run. With no answer the domain
stays as it is: exit code 7.
"""

STATUS = """\
Show the migrations that this host has taken part in, the latest last, and how far each is.
"""

CANCEL = """\
Give a migration up that another process works on: the domain runs here as before, and nothing is left at the other
host. Once the domain has been granted to the other host it is too late: exit code 3.
"""

CANCEL_S = 120.0


def recover_parser() -> common.Parser:
    """Options of `recover`."""
    made = common.parser(
        "pymigrate recover", RECOVER, "examples:\n  pymigrate recover web1\n  pymigrate recover --all\n"
    )
    made.add_argument(
        "domain", metavar="DOMAIN", nargs="?", help="name or UUID of the domain, or of the migration"
    )
    made.add_argument("--all", action="store_true", help="of every domain, as at the start of the host")
    made.add_argument("--peer", metavar="HOST", help="how the other host is reached, if not as it was then")
    made.add_argument(
        "--force",
        choices=("run", "destroy"),
        help="decide by yourself, without the other host. 'run': you promise that the other host does not run the "
        "domain and never will, so it runs here; 'destroy': the other host has it, so this host's copy goes",
    )
    made.add_argument(
        "--ssh",
        metavar="COMMAND",
        default=os.environ.get("PYMIGRATE_SSH", "ssh"),
        help="what reaches the other host; default: $PYMIGRATE_SSH, or 'ssh'",
    )
    return made


def recover(argv: Sequence[str]) -> int:
    """Run `pymigrate recover`."""
    parser = recover_parser()
    arguments = parser.parse_args(argv)
    if (arguments.domain is None) != arguments.all:
        parser.error("give DOMAIN, or --all")
    if arguments.force and arguments.all:
        parser.error("--force decides about one domain: give DOMAIN")
    return common.run(PROG, arguments, lambda: _recover(arguments))


def _recover(arguments: argparse.Namespace) -> int:
    from saverestore.migrate import addresses
    from saverestore.migrate.handover import OVER, Event, State
    from saverestore.migrate.journal import Journals
    from saverestore.migrate.recovery import RecoverRequest, found
    from saverestore.migrate.recovery import recover as recover_one
    from saverestore.operations.host import opened_host

    force = {None: None, "run": Event.FORCE_RUN, "destroy": Event.FORCE_DESTROY}[arguments.force]
    request = RecoverRequest(arguments.peer, force, addresses.words_of(arguments.ssh))
    journals = Journals()
    logs, unreadable = found(journals, arguments.domain)
    errors: list[BaseException] = list(unreadable)
    waiting = [log for log in logs if log.state not in OVER]
    if waiting:
        with opened_host() as host:
            for log in waiting:
                settled = recover_one(log, request, host, journals=journals)
                if settled.error is not None:
                    errors.append(settled.error)
                elif not arguments.quiet:
                    common.say(f"{PROG}: {settled.text}")
    elif not errors and not arguments.quiet:
        lost = [log for log in logs if log.state is State.LOST]
        common.say(f"{PROG}: nothing is to be settled" + (f"; {len(lost)} were lost" if lost else ""))
    for error in errors:
        common.say(f"{PROG}: {in_full(error, PROG)}")
    return int(exit_code_of(errors[0])) if errors else 0


def status_parser() -> common.Parser:
    """Options of `status`."""
    made = common.parser(
        "pymigrate status", STATUS, "examples:\n  pymigrate status\n  pymigrate status --json web1\n"
    )
    made.add_argument(
        "domain", metavar="DOMAIN", nargs="?", help="name or UUID of the domain, or of the migration"
    )
    made.add_argument("--json", action="store_true", help="as JSON, for programs")
    return made


def status(argv: Sequence[str]) -> int:
    """Run `pymigrate status`."""
    arguments = status_parser().parse_args(argv)
    return common.run(PROG, arguments, lambda: _status(arguments))


def _status(arguments: argparse.Namespace) -> int:
    from saverestore.migrate.journal import Journals
    from saverestore.migrate.recovery import found

    journals = Journals()
    logs, errors = found(journals, arguments.domain)
    facts = [_facts(log, journals) for log in logs]
    if arguments.json:
        common.answer(json.dumps(facts, indent=2))
    else:
        for one in facts:
            worker = f", process {one['process']}" if one["process"] else ""
            common.answer(
                f"{one['began'][:19]}  {one['domain']}  {one['role']} {one['state']}{worker}  {one['peer']}  "
                f"{one['migration']}"
            )
    for error in errors:
        common.say(f"{PROG}: {in_full(error, PROG)}")
    return int(exit_code_of(errors[0])) if errors else 0


def _facts(log: Log, journals: Journals) -> dict[str, Any]:
    from saverestore.migrate.handover import OVER

    head, last = log.head, log.entries[-1]
    return {
        "migration": str(head.migration),
        "role": str(head.role),
        "domain": head.name,
        "uuid": str(head.uuid),
        "peer": head.peer,
        "began": head.began,
        "state": str(last.state),
        "since": last.at,
        "is_over": last.state in OVER,
        "process": journals.holder(head.role, head.migration),
        "reason": log.note("reason"),
    }


def cancel_parser() -> common.Parser:
    """Options of `cancel`."""
    made = common.parser("pymigrate cancel", CANCEL, "examples:\n  pymigrate cancel web1\n")
    made.add_argument("domain", metavar="DOMAIN", help="name or UUID of the domain, or of the migration")
    return made


def cancel(argv: Sequence[str]) -> int:
    """Run `pymigrate cancel`."""
    arguments = cancel_parser().parse_args(argv)
    return common.run(PROG, arguments, lambda: _cancel(arguments))


def _cancel(arguments: argparse.Namespace) -> None:
    from saverestore.migrate.cancelling import cancel as cancel_one
    from saverestore.migrate.journal import Journals
    from saverestore.migrate.recovery import found

    journals = Journals()
    logs, errors = found(journals, arguments.domain)
    if errors and not logs:
        raise errors[0]
    cancel_one(logs, arguments.domain, journals=journals, wait_s=CANCEL_S)
    if not arguments.quiet:
        common.say(f"{PROG}: the migration of {arguments.domain} was cancelled; it is running here")
