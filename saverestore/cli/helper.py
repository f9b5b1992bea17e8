"""`pyxc-save-helper`: what libxl runs instead of its own helper, so that `xl` works on this engine."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from saverestore import __version__
from saverestore.cli.remedies import in_full, words
from saverestore.errors import Advice, ExitCode, Interrupted, Remedy, SaveRestoreError, fact_of

if TYPE_CHECKING:
    from saverestore.engine.progress import RestoreReport
    from saverestore.helper.arguments import RestoreArguments, SaveArguments
    from saverestore.helper.channel import Channel
    from saverestore.helper.settings import Settings

PROG = "pyxc-save-helper"

HELP = f"""\
usage: LIBXL_SAVE_HELPER=/path/to/{PROG} xl save|restore|migrate ...

libxl runs this program instead of its own libxl-save-helper, and talks to it through pipes: memory and processors
are read and written by pysave's engine, devices are libxl's as ever. Nobody starts it by hand.

  --help      this text
  --version   the version
  --check     read the settings and open Xen's interfaces: is this host set up for it?

settings, in /etc/xen/pysave.toml (or the file that $PYXC_CONFIG names), or as variables:
  dirty = "auto"       PYXC_DIRTY       how pages written meanwhile are found: auto, log or digest
  max_rounds = 0       PYXC_MAX_ROUNDS  live rounds at most; 0: 5, or 30 with downtime_ms or throttle
  downtime_ms = 0      PYXC_DOWNTIME_MS suspend the domain when the rest is expected to fit into this; 0: no such aim
  on_stall = "stop"    PYXC_ON_STALL    when rounds no longer help: stop (suspend), abort, or throttle
  max_time = 0         PYXC_MAX_TIME    begin no live round after so many seconds; 0: any time
  few_pages = 50       PYXC_FEW_PAGES   suspend the domain when fewer pages than this are left
  workers = 2          PYXC_WORKERS     threads that read ahead
  check_cpu = true     PYXC_CHECK_CPU   refuse images for a CPU that this host cannot give
  plain = false        PYXC_PLAIN       none of our optional records in the image
  digest = "xxh3"      PYXC_DIGEST      the digest of the image: xxh3, sha256, blake3 or none; plain leaves it out
  log_level = "info"   PYXC_LOG_LEVEL   debug, info or warning: what xl is told

The environment does not cross ssh: for 'xl migrate', the other host needs its own setting.
"""

FAILED = -1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the helper with these arguments (`sys.argv` by default) and return its exit code.

    0 once libxl has been told what came of it, be it a failure; anything else when it could not be told.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words in (["--help"], ["-h"]):
        print(HELP, end="")
        return ExitCode.DONE
    if words == ["--version"]:
        print(f"{PROG} {__version__}")
        return ExitCode.DONE
    if words == ["--check"]:
        return _check()

    from saverestore.helper.arguments import parse
    from saverestore.helper.channel import Channel

    try:
        arguments = parse(words)
    except SaveRestoreError as error:
        print(f"{PROG}: {in_full(error, PROG)}", file=sys.stderr)
        return ExitCode.USAGE
    replies_fd, messages_fd = _taken_pipes()
    return _run(
        arguments, Channel(replies_fd=replies_fd, messages_fd=messages_fd, callbacks=arguments.callbacks)
    )


def _check() -> int:
    from saverestore.cli.common import tell

    try:
        from saverestore.guest.common.handles import open_handles
        from saverestore.helper.settings import read_settings

        settings = read_settings(os.environ)
        with open_handles() as handles:
            print(f"{PROG}: ready, on Xen {handles.xen.version()}; {settings}")
    except (SaveRestoreError, OSError, ImportError) as error:
        tell(f"{PROG}: {in_full(error, PROG)}")
        return error.exit_code if isinstance(error, SaveRestoreError) else ExitCode.XEN
    return ExitCode.DONE


def _taken_pipes() -> tuple[int, int]:
    """The pipes to libxl, moved away: whatever prints or reads by mistake must not meet them."""
    replies_fd, messages_fd = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return replies_fd, messages_fd


def _run(arguments: SaveArguments | RestoreArguments, channel: Channel) -> int:
    """Do it, and tell libxl how it went."""
    from saverestore import interrupts
    from saverestore.cli.common import tell
    from saverestore.engine.progress import RestoreReport
    from saverestore.helper.arguments import SaveArguments
    from saverestore.helper.channel import LibxlGone
    from saverestore.helper.messages import Level, MessageType

    is_save = isinstance(arguments, SaveArguments)
    measured = RestoreReport()
    result, errnoval = 0, 0
    try:
        with interrupts.handled():
            try:
                _work(arguments, channel, measured)
                interrupts.too_late()
            except LibxlGone:
                raise
            except BaseException as error:  # whatever it is, libxl waits to be told
                interrupts.too_late()
                result, errnoval = FAILED, _errno_of(error)
                if not is_save:
                    _leave(measured, error)
                channel.log(Level.ERROR, _told_to_libxl(error), errnoval=errnoval)
            channel.ask(MessageType.COMPLETE, result, errnoval)
    except LibxlGone as error:
        tell(f"{PROG}: {in_full(error, PROG)}")
        if MessageType.SUSPEND in channel.asked:
            _let_go_on(arguments.domid)
        return ExitCode.IO
    return ExitCode.DONE


def _let_go_on(domid: int) -> None:
    from saverestore.cli.common import tell
    from saverestore.helper.saving import let_go_on

    try:
        let_go_on(domid)
    except Exception as error:  # the last thing that is done: whatever it was, tell it
        recover = words(Advice(Remedy.RECOVER, domid), PROG)
        tell(f"{PROG}: domain {domid} could not be resumed: {in_full(error, PROG)}; {recover}")
    else:
        tell(f"{PROG}: domain {domid} goes on")


def _told_to_libxl(error: BaseException) -> str:
    """What xl shows. Whoever left us a task gets the remedies with our report, and has words of its own for them."""
    from saverestore.toolstack.helper_link import TASK_VARIABLE

    return fact_of(error) if os.environ.get(TASK_VARIABLE) else in_full(error, PROG)


def _leave(measured: RestoreReport, error: BaseException | None = None) -> None:
    """For whoever asked libxl to restore, if they want to know. That it cannot be left is no failure of the work."""
    from saverestore.toolstack.helper_link import NUMBERS, HelperReport, Task

    if (task := Task.of(os.environ)) is None:
        return
    report = HelperReport(**{name: getattr(measured, name) for name in NUMBERS})
    if error is not None:
        report = report.failed(error)
    with contextlib.suppress(OSError):
        report.leave(task.report)


def _work(arguments: SaveArguments | RestoreArguments, channel: Channel, measured: RestoreReport) -> None:
    """Save, or restore and fill in what was `measured`, of a failure, too."""
    from saverestore.helper.arguments import SaveArguments
    from saverestore.helper.messages import MessageType
    from saverestore.helper.settings import read_settings
    from saverestore.helper.telling import ChannelHandler

    settings = read_settings(os.environ)
    _set_up_logging(ChannelHandler(channel), settings)
    if isinstance(arguments, SaveArguments):
        from saverestore.helper.saving import save

        report = save(arguments, settings, channel)
        expected = (
            "" if report.verdict is None else f", expected {report.verdict.prediction.downtime_s:.2f} s"
        )
        logging.info(
            "%d pages in %.1f s, suspended for %.2f s of it%s",
            report.pages_sent,
            report.total_s,
            report.downtime_s,
            expected,
        )
        return

    from saverestore.helper.restoring import restore

    store_gfn = console_gfn = 0
    try:
        pages = restore(arguments, settings, channel, measured)
        store_gfn, console_gfn = pages.store_gfn, pages.console_gfn
        logging.info("%d pages in %.1f s", measured.pages, measured.total_s)
    finally:
        # Also after a failure: libxl takes a restore without results for a helper that died.
        if channel.takes(MessageType.RESTORE_RESULTS):
            channel.tell(MessageType.RESTORE_RESULTS, store_gfn, console_gfn)
    _leave(measured)


def _set_up_logging(handler: logging.Handler, settings: Settings) -> None:
    level = {"debug": logging.DEBUG, "info": logging.INFO}.get(settings.log_level, logging.WARNING)
    logging.basicConfig(handlers=[handler], format="%(message)s", level=level, force=True)
    if settings.log_level != "debug":
        # libxc also logs what is no error for us, such as pages that cannot be mapped just now.
        logging.getLogger("pyxc.libxc").setLevel(logging.WARNING)


def _errno_of(error: BaseException) -> int:
    """The system's number for what went wrong, as far as there is one; libxl prints its text."""
    if isinstance(error, Interrupted):
        return errno.EINTR
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno:
            return seen.errno
        seen = seen.__cause__
    return errno.EINVAL


if __name__ == "__main__":
    sys.exit(main())
