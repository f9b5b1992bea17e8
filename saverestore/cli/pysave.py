"""`pysave`: save a running domain to a file or pipe."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from saverestore.cli import all_domains, arguments, certificates, common, many, reporting, settings
from saverestore.cli.common import STORE
from saverestore.errors import UsageError
from saverestore.stream.digest_algorithms import DEFAULT_DIGEST, DIGEST_OPTIONS, NO_DIGEST
from saverestore.words import counted, mib

if TYPE_CHECKING:
    from saverestore.engine.progress import SaveReport
    from saverestore.operations.requests import SaveRequest
    from saverestore.stream.codecs import Coding

DESCRIPTION = """\
Save a running domain. The image is complete and on the disk before the domain is destroyed. On any error, and
on Ctrl-C, no image is left and the domain keeps running. 'pyrestore IMAGE' or 'xl restore IMAGE' restores it.
"""

EPILOG = """\
examples:
  pysave web1 web1.img                  save and destroy, as 'xl save' does
  pysave --live -c web1 web1.img        a snapshot: web1 is paused only briefly
  pysave --live -c --downtime-ms 300 --report web1.html web1 web1.img
                                        a shorter pause, and a page that shows how it went
  pysave --compress zstd web1 web1.img  compressed on all cores; pyrestore reads it as it is
  pysave web1 - | ssh host 'cat > img'  to a pipe
  pysave --tls web1 tcp://host2:8702    to 'pyrestore --tls tcp://0.0.0.0:8702' at host2
  pysave --format draft-b web1 web1.img with a checksum for each record, and zstd
  pysave --live -c web1 --store         a snapshot, named by domain and time in /var/lib/xen/pysave
  pysave --all --within 600 --if-unsaveable shutdown
                                        before the host shuts down: all domains, within ten minutes
  pysave --recover web1                 after 'kill -9' of a save: resume web1

Domains that 'xl create' made are saved with all their devices: disks, network interfaces, a device model. The bare
toolstack saves no device besides the console; it refuses a domain that has others before any change is made.

Defaults of many options may be set in the table [pysave] of /etc/xen/pysave.toml, which lists them.
"""


LIVE_ONLY: dict[str, tuple[str, str | None]] = {
    "--downtime-ms": ("downtime_s", None),
    "--max-rounds": ("max_rounds", None),
    "--max-time": ("max_time", None),
    "--dirty": ("dirty", "auto"),
    "--on-stall": ("on_stall", "stop"),
}
"""Options of a live save: where their values are, and their defaults."""


STANDARD_OUTPUT = ("-", "fd:1")

MUCH_LONGER_S = 0.2
"""A downtime that was predicted too short by no more than this, or a half, needs no words."""


def command_parser() -> arguments.Parser:
    """What reads the command line."""
    parser = arguments.parser("pysave", DESCRIPTION, EPILOG)
    domain = parser.add_argument(
        "domain", metavar="DOMAIN", nargs="?", help="number, name or UUID of the domain"
    )
    arguments.complete(domain, arguments.DOMAIN)
    image = parser.add_argument(
        "image",
        metavar="IMAGE",
        nargs="?",
        help="file to write, made with mode 0600; '-' is standard output; tcp://HOST:PORT and unix:PATH are "
        "sockets where 'pyrestore' listens; fd:N is an open descriptor",
    )
    arguments.complete(image, arguments.FILE)
    _add_common(parser.add_argument_group("common options"))
    _add_all(parser.add_argument_group("all domains, with --all"))
    _add_live(parser.add_argument_group("live saves, with --live"))
    _add_image(parser.add_argument_group("what the image is like"))
    _add_domain(parser.add_argument_group("the domain and its devices"))
    sockets = parser.add_argument_group("sockets")
    certificates.add_tls(sockets)
    certificates.add_certificates(sockets)
    recovery = parser.add_argument_group("after a save that was killed")
    recovery.add_argument(
        "--recover",
        action="store_true",
        help="do not save: repair DOMAIN after a pysave that was killed, and resume it if it is suspended. Do not "
        "use it while xl saves or migrates the domain",
    )
    arguments.finish(parser)
    return parser


def _add_common(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--live",
        action="store_true",
        help="send memory while the domain runs, and suspend it for the last round only",
    )
    after = group.add_mutually_exclusive_group()
    after.add_argument(
        "-c",
        "--leave-running",
        action="store_true",
        help="resume the domain after the save instead of destroying it",
    )
    after.add_argument(
        "-p", "--leave-paused", action="store_true", help="leave the domain paused after the save"
    )
    group.add_argument(
        "--compress",
        metavar="zstd[:LEVEL]",
        type=arguments.zstd_level_or_none,
        help="write seekable zstd, level 1 (the default) to 19; 'zstd -dc IMAGE | xl restore /dev/stdin' "
        "restores it, too; none does not compress, whatever the settings say",
    )
    group.add_argument("--overwrite", action="store_true", help="replace IMAGE if it exists")
    folder = group.add_argument(
        "--store",
        metavar="DIR",
        nargs="?",
        const=STORE,
        help=f"in place of IMAGE: write to this directory (default {STORE}) under a name made of domain and time; "
        "'pyimage list' lists these images, 'pyrestore --store NAME' restores one. Give it last, or as --store=DIR",
    )
    arguments.complete(folder, arguments.FILE)
    group.add_argument(
        "--all", action="store_true", help="save all domains of this host to a store; see below"
    )
    group.add_argument(
        "--bwlimit",
        metavar="RATE",
        type=arguments.rate_or_none,
        help="write no faster than this: 50MiB/s, 50MB/s, 400Mbit/s, or none; what compression saves is free. "
        "It holds for the last round, too, so the downtime is longer",
    )
    group.add_argument(
        "--cache",
        choices=("auto", "direct", "page"),
        default="auto",
        help="how a file is written: direct, by direct I/O past the page cache, so that little is left for the end; "
        "page, through the page cache; auto (the default): direct where the file system takes it and has a disk, "
        "but with -c through the page cache while the domain is suspended",
    )
    group.add_argument(
        "--no-space-check",
        dest="space_check",
        action="store_false",
        help="do not check whether there is room for the image, neither before the save nor, with --live, after each "
        "round: for file systems that compress, or have more room than they report",
    )
    common.add_dry_run(group, "save")
    reporting.add_report(group, "save")
    reporting.add_following(group, "save")
    reporting.add_json(group, "save")


def _add_all(group: argparse._ArgumentGroup) -> None:
    group.description = (
        "Domain 0, stub domains and domains that have ended are left out. Domains that are destroyed after the save\n"
        "are those that 'pyrestore --all' restores. Not with --report, --events, --metrics or --tls. The exit code\n"
        "is that of the first domain that was not saved; 130 if its save was ended or not started because of\n"
        "--within."
    )
    many.add_many(group, "save")
    group.add_argument(
        "--if-unsaveable",
        choices=("leave", "shutdown"),
        help="what is done with a domain that could not be saved, for whatever reason: leave (the default) keeps it "
        "running; shutdown powers it off, and waits up to two minutes for that. A domain that is paused, or that "
        "another program saves, migrates or restores, is left alone",
    )


def _add_live(group: argparse._ArgumentGroup) -> None:
    group.description = "Defaults match xl: 5 rounds, or fewer than 50 dirty pages left."
    group.add_argument(
        "--dirty",
        choices=("auto", "log", "digest"),
        default="auto",
        help="how dirty pages are tracked: log, the hypervisor's log-dirty (PVH and HVM; PV only where Xen "
        "has shadow "
        "paging); digest, by comparing contents, which works everywhere; auto (the default): log where there is one",
    )
    group.add_argument(
        "--downtime-ms",
        dest="downtime_s",
        metavar="N",
        type=arguments.milliseconds,
        help="suspend the domain as soon as the predicted downtime is at most N ms. The prediction uses the "
        "rates of the "
        "rounds so far, and the times that suspending and resuming took at the last save with -c or -p (before the "
        "first: 100 ms and 50 ms)",
    )
    common.add_round_limits(group)
    group.add_argument(
        "--on-stall",
        choices=("stop", "abort", "throttle"),
        default="stop",
        help="when a round leaves as many dirty pages as it sent: stop (the default) suspends the domain; "
        "abort ends the "
        "save, also when the other limits are reached and --downtime-ms is not: exit code 3, the domain "
        "keeps running; "
        "throttle lowers the domain's processor cap in steps to 10%% of what it was (schedulers credit2 and credit), "
        "then suspends it. The cap is restored in any case; after 'kill -9' by --recover or the next pysave",
    )


def _add_image(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--digest",
        choices=DIGEST_OPTIONS,
        help=f"the digest of the whole image, which 'pyimage verify' and pyrestore compare; default {DEFAULT_DIGEST}",
    )
    group.add_argument(
        "--plain",
        action="store_true",
        help="leave out our records: the note of host, time and domain, and the digest (xl skips both)",
    )
    group.add_argument(
        "--format",
        choices=("xen", "draft-b"),
        default="xen",
        help="xen (the default): what xl reads; draft-b: checksums for each record and coded pages, for "
        "pyrestore and pyimage only",
    )
    group.add_argument(
        "--codec",
        metavar="CODEC[:LEVEL]",
        help="how pages are coded with --format draft-b: zstd (1 to 19, default zstd:1), the best for most; lz4 "
        "(0 to 16), faster and larger; deflate (1 to 9), slower, needs no library; xor, with --live: only "
        "what changed "
        "in pages that are resent, little work; none: checksums only. Zero pages take no room with any of them, and "
        "pages that do not get smaller are stored as they are",
    )
    group.add_argument(
        "--while-suspended",
        metavar="CMD",
        help="run CMD by sh while the domain is suspended, when all of its memory is written: to snapshot its disks "
        "as the image needs them (LVM, ZFS, qcow2). CMD has PYSAVE_DOMAIN, PYSAVE_DOMID, PYSAVE_UUID and "
        "PYSAVE_IMAGE in its environment. If it fails, the save fails, and the domain is resumed",
    )


def _add_domain(group: argparse._ArgumentGroup) -> None:
    common.add_toolstack(group)
    group.add_argument(
        "--suspend-timeout",
        metavar="SECONDS",
        type=arguments.timeout,
        help="how long the guest may take to suspend, counted from the request; default 60",
    )
    group.add_argument(
        "--force",
        action="store_true",
        help="with the bare toolstack and -c or -p: save a domain with devices all the same; only libxl, that is "
        "'pyrestore' or 'xl restore', restores these. Also: save on a Xen that is known to break saves",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (`sys.argv` by default) and return its exit code."""
    parser = command_parser()
    given = settings.parse(parser, argv)
    all_domains.check_all(parser, given, "domain", "image", "recover", "report", "events", "metrics", "tls")
    if given.all:
        reporting.check_report(parser, given)
        _check_live(parser, given)
        _check_digest(parser, given)
        _coding(parser, given)
        return common.run("pysave", given, lambda: all_domains.save_all(given))
    if given.domain is None:
        parser.error(
            "DOMAIN is missing"
            + ("" if given.store is None else f" ('{given.store}' was taken as the directory of --store)")
        )
    if given.recover:
        if given.store is not None:
            parser.error("--recover makes no image, so it excludes --store")
        if given.image is not None:
            parser.error("--recover takes no IMAGE")
        if given.while_suspended is not None:
            parser.error("--while-suspended runs during a save, and --recover makes none")
        for option in ("report", "events", "metrics", "json"):
            if getattr(given, option):
                parser.error(f"--{option} describes a save, and --recover makes none")
        return common.run("pysave", given, lambda: _recover(given))
    if given.image is None and given.store is None:
        parser.error("IMAGE is missing")
    if given.image is not None and given.store is not None:
        parser.error(f"--store excludes IMAGE, '{given.image}'")
    if given.image in STANDARD_OUTPUT and given.json:
        parser.error("--json and the image cannot both go to standard output")
    _check_live(parser, given)
    _check_digest(parser, given)
    if given.image == "-" and not given.dry_run and (sys.stdout is None or sys.stdout.isatty()):
        what = "a closed standard output" if sys.stdout is None else "a terminal"
        parser.error(f"an image cannot be written to {what}; redirect standard output")
    reporting.check_report(parser, given)
    coding = _coding(parser, given)
    return common.run("pysave", given, lambda: _save(given, coding))


def run_one(given: argparse.Namespace) -> int:
    """One save of `--all`, with options that were checked: its exit code."""
    coding = _coding(command_parser(), given)
    return common.run("pysave", given, lambda: _save(given, coding))


def _check_digest(parser: arguments.Parser, given: argparse.Namespace) -> None:
    if given.plain and given.digest not in (None, NO_DIGEST) and "digest" not in given.from_settings:
        parser.error("--plain leaves the digest out, so it excludes --digest")


def _check_live(parser: arguments.Parser, given: argparse.Namespace) -> None:
    if given.live:
        return
    options = [
        option
        for option, (name, default) in LIVE_ONLY.items()
        if getattr(given, name) != default and name not in given.from_settings
    ]
    if options:
        parser.error(f"{options[0]} needs --live")


def _coding(parser: arguments.Parser, given: argparse.Namespace) -> Coding | None:
    """What --format and --codec ask for; None for Xen's own format."""
    if given.format == "xen":
        if given.codec is not None and "codec" not in given.from_settings:
            parser.error("--codec needs --format draft-b")
        return None
    from saverestore.stream.codecs import Codec, Coding

    try:
        coding = Coding.parse(given.codec or "zstd")
    except UsageError as error:
        parser.error(f"--codec: {error}")
    if coding.codec is Codec.XOR and not given.live:
        parser.error("--codec xor needs --live: without it no page is sent twice")
    if "compress" in given.from_settings and coding.compresses:
        given.compress = None
    if given.compress is not None and coding.compresses:
        parser.error(
            f"--format draft-b compresses pages by {coding.codec.name.lower()}, so --compress would compress them "
            "twice; use --codec none with --compress, or leave --compress out"
        )
    return coding


def _recover(given: argparse.Namespace) -> None:
    from functools import partial

    from saverestore.migrate.journal import Journals
    from saverestore.migrate.unsettled import was_aborted
    from saverestore.operations.recover import recover_domain

    done = recover_domain(given.domain, was_aborted=partial(was_aborted, Journals()))
    if not given.quiet:
        common.say(f"pysave: {given.domain}: {'; '.join(done) or 'nothing to recover'}")


def _save(given: argparse.Namespace, coding: Coding | None) -> int | None:
    from saverestore.cli.progress import progress_for
    from saverestore.engine.progress import SaveReport
    from saverestore.operations.prepare_save import dry_run
    from saverestore.operations.save import save_domain
    from saverestore.report.facts import facts_of_save

    if given.dry_run:
        return common.print_findings("pysave", lambda: dry_run(_request(given, coding)))
    report = SaveReport()
    with reporting.reporting(
        "pysave", given, given.domain, lambda outcome: facts_of_save(outcome, report)
    ) as run:
        request = _request(given, coding)
        run.know(_in_force(given, request))
        with closing(run.followed(progress_for("pysave", quiet=given.quiet))) as progress:
            save_domain(request, progress, report, process_ends=True)
    if not given.quiet:
        common.say(f"pysave: {_summary(request, report, run.outcome.seconds)}")
    return None


def _request(given: argparse.Namespace, coding: Coding | None) -> SaveRequest:
    """What is asked for. UsageError for what cannot be right."""
    from saverestore.engine.policy import Limits, OnStall
    from saverestore.operations.requests import FinalState, SaveRequest
    from saverestore.transport.cache import Cache
    from saverestore.transport.image_sockets import address_of

    final_state = FinalState.DESTROY
    if given.leave_running:
        final_state = FinalState.RUN
    elif given.leave_paused:
        final_state = FinalState.PAUSE
    request = SaveRequest(
        domain=given.domain,
        image=given.image or "",
        store=None if given.store is None else Path(given.store),
        space_check=given.space_check,
        bwlimit=given.bwlimit,
        cache=Cache(given.cache),
        restored_at_boot=vars(given).get("is_one_of_all", False),
        final_state=final_state,
        live=given.live,
        dirty=given.dirty,
        limits=Limits(
            max_rounds=given.max_rounds,
            max_time_s=given.max_time,
            downtime_s=given.downtime_s,
            on_stall=OnStall(given.on_stall),
        ),
        plain=given.plain,
        digest=given.digest or DEFAULT_DIGEST,
        compress=given.compress,
        suspend_timeout_s=given.suspend_timeout,
        overwrite=given.overwrite,
        force=given.force,
        toolstack=given.toolstack,
        coding=coding,
        while_suspended=given.while_suspended,
        tls=certificates.tls_of(given),
    )
    is_address = address_of(request.image, tls=request.tls) is not None  # or not valid: before Xen is opened
    if "cache" in given.from_settings and (is_address or not _may_be_file(request.image)):
        request = replace(request, cache=Cache.AUTO)
    return request


def _may_be_file(image: str) -> bool:
    """Whether an image of this name is, or would be, a regular file."""
    return image not in STANDARD_OUTPUT and (not os.path.lexists(image) or Path(image).is_file())


def _in_force(given: argparse.Namespace, request: SaveRequest) -> argparse.Namespace:
    """The options with the defaults that were in force, for a report."""
    from saverestore.guest.common.suspend import SUSPEND_TIMEOUT_S

    found = argparse.Namespace(**vars(given))
    found.digest = NO_DIGEST if given.plain else request.digest
    found.suspend_timeout = given.suspend_timeout or SUSPEND_TIMEOUT_S
    found.codec = None if request.coding is None else str(request.coding)
    found.max_rounds = request.limits.rounds_at_most if given.live else None
    return found


def _summary(request: SaveRequest, report: SaveReport, seconds: float) -> str:
    where = "standard output" if request.image == "-" else report.image or request.image
    text = (
        f"{request.domain} saved to {where}: {mib(report.stream_bytes)}{_stored(report)}, "
        f"{counted(report.pages_sent, 'page')}, {report.zero_pages} of them zero, {seconds:.1f} s"
    )
    if report.dirty_source != "none" and report.downtime is not None:
        how = {"log": "log-dirty", "digest": "content digests"}[report.dirty_source]
        text += f"; {counted(len(report.rounds), 'round')} by {how}, downtime {report.downtime.total_s:.2f} s"
        if report.verdict is not None:
            text += f" (predicted {report.verdict.prediction.downtime_s:.2f} s{_longer(report)})"
    return f"{text}; the domain is {report.domain_state.value}"


def _longer(report: SaveReport) -> str:
    """Which part took longer than it was predicted to, where that is what made the downtime much longer."""
    assert report.downtime is not None and report.verdict is not None
    real, predicted = report.downtime, report.verdict.prediction
    if real.total_s - predicted.downtime_s < max(MUCH_LONGER_S, predicted.downtime_s / 2):
        return ""
    parts = {
        "until the guest had suspended": (real.suspend_s, predicted.suspend_s),
        "for the last round": (real.last_round_s, predicted.rest_s),
        "for processors and device model": (real.state_s, predicted.state_s),
        "for resuming it": (real.resume_s, 0.0),
    }
    what, (took_s, expected_s) = max(parts.items(), key=lambda part: part[1][0] - part[1][1])
    return f"; {what} {took_s:.2f} s instead of {expected_s:.2f} s"


def _stored(report: SaveReport) -> str:
    """Where zero pages or compression made it less than the image's length: what was written."""
    if report.stored_bytes is None or report.stored_bytes >= report.stream_bytes:
        return ""
    stored = mib(report.stored_bytes)
    return "" if stored == mib(report.stream_bytes) else f", {stored} stored"


if __name__ == "__main__":
    sys.exit(main())
