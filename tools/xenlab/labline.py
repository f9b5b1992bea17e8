"""The lines the lab's guest prints on its console. Shipped into dom0 too; needs nothing but Python.

LAB counter=17 uptime=18.02 hash=<16 hex digits> vcpus=2 dirtied=123456 rate=5000 verified=120000
    corrupt=0 fpu=ok fpu_checks=880 pages=4096 ymm=1    (one line)
CORRUPT pfn=0x1a2b page=17 word=2 ... expected=0x... found=0x...
FPU-CORRUPT vcpu=0 what=xmm round=12
CLOCK-CORRUPT uptime=4.10 after=7.20
LAB-GUEST-FAILED <why>
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field

_LAB = re.compile(
    r"LAB counter=(?P<counter>\d+) uptime=(?P<uptime_s>\d+\.\d+) hash=(?P<hash>[0-9a-f]{16}) "
    r"vcpus=(?P<vcpus>\d+) dirtied=(?P<dirtied>\d+) rate=(?P<rate>\d+) verified=(?P<verified>\d+) "
    r"corrupt=(?P<corrupt>\d+) fpu=(?P<fpu>ok|CORRUPT) fpu_checks=(?P<fpu_checks>\d+) pages=(?P<pages>\d+) "
    r"ymm=(?P<ymm>\d)"
)
_COMPLAINT = re.compile(r"(?:(?:FPU-|CLOCK-)?CORRUPT |LAB-GUEST-FAILED).*")


@dataclass(frozen=True)
class GuestLine:
    """What the guest printed at one moment."""

    counter: int
    """Goes up by one with each line, across any suspension."""
    uptime_s: float
    """Never goes back."""
    hash: str
    """Of a random block made at boot: tells one boot from another."""
    vcpus: int
    dirtied: int
    rate: int
    """Pages per second asked for; 0 is as fast as possible."""
    verified: int
    corrupt: int
    fpu: str
    fpu_checks: int
    pages: int
    ymm: int
    """1 when it keeps patterns in its ymm registers, too."""


def parse_line(line: str) -> GuestLine | None:
    """Return the LAB line in `line` (kernel messages before it are skipped), or None if it holds none."""
    matched = _LAB.search(line)
    if not matched:
        return None
    got = matched.groupdict()
    return GuestLine(
        counter=int(got["counter"]),
        uptime_s=float(got["uptime_s"]),
        hash=got["hash"],
        vcpus=int(got["vcpus"]),
        dirtied=int(got["dirtied"]),
        rate=int(got["rate"]),
        verified=int(got["verified"]),
        corrupt=int(got["corrupt"]),
        fpu=got["fpu"],
        fpu_checks=int(got["fpu_checks"]),
        pages=int(got["pages"]),
        ymm=int(got["ymm"]),
    )


@dataclass
class GuestLog:
    """What a console log tells, as a whole."""

    last: GuestLine | None = None
    lines: int = 0
    """LAB lines in the log: one more than before means the guest is going on."""
    complaints: list[str] = field(default_factory=list)
    """Every CORRUPT, FPU-CORRUPT, CLOCK-CORRUPT and LAB-GUEST-FAILED line."""
    gaps: list[tuple[int, int]] = field(default_factory=list)
    """Counters (before, after) of neighbouring lines of one boot that are not one apart."""
    backwards: list[tuple[float, float]] = field(default_factory=list)
    """Uptimes in s (before, after) of neighbouring lines of one boot where time went back."""
    boots: int = 0
    """How many different hashes followed one another; 1 unless the guest was started again."""

    def take(self, text: str) -> int:
        """Take what follows of the log: how many characters. A last line without its end does not count yet."""
        whole = text.rpartition("\n")[0]
        for line in whole.splitlines():
            self._take_line(line)
        return len(whole) + 1 if "\n" in text else 0

    def _take_line(self, line: str) -> None:
        now = parse_line(line)
        if now is None:
            complaint = _COMPLAINT.search(line)
            if complaint:
                self.complaints.append(complaint[0].rstrip())
            return
        before = self.last
        if before is None or before.hash != now.hash:
            self.boots += 1
        else:
            if now.counter != before.counter + 1:
                self.gaps.append((before.counter, now.counter))
            if now.uptime_s < before.uptime_s:
                self.backwards.append((before.uptime_s, now.uptime_s))
        self.lines += 1
        self.last = now

    def clean(self) -> bool:
        """Return whether the guest ran and found nothing wrong; gaps are for the caller to judge."""
        last = self.last
        return bool(
            last and not last.corrupt and last.fpu == "ok" and not self.complaints and not self.backwards
        )

    def as_dict(self) -> dict[str, object]:
        """Return what `lab-guest state --json` prints."""
        last = {} if self.last is None else asdict(self.last)
        return {
            **last,
            "lines": self.lines,
            "boots": self.boots,
            "corrupt_lines": len(self.complaints),
            "complaints": self.complaints[:20],
            "gaps": self.gaps,
            "backwards": self.backwards,
            "clean": self.clean(),
        }


def parse_log(text: str) -> GuestLog:
    """Return what the console log `text` tells; a last line without its end does not count."""
    log = GuestLog()
    log.take(text)
    return log
