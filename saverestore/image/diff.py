"""What differs between two images: pages, registers, other records, configuration.

Memory and state are told apart from what is only said about the image (format, who wrote it, digest): two images may
hold the same domain and differ there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np

from saverestore.image.index import (
    ImageIndex,
    Progress,
    offsets_of_places,
    types_of_places,
    with_data,
)
from saverestore.image.pagemap import chunks_of_both
from saverestore.image.pages import BATCH_PAGES, read_pages, runs_of
from saverestore.image.state import Parts, parts_of
from saverestore.stream.layout import NR_PAGE_TYPES, PAGE_SIZE, BoolArray, PageType, U64Array
from saverestore.transport.random_access import RandomAccess


class Absent(Enum):
    """In `Change`: there is nothing in this image. No value of JSON is the same as this."""

    ABSENT = "absent"


ABSENT = Absent.ABSENT


@dataclass(frozen=True)
class Change:
    """A value that differs. `a`, `b`: the values; or `ABSENT`."""

    path: str
    a: Any
    b: Any


@dataclass
class PageSet:
    """Pages that differ in one way: `runs`, shape (n, 2), first and last pfns; `by_type`: how many, by "A → B"."""

    nr_pages: int = 0
    runs: U64Array = field(default_factory=lambda: np.empty((0, 2), dtype=np.uint64))
    by_type: dict[str, int] = field(default_factory=dict)


@dataclass
class Difference:
    """What differs between images A and B. `pages_same`: pages with the same type and content in both."""

    only_a: PageSet
    only_b: PageSet
    changed: PageSet
    pages_same: int
    registers: dict[str, list[Change]]
    records: list[Change]
    configuration: list[Change]
    about: list[Change]

    @property
    def same_domain(self) -> bool:
        """Whether both hold the same domain in the same state, whatever is said about them."""
        pages = self.only_a.nr_pages or self.only_b.nr_pages or self.changed.nr_pages
        return not (pages or self.registers or self.records or self.configuration)


class _Collected:
    """Pfns of one kind of difference while they are found, rising."""

    def __init__(self) -> None:
        self._runs: list[U64Array] = []
        self._counts = np.zeros((NR_PAGE_TYPES, NR_PAGE_TYPES), dtype=np.int64)

    def add(self, pfns: U64Array, types_a: U64Array, types_b: U64Array) -> None:
        self._runs.append(runs_of(pfns))
        np.add.at(self._counts, (types_a.astype(np.intp), types_b.astype(np.intp)), 1)

    def result(self, *, both: bool) -> PageSet:
        runs = np.concatenate([np.empty((0, 2), dtype=np.uint64), *self._runs])
        counts = self._counts
        names = {
            (int(a), int(b)): f"{PageType(a).name} → {PageType(b).name}" if a != b else PageType(a).name
            for a, b in np.argwhere(counts)
        }
        if not both:  # of the one side that is there
            names = {(a, b): PageType(min(a, b)).name for a, b in names}
        by_type: dict[str, int] = {}
        for (a, b), name in names.items():
            by_type[name] = by_type.get(name, 0) + int(counts[a, b])
        return PageSet(int(counts.sum()), _joined(runs), by_type)


def _joined(runs: U64Array) -> U64Array:
    """Rising runs of which some may follow one another without a gap, as runs with gaps between all."""
    if not len(runs):
        return runs
    breaks = runs[1:, 0] != runs[:-1, 1] + np.uint64(1)
    firsts = runs[np.append(True, breaks), 0]
    lasts = runs[np.append(breaks, True), 1]
    return np.stack([firsts, lasts], axis=1)


def compare(
    a: tuple[RandomAccess, ImageIndex],
    b: tuple[RandomAccess, ImageIndex],
    on_progress: Progress | None = None,
) -> Difference:
    """Compare two images. `on_progress(done_bytes)`: of the pages that both have.

    Pages that are in neither or have no data in either (never sent, gone, to be allocated only) are the same.
    """
    only_a, only_b, changed = _Collected(), _Collected(), _Collected()
    nr_same = done = 0
    for pfns, places_a, places_b in chunks_of_both(a[1].pages, b[1].pages):
        in_a, in_b = with_data(places_a), with_data(places_b)
        types_a, types_b = _types(places_a), _types(places_b)
        for found, which in ((only_a, in_a & ~in_b), (only_b, in_b & ~in_a)):
            found.add(pfns[which], types_a[which], types_b[which])
        both = np.flatnonzero(in_a & in_b)
        differs = types_a[both] != types_b[both]
        for part in _batches(offsets_of_places(places_a[both])):
            differs[part] |= _content_differs(a[0], b[0], places_a[both[part]], places_b[both[part]])
            done += len(part)
            if on_progress is not None:
                on_progress(done * PAGE_SIZE)
        which = both[differs]
        changed.add(pfns[which], types_a[which], types_b[which])
        nr_same += len(both) - len(which)
    registers, records, about = _state(parts_of(a[1]), parts_of(b[1]))
    return Difference(
        only_a.result(both=False),
        only_b.result(both=False),
        changed.result(both=True),
        nr_same,
        registers,
        records,
        json_changes(a[1].config, b[1].config),
        about,
    )


def _types(places: U64Array) -> U64Array:
    """Page types; what was never named is not there."""
    types: U64Array = np.where(places == 0, np.uint64(PageType.XTAB), types_of_places(places))
    return types


def _batches(offsets: U64Array) -> Iterator[Any]:
    """Indices in batches, in the order in which the pages lie in the image."""
    order = np.argsort(offsets, kind="stable")
    for begin in range(0, len(order), BATCH_PAGES):
        yield order[begin : begin + BATCH_PAGES]


def _content_differs(a: RandomAccess, b: RandomAccess, places_a: U64Array, places_b: U64Array) -> BoolArray:
    pages_a = read_pages(a, offsets_of_places(places_a)).view(np.uint64)
    pages_b = read_pages(b, offsets_of_places(places_b)).view(np.uint64)
    differs: BoolArray = (pages_a != pages_b).any(axis=1)
    return differs


def _state(a: Parts, b: Parts) -> tuple[dict[str, list[Change]], list[Change], list[Change]]:
    """Changes of registers by vCPU, of other records, and of what is said about the image."""
    registers = {}
    for vcpu in sorted(a.registers.keys() | b.registers.keys()):
        changes = list(_changes(a.registers.get(vcpu, {}), b.registers.get(vcpu, {})))
        if changes:
            registers[vcpu] = changes
    return registers, list(_changes(a.records, b.records)), list(_changes(a.about, b.about))


def _changes(a: dict[str, Any], b: dict[str, Any]) -> Iterator[Change]:
    for name in [*a, *(name for name in b if name not in a)]:
        one, other = a.get(name, ABSENT), b.get(name, ABSENT)
        if type(one) is bytes and type(other) is bytes:
            if one != other:
                yield Change(name, *_about_bytes(one, other))
        elif one != other:
            yield Change(name, _shown(one), _shown(other))


def _shown(value: Any) -> Any:
    return f"{len(value)} bytes" if isinstance(value, bytes) else value


def _about_bytes(a: bytes, b: bytes) -> tuple[str, str]:
    """What can be said of two contents that nobody here understands."""
    common = min(len(a), len(b))
    unequal = np.frombuffer(a, np.uint8, common) != np.frombuffer(b, np.uint8, common)
    different = int(np.count_nonzero(unequal)) + max(len(a), len(b)) - common
    return f"{len(a)} bytes", f"{len(b)} bytes, {different} of them different"


def json_changes(a: Any, b: Any, path: str = "") -> list[Change]:
    """The paths at which two JSON values differ, as `b_info.max_vcpus` and `disks[0].pdev_path`."""
    changes: list[Change] = []
    pending = [(a, b, path)]
    while pending:
        one, other, where = pending.pop()
        if isinstance(one, dict) and isinstance(other, dict):
            names = [*one, *(name for name in other if name not in one)]
            pending += [
                (one.get(name, ABSENT), other.get(name, ABSENT), f"{where}.{name}" if where else name)
                for name in reversed(names)
            ]
        elif isinstance(one, list) and isinstance(other, list):
            length = max(len(one), len(other))
            padded = [[*values, *[ABSENT] * (length - len(values))] for values in (one, other)]
            pending += [(padded[0][i], padded[1][i], f"{where}[{i}]") for i in reversed(range(length))]
        elif type(one) is not type(other) or one != other:
            changes.append(Change(where or "(all of it)", one, other))
    return changes


def as_dict(found: Difference) -> dict[str, Any]:
    """The difference as plain values, for JSON. A change has no "a" (or "b") where there is nothing."""

    def pages(one: PageSet) -> dict[str, Any]:
        return {"nr_pages": one.nr_pages, "by_type": one.by_type, "pfns": one.runs.tolist()}

    def changes(listed: list[Change]) -> list[dict[str, Any]]:
        sides = [{"path": change.path, "a": change.a, "b": change.b} for change in listed]
        return [{name: value for name, value in side.items() if value is not ABSENT} for side in sides]

    return {
        "same": found.same_domain,
        "pages": {
            "same": found.pages_same,
            "only_a": pages(found.only_a),
            "only_b": pages(found.only_b),
            "changed": pages(found.changed),
        },
        "registers": {vcpu: changes(registers) for vcpu, registers in found.registers.items()},
        "records": changes(found.records),
        "configuration": changes(found.configuration),
        "about": changes(found.about),
    }
