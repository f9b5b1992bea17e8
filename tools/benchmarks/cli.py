"""`tools/bench`: the commands, their help, their exit codes."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xenlab import apt, environment
from xenlab.errors import Interrupted, LabError, raise_on_signals

from benchmarks.errors import BenchError
from benchmarks.running import CHECKOUT

if TYPE_CHECKING:
    from saverestore.image.drawing import Drawing

OK, FAILED, INTERRUPTED = 0, 1, 130

KINDS = ("pvh", "pv")
ROUNDS = 3
START_ROUNDS = 15
PAIRS = 5
SIZES_MIB = (256, 1024)
IN_MEMORY = Path("/dev/shm")
ON_DISK = Path("/var/tmp")
NATIVE_PARTS = ("loopback", "tls", "cpu", "gigabit", "slow", "wan", "cut")

_DESCRIPTION = """\
How fast this project is, next to its peers: on the same bytes, in one run, in turns. Figures are medians.

  tools/bench image guest.img --mib 1024       make an image up, where there is none of a real domain
  tools/bench codecs guest.img --json out.json
  tools/bench engine --no-qemu
  tools/bench disk --folder /var/tmp
  tools/bench memory
  tools/bench start
  tools/bench xen --kind pvh --mib 256
  tools/bench migrate --part loopback --part tls
  tools/bench migrate --pair --turns 5
"""

_EPILOG = """\
--json writes a list of {what, ours, peer, unit, ratio, target, holds}, the same for all of them.
exit: 0 done, whether targets hold or not; 1 failed (one line says what to do), 2 wrong usage
"""


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="bench", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=raw
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    image = commands.add_parser(
        "image",
        help="write an image of a made-up domain: 30%% zero pages, 10%% random, the rest files",
        formatter_class=raw,
    )
    image.add_argument("file", type=Path, metavar="FILE")
    image.add_argument("--mib", type=_positive, default=1024, help="memory of the domain (default 1024)")
    image.add_argument(
        "--root", type=Path, default=Path("/usr"), help="where files are taken from (default /usr)"
    )
    image.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    image.set_defaults(run=_image)

    codecs = commands.add_parser(
        "codecs", help="compression of a whole image against ours, by record and at rest", formatter_class=raw
    )
    codecs.add_argument("image", type=Path, metavar="IMAGE")
    codecs.add_argument("--only", action="append", default=[], metavar="NAME",
                        help="only contenders whose name has this in it (may be repeated)")  # fmt: skip
    _add_common(codecs)
    codecs.set_defaults(run=_codecs)

    engine = commands.add_parser(
        "engine",
        help="saves and restores of a domain in memory against QEMU, dd and cat",
        formatter_class=raw,
    )
    engine.add_argument("--mib", type=_positive, default=2048, help="memory of the domain (default 2048)")
    engine.add_argument("--kind", action="append", choices=KINDS, help="only this kind (may be repeated)")
    engine.add_argument("--small", type=_positive, default=256, metavar="MIB",
                        help="the domain that shows whether time grows with size (default 256)")  # fmt: skip
    engine.add_argument(
        "--no-qemu", action="store_true", help="leave QEMU out: it takes a root file system of Debian"
    )
    engine.add_argument(
        "--no-peers", action="store_true",
        help="leave QEMU, dd and cat out: a domain of 8 GiB then takes 22 GiB of memory instead of 36",
    )  # fmt: skip
    _add_common(engine)
    engine.set_defaults(run=_engine)

    disk = commands.add_parser(
        "disk",
        help="saves to a real disk with fsync, past the page cache and through it, against dd and QEMU",
    )
    disk.add_argument("--mib", type=_positive, default=1024, help="memory of the domain (default 1024)")
    disk.add_argument("--rounds", type=_positive, default=ROUNDS, help=f"default {ROUNDS}")
    disk.add_argument(
        "--no-qemu", action="store_true", help="leave QEMU out: it takes a root file system of Debian"
    )
    disk.add_argument(
        "--folder", type=Path, default=ON_DISK, help=f"on the disk that is written to (default {ON_DISK})"
    )
    disk.add_argument("--json", type=Path, metavar="FILE", help="write the comparisons")
    disk.set_defaults(run=_disk)

    memory = commands.add_parser(
        "memory", help="peak memory of each command, against the bound: some minutes", formatter_class=raw
    )
    memory.add_argument("--json", type=Path, metavar="FILE", help="write the comparisons")
    memory.add_argument("--folder", type=Path, help="where images are put meanwhile: some 5 GiB")
    memory.add_argument("--only", metavar="WORD", default="", help="only what has WORD in its name")
    memory.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    memory.set_defaults(run=_memory)

    start = commands.add_parser(
        "start", help="each command until it does something, against Python and numpy by themselves"
    )
    start.add_argument("--rounds", type=_positive, default=START_ROUNDS, help=f"default {START_ROUNDS}")
    start.add_argument("--json", type=Path, metavar="FILE", help="write the comparisons")
    start.set_defaults(run=_start)

    xen = commands.add_parser(
        "xen", help="pysave and pyrestore against xl, on real Xen in the lab: an hour", formatter_class=raw
    )
    xen.add_argument("--kind", action="append", choices=KINDS, help="only this kind (may be repeated)")
    xen.add_argument("--mib", action="append", type=_positive, metavar="MIB",
                     help="memory of the domain (may be repeated; default 256 and 1024)")  # fmt: skip
    xen.add_argument("--pairs", type=_positive, default=PAIRS, help=f"default {PAIRS}")
    xen.add_argument("--only", choices=("saves", "live"), help="only this part")
    xen.add_argument("--variant", default="4.17", help="of the lab (default 4.17)")
    xen.add_argument("--json", type=Path, metavar="FILE", help="write the comparisons")
    xen.set_defaults(run=_xen)
    _add_migrate(commands)
    return parser


def _add_migrate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    migrate = commands.add_parser(
        "migrate",
        help="migrations between two processes, over loopback and slow links, against QEMU; with --pair against xl",
    )
    migrate.add_argument("--mib", type=_positive, default=2048, help="memory of the domain (default 2048)")
    migrate.add_argument("--part", action="append", choices=NATIVE_PARTS, help="only this (may be repeated)")
    migrate.add_argument("--rounds", type=_positive, default=ROUNDS, help=f"default {ROUNDS}")
    migrate.add_argument(
        "--no-qemu", action="store_true", help="leave QEMU out: it takes a root file system of Debian"
    )
    migrate.add_argument(
        "--folder", type=Path, default=IN_MEMORY, help=f"tmpfs to work in (default {IN_MEMORY})"
    )
    migrate.add_argument(
        "--pair", action="store_true", help="against xl migrate, on the lab's pair of hosts: an hour"
    )
    migrate.add_argument("--turns", type=_positive, default=PAIRS, help=f"with --pair; default {PAIRS}")
    migrate.add_argument("--rate", action="append", type=_positive, metavar="N",
                         help="with --pair: pages written a second (may be repeated)")  # fmt: skip
    migrate.add_argument(
        "--over", action="append", choices=("ssh", "TLS"), help="with --pair: only this (default: both)"
    )
    migrate.add_argument("--json", type=Path, metavar="FILE", help="write the comparisons")
    migrate.set_defaults(run=_migrate)


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--rounds", type=_positive, default=ROUNDS, help=f"default {ROUNDS}")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the comparisons")
    command.add_argument("--plot", type=_drawable, metavar="FILE", help="draw the figures: .svg or .png")
    command.add_argument(
        "--folder", type=Path, default=IN_MEMORY, help=f"tmpfs to work in (default {IN_MEMORY})"
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def _drawable(text: str) -> Path:
    from saverestore.errors import UsageError
    from saverestore.image.drawing import encoder_for

    try:
        encoder_for(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(text)


def _draw(path: Path, drawing: Drawing) -> None:
    from saverestore.image.drawing import encoder_for

    path.write_bytes(encoder_for(path.name)(drawing))


def _image(args: argparse.Namespace) -> int:
    from benchmarks.image import make_image

    make_image(args.file, args.mib, root=args.root, overwrite=args.overwrite)
    return OK


def _codecs(args: argparse.Namespace) -> int:
    from benchmarks import codecs
    from benchmarks.chart import Row, Series, bars
    from benchmarks.results import comparison_table, median_run, write_json

    some = codecs.chosen(codecs.contenders(), args.only)
    programs = {one.program: codecs.PACKAGES[one.program] for one in some if one.program is not None}
    _install(programs)
    print(_machine())
    measured = codecs.measure(args.image, some, rounds=args.rounds, folder=args.folder, say=_say)
    print(f"image: {measured.image_bytes / codecs.MB:,.0f} MB, medians of {args.rounds} rounds\n")
    print(codecs.report(measured))
    found = codecs.comparisons(measured)
    if found:
        found += codecs.zero_pages(rounds=args.rounds, folder=args.folder, say=_say)
    if found:
        print(f"\n{comparison_table(found)}")
    if args.json is not None:
        write_json(args.json, found)
    if args.plot is not None:
        series = [Series("compress", "#3b6ea8"), Series("decompress", "#d98032")]
        rows = [
            Row(
                one.contender.title,
                (measured.rate(median_run(one.packing)), measured.rate(median_run(one.unpacking))),
                f"to {100 * one.packed_bytes / measured.image_bytes:.0f}% of its size",
            )
            for one in measured.figures
        ]
        _draw(args.plot, bars("An image, compressed and decompressed", "MB/s", series, rows))
    return OK


def _engine(args: argparse.Namespace) -> int:
    from benchmarks import engine, qemu
    from benchmarks.chart import Row, Series, bars
    from benchmarks.results import comparison_table, write_json

    print(_machine())
    measured, found = [], []
    for kind in args.kind or KINDS:
        small, large = (
            engine.measure(
                kind,
                mib,
                rounds=args.rounds,
                folder=args.folder,
                qemu_root=qemu_root,
                with_peers=not args.no_peers,
                say=_say,
            )
            for mib, qemu_root in (
                (args.small, None),
                (args.mib, None if args.no_qemu else qemu.root_file_system),
            )
        )
        measured += [small, large]
        found += [*engine.comparisons(large), *engine.linear(small, large)]
        for reason in large.left_out:
            print(f"left out: {reason}")
    print(f"MB/s of guest memory, medians of {args.rounds} rounds\n")
    print(engine.report(measured))
    print(f"\n{comparison_table(found)}")
    if args.json is not None:
        write_json(args.json, found)
    if args.plot is not None:
        colors = ("#3b6ea8", "#d98032")
        large_ones = measured[1::2]
        series = [Series(one.kind, color) for one, color in zip(large_ones, colors, strict=False)]
        names = dict.fromkeys(name for one in large_ones for name in one.seconds)
        rows = [Row(name, tuple(one.rate(name) or 0 for one in large_ones)) for name in names]
        _draw(args.plot, bars("Guest memory saved and restored", "MB/s", series, rows))
    return OK


def _disk(args: argparse.Namespace) -> int:
    from benchmarks import disk, qemu
    from benchmarks.results import comparison_table, write_json

    print(_machine())
    measured = disk.measure(
        args.mib,
        rounds=args.rounds,
        folder=args.folder,
        memory=IN_MEMORY,
        qemu_root=None if args.no_qemu else qemu.root_file_system,
        say=_say,
    )
    found = disk.comparisons(measured)
    for reason in measured.left_out:
        print(f"left out: {reason}")
    print(f"MB/s of the image, on the disk at the end, medians of {args.rounds} rounds\n")
    print(disk.report(measured))
    print(f"\n{comparison_table(found)}")
    if args.json is not None:
        write_json(args.json, found)
    return OK


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _memory(args: argparse.Namespace) -> int:
    from benchmarks import memory
    from benchmarks.results import write_json

    if args.child:
        name, size_mib, folder = args.child
        memory.measure_one(name, int(size_mib), Path(folder))
        return OK
    found = memory.measure_all(args.folder, args.only)
    if args.json is not None:
        write_json(args.json, found)
    return OK


def _start(args: argparse.Namespace) -> int:
    from benchmarks import start
    from benchmarks.results import comparison_table, write_json

    print(_machine())
    measured = start.measure(args.rounds, _say)
    found = start.comparisons(measured)
    print(f"the least of {args.rounds} rounds\n")
    print(start.report(measured))
    print(f"\n{comparison_table(found)}")
    if args.json is not None:
        write_json(args.json, found)
    return OK


def _xen(args: argparse.Namespace) -> int:
    from benchmarks import xen
    from benchmarks.results import comparison_table, write_json

    print(_machine())
    parts = (args.only,) if args.only else xen.PARTS
    timed = xen.put_together(
        xen.measure(args.variant, args.kind or KINDS, args.mib or SIZES_MIB, args.pairs, parts)
    )
    found = xen.comparisons(timed)
    print(f"seconds under emulation, medians of {args.pairs} pairs\n")
    print(comparison_table(found))
    print(f"\n{xen.spread_table(timed)}")
    if args.json is not None:
        write_json(args.json, found)
    return OK


def _migrate(args: argparse.Namespace) -> int:
    return _migrate_pair(args) if args.pair else _migrate_native(args)


def _migrate_native(args: argparse.Namespace) -> int:
    from benchmarks import migrate_native, qemu
    from benchmarks.results import comparison_table, write_json

    print(_machine())
    measured = migrate_native.measure(
        args.mib,
        rounds=args.rounds,
        folder=args.folder,
        parts=args.part or NATIVE_PARTS,
        qemu_root=None if args.no_qemu else qemu.root_file_system,
        say=_say,
    )
    found = migrate_native.comparisons(measured)
    for reason in measured.left_out:
        print(f"left out: {reason}")
    print(f"a domain of {args.mib} MiB, medians of {args.rounds} rounds\n")
    print(migrate_native.report(measured))
    print(f"\n{comparison_table(found)}")
    if args.json is not None:
        write_json(args.json, found)
    return OK


def _migrate_pair(args: argparse.Namespace) -> int:
    from benchmarks import migrate
    from benchmarks.results import comparison_table, write_json

    print(_machine())
    moved = migrate.measure(
        (*(args.over or (migrate.SSH, migrate.TLS)), migrate.XL), args.rate or migrate.RATES, args.turns
    )
    found = migrate.comparisons(moved)
    print(f"a PVH guest of {migrate.MIB} MiB under emulation, medians of {args.turns} turns\n")
    print(comparison_table(found))
    print(f"\n{migrate.spread_table(moved)}")
    if args.json is not None:
        write_json(args.json, found)
    return OK


def _install(programs: dict[str, str]) -> None:
    """Install the peers that are missing, or say what to install."""
    missing = apt.missing_host_packages(programs)
    if missing:
        with tempfile.TemporaryDirectory() as folder:
            apt.install_packages(missing, Path(folder) / "apt.log")


def _machine() -> str:
    """What is to be known of the machine, in general terms."""
    cores = len(os.sched_getaffinity(0))
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    load = os.getloadavg()[0]
    return f"machine: {cores} cores, {memory_gib:.0f} GiB, load {load:.1f} before"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command of `tools/bench` and return its exit code."""
    raise_on_signals()
    arguments = sys.argv[1:] if argv is None else list(argv)
    sys.path.insert(0, str(CHECKOUT))  # what is measured is this checkout, whichever one is installed
    try:
        if not {"-h", "--help"} & set(arguments):  # those need nothing
            environment.enter([str(CHECKOUT / "tools/bench"), *arguments])
        args = _parser().parse_args(arguments)
        from saverestore import interrupts
        from saverestore.errors import Interrupted as EngineInterrupted
        from saverestore.errors import SaveRestoreError

        try:
            # The engine's own way: a signal that came while one of its threads is waited for would stop it for good.
            with interrupts.handled():
                code: int = args.run(args)
        except EngineInterrupted as error:
            raise Interrupted from error
        except SaveRestoreError as error:
            raise BenchError(str(error)) from error
    except (BenchError, LabError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return FAILED
    except (KeyboardInterrupt, Interrupted):
        print("bench: interrupted: cleaned up", file=sys.stderr)
        return INTERRUPTED
    return code
