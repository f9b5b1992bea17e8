"""`pyimage list` and `pyimage prune`: the images of a store."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saverestore.cli import arguments as arguments_of_all
from saverestore.cli.common import STORE
from saverestore.cli.pyimage.common import Subparsers, add_command, line, say, size_text
from saverestore.errors import (
    ErrorName,
    ExitCode,
    ImageError,
    Interrupted,
    SaveRestoreError,
    TransportError,
    UsageError,
    name_of_errno,
)
from saverestore.words import counted, plain

if TYPE_CHECKING:
    from saverestore.operations.retention import Rule
    from saverestore.operations.store import Entry
    from saverestore.transport.base import ByteSource

RULES = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
PENDING = "to be restored by 'pyrestore --all'"
UNREADABLE = (ErrorName.PACKAGE_MISSING, ErrorName.IMAGE_UNSUPPORTED)
"""Nothing is wrong with such an image, as far as is known here."""
KINDS = {"pv": "PV", "pvh": "PVH", "hvm": "HVM"}


def add_to(commands: Subparsers) -> None:
    """Declare `list` and `prune`."""
    listing = add_command(
        commands,
        "list",
        run_list,
        "list the images of a store: domain, time, size on disk, kind, Xen, whether whole",
        "Pages are not read: 'whole' means that nothing is missing. --verify reads them and compares digests, too. "
        "The exit code is 4 when an image is not whole.",
    )
    _add_folder(listing)
    listing.add_argument("--verify", action="store_true", help="read all pages, and compare digests")
    listing.add_argument("--json", action="store_true", help="print JSON, for programs")
    prune = add_command(
        commands,
        "prune",
        run_prune,
        "remove old images from a store",
        "Works on each domain by itself. Each rule keeps the newest image of each of the last N periods that have "
        "one, in local time; what no rule keeps is removed. Never removed are: an image that is being restored, one "
        "that 'pyrestore --all' is to restore, the newest whole image of a domain of which no whole one would be "
        "left, and images that cannot be read, where no other of that name is whole. Other files in the directory "
        "and symbolic links are not touched.",
    )
    _add_folder(prune)
    rules = prune.add_argument_group("what is kept")
    for rule in RULES:
        what = "newest images" if rule == "last" else f"newest {rule} images"
        rules.add_argument(f"--keep-{rule}", metavar="N", type=_count, default=0, help=f"keep the N {what}")
    prune.add_argument("--domain", metavar="NAME", help="prune only the images of this domain")
    prune.add_argument(
        "--verify",
        action="store_true",
        help="read all pages: an image counts as whole only if its digest holds, too",
    )
    prune.add_argument("--dry-run", action="store_true", help="print what would be removed; make no changes")


def _add_folder(command: argparse.ArgumentParser) -> None:
    folder = command.add_argument(
        "folder", metavar="DIR", nargs="?", default=STORE, help=f"the store; default {STORE}"
    )
    arguments_of_all.complete(folder, arguments_of_all.FILE)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a number of images, not '{text}'")
    return int(text)


@dataclass(frozen=True)
class Described:
    """One image of a store: what is printed of it. Sizes in bytes; None: not known, as the image cannot be read.

    `readable`: False where nobody can say whether it is whole: the disk failed, a package is missing, or its format
    is a later one.
    """

    image: str
    path: str
    when: str
    domain: str | None
    uuid: str | None
    kind: str | None
    xen: str | None
    file_bytes: int
    disk_bytes: int
    whole: bool
    readable: bool
    error: str | None


def run_list(arguments: argparse.Namespace) -> int:
    """Print a line for each image."""
    from saverestore.operations.store import entries

    found = [describe(entry, verify=arguments.verify) for entry in entries(Path(arguments.folder))]
    described = [one for one in found if one is not None]
    if arguments.json:
        print(json.dumps([asdict(one) for one in described], indent=2, ensure_ascii=True))
    elif not described:
        print(f"{plain(arguments.folder)}: no images")
    else:
        _print_table(described)
    return ExitCode.DONE if all(one.whole for one in described) else ExitCode.IMAGE


def _print_table(described: Sequence[Described]) -> None:
    rows = [("IMAGE", "ON DISK", "KIND", "XEN", "STATE")]
    for one in described:
        problem = "DAMAGED" if one.readable else "UNREADABLE"
        state = "whole" if one.whole else f"{problem}: {one.error}"
        rows.append((one.image, size_text(one.disk_bytes), one.kind or "?", one.xen or "?", state))
    widths = [max(len(row[at]) for row in rows) for at in range(4)]
    for image, size, kind, xen, state in rows:
        print(
            plain(
                f"{image:<{widths[0]}}  {size:>{widths[1]}}  {kind:<{widths[2]}}  {xen:<{widths[3]}}  {state}"
            )
        )
    domains = {one.uuid or one.image.rpartition("@")[0] for one in described}
    total = size_text(sum(one.disk_bytes for one in described))
    print(f"{counted(len(described), 'image')} of {counted(len(domains), 'domain')}, {total} on disk")


def describe(entry: Entry, *, verify: bool) -> Described | None:
    """Look an image through. One that cannot be read is described, too; None for one that is gone meanwhile."""
    try:
        status = entry.path.stat()
    except FileNotFoundError:
        return None
    except OSError as failure:
        raise TransportError(
            f"{entry.path}: {failure.strerror}", name=name_of_errno(failure.errno)
        ) from failure
    facts: dict[str, Any] = dict.fromkeys(("domain", "uuid", "kind", "xen"))
    error: str | None = None
    readable = True
    try:
        _look_through(entry.path, facts, verify=verify)
    except Interrupted:
        raise
    except SaveRestoreError as failure:
        if failure.name is ErrorName.FILE_NOT_FOUND:
            return None
        error = str(failure)
        readable = isinstance(failure, ImageError) and failure.name not in UNREADABLE
    return Described(
        image=entry.id,
        path=str(entry.path),
        when=entry.when.isoformat(),
        **facts,
        file_bytes=status.st_size,
        disk_bytes=status.st_blocks * 512,
        whole=error is None,
        readable=readable,
        error=error,
    )


def _look_through(path: Path, facts: dict[str, Any], *, verify: bool) -> None:
    """Fill in what is known of it. ImageError where it is not whole."""
    from saverestore.image.access import AccessSource
    from saverestore.transport.opening import open_image
    from saverestore.transport.random_access import open_random_access

    access = None if verify else open_random_access(str(path))
    if access is not None:  # pages are passed over, those that are compressed unread
        with access:
            source = AccessSource(access)
            _take_facts(source, facts, verify=False)
            if not source.at_end():
                raise ImageError(f"{path}: something follows the end of the image", offset=source.offset)
        return
    with open_image(str(path)) as whole:
        _take_facts(whole, facts, verify=verify)
        if trailing := whole.skip_to_end():
            raise ImageError(f"{path}: {counted(trailing, 'byte')} behind the end of the image")


def _take_facts(source: ByteSource, facts: dict[str, Any], *, verify: bool) -> None:
    from saverestore.stream.reader import LibxcReader
    from saverestore.stream.survey import ConfigSummary
    from saverestore.stream.walk import walk
    from saverestore.stream.xl import XlHeader

    for event in walk(source, check_digest=verify):
        if isinstance(event, XlHeader) and event.config is not None:
            try:
                config = ConfigSummary.of(json.loads(event.config))
            except (ValueError, AttributeError, RecursionError) as error:
                raise ImageError(
                    f"{source.name}: the domain's configuration is not JSON of libxl: {error}"
                ) from error
            facts |= {"domain": config.name, "uuid": config.uuid, "kind": KINDS.get(config.type or "")}
        elif isinstance(event, LibxcReader):
            facts["xen"] = f"{event.domain.xen_major}.{event.domain.xen_minor}"


def run_prune(arguments: argparse.Namespace) -> int:
    """Remove what no rule keeps; a line for each image."""
    from saverestore.operations.pending import is_pending
    from saverestore.operations.retention import Rule
    from saverestore.operations.store import entries, of_domain, remove

    counts = {Rule(rule): getattr(arguments, f"keep_{rule}") for rule in RULES}
    if not any(counts.values()):
        raise UsageError("nothing says what is kept: give --keep-last N, --keep-daily N or another rule")
    # A link is no image of its own: kept, it would be nothing without the one that it points to.
    found = [one for one in entries(Path(arguments.folder)) if not one.path.is_symlink()]
    if arguments.domain is not None:
        found = of_domain(found, arguments.domain)
        if not found:
            raise UsageError(
                f"{arguments.folder}: there is no image of {arguments.domain!r}",
                name=ErrorName.FILE_NOT_FOUND,
            )
    failed: list[ExitCode] = []
    nr_kept = nr_removed = freed = 0
    for entry, reason in decide(found, counts, verify=arguments.verify):
        if reason is not None:
            nr_kept += 1
            print(line("keep", f"{entry.id} ({reason})"))
            continue
        disk_bytes = _disk_bytes(entry.path)
        if arguments.dry_run:
            nr_removed, freed = nr_removed + 1, freed + disk_bytes
            print(line("would remove", entry.id))
            continue
        try:
            # Asked again: a restore that was just about to end may have failed.
            was_removed = remove(entry.path, is_pending)
        except Interrupted:
            raise
        except SaveRestoreError as error:
            print(line("FAILED", str(error)))
            failed.append(error.exit_code)
            continue
        if was_removed:
            nr_removed, freed = nr_removed + 1, freed + disk_bytes
            print(line("removed", entry.id))
        else:
            nr_kept += 1
            print(line("keep", f"{entry.id} (it is being restored, or {PENDING})"))
    removed = f"{nr_removed} {'would be removed' if arguments.dry_run else 'removed'} ({size_text(freed)})"
    failures = f", {len(failed)} FAILED" if failed else ""
    say(f"{counted(nr_kept, 'image')} kept, {removed}{failures}")
    return failed[0] if failed else ExitCode.DONE


def _disk_bytes(path: Path) -> int:
    """What it takes on the disk; 0 when it is gone."""
    try:
        return path.lstat().st_blocks * 512
    except OSError:
        return 0


def decide(
    found: Sequence[Entry], counts: dict[Rule, int], *, verify: bool
) -> list[tuple[Entry, str | None]]:
    """Each image, the oldest first, with the reason for which it is kept; None: it is to be removed."""
    from saverestore.operations.pending import pending
    from saverestore.operations.retention import kept

    waiting = {one.path for folder in {entry.path.parent for entry in found} for one in pending(folder)}
    by_name = defaultdict(list)
    for entry in found:
        by_name[entry.stem].append(entry)
    decided: list[tuple[Entry, str | None]] = []
    for images in by_name.values():
        reasons = kept(images, counts)
        reasons |= {one: PENDING for one in images if one.path in waiting and one not in reasons}
        if len(reasons) < len(images):
            reasons |= _last_whole_ones(images, set(reasons), verify=verify)
        decided += [(one, reasons.get(one)) for one in images]
    return decided


def _last_whole_ones(images: Sequence[Entry], kept: set[Entry], *, verify: bool) -> dict[Entry, str]:
    """The newest whole image of each domain of which no whole one is kept. Several may have had one name.

    Those that are kept are looked at first, then the newest. Where none is found, those that cannot be read are kept:
    they may be whole.
    """
    safe: set[str | None] = set()
    found: dict[Entry, str] = {}
    unreadable: list[Entry] = []
    for entry in sorted(images, key=lambda one: (one in kept, one.order), reverse=True):
        one = describe(entry, verify=verify)
        if one is None or (one.readable and not one.whole):
            continue
        if not one.readable:
            unreadable.append(entry)
        elif one.uuid not in safe:
            safe.add(one.uuid)
            if entry not in kept:
                found[entry] = "the only whole image of its domain"
    if not safe:
        found = {one: "it cannot be read, and no other is whole" for one in unreadable if one not in kept}
    return found
