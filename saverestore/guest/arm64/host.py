"""What of an arm64 host decides how a domain is saved and restored: its interrupt controller."""

from __future__ import annotations

from pathlib import Path

from saverestore.errors import DomainError, ErrorName

INTERRUPTS = Path("/proc/interrupts")

CHIPS = {"GICv3": 3, "GICv2": 2, "GIC-0": 2}
"""The version by the names that Linux has for the chip."""

CONFIGURED = {"v2": 2, "v3": 3}
"""libxl_types.idl, libxl_gic_version; "default" is the host's own."""


def gic_version(configured: str | None, interrupts: Path = INTERRUPTS) -> int:
    """The version of the GIC that a domain has; `configured`: libxl's word for it, or None.

    Without one it is the host's, which is told by the names of dom0's own interrupts. DomainError when they do not.
    """
    if configured in CONFIGURED:
        return CONFIGURED[configured]
    try:
        words = set(interrupts.read_text().split())
    except OSError as error:
        raise DomainError(
            f"{interrupts}: {error.strerror}; the version of this host's GIC is not known",
            name=ErrorName.HOST_UNSUPPORTED,
        ) from error
    found = {version for name, version in CHIPS.items() if name in words}
    if len(found) != 1:
        raise DomainError(
            f"{interrupts} does not report the version of this host's GIC, which domains get, too; no changes "
            "were made "
            "('gic_version=\"v3\"' in the domain's configuration does)",
            name=ErrorName.HOST_UNSUPPORTED,
        )
    return found.pop()
