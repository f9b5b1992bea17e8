"""The bare toolstack: domains by libxenctrl and xenstore alone, without devices but the console.

What it makes is what `xl` expects of a domain: `xl list`, `xl console`, `xl save` and `xl destroy` work on it.
No `xl` process watches it, so nothing restarts it when it powers off or crashes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
import uuid

from pyxc import XenError
from pyxc.store import Permission, Transaction
from saverestore.errors import Advice, DomainError, ErrorName, Remedy
from saverestore.guest.common.handles import Handles
from saverestore.guest.common.pages import SLACK_KIB
from saverestore.guest.common.transactions import in_transaction
from saverestore.guest.kinds import Kind, this_host
from saverestore.guest.ports import Channels, RestoredPages
from saverestore.interrupts import shield
from saverestore.toolstack.config import GuestConfig
from saverestore.toolstack.domains import Domain, config_of, devices_of
from saverestore.toolstack.ports import FreshDomain
from saverestore.toolstack.userdata import userdata_path

DOM0 = 0

CONSOLE_BUFFER_BYTES = 1 << 20


class Bare:
    """See ports.Toolstack. `hint` follows what is said of devices that it cannot carry."""

    name = "bare"

    def __init__(self, handles: Handles, hint: str = "") -> None:
        self._handles = handles
        self._hint = hint

    def config_of(self, domain: Domain) -> GuestConfig:
        """libxl's record of it, with what has changed since; made up of what Xen knows where there is none."""
        return config_of(self._handles, domain)

    def unsupported_devices(self, domain: Domain) -> list[str]:
        """All devices besides the console."""
        found = devices_of(self._handles.store, domain.domid)
        return [*found[:-1], found[-1] + self._hint] if found else []

    def device_model_of(self, domain: Domain) -> None:
        """None: domains that have one are refused."""
        if this_host().of_domain(self._handles, domain.info).has_device_model:
            raise DomainError(
                f"{domain} is an HVM domain with a device model, which the bare toolstack cannot save{self._hint}; "
                "no changes were made",
                name=ErrorName.TOOLSTACK_UNSUITABLE,
            )

    def destroy(self, domain: Domain) -> None:
        """See `destroy` below."""
        destroy(self._handles, domain.domid, domain.info.uuid)

    def close(self) -> None:
        """Nothing was opened."""


class BareMaker:
    """See ports.Maker."""

    def __init__(self, handles: Handles) -> None:
        self._handles = handles

    def check_host(self) -> None:
        """See below, as all of these."""
        check_host(self._handles)

    def create(self, config: GuestConfig) -> FreshDomain:
        """It is empty, and known to nobody but Xen and xenstore."""
        return create(self._handles, config)

    def connect(self, fresh: FreshDomain, config: GuestConfig, pages: RestoredPages) -> None:
        """Its rings, and `xl`."""
        introduce(self._handles, fresh, config, pages)

    def unpause(self, domid: int) -> None:
        """By Xen alone."""
        self._handles.xen.unpause(domid)

    def destroy(self, domid: int, domain_uuid: uuid.UUID) -> None:
        """By Xen and xenstore."""
        destroy(self._handles, domid, domain_uuid)


def check_host(handles: Handles) -> None:
    """DomainError unless xenstore and the consoles are served from here, domain 0."""
    for daemon in ("xenstored", "xenconsoled"):
        where = handles.store.read(f"/tool/{daemon}/domid")
        if where not in (None, "", "0"):
            raise DomainError(
                f"{daemon} of this host runs in domain {where}, which is unsupported; no changes were made",
                name=ErrorName.HOST_UNSUPPORTED,
                remedies=[Advice(Remedy.USE_XL)],
            )


def create(handles: Handles, config: GuestConfig) -> FreshDomain:
    """Create an empty, paused domain with its vCPUs, limits, event channels and xenstore nodes.

    On error nothing is left of it.
    """
    kind = this_host().of_config(config.kind)
    with shield():
        domid = handles.xen.create(kind.creation(config))
        try:
            return FreshDomain(domid, _prepare(handles, kind, config, domid))
        except BaseException:
            destroy(handles, domid, config.uuid)
            raise


def _prepare(handles: Handles, kind: Kind, config: GuestConfig, domid: int) -> Channels:
    xen = handles.xen
    xen.set_max_vcpus(domid, config.max_vcpus)
    # While it is filled it may hold more than its target: a guest saved live may have grown or shrunk meanwhile.
    xen.set_max_memory(domid, max(config.max_kib, config.target_kib) + SLACK_KIB)
    channels = Channels(
        store_port=xen.alloc_unbound(domid, DOM0), console_port=xen.alloc_unbound(domid, DOM0)
    )
    kind.set_up(handles, domid, config)
    in_transaction(handles.store, lambda transaction: _write_nodes(transaction, config, domid))
    return channels


def _write_nodes(t: Transaction, config: GuestConfig, domid: int) -> None:
    """The nodes every domain has. Dom0 owns them; the guest reads all and writes those that are its own."""
    readable = [(DOM0, Permission.NONE), (domid, Permission.READ)]
    its_own = [(domid, Permission.NONE)]
    private = [(DOM0, Permission.NONE)]
    home, vm, libxl = f"/local/domain/{domid}", f"/vm/{config.uuid}", f"/libxl/{domid}"

    def make(path: str, permissions: list[tuple[int, Permission]]) -> None:
        t.make(path)
        t.set_permissions(path, permissions)

    def write(path: str, value: str, permissions: list[tuple[int, Permission]]) -> None:
        t.write(path, value)
        t.set_permissions(path, permissions)

    for path in (home, vm, libxl):
        t.remove(path)
    make(home, readable)
    make(vm, readable)
    make(libxl, private)
    make(f"{libxl}/device", private)
    write(f"{libxl}/type", config.kind, private)
    write(f"{libxl}/dm-version", "qemu_xen", private)
    for name in ("cpu", "memory", "device", "control"):
        make(f"{home}/{name}", readable)
    for name in (
        "device/suspend/event-channel",
        "control/shutdown",
        "control/feature-poweroff",
        "control/feature-reboot",
        "control/feature-suspend",
        "control/sysrq",
        "data",
        "drivers",
        "feature",
        "attr",
        "error",
    ):
        make(f"{home}/{name}", its_own)
    write(f"{home}/vm", vm, readable)
    write(f"{home}/name", config.name, readable)
    write(f"{home}/domid", str(domid), readable)
    write(f"{home}/control/platform-feature-multiprocessor-suspend", "1", readable)
    write(f"{home}/control/platform-feature-xs_reset_watches", "1", readable)
    write(f"{home}/memory/static-max", str(config.max_kib), readable)
    write(f"{home}/memory/target", str(config.target_kib), readable)
    write(f"{home}/memory/videoram", "0", readable)
    for i in range(config.max_vcpus):
        state = "online" if i in config.online_vcpus else "offline"
        write(f"{home}/cpu/{i}/availability", state, readable)
    write(f"{vm}/uuid", str(config.uuid), readable)
    write(f"{vm}/name", config.name, readable)
    write(f"{vm}/start_time", f"{time.time():.2f}", readable)


def introduce(handles: Handles, fresh: FreshDomain, config: GuestConfig, pages: RestoredPages) -> None:
    """Connect a filled domain to its xenstore and console, and tell `xl` of it. It stays paused."""
    domid, store = fresh.domid, handles.store
    home = f"/local/domain/{domid}"
    readable = [(DOM0, Permission.NONE), (domid, Permission.READ)]

    def connect(t: Transaction) -> None:
        t.write(f"{home}/store/port", str(fresh.channels.store_port))
        t.write(f"{home}/store/ring-ref", str(pages.store_gfn))
        _write_console(t, domid, fresh.channels.console_port, pages.console_gfn)
        for path in (f"{home}/store/port", f"{home}/store/ring-ref"):
            t.set_permissions(path, readable)

    with shield():
        in_transaction(store, connect)
        handles.xen.set_max_memory(domid, config.target_kib + SLACK_KIB)
        # Last: both daemons look at the nodes when they are told of the domain.
        store.introduce_domain(domid, pages.store_gfn, fresh.channels.store_port)
        write_userdata(domid, config)


def _write_console(t: Transaction, domid: int, port: int, ring_gfn: int) -> None:
    front, back = f"/local/domain/{domid}/console", f"/local/domain/{DOM0}/backend/console/{domid}/0"
    libxl = f"/libxl/{domid}/device/console/0"
    readable = [(DOM0, Permission.NONE), (domid, Permission.READ)]
    for path in (back, libxl, front):
        t.make(path)
    t.set_permissions(front, readable)
    t.set_permissions(back, readable)
    shared = {"frontend": front, "frontend-id": str(domid), "online": "1", "state": "1", "protocol": "vt100"}
    for key, value in shared.items():
        t.write(f"{back}/{key}", value)
        t.set_permissions(f"{back}/{key}", readable)
    for key, value in {**shared, "backend": back}.items():
        t.write(f"{libxl}/{key}", value)
    for key, value in {
        "backend": back,
        "limit": str(CONSOLE_BUFFER_BYTES),
        "output": "pty",
        "type": "xenconsoled",
        "port": str(port),
        "ring-ref": str(ring_gfn),
        "tty": "",
    }.items():
        t.write(f"{front}/{key}", value)
        t.set_permissions(f"{front}/{key}", readable)
    t.write(f"{front}/backend-id", str(DOM0))
    t.set_permissions(f"{front}/backend-id", [(domid, Permission.NONE), (DOM0, Permission.READ)])


def write_userdata(domid: int, config: GuestConfig) -> None:
    """Leave the configuration where libxl looks for it, so that `xl` can save the domain again."""
    path = userdata_path(domid, config.uuid)
    temporary = path.with_name(path.name + ".pysave-new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(config.to_json() + b"\0")
    temporary.rename(path)


def destroy(handles: Handles, domid: int, domain_uuid: uuid.UUID) -> None:
    """Destroy a domain that has no devices but a console, and everything that tells of it."""
    with shield():
        try:
            handles.xen.destroy(domid)
        except XenError as error:
            if error.errno != errno.ESRCH:
                raise
        store = handles.store
        with contextlib.suppress(XenError):
            store.release_domain(domid)
        for path in (
            f"/local/domain/{domid}",
            f"/libxl/{domid}",
            f"/local/domain/{DOM0}/backend/console/{domid}",
        ):
            store.remove(path)
        _remove_vm_node(handles, domid, domain_uuid)
        this_host().forget(domid, domain_uuid)
        for file in userdata_path(domid, domain_uuid).parent.glob(f"userdata-?.{domid}.{domain_uuid}.*"):
            file.unlink(missing_ok=True)


def _remove_vm_node(handles: Handles, domid: int, domain_uuid: uuid.UUID) -> None:
    """Remove /vm/UUID, unless another domain lives under the same UUID."""
    others = (info for info in handles.xen.domains() if info.domid != domid and not info.dying)
    if not any(info.uuid == domain_uuid for info in others):
        handles.store.remove(f"/vm/{domain_uuid}")
