"""How numbers, sizes and names are written for people: the same in every message, on every layer."""

from __future__ import annotations

KIB, MIB = 1 << 10, 1 << 20


def counted(number: int, thing: str) -> str:
    """A number of things: "1 page", "2 pages"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def mib(nr_bytes: float) -> str:
    """A size in whole MiB, to the nearest: "131 MiB"."""
    return f"{nr_bytes / MIB:.0f} MiB"


def rate_text(bytes_per_s: float) -> str:
    """A rate as people read it, of a slow link, too: 64 KiB/s, 1.5 MiB/s, 480 MiB/s."""
    if bytes_per_s < MIB:
        return f"{bytes_per_s / KIB:.0f} KiB/s"
    return f"{bytes_per_s / MIB:.1f} MiB/s" if bytes_per_s < 10 * MIB else f"{bytes_per_s / MIB:,.0f} MiB/s"


def plain(text: str) -> str:
    """Make text from an image or another program harmless on a terminal: no control characters, no line breaks."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
