"""`pysave --all` and `pyrestore --all`: all domains of a host into a store, and back."""

from __future__ import annotations

import argparse
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from saverestore.cli import arguments, common, many
from saverestore.cli.common import STORE
from saverestore.cli.many import Process, Result
from saverestore.errors import ExitCode, Interrupted, SaveRestoreError, fact_of

if TYPE_CHECKING:
    from saverestore.operations.host import Host
    from saverestore.toolstack.domains import Domain

SHUTDOWN_S = 120
"""How long a guest may take to power off."""

OPTIONS = ("parallel", "within", "on_failure", "if_unsaveable")


def check_all(parser: arguments.Parser, given: argparse.Namespace, *excluded: str) -> None:
    """What --all excludes, and what needs it."""
    if not given.all:
        for name in OPTIONS:
            if vars(given).get(name) is not None and name not in given.from_settings:
                parser.error(f"--{name.replace('_', '-')} needs --all")
        return
    for name in excluded:
        if vars(given).get(name):
            shown = name.upper() if name in ("domain", "image") else f"--{name.replace('_', '-')}"
            parser.error(f"--all excludes {shown}")


def save_all(given: argparse.Namespace) -> int:
    """Save every domain that can be suspended: the exit code of the first that could not be saved.

    Where the domains are not to stay, as the host is being shut down, those that came meanwhile are saved, too.
    """
    from saverestore.operations.host import opened_host
    from saverestore.operations.store import opened

    folder = opened(Path(given.store or STORE))
    known: dict[str, Domain] = {}

    def start(name: str) -> Process:
        # By its UUID: one that rebooted while it waited for its turn has another number.
        uuid = str(known[name].info.uuid)
        return Process("pysave", name, many.one_of(given, domain=uuid, store=str(folder)))

    begun = time.monotonic()
    done = "would be saved" if given.dry_run else "saved"
    results: list[Result] = []

    def those_that_came() -> dict[str, Domain]:
        try:
            return _those_that_came(known)
        except BaseException:
            if results:  # what is saved stays so, and must be known
                many.finish(given, "pysave", done, results, begun)
            raise

    while new := those_that_came():
        known.update(new)
        results += many.run_named(
            given, "pysave", done, list(new), start, lambda one: _saved_to(one, given), begun, results
        )
        domains_stay = given.leave_running or given.leave_paused or given.dry_run
        if domains_stay or (given.on_failure == "stop" and many.exit_code_of_all(results)):
            break
    unsaved = [one for one in results if one.exit_code != ExitCode.DONE]
    more = ""
    try:
        if unsaved and given.if_unsaveable == "shutdown" and not given.dry_run:
            with opened_host() as host:
                stopped = shut_down(host, {one.name: known[one.name] for one in unsaved})
            more = f"{len(stopped)} of {len(unsaved)} unsaved shut down"
    finally:  # what was saved is said also when that is interrupted
        code = many.finish(given, "pysave", done, results, begun, more)
    return code


def _those_that_came(known: dict[str, Domain]) -> dict[str, Domain]:
    """The guests that are not among `known`, each with a name that none of these has.

    Where they cannot be listed once more, that is printed: what is known has its results by then.
    """
    from saverestore.guest.common.handles import XenError
    from saverestore.operations.host import opened_host

    seen = {domain.info.uuid for domain in known.values()}
    try:
        with opened_host() as host:
            new = named_apart([domain for domain in host.guests() if domain.info.uuid not in seen])
    except (XenError, SaveRestoreError) as error:
        if not known or isinstance(error, Interrupted):
            raise
        common.say(f"pysave: domains that were started meanwhile are not saved: {fact_of(error)}")
        return {}
    return {str(domain) if name in known else name: domain for name, domain in new}


def named_apart(domains: Sequence[Domain]) -> list[tuple[str, Domain]]:
    """Each domain with a name of its own: with its number where several have the same."""
    counts = Counter(domain.name for domain in domains)
    return [(domain.name if counts[domain.name] == 1 else str(domain), domain) for domain in domains]


def _saved_to(result: Result, given: argparse.Namespace) -> str:
    if given.dry_run:
        return "would be saved"  # the details have been printed
    return f"saved to {result.facts.get('image')}; the domain is {result.facts.get('domain_state')}"


def shut_down(host: Host, domains: dict[str, Domain]) -> list[str]:
    """Have guests power off, all at once, and wait for them: the names of those that did. Prints a line for each.

    Only guests that run and that nobody saves, moves or restores; nobody of ours begins to until they are off.
    """
    from saverestore.migrate.journal import Journals
    from saverestore.migrate.unsettled import was_aborted
    from saverestore.operations.undisturbed import undisturbed

    aborted = partial(was_aborted, Journals())
    begun: dict[str, subprocess.Popen[bytes]] = {}
    stopped: list[str] = []
    with ExitStack() as held:
        for name, domain in domains.items():
            try:
                now = host.find(str(domain.info.uuid))
                held.enter_context(undisturbed(host, now, was_aborted=aborted))
                # -F: by ACPI where the guest has no PV drivers.
                begun[name] = subprocess.Popen(
                    ["xl", "shutdown", "-F", "-w", str(now.domid)], stdin=subprocess.DEVNULL
                )
            except Interrupted:
                raise
            except SaveRestoreError as error:
                common.say(f"pysave: {name}: is not shut down: {fact_of(error)}")
            except OSError as error:
                common.say(f"pysave: {name}: could not be shut down: xl: {error.strerror}")
        end = time.monotonic() + SHUTDOWN_S
        for name, process in begun.items():
            try:
                code = process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                common.say(f"pysave: {name}: has not shut down within {SHUTDOWN_S} s, and is left as it is")
                continue
            if code == 0:
                stopped.append(name)
            common.say(f"pysave: {name}: {'was shut down' if code == 0 else 'could not be shut down'}")
    return stopped


def restore_all(given: argparse.Namespace) -> int:
    """Restore every image that is pending: the exit code of the first that could not be restored."""
    from saverestore.operations.pending import pending
    from saverestore.operations.store import opened

    # The usual one is made by the first save.
    folder = Path(STORE) if given.store is None else opened(Path(given.store))
    images = {one.id: str(one.path) for one in pending(folder)}

    def start(name: str) -> Process:
        return Process("pyrestore", name, many.one_of(given, image=images[name], store=None))

    begun = time.monotonic()
    done = "would be restored" if given.dry_run else "restored"
    results = many.run_named(
        given, "pyrestore", done, list(images), start, lambda one: _restored_as(one, given), begun
    )
    more = "" if images else f"nothing is pending in {folder}"
    return many.finish(given, "pyrestore", done, results, begun, more)


def _restored_as(result: Result, given: argparse.Namespace) -> str:
    if given.dry_run:
        return "would be restored"  # as above
    return f"{result.facts.get('domain')} is {result.facts.get('domain_state')} as domain {result.facts.get('domid')}"
