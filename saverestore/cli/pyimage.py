"""`pyimage`: look into images of Xen domains, on any machine; neither Xen nor its libraries are needed."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from saverestore import __version__, interrupts
from saverestore.errors import ExitCode, SaveRestoreError

if TYPE_CHECKING:
    from saverestore.stream.survey import Survey
    from saverestore.stream.tally import PageStatistics

EPILOG = """\
exit codes:
  0    the image is whole
  2    wrong usage, or no such file
  4    the image is damaged, incomplete, or not an image
  5    reading failed
  130  interrupted by Ctrl-C or another signal

IMAGE may be '-', for standard input: zstd -dc IMAGE.zst | pyimage verify -
"""

KIND_NAMES = {"X86_PV": "x86 PV", "X86_HVM": "x86 HVM or PVH"}
DIGEST_NAMES = {1: "XXH3-128", 2: "SHA-256", 3: "BLAKE3"}

LABEL_WIDTH = 16


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (`sys.argv` by default) and return its exit code."""
    arguments = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A domain's name may have letters that this terminal has not.
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.stdout is None:
        print("pyimage: standard output is closed", file=sys.stderr)
        return ExitCode.USAGE
    try:
        with interrupts.handled():
            code: int = arguments.run(arguments)
            sys.stdout.flush()
        return code
    except SaveRestoreError as error:
        print(f"pyimage: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # Whoever read the output has seen enough (`pyimage info … | head`). Python would complain
        # again while it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.IO
    except OSError as error:
        print(f"pyimage: standard output: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.IO


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pyimage",
        description="Look into images of Xen domains, as `xl save` and `pysave` write them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in (
        ("info", run_info, "show what an image holds: domain, records, pages"),
        ("verify", run_verify, "read an image to its end and tell whether it is whole"),
    ):
        command = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("image", metavar="IMAGE", help="file with the image, or '-' for standard input")
        command.add_argument("--json", action="store_true", help="print JSON, for programs")
        command.set_defaults(run=run)
    return parser


def run_info(arguments: argparse.Namespace) -> int:
    """Print everything that the image tells, whole or not."""
    found = _survey(arguments.image)
    print(as_json(found) if arguments.json else as_text(found))
    return _exit_code(found)


def run_verify(arguments: argparse.Namespace) -> int:
    """Print one line: that the image is whole, or the first thing that is wrong with it."""
    found = _survey(arguments.image)
    print(as_json(found) if arguments.json else as_verdict(found))
    return _exit_code(found)


def _exit_code(found: Survey) -> int:
    return ExitCode.DONE if found.error is None else found.error.exit_code


def _survey(image: str) -> Survey:
    """Read the whole image, with a progress bar where someone sees it."""
    from saverestore.stream.survey import note_trailing_bytes, survey
    from saverestore.transport.fd import FdSource

    with FdSource.open(image) as source:
        size = os.fstat(source.fileno())
        is_file = stat.S_ISREG(size.st_mode)
        with _Bar(size.st_size if is_file else None) as bar:
            found = survey(source, bar.update_to)
            # A block device goes on behind any image. Behind a damaged one nothing is worth reading.
            if found.is_whole and not stat.S_ISBLK(size.st_mode):
                note_trailing_bytes(found, source.skip_to_end())
    return found


class _Bar:
    """A progress bar on standard error, if that is a terminal and tqdm is there."""

    def __init__(self, total_bytes: int | None) -> None:
        self._done = 0
        self._bar = None
        if sys.stderr is None or not sys.stderr.isatty():
            return
        try:
            from tqdm import tqdm
        except ImportError:  # an adornment: the command works without it
            return
        self._bar = tqdm(
            total=total_bytes,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            leave=False,
            delay=0.5,
            desc="reading",
        )

    def update_to(self, offset: int) -> None:
        """Show that `offset` bytes have been read."""
        if self._bar is not None:
            self._bar.update(offset - self._done)
            self._done = offset

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def as_text(found: Survey) -> str:
    """Return the survey as aligned lines, in sections."""
    sections = [list(_heading(found)), list(_domain(found)), list(_records(found)), list(_pages(found.pages))]
    verdict = "whole" if found.error is None else f"DAMAGED: {found.error}"
    sections.append([_line("verdict", verdict)])
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def as_verdict(found: Survey) -> str:
    """Return one line: whether the image is whole, and if not, why."""
    if found.error is not None:
        text = str(found.error)
        # Most messages name the image already, as it is what they are about.
        return _plain(text if text.startswith(found.name) else f"{found.name}: {text}")
    kind = KIND_NAMES[found.domain.type.name] if found.domain else "?"
    name = f" {found.config.name}" if found.config and found.config.name else ""
    records = sum(entry.count for entry in found.records.values())
    notes = "; its digest was not compared" if found.digest else ""
    return _plain(
        f"{found.name}: whole: {kind} domain{name}, {records} records, {found.pages.nr_data} pages of data, "
        f"{size_text(found.total_bytes)}{notes}"
    )


def as_json(found: Survey) -> str:
    """Return the survey as one JSON object; keys are those of `Survey`, null where there is nothing."""
    return json.dumps(as_dict(found), indent=2, ensure_ascii=True)


def as_dict(found: Survey) -> dict[str, Any]:
    """Return the survey as plain values."""
    pages = found.pages
    error = found.error
    return {
        "image": found.name,
        "whole": error is None,
        "error": None if error is None else {"text": str(error), "offset": error.offset},
        "layers": found.layers,
        "version": found.image.version if found.image else None,
        "domain_type": found.domain.type.name if found.domain else None,
        "xen_version": f"{found.domain.xen_major}.{found.domain.xen_minor}" if found.domain else None,
        "config": dataclasses.asdict(found.config) if found.config else None,
        "provenance": found.provenance,
        "digest": _digest_dict(found),
        "records": {name: dataclasses.asdict(entry) for name, entry in found.records.items()},
        "pages": {
            "nr_entries": pages.nr_entries,
            "nr_data": pages.nr_data,
            "nr_zero": pages.nr_zero,
            "nr_distinct": pages.nr_distinct,
            "distinct_is_exact": pages.distinct_is_exact,
            "nr_sent_again": pages.nr_sent_again,
            "nr_verify_entries": pages.nr_verify_entries,
            "lowest_pfn": pages.lowest_pfn,
            "highest_pfn": pages.highest_pfn,
            "by_type": {kind.name: count for kind, count in sorted(pages.by_type.items())},
        },
        "checkpoints": found.checkpoints,
        "total_bytes": found.total_bytes,
        "trailing_bytes": found.trailing_bytes,
    }


def size_text(length_bytes: int) -> str:
    """Return a size as people read it: 1.5 GiB, 17 bytes."""
    size = float(length_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _digest_dict(found: Survey) -> dict[str, Any] | None:
    if found.digest is None:
        return None
    return {"algorithm": found.digest.algorithm, "hex": found.digest.digest.hex(), "compared": False}


def _line(label: str, value: object) -> str:
    return f"{label:<{LABEL_WIDTH}}{_plain(str(value))}"


def _plain(text: str) -> str:
    """Make text from an image harmless on a terminal: no control characters, no line breaks."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _heading(found: Survey) -> Iterator[str]:
    from saverestore.stream.layout import DRAFT_B_VERSION

    yield _line("image", found.name)
    yield _line("size", f"{size_text(found.total_bytes)} read ({found.total_bytes} bytes)")
    if found.trailing_bytes:
        yield _line("behind it", f"{found.trailing_bytes} bytes that do not belong to the image")
    if found.layers:
        version = f", version {found.image.version}" if found.image else ""
        if found.image and found.image.version == DRAFT_B_VERSION:
            version += f" (draft-b, {found.image.order.name.lower()}-endian)"
        yield _line("format", " > ".join(found.layers) + version)
    if found.domain:
        written_by = f"Xen {found.domain.xen_major}.{found.domain.xen_minor}"
        if found.domain.xen_major == 0:
            written_by = "converted from an image of Xen 4.5 or before"
        yield _line("written by", written_by)
    for key, value in (found.provenance or {}).items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {inner}" for name, inner in value.items())
        yield _line(f"  {_plain(key)} ", value)
    if found.digest:
        name = DIGEST_NAMES.get(found.digest.algorithm, f"algorithm {found.digest.algorithm}")
        yield _line("digest", f"{name} {found.digest.digest.hex()} (not compared)")


def _domain(found: Survey) -> Iterator[str]:
    config = found.config
    if found.domain:
        kind = KIND_NAMES[found.domain.type.name]
        yield _line("domain type", f"{kind} ({config.type})" if config and config.type else kind)
    if config is None:
        return
    if config.name is not None:
        yield _line("name", config.name)
    if config.uuid is not None:
        yield _line("uuid", config.uuid)
    if config.max_vcpus is not None:
        yield _line("vcpus", config.max_vcpus)
    if config.memory_kib is not None:
        most = f", at most {size_text(config.max_memory_kib * 1024)}" if config.max_memory_kib else ""
        yield _line("memory", f"{size_text(config.memory_kib * 1024)}{most}")


def _records(found: Survey) -> Iterator[str]:
    if not found.records:
        return
    width = max(len(name) for name in found.records)
    yield f"{'record':<{width}}  {'count':>9}  {'bytes':>15}"
    for name, entry in found.records.items():
        yield f"{name:<{width}}  {entry.count:>9}  {entry.length_bytes:>15}"
    if found.checkpoints:
        yield f"{found.checkpoints} checkpoints: the domain's state was sent more than once"


def _pages(pages: PageStatistics) -> Iterator[str]:
    if not pages.nr_entries and not pages.nr_verify_entries:
        return
    from saverestore.stream.layout import PAGE_SIZE

    yield _line(
        "pages",
        f"{pages.nr_entries} entries, {pages.nr_data} with data ({size_text(pages.nr_data * PAGE_SIZE)})",
    )
    least = "" if pages.distinct_is_exact else "at least "
    yield _line(
        "different", f"{least}{pages.nr_distinct} pfns, {pages.lowest_pfn:#x} to {pages.highest_pfn:#x}"
    )
    yield _line("sent again", pages.nr_sent_again)
    yield _line("all zero", pages.nr_zero)
    if pages.nr_verify_entries:
        yield _line("for comparison", f" {pages.nr_verify_entries} entries after VERIFY, not counted above")
    for kind, count in sorted(pages.by_type.items()):
        yield _line(f"  {kind.name}", count)


if __name__ == "__main__":
    sys.exit(main())
