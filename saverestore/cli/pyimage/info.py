"""`pyimage info` and `pyimage verify`: one pass over an image, told in full or in one line."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from saverestore.cli.pyimage.common import Bar, Subparsers, add_command, line, plain, size_text
from saverestore.errors import ExitCode, ImageError

if TYPE_CHECKING:
    from saverestore.stream.survey import Survey
    from saverestore.stream.tally import PageDigests, PageStatistics

KIND_NAMES = {"X86_PV": "x86 PV", "X86_HVM": "x86 HVM or PVH", "ARM64": "arm64"}
DIGEST_NAMES = {1: "XXH3-128", 2: "SHA-256", 3: "BLAKE3"}


def add_to(commands: Subparsers) -> None:
    """Declare `info` and `verify`."""
    for name, run, text in (
        ("info", run_info, "show what an image holds: domain, records, pages"),
        ("verify", run_verify, "read an image to its end and tell whether it is whole"),
    ):
        command = add_command(commands, name, run, text)
        command.add_argument("image", metavar="IMAGE", help="file with the image, or '-' for standard input")
        command.add_argument("--json", action="store_true", help="print JSON, for programs")


def run_info(arguments: argparse.Namespace) -> int:
    """Print everything that the image tells, whole or not."""
    from saverestore.kernels.xxh3 import page_digests

    found = _survey(arguments.image, page_digests)
    print(as_json(found) if arguments.json else as_text(found))
    return _exit_code(found)


def run_verify(arguments: argparse.Namespace) -> int:
    """Print one line: that the image is whole, or the first thing that is wrong with it."""
    found = _survey(arguments.image)
    print(as_json(found) if arguments.json else as_verdict(found))
    return _exit_code(found)


def _exit_code(found: Survey) -> int:
    return ExitCode.DONE if found.error is None else found.error.exit_code


def _survey(image: str, page_digests: PageDigests | None = None) -> Survey:
    """Read the whole image, with a progress bar where someone sees it."""
    from saverestore.stream.survey import note_trailing_bytes, survey
    from saverestore.transport.opening import open_image

    with open_image(image) as source, Bar(source.total_bytes) as bar:
        found = survey(source, bar.update_to, page_digests)
        # Behind a damaged image nothing is worth reading.
        if found.is_whole and not source.may_continue:
            try:
                note_trailing_bytes(found, source.skip_to_end())
            except ImageError as error:  # of the compressed file, behind all that the image consists of
                found.error = error
    return found


def as_text(found: Survey) -> str:
    """Return the survey as aligned lines, in sections."""
    sections = [list(_heading(found)), list(_domain(found)), list(_records(found)), list(_pages(found.pages))]
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


def _heading(found: Survey) -> Iterator[str]:
    from saverestore.stream.layout import DRAFT_B_VERSION

    yield line("image", found.name)
    yield line("size", f"{size_text(found.total_bytes)} read ({found.total_bytes} bytes)")
    if found.trailing_bytes:
        yield line("behind it", f"{found.trailing_bytes} bytes that do not belong to the image")
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
        if isinstance(value, dict):
            value = ", ".join(f"{name} {inner}" for name, inner in value.items())
        yield line(f"  {plain(key)} ", value)
    for disk in found.disks:
        yield line(f"  disk {plain(str(disk.get('vdev')))} ", _disk(disk))
    if found.digest:
        name = DIGEST_NAMES.get(found.digest.algorithm, f"algorithm {found.digest.algorithm}")
        verdict = "does not hold" if found.checked_digest is None else "holds"
        yield line("digest", f"{name} {found.digest.digest.hex()} ({verdict})")


def _disk(disk: dict[str, Any]) -> str:
    """What it was when the domain was suspended."""
    text = f"{disk.get('path')}"
    if isinstance(size := disk.get("bytes"), int):
        text += f", {size_text(size)}"
    if isinstance(written := disk.get("written"), str):
        text += f", last written {written}"
    return text


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

    yield line(
        "pages",
        f"{pages.nr_entries} entries, {pages.nr_data} with data ({size_text(pages.nr_data * PAGE_SIZE)})",
    )
    least = "" if pages.distinct_is_exact else "at least "
    yield line(
        "different", f"{least}{pages.nr_distinct} pfns, {pages.lowest_pfn:#x} to {pages.highest_pfn:#x}"
    )
    yield line("sent again", pages.nr_sent_again)
    yield line("all zero", pages.nr_zero)
    if pages.nr_duplicate is not None:
        least = "" if pages.duplicate_is_exact else "at least "
        yield line("duplicates", f"{least}{pages.nr_duplicate} more pages with the content of an earlier one")
    if pages.nr_verify_entries:
        yield line("for comparison", f" {pages.nr_verify_entries} entries after VERIFY, not counted above")
    for kind, count in sorted(pages.by_type.items()):
        yield line(f"  {kind.name}", count)
