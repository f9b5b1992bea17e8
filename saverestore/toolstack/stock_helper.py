"""Saves by stock xl that are under way: processes of libxl's own helper, which hold no lock of ours.

    libxl-save-helper --save-domain STREAM-FD BACK-FD DOMID …

Source: run_helper and libxl__xc_domain_save in tools/libs/light/libxl_save_callout.c of Xen.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

NAME = "libxl-save-helper"
PROC = Path("/proc")
MODE, DOMID = 1, 4
"""Places among the words of its command line."""


def saved_by(domid: int) -> int | None:
    """The process that saves or sends this domain for xl, if there is one."""
    for folder in PROC.iterdir():
        if not folder.name.isdecimal():
            continue
        with contextlib.suppress(OSError):  # it has ended
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if (
                len(words) > DOMID
                and words[0].rpartition(b"/")[2].startswith(NAME.encode())
                and words[MODE] == b"--save-domain"
                and words[DOMID] == str(domid).encode()
            ):
                return int(folder.name)
    return None
