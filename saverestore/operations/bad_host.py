"""Whether the running Xen is known to break what is asked for. See `toolstack.known_bad`."""

from __future__ import annotations

import logging

from saverestore.errors import Advice, DomainError, ErrorName, Remedy
from saverestore.guest.common.handles import Handles
from saverestore.guest.kinds import X86_HOST, Architecture
from saverestore.stream.layout import DomainType
from saverestore.toolstack import known_bad
from saverestore.toolstack.config import GuestConfig
from saverestore.toolstack.domains import Domain

LOG = logging.getLogger(__name__)


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


def check_restore(handles: Handles, architecture: Architecture, config: GuestConfig, *, force: bool) -> None:
    """DomainError for a PV domain: its registers are set by what is broken."""
    bad = _bad(handles, architecture)
    if bad is not None and architecture.of_config(config.kind).domain_type == DomainType.X86_PV:
        _refuse(f"{config.name} cannot be restored", bad, force=force)


def _bad(handles: Handles, architecture: Architecture) -> str | None:
    if architecture is not X86_HOST:
        return None
    version = handles.xen.version()
    bad = known_bad.found(version)
    return None if bad is None else f"this Xen, {version}, {bad.what} ({bad.source})"


def _refuse(what: str, bad: str, *, force: bool) -> None:
    if not force:
        raise DomainError(
            f"{what}: {bad}; no changes were made",
            name=ErrorName.HOST_UNSUPPORTED,
            remedies=[Advice(Remedy.NEWER_XEN)],
        )
    LOG.warning("%s; done all the same, because of the request", bad)
