"""Two lab machines as two Xen hosts: on a cable of their own, with a disk that both see, and disks that are kept.

ROOT/run/pair/pair.json        which Xen each has, and what its disk is laid over: there from `up` to `down`
ROOT/run/pair/shared.img       the disk that both see
ROOT/run/pair/process.json     the cable
ROOT/run/pair/a/, b/           run-time state as of any lab machine, and disk.qcow2: what its dom0 wrote

pair = Pair()
pair.up(variants_of("4.17:4.20"))
pair.a.run("xl migrate g1 hostb")
pair.link(CUT)
pair.power_off("b")            as if its plug was pulled
pair.power_on("b")
pair.down()
"""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from xenlab import apt, boot, cable, cache, qemu, runstate
from xenlab.errors import LabError, step
from xenlab.link import Link
from xenlab.machine import CHECKOUT, Machine, require_room
from xenlab.proc import run_logged
from xenlab.variants import DEFAULT, variant_named

PLACE = "pair"
NAMES = qemu.MEMBERS
MEMORY_MIB = 3584
DOM0_MEMORY_MIB = 1536
SHARED_DISK_MIB = 256

_OVERLAY_PROGRAMS = {"qemu-img": "qemu-utils"}


class Host(Machine):
    """One of the two."""

    def __init__(self, name: str, variant: str = DEFAULT) -> None:
        super().__init__(variant, f"{PLACE}/{name}")
        folder = runstate.run_folder(PLACE)
        self.member = qemu.Member(name, self.folder / "cable.sock", folder / "shared.img")

    @property
    def label(self) -> str:
        """What people call it."""
        return self.member.hostname

    @property
    def how_to_start(self) -> str:
        """The command for people."""
        return "tools/lab pair up"

    @property
    def disk(self) -> Path:
        """What its dom0 wrote, as a layer over the disk that all boots begin with."""
        return self.folder / "disk.qcow2"

    def cut_power(self) -> bool:
        """Kill QEMU; what dom0 had flushed to its disk is there at the next boot. False when it was off."""
        return self._end((signal.SIGKILL,))


class Pair:
    """The pair of this cache. Holds no resources itself: any number of objects may speak of it."""

    def __init__(self) -> None:
        self.folder = runstate.run_folder(PLACE)

    @property
    def a(self) -> Host:
        """The first host; raises LabError when there is no pair."""
        return self.host("a")

    @property
    def b(self) -> Host:
        """The second host; raises LabError when there is no pair."""
        return self.host("b")

    def host(self, name: str) -> Host:
        """Return a host, running or switched off; raises LabError when there is no pair."""
        return Host(name, self._must_be_there()[name]["variant"])

    @property
    def hosts(self) -> list[Host]:
        """Both; raises LabError when there is no pair."""
        return [self.host(name) for name in NAMES]

    @property
    def is_there(self) -> bool:
        """Whether there is a pair, its hosts running or not."""
        return self._record() is not None

    @contextmanager
    def up_meanwhile(self, variants: dict[str, str]) -> Iterator[Self]:
        """Inside this block the pair is up, with this checkout in it; then off again, unless it was there before."""
        was_there = self.is_there
        try:
            self.up(variants)
            self.push()
            yield self
        finally:
            if not was_there:
                self.down()

    def up(
        self,
        variants: dict[str, str] | None = None,
        *,
        memory_mib: int | None = None,
        dom0_memory_mib: int | None = None,
    ) -> None:
        """Make the pair, or switch on what of it is off; return when both dom0s are ready.

        `variants`: of each host; by default those of the pair that is there, else the default one. Memory is given to
        a new pair; one that is there keeps its own. Raises LabError when a host is not ready in time. Then the hosts
        that were started here are off again, and a pair that was made here is gone.
        """
        with cache.locked(self.folder / "lock", "the pair"):
            record = self._record()
            if record is not None:
                there = {name: record[name]["variant"] for name in NAMES}
                if variants not in (None, there):
                    raise LabError(f"the pair is {':'.join(there.values())}: run `tools/lab pair down` first")
                self._switch_on(NAMES)
                return
            memory_mib, dom0_memory_mib = memory_mib or MEMORY_MIB, dom0_memory_mib or DOM0_MEMORY_MIB
            require_room(memory_mib, dom0_memory_mib)
            try:
                self._make(variants or variants_of(DEFAULT), memory_mib, dom0_memory_mib)
                self._switch_on(NAMES)
            except BaseException:
                self.down()
                raise

    def _switch_on(self, names: Sequence[str]) -> None:
        """Boot those of these hosts that are off."""
        record = self._must_be_there()
        off = [host for host in map(self.host, names) if host.state is None]
        boots = {}
        for host in off:
            host.down()  # what a killed command left half booted
            own = record[host.member.name]
            built = host.build()
            if own["base"] != str(built.disk) or not host.disk.is_file():
                raise LabError(
                    f"what {host.label} was booted from is no longer there: run `tools/lab pair down`"
                )
            boots[host] = dataclasses.replace(
                built,
                disk=host.disk,
                member=host.member,
                memory_mib=own["memory_mib"],
                dom0_memory_mib=own["dom0_memory_mib"],
            )
        if boots:
            with step(f"booting {' and '.join(host.label for host in boots)}"):
                self._boot(boots)

    def _boot(self, boots: dict[Host, qemu.Boot]) -> None:
        """Boot them side by side; either all are ready in the end, or none of them runs."""
        cable.ensure(PLACE, (Host("a").member.cable, Host("b").member.cable))
        with ExitStack() as started:
            booting = []
            for host, built in boots.items():
                booting.append((host, boot.start(host.place, built)))
                started.callback(booting[-1][1].abandon)
            try:
                for host, one in booting:
                    host.finish(one)
            except boot.PortTaken:
                raise LabError(
                    "a port was taken by another program meanwhile: run `tools/lab pair up` again"
                ) from None
            started.pop_all()

    def push(self, checkout: Path = CHECKOUT) -> list[bool]:
        """Install the checkout in both dom0s; for each, False when it had just that already."""
        return [host.push(checkout) for host in self.hosts]

    def power_off(self, name: str) -> bool:
        """Pull the plug of a host: its guests are gone, its disk is kept. False when it was off."""
        return self.host(name).cut_power()

    def power_on(self, name: str) -> None:
        """Boot a host that is off, from its disk as it is, and wait until its dom0 is ready."""
        with cache.locked(self.folder / "lock", "the pair"):
            self._switch_on([name])

    def link(self, link: Link, *, sent_by: str | None = None) -> None:
        """Give the cable rate, delay and loss: both directions, or only what one host sends."""
        for host in self._senders(sent_by):
            host.run(["lab-link", "set", *link.arguments()])

    def heal(self, *, sent_by: str | None = None) -> None:
        """Make the cable what it was at first."""
        for host in self._senders(sent_by):
            host.run(["lab-link", "heal"])

    def shown_link(self) -> dict[str, Link]:
        """How each host sends, as its kernel says; without those that are off."""
        return {
            host.member.name: Link(**json.loads(host.run(["lab-link", "show"]).stdout))
            for host in self.hosts
            if host.state is not None
        }

    def down(self) -> bool:
        """Switch off whatever runs of a pair and remove its disks; False when there was nothing."""
        found = self.is_there
        for name in NAMES:
            host = Host(name)
            found = host.down() or found
            host.disk.unlink(missing_ok=True)
            (host.folder / "pushed").unlink(missing_ok=True)
        cable.end(PLACE)
        for left in ("pair.json", "shared.img"):
            (self.folder / left).unlink(missing_ok=True)
        return found

    def _senders(self, sent_by: str | None) -> list[Host]:
        return self.hosts if sent_by is None else [self.host(sent_by)]

    def _record(self) -> dict[str, Any] | None:
        try:
            record = json.loads((self.folder / "pair.json").read_text())
            for name in NAMES:
                variant_named(record[name]["variant"])
                _ = record[name]["base"], record[name]["memory_mib"], record[name]["dom0_memory_mib"]
        except (OSError, ValueError, TypeError, KeyError, LabError):
            return None
        found: dict[str, Any] = record
        return found

    def _must_be_there(self) -> dict[str, Any]:
        record = self._record()
        if record is None:
            raise LabError("there is no pair: run `tools/lab pair up`")
        return record

    def _make(self, variants: dict[str, str], memory_mib: int, dom0_memory_mib: int) -> None:
        """Make what a new pair consists of: the record, fresh disks, the one that both see."""
        self.down()  # what of an earlier one was left
        log = cache.cache_root() / "build-pair.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")
        apt.install_packages(apt.missing_host_packages(_OVERLAY_PROGRAMS), log)
        record = {}
        for name, variant in variants.items():
            host = Host(name, variant)
            base = str(host.build().disk)
            host.folder.mkdir(parents=True, exist_ok=True)
            argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, str(host.disk)]
            run_logged(argv, log, shown="qemu-img")
            record[name] = {
                "variant": variant,
                "base": base,
                "memory_mib": memory_mib,
                "dom0_memory_mib": dom0_memory_mib,
            }
        with (self.folder / "shared.img").open("wb") as shared:
            shared.truncate(SHARED_DISK_MIB << 20)
        runstate.write_whole(self.folder / "pair.json", record)


def variants_of(xen: str) -> dict[str, str]:
    """Return each host's variant of "4.17" (both) or "4.17:4.20"; raises LabError for what cannot be a pair."""
    first, _, second = xen.partition(":")
    found = {"a": variant_named(first), "b": variant_named(second or first)}
    if len({variant.arch for variant in found.values()}) > 1:
        raise LabError(f"{xen}: hosts of two architectures cannot migrate to each other")
    return {name: variant.name for name, variant in found.items()}
