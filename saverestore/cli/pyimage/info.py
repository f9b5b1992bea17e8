"""`pyimage info` and `pyimage verify`: one pass over an image, printed in full or in one line."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saverestore.cli.pyimage.common import (
    ALSO_COMPRESSED,
    Bar,
    Subparsers,
    add_command,
    add_image,
    file_size_text,
    line,
    say,
    size_text,
)
from saverestore.cli.remedies import in_full
from saverestore.errors import ErrorName, ExitCode, ImageError, Interrupted, SaveRestoreError, UsageError
from saverestore.words import counted, plain

if TYPE_CHECKING:
    from saverestore.stream.survey import Survey
    from saverestore.stream.tally import PageDigests, PageStatistics

KIND_NAMES = {"X86_PV": "x86 PV", "X86_HVM": "x86 HVM or PVH", "ARM64": "arm64"}
DIGEST_NAMES = {1: "XXH3-128", 2: "SHA-256", 3: "BLAKE3"}


def add_to(commands: Subparsers) -> None:
    """Declare `info` and `verify`."""
    info = add_command(
        commands, "info", run_info, "show what an image holds: domain, records, pages", ALSO_COMPRESSED
    )
    add_image(info, "file with the image; '-' is standard input")
    info.add_argument("--json", action="store_true", help="print JSON, for programs")
    verify = add_command(
        commands,
        "verify",
        run_verify,
        "read images to their end and report whether they are whole",
        f"{ALSO_COMPRESSED} A directory stands for all images in it, in the order of their names; other files there "
        "are skipped. Prints a line for each image. The exit code is that of the first that is not whole.",
    )
    add_image(verify, "file or directory with images; '-' is standard input", nargs="+")
    verify.add_argument(
        "--json", action="store_true", help="print JSON, for programs; a list for several images"
    )


def run_info(arguments: argparse.Namespace) -> int:
    """Print everything that the image holds, whole or not."""
    from saverestore.kernels.xxh3 import page_digests

    found = _survey(arguments.image, page_digests)
    print(as_json(found) if arguments.json else as_text(found, _file_of(arguments.image)))
    return _exit_code(found)


def run_verify(arguments: argparse.Namespace) -> int:
    """Print one line for each image: that it is whole, or the first thing that is wrong with it."""
    several = len(arguments.image) > 1 or Path(arguments.image[0]).is_dir()
    failed: list[ExitCode] = []
    described = []
    for image in _images_of(arguments.image):
        try:
            found = _survey(image)
        except SaveRestoreError as error:  # of one among several: the others are read all the same
            if not several or isinstance(error, Interrupted):
                raise
            say(in_full(error, "pyimage"))
            failed.append(error.exit_code)
            described.append({"image": image, "whole": False, "error": {"text": str(error), "offset": None}})
            continue
        if found.error is not None:
            failed.append(found.error.exit_code)
        if arguments.json:
            described.append(as_dict(found))
        else:
            print(as_verdict(found), flush=True)
    if arguments.json:
        print(json.dumps(described if several else described[0], indent=2, ensure_ascii=True))
    return failed[0] if failed else ExitCode.DONE


def _images_of(names: Sequence[str]) -> Iterator[str]:
    """The files, and the images in the folders. UsageError for a folder without any."""
    for name in names:
        folder = Path(name)
        if not folder.is_dir():
            yield name
            continue
        images = [str(path) for path in sorted(folder.iterdir()) if path.is_file() and _is_image(path)]
        if not images:
            raise UsageError(f"{name}: there is no image in this directory", name=ErrorName.FILE_NOT_FOUND)
        yield from images


def _is_image(path: Path) -> bool:
    """Whether it begins as an image does, be it compressed."""
    from saverestore.stream.walk import PREFIX_BYTES, looks_like_an_image
    from saverestore.transport.opening import open_image

    try:
        with open_image(str(path)) as source:
            return looks_like_an_image(source.read_some(PREFIX_BYTES))
    except SaveRestoreError as error:
        return not isinstance(error, UsageError)  # compressed, and damaged: reported when it is read


def _file_of(image: str) -> str | None:
    """The size of the file and its compression, where it is a file."""
    path = Path(image)
    if not path.is_file():
        return None
    from saverestore.transport.compression import FIRST_BYTES, Compression, compression_of

    with path.open("rb") as file:
        compression = compression_of(file.read(FIRST_BYTES))
    how = "not compressed" if compression is Compression.NONE else f"compressed with {compression.value}"
    return f"{file_size_text(path)}, {how}"


def _exit_code(found: Survey) -> int:
    return ExitCode.DONE if found.error is None else found.error.exit_code


def _survey(image: str, page_digests: PageDigests | None = None) -> Survey:
    """Read the whole image, with a progress bar where someone sees it."""
    from saverestore.stream.survey import note_trailing_bytes, survey
    from saverestore.transport.opening import open_image

    with open_image(image) as source, Bar(source.total_bytes) as bar:
        found = survey(source, bar.update_to, page_digests)
        # After a damaged image nothing is worth reading.
        if found.is_whole and not source.may_continue:
            try:
                note_trailing_bytes(found, source.skip_to_end())
            except ImageError as error:  # of the compressed file, behind all that the image consists of
                found.error = error
    return found


def as_text(found: Survey, file: str | None = None) -> str:
    """Return the survey as aligned lines, in sections. `file`: of the file that the image is in."""
    sections = [
        list(_heading(found, file)),
        list(_domain(found)),
        list(_records(found)),
        list(_pages(found.pages)),
    ]
    verdict = "whole" if found.error is None else f"DAMAGED: {found.error}"
    sections.append([line("verdict", verdict)])
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def as_verdict(found: Survey) -> str:
    """Return one line: whether the image is whole, and if not, why."""
    if found.error is not None:
        text = str(found.error)
        # Most messages name the image already, as it is what they are about.
        return plain(text if text.startswith(found.name) else f"{found.name}: {text}")
    kind = KIND_NAMES[found.domain.type.name] if found.domain else "?"
    name = f" {found.config.name}" if found.config and found.config.name else ""
    records = sum(entry.count for entry in found.records.values())
    digest = found.checked_digest
    notes = "; it has no digest" if digest is None else f"; its {digest.title} digest holds"
    return plain(
        f"{found.name}: whole: {kind} domain{name}, {counted(records, 'record')}, "
        f"{counted(found.pages.nr_data, 'page')} of data, {size_text(found.total_bytes)}{notes}"
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
        "disks": found.disks,
        "digest": _digest_dict(found),
        "records": {name: dataclasses.asdict(entry) for name, entry in found.records.items()},
        "pages": {
            "nr_entries": pages.nr_entries,
            "nr_data": pages.nr_data,
            "nr_zero": pages.nr_zero,
            "nr_duplicate": pages.nr_duplicate,
            "duplicate_is_exact": pages.duplicate_is_exact,
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


def _digest_dict(found: Survey) -> dict[str, Any] | None:
    if found.digest is None:
        return None
    return {
        "algorithm": found.digest.algorithm,
        "hex": found.digest.digest.hex(),
        "compared": found.checked_digest is not None,
    }


LABELS = {"afterwards": "domain after the save:", "before": "header"}
"""Of keys of PROVENANCE that say little by themselves: the domain's last state; what precedes the libxc stream."""


def _heading(found: Survey, file: str | None) -> Iterator[str]:
    from saverestore.stream.layout import DRAFT_B_VERSION

    yield line("image", found.name)
    if file is not None:
        yield line("file", file)
    exact = counted(found.total_bytes, "byte")
    yield line("size", exact if found.total_bytes < 1024 else f"{size_text(found.total_bytes)} ({exact})")
    if found.trailing_bytes:
        yield line("after it", f"{counted(found.trailing_bytes, 'byte')} that do not belong to the image")
    if found.layers:
        version = f", version {found.image.version}" if found.image else ""
        if found.image and found.image.version == DRAFT_B_VERSION:
            version += f" (draft-b, {found.image.order.name.lower()}-endian)"
        yield line("format", " > ".join(found.layers) + version)
    if found.domain:
        written_by = f"Xen {found.domain.xen_major}.{found.domain.xen_minor}"
        if found.domain.xen_major == 0:
            written_by = "converted from an image of Xen 4.5 or before"
        yield line("written by", written_by)
    for key, value in (found.provenance or {}).items():
        yield line(f"  {plain(key)} ", _words(value))
    for disk in found.disks:
        yield line(f"  disk {plain(str(disk.get('vdev')))} ", _disk(disk))
    if found.digest:
        name = DIGEST_NAMES.get(found.digest.algorithm, f"algorithm {found.digest.algorithm}")
        verdict = "the image does not match it" if found.checked_digest is None else "verified"
        yield line("digest", f"{name} {found.digest.digest.hex()} ({verdict})")


def _disk(disk: dict[str, Any]) -> str:
    """What it was when the domain was suspended."""
    text = f"{disk.get('path')}"
    if isinstance(size := disk.get("bytes"), int):
        text += f", {size_text(size)}"
    if isinstance(written := disk.get("written"), str):
        text += f", last written {written}"
    return text


def _words(value: Any) -> str:
    """A value of PROVENANCE for people: "live yes, compress –", and in it "before: bytes 919, xxh3 018d…"."""
    if isinstance(value, dict):
        return ", ".join(
            f"{LABELS.get(name, name)}: {_words(inner)}"
            if isinstance(inner, dict)
            else f"{LABELS.get(name, name)} {_words(inner)}"
            for name, inner in value.items()
        )
    if value is None:
        return "–"
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def _domain(found: Survey) -> Iterator[str]:
    config = found.config
    if found.domain:
        kind = KIND_NAMES[found.domain.type.name]
        yield line("domain type", f"{kind} ({config.type})" if config and config.type else kind)
    if config is None:
        return
    if config.name is not None:
        yield line("name", config.name)
    if config.uuid is not None:
        yield line("uuid", config.uuid)
    if config.max_vcpus is not None:
        yield line("vcpus", config.max_vcpus)
    if config.memory_kib is not None:
        most = f", at most {size_text(config.max_memory_kib * 1024)}" if config.max_memory_kib else ""
        yield line("memory", f"{size_text(config.memory_kib * 1024)}{most}")


def _records(found: Survey) -> Iterator[str]:
    if not found.records:
        return
    from saverestore.cli.pyimage.meanings import RECORDS

    width = max(len(name) for name in found.records)
    yield f"{'record':<{width}}  {'count':>9}  {'bytes':>15}"
    for name, entry in found.records.items():
        meaning = RECORDS.get(name, "")
        yield f"{name:<{width}}  {entry.count:>9}  {entry.length_bytes:>15}  {meaning}".rstrip()
    if found.checkpoints:
        yield f"{counted(found.checkpoints, 'checkpoint')}: the domain's state was sent more than once"


def _pages(pages: PageStatistics) -> Iterator[str]:
    if not pages.nr_entries and not pages.nr_verify_entries:
        return
    from saverestore.cli.pyimage.meanings import PAGE_TYPES
    from saverestore.stream.layout import PAGE_SIZE

    entries = "1 entry" if pages.nr_entries == 1 else f"{pages.nr_entries} entries"
    yield line(
        "pages",
        f"{entries}, {pages.nr_data} with data ({size_text(pages.nr_data * PAGE_SIZE)})",
    )
    least = "" if pages.distinct_is_exact else "at least "
    pfns = f"{least}{counted(pages.nr_distinct, 'pfn')}"
    if pages.lowest_pfn is not None:
        pfns += f", {pages.lowest_pfn:#x} to {pages.highest_pfn:#x}"
    yield line("different", pfns)
    yield line("resent", pages.nr_sent_again)
    yield line("all zero", pages.nr_zero)
    if pages.nr_duplicate is not None:
        least = "" if pages.duplicate_is_exact else "at least "
        yield line(
            "duplicates",
            f"{least}{counted(pages.nr_duplicate, 'more page')} with the content of an earlier one",
        )
    if pages.nr_verify_entries:
        yield line("for comparison", f"{pages.nr_verify_entries} entries after VERIFY, not counted above")
    for kind, count in sorted(pages.by_type.items()):
        yield line(f"  {kind.name}", f"{count} ({PAGE_TYPES[kind]})")
