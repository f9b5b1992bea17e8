"""Which toolstack: libxl for what libxl made, where its binding was built; the bare one elsewhere, or when told."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from saverestore.errors import Advice, DomainError, ErrorName, Remedy, XenRefused
from saverestore.guest.common.handles import Handles, XenError
from saverestore.toolstack.bare import Bare
from saverestore.toolstack.domains import Domain
from saverestore.toolstack.ports import Toolstack
from saverestore.toolstack.programs import HELPER, path_of
from saverestore.toolstack.userdata import userdata_path

if TYPE_CHECKING:
    from saverestore.toolstack.libxl import LibxlToolstack

LOG = logging.getLogger(__name__)

AUTO, BARE, LIBXL = "auto", "bare", "libxl"


def for_saving(handles: Handles, domain: Domain, wanted: str) -> Toolstack:
    """The toolstack that a domain is saved with. DomainError when it is to be libxl and libxl does not know it."""
    known = userdata_path(domain.domid, domain.info.uuid).exists()
    if wanted == LIBXL and not known:
        raise DomainError(
            f"{domain} is not known to libxl (there is no {userdata_path(domain.domid, domain.info.uuid)}); "
            "no changes were made",
            name=ErrorName.TOOLSTACK_UNSUITABLE,
            remedies=[Advice(Remedy.BARE_TOOLSTACK)],
        )
    if wanted == BARE or not known:
        return Bare(handles)
    libxl, why = _libxl(handles, wanted)
    return libxl or Bare(handles, why)


def for_restoring(handles: Handles, wanted: str) -> tuple[LibxlToolstack | None, str]:
    """libxl's toolstack, or None for the bare one, and why it is that."""
    if wanted == BARE:
        return None, ""
    return _libxl(handles, wanted)


def _libxl(handles: Handles, wanted: str) -> tuple[LibxlToolstack | None, str]:
    """libxl's, or None and the reason in parentheses. XenRefused where it was asked for and cannot be had."""
    try:
        from saverestore.toolstack.libxl import LibxlToolstack

        path_of(HELPER)
        return LibxlToolstack(handles), ""
    except (ImportError, XenError, XenRefused) as error:
        if wanted == LIBXL:
            raise XenRefused(
                f"the libxl toolstack cannot be used: {error}; no changes were made",
                name=ErrorName.TOOLSTACK_UNAVAILABLE,
            ) from error
        LOG.info("the bare toolstack is used, as libxl cannot be: %s", error)
        return None, f" (libxl, which could, cannot be used: {error})"
