"""libxl as toolstack: domains with disks, network cards, device models and whatever else `xl create` gave them.

Saving, libxl is asked for the configuration, and to destroy the domain with its devices; memory, processors and
the device model's state are read here, by the same engine that the bare toolstack has. Restoring, libxl is the
one that creates: it runs our save helper, which fills the domain from the stream, and brings up its devices. On
ARM it cannot do that: see `libxl_maker`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from pyxc.libxl import CONFIG_CALL, Libxl
from saverestore.errors import DomainError, ErrorName, ImageError, XenRefused
from saverestore.guest.common.handles import Handles, XenError
from saverestore.guest.kinds import this_host
from saverestore.interrupts import shield
from saverestore.toolstack import config
from saverestore.toolstack.config import GuestConfig
from saverestore.toolstack.device_model import DeviceModel
from saverestore.toolstack.domains import Domain
from saverestore.toolstack.helper_link import HELPER_VARIABLE, TASK_VARIABLE, HelperReport, Task, linked
from saverestore.toolstack.programs import HELPER, path_of
from saverestore.toolstack.userdata import userdata_path


class LibxlToolstack:
    """See ports.Toolstack."""

    name = "libxl"

    def __init__(self, handles: Handles) -> None:
        self._handles = handles
        self._libxl = Libxl()

    def close(self) -> None:
        """Give libxl's context back."""
        self._libxl.close()

    # ---- saving ------------------------------------------------------------------------------------

    def config_of(self, domain: Domain) -> GuestConfig:
        """What `xl save` would write."""
        try:
            return config.parse(self._libxl.domain_config(domain.domid).encode())
        except XenError as error:
            userdata = userdata_path(domain.domid, domain.info.uuid)
            raise DomainError(
                f"{domain}: libxl cannot read its configuration, which it keeps in {userdata}: {error}; "
                "no changes were made",
                name=ErrorName.CONFIGURATION_DAMAGED,
            ) from error
        except ImageError as error:
            raise DomainError(
                f"{domain}: {error}; no changes were made", name=ErrorName.CONFIGURATION_DAMAGED
            ) from error

    def unsupported_devices(self, domain: Domain) -> list[str]:
        """What its kind cannot: libxl brings all devices back that it can save at all."""
        kind = this_host().of_domain(self._handles, domain.info)
        return kind.unsupported(lambda: self.config_of(domain).raw)

    def device_model_of(self, domain: Domain) -> DeviceModel | None:
        """QEMU, of an HVM domain."""
        if not this_host().of_domain(self._handles, domain.info).has_device_model:
            return None
        found = DeviceModel(self._handles.store, domain.domid)
        found.check()
        return found

    def destroy(self, domain: Domain) -> None:
        """As `xl destroy` does: device model, devices and their hotplug scripts, too."""
        with shield():
            self._libxl.destroy(domain.domid)
            this_host().forget(domain.domid, domain.info.uuid)

    # ---- restoring ---------------------------------------------------------------------------------

    def restore(
        self,
        guest_config: GuestConfig,
        fd: int,
        task: Task,
        tick: Callable[[], None],
        measured: Callable[[HelperReport], None],
        helper: Mapping[str, str],
    ) -> int:
        """Create the domain and fill it from `fd`, which stands at libxl's header: its domid.

        It is complete and paused. `task` is what our helper, which does the filling, is to know; `measured` is called
        with what it measured, however it ended. `helper`: variables by which libxl finds one that waits; where there
        are none, it runs the program. `tick` is called a few times a second meanwhile. On any error there
        is no domain: an error of the helper's is raised as it would have been here, with its exit code; any other as
        XenRefused.
        """
        with linked(task) as link, _our_helper(link.task, helper):
            try:
                return self._libxl.restore(guest_config.to_json().decode(), fd, tick)
            except XenError as error:
                if (helpers := link.report().as_error()) is not None:
                    raise helpers from error
                if error.call == CONFIG_CALL:
                    raise ImageError(
                        f"libxl does not understand the image's configuration: {error}; no changes were made "
                        "(it may be of a newer Xen)",
                        name=ErrorName.IMAGE_REFUSED,
                    ) from error
                raise XenRefused(
                    f"libxl could not restore {guest_config.name}: {error} "
                    "(the logs in /var/log/xen may say more)",
                    name=ErrorName.LIBXL_FAILED,
                ) from error
            finally:
                measured(link.report())

    def create(self, name: str, config_json: str, tick: Callable[[], None]) -> int:
        """Create a domain with its devices, paused and about to boot: its domid. On any error there is none.

        `tick` is called a few times a second meanwhile; an exception of it ends that.
        """
        try:
            return self._libxl.create(config_json, tick)
        except XenError as error:
            raise XenRefused(
                f"libxl could not create {name}: {error} (the logs in /var/log/xen may say more)",
                name=ErrorName.LIBXL_FAILED,
            ) from error

    def unpause(self, domid: int) -> None:
        """Let a restored domain run."""
        self._libxl.unpause(domid)

    def destroy_restored(self, domid: int) -> None:
        """Destroy one that is not to be kept after all."""
        with shield():
            self._libxl.destroy(domid)


@contextmanager
def _our_helper(task: Task, helper: Mapping[str, str]) -> Iterator[None]:
    """Inside this block, libxl runs our helper, with this task."""
    ours = {**(helper or {HELPER_VARIABLE: str(path_of(HELPER))}), TASK_VARIABLE: task.pack()}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
