"""libxl (libxenlight), as far as whole domains need it: configuration, restore with devices, what becomes of them.

Needs the compiled module `pyxc._libxl`; `import pyxc.libxl` raises ImportError, and says what to install, where
that was not built. Configurations are libxl's JSON, as images carry it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from pyxc import _log
from pyxc._handle import Handle
from pyxc.errors import XenError

try:
    from pyxc._libxl import ffi, lib
except ImportError as error:
    raise ImportError(
        f"pyxc has no binding for the libxl of this host [{error}]: install libxen-dev, then this package again"
    ) from error

LIBXL = logging.getLogger("pyxc.libxl")

MAX_ERRORS_KEPT = 4
TICK_S = 0.2
CONFIG_CALL = "libxl_domain_config_from_json"
"""The call of a LibxlError that says that a configuration is none."""

INVALID_DOMID = 0xFFFF_FFFF
NEW = -1
"""Instead of a descriptor to restore from: a domain that is to boot."""


class LibxlError(XenError):
    """A call into libxl failed; `rc` is libxl's own code, `logged` the errors that it logged meanwhile."""

    def __init__(self, call: str, rc: int, domid: int | None, logged: list[str]) -> None:
        self.rc = rc
        self.logged = logged
        super().__init__(call, 0, domid=domid)

    def __str__(self) -> str:
        where = "" if self.domid is None else f"domid={self.domid}"
        name = (
            f"error {self.rc} ({_log.text_of(lib.libxl_error_to_string(self.rc))})" if self.rc else "failed"
        )
        return ": ".join([f"{self.call}({where})", name, *(["; ".join(self.logged)] if self.logged else [])])


_errors: list[str] = []
"""What libxl has logged as errors during the call under way."""


@ffi.def_extern()
def pyxc_log_message(level: int, errnoval: int, context: ffi.CData, text: ffi.CData) -> None:
    """Called by libxl, on whatever thread runs its event loop. Must not raise."""
    who, what = _log.text_of(context), _log.text_of(text)
    if level >= _log.Level.ERROR and len(_errors) < MAX_ERRORS_KEPT and what not in _errors:
        _errors.append(what)
    _log.log(LIBXL, level, errnoval, who, what)


class Libxl(Handle):
    """A libxl context. One at a time in a process: what libxl logs is told to the call under way.

    Raises LibxlError when opened on a host that has no Xen, or where xenstored does not run.
    """

    def __init__(self) -> None:
        _errors.clear()
        pointer = lib.pyxc_libxl_open()
        if pointer == ffi.NULL:
            raise LibxlError("libxl_ctx_alloc", 0, None, list(_errors))
        super().__init__(pointer)

    def _close(self, pointer: ffi.CData) -> None:
        lib.libxl_ctx_free(pointer)

    def _check(self, rc: int, call: str, domid: int | None) -> None:
        if rc:
            raise LibxlError(call, rc, domid, list(_errors))

    def domain_config(self, domid: int) -> str:
        """The domain's configuration as `xl save` would put it into an image, JSON.

        As it was created, with what changed since: name, memory, vCPUs, devices plugged and unplugged. The domid
        is left out.
        """
        _errors.clear()
        rc = ffi.new("int *")
        text = lib.pyxc_libxl_domain_config(self.ptr, domid, rc)
        self._check(rc[0], "libxl_retrieve_domain_configuration", domid)
        try:
            return _log.text_of(text)
        finally:
            lib.free(text)

    def destroy(self, domid: int) -> None:
        """Destroy a domain with its device model and its devices, hotplug scripts included. Waits for them."""
        _errors.clear()
        self._check(lib.pyxc_libxl_destroy(self.ptr, domid), "libxl_domain_destroy", domid)

    def unpause(self, domid: int) -> None:
        """Let a restored domain, and its device model, run."""
        _errors.clear()
        self._check(lib.pyxc_libxl_unpause(self.ptr, domid), "libxl_domain_unpause", domid)

    def domid_of(self, name: str) -> int:
        """The number of the domain with this name. LibxlError when there is none, or several."""
        _errors.clear()
        domid = ffi.new("uint32_t *")
        self._check(lib.libxl_name_to_domid(self.ptr, name.encode(), domid), "libxl_name_to_domid", None)
        return int(domid[0])

    def create(self, config_json: str, tick: Callable[[], None] = lambda: None) -> int:
        """Create a domain with its devices, ready to boot and paused: its domid. On any error there is none.

        It waits for hotplug scripts and device models. `tick`, signals: see `restore`.
        """
        return self._make("libxl_domain_create_new", config_json, NEW, tick)

    def core_dump(self, domid: int, path: str) -> None:
        """Write the memory of a domain that has crashed to a new file."""
        _errors.clear()
        rc = lib.pyxc_libxl_core_dump(self.ptr, domid, path.encode())
        self._check(rc, "libxl_domain_core_dump", domid)

    def preserve(self, domid: int, config_json: str, suffix: str) -> None:
        """Rename a domain that has ended, and give it another UUID: a new one can take its place."""
        _errors.clear()
        rc = lib.pyxc_libxl_preserve(self.ptr, domid, config_json.encode(), suffix.encode())
        self._check(rc, "libxl_domain_preserve", domid)

    @contextmanager
    def watched(self, domid: int) -> Iterator[Callable[[], int | None]]:
        """Inside this block: a function that waits until the domain shuts down or is destroyed.

        It returns the reason of the shutdown (sched.h, SHUTDOWN_*), None once there is no such domain any more. Each
        is told once, also when it was so already. Signals get through to Python only when it returns. No two blocks
        at a time.
        """
        _errors.clear()
        watch = ffi.new("libxl_evgen_domain_death **")
        rc = lib.libxl_evenable_domain_death(self.ptr, domid, 0, watch)
        self._check(rc, "libxl_evenable_domain_death", domid)

        def wait_for_end() -> int | None:
            reason = ffi.new("int *")
            self._check(lib.pyxc_libxl_wait_for_end(self.ptr, domid, reason), "libxl_event_wait", domid)
            return None if reason[0] == lib.PYSAVE_DESTROYED else int(reason[0])

        try:
            yield wait_for_end
        finally:
            lib.libxl_evdisable_domain_death(self.ptr, watch[0])

    def restore(self, config_json: str, fd: int, tick: Callable[[], None]) -> int:
        """Create a domain with its devices, and fill it from `fd`: its domid. It is paused.

        `fd` stands at libxl's stream header. libxl runs the save helper that $LIBXL_SAVE_HELPER names, and calls
        for hotplug scripts and device models. `tick` is called a few times a second meanwhile; an exception of it
        aborts the restore. On any error there is no domain. A signal that raises when this has just ended would
        leave a domain that nobody knows of: hold signals back, and let `tick` raise for them.
        """
        return self._make("libxl_domain_create_restore", config_json, fd, tick)

    def _make(self, call: str, config_json: str, fd: int, tick: Callable[[], None]) -> int:
        _errors.clear()
        rc = ffi.new("int *")
        making = lib.pyxc_making_new(self.ptr, config_json.encode(), rc)
        self._check(rc[0], CONFIG_CALL, None)
        try:
            self._run(call, making, fd, tick)
            return int(making.domid)
        finally:
            lib.pyxc_making_free(making)

    def _run(self, call: str, making: ffi.CData, fd: int, tick: Callable[[], None]) -> None:
        """From start to end on a thread of its own, so that signals reach the main thread at once.

        The start, too: a signal between it and the wait would leave libxl with a child that nobody looks after.
        """
        result: list[int] = []

        over = threading.Event()

        def run() -> None:
            try:
                rc = lib.pyxc_making_start(self.ptr, making, fd)
                result.append(rc or lib.pyxc_making_wait(self.ptr, making))
            finally:
                over.set()

        # Not join(): Python 3.11 takes a thread for ended when a signal's exception comes in there (bpo-45274).
        thread = threading.Thread(target=run, name="libxl")
        try:
            thread.start()
            while not over.wait(TICK_S):
                tick()
        except BaseException:
            # "Not found" is fine: it has not begun, or is over already.
            while thread.ident is not None and not over.wait(TICK_S):
                lib.pyxc_making_abort(self.ptr, making)
            # libxl destroys what it could not make, but need not when it was told to stop, or was done.
            if making.domid != INVALID_DOMID and result and result[0] in (0, lib.ERROR_ABORTED):
                with suppress(LibxlError):
                    self.destroy(making.domid)
            raise
        domid = None if making.domid == INVALID_DOMID else making.domid
        self._check(result[0], call, domid)
