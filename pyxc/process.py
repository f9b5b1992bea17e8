"""This process's own memory, and who clears it away."""

from __future__ import annotations

from pyxc._handle import check_rc
from pyxc._xen import lib


def keep_freed_memory() -> None:
    """From here on, memory that is freed stays this process's, up to 32 MiB a piece, where the C library can do that.

    For a process with a short life: giving memory back takes 1 ms a MiB in the lab, at its end while others wait.
    """
    lib.pyxc_keep_freed_memory()


def leave_memory_behind() -> None:
    """Make the end of this process a matter of moments, however much memory it has, foreign memory included.

    Who waits for a process to end waits until the kernel has cleared its memory away: 1 ms a MiB in the lab. From
    here on a second process shares this one's memory, and ends after it, without anybody waiting; so the memory, and
    what is mapped of other domains, lasts that much longer. All descriptors are closed, by which others see that
    this process is done; signals are blocked. The caller may only end the process, at once, by `os._exit`; also
    after an XenError, when that takes as long as ever (close_range(2) is there from Linux 5.9 on).
    """
    check_rc(lib.pyxc_leave_memory_behind(), "clone")
