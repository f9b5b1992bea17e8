"""One session with libxl, from the words that it starts its helper with to COMPLETE.

    libxl                                helper
      │ ── fork, exec, words ─────────────► │  parse; take the pipes
      │ ◄──── LOG, PROGRESS ─────────────── │  from here to the end
      │ ◄──── SUSPEND, LOGDIRTY, … ──────── │  save or restore
      │ ──── answers ─────────────────────► │
      │ ◄──── RESTORE_RESULTS ───────────── │  of a restore, also of one that failed
      │ ◄──── COMPLETE (0 or -1, errno) ─── │
      │ ──── answer ──────────────────────► │  end

After a failure libxl resumes the domain of a save, and destroys that of a restore. Where libxl itself is gone, the
helper resumes the domain that libxl was asked to suspend.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from saverestore import interrupts
from saverestore.engine.progress import RestoreReport
from saverestore.errors import Advice, ExitCode, Remedy, fact_of, remedies_of
from saverestore.helper.arguments import RestoreArguments, SaveArguments, parse
from saverestore.helper.channel import Channel, LibxlGone
from saverestore.helper.messages import Level, MessageType
from saverestore.helper.outcome import errno_of, leave_report
from saverestore.helper.reporting import log_to
from saverestore.helper.settings import Settings, read_settings
from saverestore.toolstack.helper_link import Task

SUCCEEDED = 0
FAILED = -1

Describe: TypeAlias = Callable[[BaseException], str]
"""The words for a failure: those who run this know what can be done about it, and name their own settings."""


class NotResumed(LibxlGone):
    """libxl is gone, and the domain that it was asked to suspend could not be resumed."""


def run(words: Sequence[str], describe: Describe = fact_of) -> int:
    """Do what libxl asks for by these words, with libxl at standard input and output; the exit code.

    UsageError for words that are not libxl's; nothing has been touched then. Otherwise as `serve`.
    """
    arguments = parse(words)
    return serve(arguments, Channel.on_standard_streams(arguments.callbacks), os.environ, describe)


def serve(
    arguments: SaveArguments | RestoreArguments,
    channel: Channel,
    environment: Mapping[str, str],
    describe: Describe = fact_of,
) -> int:
    """Save or restore, and report to libxl how it went; 0 once libxl has acknowledged that, be it a failure.

    `environment`: where settings are, and the task of whoever asked libxl. `describe`: the words for a failure that
    `xl` prints; whoever left a task gets the fact alone, as the report for them has the remedies.

    LibxlGone when libxl went away meanwhile. A domain that it was asked to suspend has been resumed then, as a note
    of the error says; NotResumed when that failed.
    """
    measured = RestoreReport()
    result, errnoval = SUCCEEDED, 0
    task: Task | None = None
    with interrupts.handled():
        try:
            try:
                task = Task.of(environment)
                _work(arguments, channel, environment, task, measured)
                interrupts.too_late()
            except LibxlGone:
                raise
            except BaseException as error:  # whatever it is, libxl waits for COMPLETE
                interrupts.too_late()
                result, errnoval = FAILED, errno_of(error)
                if task is not None and isinstance(arguments, RestoreArguments):
                    with contextlib.suppress(Exception):
                        leave_report(task, measured, error)
                _log_failure(channel, error, errnoval, describe if task is None else fact_of)
            channel.ask(MessageType.COMPLETE, result, errnoval)
        except LibxlGone as error:
            interrupts.too_late()  # what ended xl (its terminal went) may reach us now, and nobody else resumes it
            if MessageType.SUSPEND in channel.questions:
                _resume(arguments.domid, error)
            raise
    return ExitCode.DONE


def load_restore() -> None:
    """Import what a restore needs, this host's kinds of domain included, for a process that waits to be started."""
    from saverestore.guest.kinds import this_host
    from saverestore.helper import restoring  # noqa: F401

    this_host().of_config("pv")  # whichever: kinds are loaded together


def _log_failure(channel: Channel, error: BaseException, errnoval: int, describe: Describe) -> None:
    """The words for it, or as good as can be had. Raises LibxlGone and nothing else: COMPLETE is still to be sent."""
    for words in (describe, fact_of, lambda error: type(error).__name__):
        try:
            channel.log(Level.ERROR, words(error), errnoval=errnoval)
            return
        except LibxlGone:
            raise
        except Exception:
            continue


# saving and restoring are imported once there is a channel: that they cannot be is an error for libxl to print.


def _work(
    arguments: SaveArguments | RestoreArguments,
    channel: Channel,
    environment: Mapping[str, str],
    task: Task | None,
    measured: RestoreReport,
) -> None:
    settings = read_settings(environment)
    log_to(channel, settings.log_level)
    if isinstance(arguments, SaveArguments):
        _save(arguments, settings, channel)
    else:
        _restore(arguments, settings, channel, task, measured)


def _save(arguments: SaveArguments, settings: Settings, channel: Channel) -> None:
    from saverestore.helper.saving import save

    report = save(arguments, settings, channel)
    assert report.downtime is not None
    verdict, downtime_s = report.verdict, report.downtime.total_s
    predicted = "" if verdict is None else f", predicted {verdict.prediction.downtime_s:.2f} s"
    logging.info(
        "%d pages in %.1f s, downtime %.2f s%s", report.pages_sent, report.total_s, downtime_s, predicted
    )


def _restore(
    arguments: RestoreArguments,
    settings: Settings,
    channel: Channel,
    task: Task | None,
    measured: RestoreReport,
) -> None:
    """Restore, filling in what was `measured`, also of a failure; report a success to whoever asked libxl."""
    from saverestore.helper.restoring import restore

    store_gfn = console_gfn = 0
    try:
        pages = restore(arguments, settings, task, channel, measured)
        store_gfn, console_gfn = pages.store_gfn, pages.console_gfn
        logging.info("%d pages in %.1f s", measured.pages, measured.total_s)
    finally:
        # Also after a failure: libxl takes a restore without results for a helper that died.
        if channel.takes(MessageType.RESTORE_RESULTS):
            channel.send(MessageType.RESTORE_RESULTS, store_gfn, console_gfn)
    if task is not None:
        leave_report(task, measured)


def _resume(domid: int, gone: LibxlGone) -> None:
    """Resume the domain, and note what it is then; NotResumed when that fails."""
    from saverestore.helper.saving import resume_without_libxl

    try:
        what = resume_without_libxl(domid)
    except Exception as error:  # whatever it was: the domain is suspended, and that must be said
        raise NotResumed(
            f"{fact_of(gone)}; domain {domid} could not be resumed: {fact_of(error)}",
            remedies=[*remedies_of(error), Advice(Remedy.RECOVER, domid)],
        ) from error
    gone.add_note(f"domain {domid} {what}")
