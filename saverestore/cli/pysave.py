"""`pysave`: save a running domain to a file or pipe."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from saverestore.cli import common, limits, reporting
from saverestore.errors import UsageError
from saverestore.stream.digest_algorithms import DEFAULT_DIGEST, DIGEST_OPTIONS

if TYPE_CHECKING:
    from saverestore.engine.progress import SaveReport
    from saverestore.stream.codecs import Coding

DESCRIPTION = """\
Save a running domain. The image is complete and on the disk before the domain is destroyed; on any error,
and on Ctrl-C, no image is left and the domain goes on running. 'pyrestore IMAGE' and 'xl restore IMAGE'
bring it back.
"""

EPILOG = """\
examples:
  pysave web1 web1.img                  save and destroy, as 'xl save' does
  pysave --live -c web1 web1.img        keep it running: a short pause only
  pysave --live -c --downtime-ms 300 --report web1.html web1 web1.img
                                        a shorter one, and a page that tells how it went
  pysave --compress zstd web1 web1.img  compressed, on all cores; pyrestore takes it as it is
  pysave web1 - | ssh host 'cat > img'  to a pipe
  pysave --format draft-b web1 web1.img with a checksum for each record, and zstd
  pysave --recover web1                 after 'kill -9' of a save: let web1 go on

Domains that 'xl create' made are saved with all their devices: disks, network cards, a device model. The bare
toolstack carries none besides the console; with it, a domain that has others is refused before it is touched.
"""


LIMITS = {"--downtime-ms": "downtime_s", "--max-rounds": "max_rounds", "--max-time": "max_time"}
"""Options of a live save, and where their values are."""


def _parser() -> common.Parser:
    parser = common.parser("pysave", DESCRIPTION, EPILOG)
    parser.add_argument("domain", metavar="DOMAIN", help="number, name or UUID of the domain")
    parser.add_argument("image", metavar="IMAGE", nargs="?", help="file to write, or '-' for standard output")
    parser.add_argument(
        "--live", action="store_true", help="send memory while the domain runs; suspend it last"
    )
    parser.add_argument(
        "--dirty",
        choices=("auto", "log", "digest"),
        default="auto",
        help="how pages written meanwhile are found: 'log', the hypervisor's record (PVH; PV only where Xen has "
        "shadow paging); 'digest', comparing contents, works everywhere; default 'auto': log where it can be had",
    )
    live = parser.add_argument_group(
        "with --live",
        "when rounds end; what is not said is as 'xl' has it: 5 rounds, or fewer than 50 pages left",
    )
    live.add_argument(
        "--downtime-ms",
        dest="downtime_s",
        metavar="N",
        type=limits.milliseconds,
        help="suspend the domain as soon as it is expected to stand still for N ms at most: by the rates at which it "
        "writes and pages are sent, and by what suspending and going on took the last time it was saved and went on "
        "(the first time: 100 ms and 50 ms)",
    )
    live.add_argument(
        "--max-rounds",
        metavar="N",
        type=limits.rounds,
        help="rounds at most; default 5, or 30 with --downtime-ms or --on-stall throttle",
    )
    live.add_argument(
        "--max-time",
        metavar="SECONDS",
        type=limits.seconds,
        help="begin no round later than this, then suspend the domain",
    )
    live.add_argument(
        "--on-stall",
        choices=("stop", "abort", "throttle"),
        default="stop",
        help="when a round leaves as much as it sent: 'stop', the default, suspends the domain; 'abort' gives the "
        "save up, also when the other limits are reached and --downtime-ms is not: exit code 3, the domain goes on; "
        "'throttle' lowers the domain's processor cap step by step to 10%% of what it was (schedulers credit2 and "
        "credit), then suspends it. The cap is put back whatever happens, after 'kill -9' by --recover or the next "
        "pysave",
    )
    after = parser.add_mutually_exclusive_group()
    after.add_argument("-c", "--leave-running", action="store_true", help="let the domain go on afterwards")
    after.add_argument("-p", "--leave-paused", action="store_true", help="leave the domain paused afterwards")
    parser.add_argument(
        "--plain",
        action="store_true",
        help="leave out the note of host, time and domain, and the digest (optional records, which xl passes over)",
    )
    parser.add_argument(
        "--digest",
        choices=DIGEST_OPTIONS,
        help="the digest of the whole image, which 'pyimage verify' and pyrestore compare; default xxh3",
    )
    parser.add_argument(
        "--compress",
        metavar="zstd[:LEVEL]",
        type=_zstd_level,
        help="write seekable zstd, LEVEL 1 (default) to 19; 'zstd -dc IMAGE | xl restore /dev/stdin' takes it, too",
    )
    parser.add_argument(
        "--format",
        choices=("xen", "draft-b"),
        default="xen",
        help="'xen', the default: what xl reads. 'draft-b': checksums, coded pages, for pyrestore and pyimage alone",
    )
    parser.add_argument(
        "--codec",
        metavar="CODEC[:LEVEL]",
        help="how pages are coded with --format draft-b: 'zstd' (1 to 19, default zstd:1), the best for most; 'lz4' "
        "(0 to 16), faster and longer; 'deflate' (1 to 9), slower, needs no library; 'xor', with --live: only "
        "what changed in pages that are sent again, little work; 'none': checksums alone. Pages that are all zero "
        "take no room with any, and what gets no shorter is left as it is",
    )
    parser.add_argument(
        "--while-suspended",
        metavar="CMD",
        help="run CMD by sh while the domain is suspended, all of its memory being written: to snapshot its disks as "
        "the image needs them (LVM, ZFS, qcow2). It has PYSAVE_DOMAIN, PYSAVE_DOMID, PYSAVE_UUID and PYSAVE_IMAGE in "
        "its environment. If it fails, the save is given up and the domain resumed",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace IMAGE if it exists")
    parser.add_argument(
        "--force",
        action="store_true",
        help="with the bare toolstack, save a domain with devices all the same, with -c or -p; only libxl, "
        "that is 'pyrestore' or 'xl restore', brings these back. Also on a Xen that is known to break saves",
    )
    common.add_toolstack(parser)
    common.add_dry_run(parser, "save")
    reporting.add_report(parser, "save")
    parser.add_argument(
        "--suspend-timeout",
        metavar="SECONDS",
        type=limits.seconds,
        help="how long the guest may take to suspend, from the request on; default 60",
    )
    parser.add_argument(
        "--recover",
        action="store_true",
        help="instead of saving: put DOMAIN right after a pysave that was killed; it goes on if it was suspended. "
        "Never while xl saves or migrates it",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (`sys.argv` by default) and return its exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.recover:
        if arguments.image is not None:
            parser.error("--recover takes no IMAGE")
        if arguments.while_suspended is not None:
            parser.error("--while-suspended is for a save, and --recover makes none")
        if arguments.report is not None:
            parser.error("--report tells of a save, and --recover makes none")
        return common.run("pysave", arguments, lambda: _recover(arguments))
    if arguments.image is None:
        parser.error("the following arguments are required: IMAGE")
    if arguments.dirty != "auto" and not arguments.live:
        parser.error("--dirty only means something with --live")
    if not arguments.live:
        for option, name in LIMITS.items():
            if getattr(arguments, name) is not None:
                parser.error(f"{option} only means something with --live")
        if arguments.on_stall != "stop":
            parser.error("--on-stall only means something with --live")
    if arguments.plain and arguments.digest not in (None, "none"):
        parser.error("--plain leaves the digest out; --digest asks for one")
    if arguments.image == "-" and not arguments.dry_run and (sys.stdout is None or sys.stdout.isatty()):
        what = "a closed standard output" if sys.stdout is None else "a terminal"
        parser.error(f"an image does not go to {what}; redirect standard output")
    reporting.check_report(parser, arguments)
    coding = _coding(parser, arguments)
    return common.run("pysave", arguments, lambda: _save(arguments, coding))


def _coding(parser: common.Parser, arguments: argparse.Namespace) -> Coding | None:
    """What --format and --codec ask for; None for Xen's own format."""
    if arguments.format == "xen":
        if arguments.codec is not None:
            parser.error("--codec only means something with --format draft-b")
        return None
    from saverestore.stream.codecs import Codec, Coding

    try:
        coding = Coding.parse(arguments.codec or "zstd")
    except UsageError as error:
        parser.error(f"--codec: {error}")
    if coding.codec is Codec.XOR and not arguments.live:
        parser.error("--codec xor only means something with --live: without it no page is sent twice")
    return coding


def _zstd_level(text: str) -> int:
    """The level in "zstd" or "zstd:LEVEL"."""
    kind, _, level = text.partition(":")
    if kind != "zstd" or (":" in text and not level.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not zstd or zstd:LEVEL")
    if level and not 1 <= int(level) <= 19:
        raise argparse.ArgumentTypeError(f"level {level} is not one of 1 to 19")
    return int(level or 1)


def _recover(arguments: argparse.Namespace) -> None:
    from saverestore.operations.recover import recover_domain

    done = recover_domain(arguments.domain)
    if not arguments.quiet:
        common.say(f"pysave: {arguments.domain}: {'; '.join(done) or 'nothing was wrong with it'}")


def _save(arguments: argparse.Namespace, coding: Coding | None) -> int | None:
    from saverestore.cli.progress import progress_for
    from saverestore.engine.policy import Limits, OnStall
    from saverestore.engine.progress import SaveReport
    from saverestore.operations.prepare_save import dry_run
    from saverestore.operations.requests import FinalState, SaveRequest
    from saverestore.operations.save import save_domain
    from saverestore.report.facts import facts_of_save

    final_state = FinalState.DESTROY
    if arguments.leave_running:
        final_state = FinalState.RUN
    elif arguments.leave_paused:
        final_state = FinalState.PAUSE
    request = SaveRequest(
        domain=arguments.domain,
        image=arguments.image,
        final_state=final_state,
        live=arguments.live,
        dirty=arguments.dirty,
        limits=Limits(
            max_rounds=arguments.max_rounds,
            max_time_s=arguments.max_time,
            downtime_s=arguments.downtime_s,
            on_stall=OnStall(arguments.on_stall),
        ),
        plain=arguments.plain,
        digest=arguments.digest or DEFAULT_DIGEST,
        compress=arguments.compress,
        suspend_timeout_s=arguments.suspend_timeout,
        overwrite=arguments.overwrite,
        force=arguments.force,
        toolstack=arguments.toolstack,
        coding=coding,
        while_suspended=arguments.while_suspended,
    )
    if arguments.dry_run:
        return common.print_findings("pysave", dry_run(request))
    report = SaveReport()
    with (
        reporting.reporting(
            "pysave",
            arguments,
            arguments.domain,
            lambda outcome: facts_of_save(outcome, report),
        ),
        closing(progress_for("pysave", quiet=arguments.quiet)) as progress,
    ):
        save_domain(request, progress, report, process_ends=True)
    if not arguments.quiet:
        common.say(f"pysave: {_summary(request.domain, request.image, report)}")
    return None


def _summary(domain: str, image: str, report: SaveReport) -> str:
    where = "standard output" if image == "-" else image
    text = (
        f"{domain} saved to {where}: {report.stream_bytes >> 20} MiB{_stored(report)}, "
        f"{report.pages_sent} pages, {report.zero_pages} of them zero, {report.total_s:.1f} s"
    )
    if report.dirty_source != "none" and report.downtime is not None:
        how = {"log": "log-dirty", "digest": "content digests"}[report.dirty_source]
        text += f"; {len(report.rounds)} rounds by {how}, downtime {report.downtime.total_s:.2f} s"
        if report.verdict is not None:
            text += f" (expected {report.verdict.prediction.downtime_s:.2f} s)"
    return f"{text}; the domain is {report.domain_state.value}"


def _stored(report: SaveReport) -> str:
    """Where zero pages or compression made it less than the image's length: what was written."""
    if report.stored_bytes is None or report.stored_bytes >> 20 >= report.stream_bytes >> 20:
        return ""
    return f" in {report.stored_bytes >> 20} MiB"


if __name__ == "__main__":
    sys.exit(main())
