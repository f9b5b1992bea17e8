"""Hypervisor versions that break what a save or restore relies on: found out at its start, not by the guest."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

from pyxc.control import XenVersion
from saverestore.errors import Advice, DomainError, ErrorName, Remedy
from saverestore.guest.common.handles import Handles
from saverestore.guest.kinds import X86_HOST, Architecture
from saverestore.stream.layout import DomainType
from saverestore.toolstack.domains import Domain

LOG = logging.getLogger(__name__)

Version = tuple[int, int, int]


@dataclass(frozen=True)
class KnownBad:
    """`first` to `last`, both included. `what`: what such a version does, for people; `source`: who says so."""

    first: Version
    last: Version
    what: str
    source: str


LOSES_REGISTERS = "loses r8 to r15 of a vCPU whose context is read or set"

TABLE = (
    # Since xen 9f892f84c2 ("x86/domctl: Stop using XLAT_cpu_user_regs()"). By the release tags, 4.21.2 and 4.22.0
    # have the fix, bedbc17d84 ("x86/domctl: restore all registers in arch_{get,set}_info_guest()").
    KnownBad((4, 21, 0), (4, 21, 1), LOSES_REGISTERS, "xen.git bedbc17d84"),
)
"""All are of x86, and concern PV domains, and any domain that is resumed: libxc sets a context for it."""


def found(version: XenVersion) -> KnownBad | None:
    """What is known to be bad of the running one. A distribution may have mended it without another number."""
    patch = re.match(r"\.(\d+)", version.extra)
    number = (version.major, version.minor, int(patch[1]) if patch else 0)
    return next((bad for bad in TABLE if bad.first <= number <= bad.last), None)


def check_save(
    handles: Handles, architecture: Architecture, domain: Domain, *, resumes: bool, force: bool
) -> None:
    """DomainError for a PV domain, or one that is to run on. Of others, a warning: a save that fails resumes them."""
    if (bad := _bad(handles, architecture)) is None:
        return
    if resumes or not domain.info.hvm:
        _refuse(f"{domain} cannot be saved so", bad, force=force)
    else:
        LOG.warning("%s: if this save fails, %s may crash when it is resumed", bad, domain)


def check_restore(
    handles: Handles, architecture: Architecture, domain_type: DomainType, name: str, *, force: bool
) -> None:
    """DomainError for a PV domain: its registers are set by what is broken. `name`: of the domain, for people."""
    bad = _bad(handles, architecture)
    if bad is not None and domain_type == DomainType.X86_PV:
        _refuse(f"{name} cannot be restored", bad, force=force)


def _bad(handles: Handles, architecture: Architecture) -> str | None:
    if architecture is not X86_HOST:
        return None
    version = handles.xen.version()
    bad = found(version)
    return None if bad is None else f"this Xen, {version}, {bad.what} ({bad.source})"


def _refuse(what: str, bad: str, *, force: bool) -> None:
    if not force:
        raise DomainError(
            f"{what}: {bad}; no changes were made",
            name=ErrorName.HOST_UNSUPPORTED,
            remedies=[Advice(Remedy.NEWER_XEN)],
        )
    LOG.warning("%s; done all the same, because of the request", bad)
