"""`tools/bench migrate` without `--pair`: migrations between two processes of this machine, without Xen.

    loopback, tls    with 1, 2 and 4 connections, against QEMU's multifd with as many channels, on the same bytes
    cpu              what choosing a coding costs on a link that is faster than any
    gigabit, slow,   a link between two network name spaces: what coding gains; 1 Gbit/s, 100 Mbit/s, and that
    wan              late and with losses
    cut              the same link, cut for some seconds in the middle

Nobody writes to the domain, in either contender: what is measured is the link.
"""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from xenlab.link import Link

from benchmarks import qemu
from benchmarks.engine import make_domain, write_ram
from benchmarks.moving import LOOPBACK, How, Moved, move
from benchmarks.results import Comparison, compare, table, within
from benchmarks.wire import ADDRESSES, NoWire, Wire, wire
from saverestore.kernels.page import PAGE_SIZE
from saverestore.migrate.codecs import CodecOptions
from saverestore.migrate.source_link import LinkOptions
from saverestore.stream.codecs import Codec, Coding
from saverestore.testing.domain import MemoryDomain
from saverestore.transport.certificates import make_ca, make_cert

MB = 1e6
STREAMS = (1, 2, 4)

NONE = CodecOptions(Coding())
AUTO = CodecOptions()
ZLIB = CodecOptions(Coding(Codec.DEFLATE, 6))
"""As `ssh -C` has it; with one worker, as that has one thread."""

GIGABIT = Link(rate_bits_s=10**9)
SLOW = Link(rate_bits_s=10**8)
WAN = Link(rate_bits_s=10**8, delay_us=20_000, loss_percent=0.1)
"""40 ms to and fro."""
CUT_S = 5.0

AS_FAST, BEST = 1.0, 1.2
CPU = 1 / 1.05
GIGABIT_GAIN, WAN_GAIN, LINK_USED = 1.5, 2.0, 0.85
EXTRA_S, RESENT = 3.0, 0.02

OURS, QEMU = "ours", "QEMU multifd"


@dataclass
class Measured:
    """What all rounds came to, by name. `guest_bytes`: that each migration moved; of QEMU there are seconds only."""

    mib: int
    guest_bytes: int
    moved: dict[str, list[Moved]] = field(default_factory=dict)
    qemu_s: dict[str, list[float]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def seconds(self, name: str) -> float | None:
        """The median; None for what was not run."""
        if found := self.moved.get(name):
            return median(one.seconds for one in found)
        known = self.qemu_s.get(name)
        return median(known) if known else None

    def of(self, name: str, figure: Callable[[Moved], float]) -> float | None:
        """The median of something else of ours."""
        found = self.moved.get(name)
        return median(map(figure, found)) if found else None


def measure(
    mib: int,
    *,
    rounds: int,
    folder: Path,
    parts: Sequence[str],
    qemu_root: Callable[[], Path] | None,
    say: Callable[[str], None],
) -> Measured:
    """All of `parts`, in turns. BenchError for whatever fails; nothing stays in the folder."""
    domain = make_domain("pvh", mib)
    found = Measured(mib, len(domain.data_pfns()) * PAGE_SIZE)
    with ExitStack() as stack:
        stack.callback(domain.close)
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        plans = {
            "loopback": _loopback,
            "tls": _tls,
            "cpu": _cpu,
            "gigabit": _gigabit,
            "slow": _slow,
            "wan": _wan,
            "cut": _cut,
        }
        for part in parts:
            for turn in range(rounds):
                say(f"{part}, {mib} MiB: round {turn + 1} of {rounds}")
                try:
                    plans[part](found, domain, place, qemu_root)
                except NoWire as error:
                    found.left_out.append(f"{part}: {error}")
                    break
    return found


def _add(found: Measured, name: str, moved: Moved) -> None:
    found.moved.setdefault(name, []).append(moved)


QemuRoot = Callable[[], Path] | None


def _loopback(found: Measured, domain: MemoryDomain, place: Path, qemu_root: QemuRoot) -> None:
    for streams in STREAMS:
        how = How(AUTO, LinkOptions(streams=streams))
        _add(found, _named(OURS, streams), move(domain, how))
    _against_qemu(found, domain, place, qemu_root, tls=False)


def _tls(found: Measured, domain: MemoryDomain, place: Path, qemu_root: QemuRoot) -> None:
    certificates = _certificates(place)
    for streams in STREAMS:
        how = How(AUTO, LinkOptions(streams=streams), certificates)
        _add(found, _named(OURS, streams, tls=True), move(domain, how))
    _against_qemu(found, domain, place, qemu_root, tls=True)


def _cpu(found: Measured, domain: MemoryDomain, _place: Path, _qemu: QemuRoot) -> None:
    for name, codecs in (("cpu, none", NONE), ("cpu, auto", AUTO)):
        _add(found, name, move(domain, How(codecs, LinkOptions(streams=2))))


def _gigabit(found: Measured, domain: MemoryDomain, _place: Path, _qemu: QemuRoot) -> None:
    with wire(GIGABIT) as link:
        for name, codecs, workers in (("none", NONE, 2), ("auto", AUTO, 2), ("zlib", ZLIB, 1)):
            how = replace(_over(link, codecs), workers=workers)
            _add(found, f"1 Gbit/s, {name}", move(domain, how))


def _slow(found: Measured, domain: MemoryDomain, _place: Path, _qemu: QemuRoot) -> None:
    _coded_or_not(found, domain, "100 Mbit/s", SLOW)


def _wan(found: Measured, domain: MemoryDomain, _place: Path, _qemu: QemuRoot) -> None:
    _coded_or_not(found, domain, "100 Mbit/s, 40 ms, 0.1% lost", WAN)


def _coded_or_not(found: Measured, domain: MemoryDomain, what: str, of: Link) -> None:
    with wire(of) as link:
        for name, codecs in (("none", NONE), ("auto", AUTO)):
            _add(found, f"{what}, {name}", move(domain, _over(link, codecs)))


def _cut(found: Measured, domain: MemoryDomain, _place: Path, _qemu: QemuRoot) -> None:
    with wire(GIGABIT) as link:
        whole = move(domain, _over(link, AUTO))
        _add(found, "not cut", whole)

        def cut() -> None:
            time.sleep(whole.seconds / 2)
            link.cut()
            time.sleep(CUT_S)
            link.heal()

        _add(found, "cut", move(domain, _over(link, AUTO), cut))


def _over(link: Wire, codecs: CodecOptions) -> How:
    return How(codecs, LinkOptions(streams=2), host=ADDRESSES[1], enter=link.enter)


def _named(who: str, streams: int, *, tls: bool = False) -> str:
    return f"{who}, {streams} over {'TLS' if tls else 'TCP'}"


def _certificates(place: Path) -> Path:
    """Of one host, by the names that both we and QEMU look for."""
    made = place / "ca" / LOOPBACK
    if not made.exists():
        make_ca(place / "ca")
        make_cert(place / "ca", [LOOPBACK])
        for theirs, ours in qemu.TLS_FILES.items():
            (place / theirs).write_bytes((made / ours).read_bytes())
    return made


def _against_qemu(
    found: Measured, domain: MemoryDomain, place: Path, qemu_root: QemuRoot, *, tls: bool
) -> None:
    if qemu_root is None:
        return
    root, ram = qemu_root(), place / "ram"
    if not ram.exists():
        write_ram(domain, ram)
    for streams in STREAMS:
        empty = place / "ram-there"
        with empty.open("wb") as file:
            file.truncate(ram.stat().st_size)
        with (
            qemu.stopped_guest(root, place, empty, name="there", incoming=True, tls=tls) as there,
            qemu.stopped_guest(root, place, ram, name="here", tls=tls) as here,
        ):
            port = _free_port()
            there.listen(port, streams, tls=tls)
            seconds = here.migrate_to(port, streams, tls=tls)
        found.qemu_s.setdefault(_named(QEMU, streams, tls=tls), []).append(seconds)


def _free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as server:
        port: int = server.getsockname()[1]
        return port


# ---- what comes of it -----------------------------------------------------------------------------------


def comparisons(one: Measured) -> list[Comparison]:
    """What is asked of migrations, as far as it was run."""
    found: list[Comparison] = []
    for tls in (False, True):
        found += _of_loopback(one, tls=tls)
    found += _times(one, "processor time: auto, against none", "cpu, auto", "cpu, none", CPU, _cpu_of)
    for peer in ("none", "zlib"):
        what = f"1 Gbit/s: auto, against {peer}"
        found += _times(one, what, "1 Gbit/s, auto", f"1 Gbit/s, {peer}", GIGABIT_GAIN)
    for what, link in (("100 Mbit/s", SLOW), ("100 Mbit/s, 40 ms, 0.1% lost", WAN)):
        found += _times(one, f"{what}: auto, against none", f"{what}, auto", f"{what}, none", WAN_GAIN)
        sent_per_s = one.of(f"{what}, auto", lambda moved: moved.sent_bytes / moved.seconds)
        if sent_per_s is not None and link.rate_bits_s is not None:
            used = f"{what}: what auto uses, of the rate"
            found.append(compare(used, sent_per_s / MB, link.rate_bits_s / 8 / MB, "MB/s", LINK_USED))
    return found + _of_cut(one)


def _of_loopback(one: Measured, *, tls: bool) -> list[Comparison]:
    found = []
    rates: dict[str, list[float]] = {OURS: [], QEMU: []}
    for streams in STREAMS:
        pair = []
        for who in (OURS, QEMU):
            if (seconds := one.seconds(_named(who, streams, tls=tls))) is not None:
                pair.append(one.guest_bytes / seconds / MB)
                rates[who].append(pair[-1])
        if len(pair) == 2:
            what = f"{one.mib} MiB over loopback, {'TLS' if tls else 'TCP'}, {streams}: against {QEMU} of {streams}"
            found.append(compare(what, pair[0], pair[1], "MB/s", AS_FAST))
    if rates[OURS] and rates[QEMU]:
        what = f"{one.mib} MiB over loopback, {'TLS' if tls else 'TCP'}: best against best of {QEMU}"
        found.append(compare(what, max(rates[OURS]), max(rates[QEMU]), "MB/s", AS_FAST if tls else BEST))
    return found


def _cpu_of(moved: Moved) -> float:
    return moved.cpu_s


def _times(
    one: Measured,
    what: str,
    ours: str,
    peer: str,
    target: float,
    figure: Callable[[Moved], float] = lambda moved: moved.seconds,
) -> list[Comparison]:
    pair = one.of(ours, figure), one.of(peer, figure)
    if pair[0] is None or pair[1] is None:
        return []
    return [compare(what, pair[0], pair[1], "s", round(target, 3), less_is_better=True)]


def _of_cut(one: Measured) -> list[Comparison]:
    cut, whole = one.seconds("cut"), one.seconds("not cut")
    resent = one.of("cut", lambda moved: 100 * moved.link.resent_pages * PAGE_SIZE / moved.sent_bytes)
    if cut is None or whole is None or resent is None:
        return []
    return [
        within(f"cut for {CUT_S:g} s: time beyond that", max(0.0, cut - whole - CUT_S), EXTRA_S, "s"),
        within(f"cut for {CUT_S:g} s: sent again, of all", resent, 100 * RESENT, "%"),
    ]


def report(one: Measured) -> str:
    """Each kind of migration: guest memory moved a second, processor time, and what each coding made of how much."""
    rows = []
    for name, all_of_it in one.moved.items():
        last = all_of_it[-1]
        coded = ", ".join(
            f"{coding} {what.in_bytes / MB:.0f} to {what.out_bytes / MB:.0f}"
            for coding, what in last.coded.items()
        )
        cpu_s = one.of(name, _cpu_of)
        rows.append((name, _rate(one, name), "" if cpu_s is None else f"{cpu_s:.2f}", coded))
    rows += [(name, _rate(one, name), "", "") for name in one.qemu_s]
    return table(("migration", "MB/s", "processor s", "MB by codings, the last round"), rows)


def _rate(one: Measured, name: str) -> str:
    seconds = one.seconds(name)
    return "" if not seconds else f"{one.guest_bytes / seconds / MB:,.0f}"
