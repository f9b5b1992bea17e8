"""`pymigrate recover`, `status` and `cancel`: what is made of migrations by their journals."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from saverestore.cli import arguments, certificates, common, settings
from saverestore.cli.remedies import in_full
from saverestore.errors import ExitCode, UsageError, exit_code_of
from saverestore.words import counted, plain

if TYPE_CHECKING:
    from saverestore.migrate.journal import Journals
    from saverestore.migrate.records import Log

PROG = "pymigrate"

RECOVER = """\
Settle migrations that were cut short, on either host. What this host can decide alone is decided; otherwise the other
host is asked. No domain is started that the other host may run. Without an answer the domain stays as it is: exit
code 7.
"""

STATUS = """\
Show the migrations that this host has taken part in, the latest last, and the state of each.
"""

CANCEL = """\
End a migration that another process works on: the domain keeps running here, and nothing is left at the other host.
Once the domain has been granted to the other host it is too late: exit code 3.
"""

CANCEL_S = 120.0


def _parser(command: str, description: str, examples: str) -> arguments.Parser:
    return arguments.parser(f"{PROG} {command}", description, examples)


def _add_domain(parser: arguments.Parser, *, optional: bool) -> None:
    domain = parser.add_argument(
        "domain",
        metavar="DOMAIN",
        nargs="?" if optional else None,
        help="name or UUID of the domain, or of the migration",
    )
    arguments.complete(domain, arguments.DOMAIN)


def recover_parser() -> arguments.Parser:
    """What reads the command line of `recover`."""
    parser = _parser("recover", RECOVER, "examples:\n  pymigrate recover web1\n  pymigrate recover --all\n")
    _add_domain(parser, optional=True)
    group = parser.add_argument_group("options")
    group.add_argument(
        "--all",
        action="store_true",
        help="settle the migrations of all domains, for example after this host has booted",
    )
    group.add_argument(
        "--peer",
        metavar="HOST",
        help="where the other host is reached now, if not as during the migration",
    )
    group.add_argument(
        "--force",
        choices=("run", "destroy"),
        help="decide yourself, without the other host. run: you know that the other host does not run the domain "
        "and never will, so it runs here; destroy: the other host has it, so the copy here is destroyed",
    )
    group.add_argument(
        "--ssh",
        metavar="COMMAND",
        default=os.environ.get("PYMIGRATE_SSH", "ssh"),
        help="the program that reaches the other host; default: $PYMIGRATE_SSH, or ssh",
    )
    certificates.add_certificates(group)
    arguments.finish(parser)
    return parser


def recover(argv: Sequence[str]) -> int:
    """Run `pymigrate recover`."""
    parser = recover_parser()
    given = parser.parse_args(argv)
    if (given.domain is None) != given.all:
        parser.error("one of DOMAIN and --all is needed")
    if given.force and given.all:
        parser.error("--force needs DOMAIN, and excludes --all")
    _take_certificates(parser, given)
    return common.run(PROG, given, lambda: _recover(given))


def _take_certificates(parser: arguments.Parser, given: argparse.Namespace) -> None:
    """Those that `pymigrate` has by its settings, where none are given. A mistake there stops no recovery."""
    try:
        found = settings.certificates_of(parser, PROG, os.environ)
    except UsageError as error:
        common.say(f"{PROG}: warning: {error}; --cert, --key and --ca are as if nothing were set")
        return
    for name, path in found.items():
        if getattr(given, name) is None:
            setattr(given, name, path)


def _recover(given: argparse.Namespace) -> int:
    from saverestore.migrate.handover import OVER, Event, State
    from saverestore.migrate.journal import Journals
    from saverestore.migrate.peers import connecting
    from saverestore.migrate.recovery import RecoverRequest, found, to_force
    from saverestore.migrate.recovery import recover as recover_one
    from saverestore.migrate.ssh_child import words_of
    from saverestore.operations.host import opened_host

    force = {None: None, "run": Event.FORCE_RUN, "destroy": Event.FORCE_DESTROY}[given.force]
    request = RecoverRequest(given.peer, force, words_of(given.ssh))
    connect = connecting(certificates.credentials_of(given))
    journals = Journals()
    logs, unreadable = found(journals, given.domain)
    errors: list[BaseException] = list(unreadable)
    waiting = [log for log in logs if log.state not in OVER]
    if force is not None:
        waiting = to_force(waiting, given.domain)
    if waiting:
        with opened_host() as host:
            for log in waiting:
                settled = recover_one(log, request, host, journals=journals, connect=connect)
                if settled.error is not None:
                    errors.append(settled.error)
                elif not given.quiet:
                    common.say(f"{PROG}: {settled.text}")
    elif not errors and not given.quiet:
        lost = [log for log in logs if log.state is State.LOST]
        was = "was" if len(lost) == 1 else "were"
        earlier = f"; {counted(len(lost), 'earlier migration')} {was} lost, see '{PROG} status'"
        common.say(f"{PROG}: nothing to settle{earlier if lost else ''}")
    for error in errors:
        common.say(f"{PROG}: {in_full(error, PROG)}")
    codes = [exit_code_of(error) for error in errors]
    if ExitCode.IN_DOUBT in codes:  # whatever failed besides: this one needs a person
        return ExitCode.IN_DOUBT
    return codes[0] if codes else ExitCode.DONE


def status_parser() -> arguments.Parser:
    """What reads the command line of `status`."""
    parser = _parser("status", STATUS, "examples:\n  pymigrate status\n  pymigrate status --json web1\n")
    _add_domain(parser, optional=True)
    group = parser.add_argument_group("options")
    group.add_argument("--json", action="store_true", help="print JSON, for programs")
    arguments.finish(parser)
    return parser


def status(argv: Sequence[str]) -> int:
    """Run `pymigrate status`."""
    given = status_parser().parse_args(argv)
    return common.run(PROG, given, lambda: _status(given))


def _status(given: argparse.Namespace) -> int:
    from saverestore.migrate.journal import Journals
    from saverestore.migrate.recovery import found

    journals = Journals()
    logs, errors = found(journals, given.domain)
    facts = [_facts(log, journals) for log in logs]
    if given.json:
        common.answer(json.dumps(facts, indent=2))
    else:
        for one in facts:
            worker = f", process {one['process']}" if one["process"] else ""
            text = (
                f"{one['began'][:19]}  {one['domain']}  {one['role']} {one['state']}{worker}  "
                f"{'xl at ' if one['with_xl'] else ''}{one['peer']}  "
                f"{one['migration']}"
            )
            common.answer(plain(text))
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
        "with_xl": head.with_xl,
        "began": head.began,
        "state": str(last.state),
        "since": last.at,
        "is_over": last.state in OVER,
        "process": journals.holder(head.role, head.migration),
        "reason": log.note("reason"),
    }


def cancel_parser() -> arguments.Parser:
    """What reads the command line of `cancel`."""
    parser = _parser("cancel", CANCEL, "examples:\n  pymigrate cancel web1\n")
    _add_domain(parser, optional=False)
    arguments.finish(parser)
    return parser


def cancel(argv: Sequence[str]) -> int:
    """Run `pymigrate cancel`."""
    given = cancel_parser().parse_args(argv)
    return common.run(PROG, given, lambda: _cancel(given))


def _cancel(given: argparse.Namespace) -> None:
    from saverestore.migrate.cancelling import cancel as cancel_one
    from saverestore.migrate.journal import Journals
    from saverestore.migrate.recovery import found

    journals = Journals()
    logs, errors = found(journals, given.domain)
    if errors and not logs:
        raise errors[0]
    cancel_one(logs, given.domain, journals=journals, wait_s=CANCEL_S)
    if not given.quiet:
        common.say(f"{PROG}: the migration of {given.domain} was cancelled; it is running here")
