"""What a domain that is to be restored would have in common with domains that this host runs: disks, MACs.

Two domains that write to one disk destroy what is on it, each out of what it has in memory of its file systems. Two
with one MAC on one bridge take each other's packets.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from saverestore.errors import Advice, DomainError, ErrorName, ImageError, Remedy, advise
from saverestore.guest.common.handles import Handles
from saverestore.toolstack import config as configs
from saverestore.toolstack.config import GuestConfig
from saverestore.toolstack.disks import is_written
from saverestore.toolstack.domains import Domain, all_domains
from saverestore.toolstack.given_config import NO_MAC
from saverestore.toolstack.host_fit import DOM0_NAMES
from saverestore.toolstack.lock import held
from saverestore.toolstack.userdata import userdata_path

LOG = logging.getLogger(__name__)

Place = tuple[str, ...]
"""What a disk is: its backend domain, and a path; of what is here the file's or device's own numbers."""


def check(handles: Handles, config: GuestConfig, *, force: bool) -> None:
    """DomainError, naming them, when it would write to disks that another domain writes to; with `force` a warning.

    A MAC that another domain has is a warning. Domains that have ended, or are being destroyed, write nothing.
    """
    mine, macs = _written(config), _macs(config)
    disks, nics = [], []
    for domain, theirs in _running(handles, config):
        its_disks, its_macs = _written(theirs), _macs(theirs)
        disks += [
            f"{path} (here {its_disks[place]} of {domain})"
            for place, path in mine.items()
            if place in its_disks
        ]
        nics += [f"{mac} ({domain})" for mac in macs if mac in its_macs]
    if nics:
        LOG.warning(
            "%s has a MAC that another domain has: %s; on one bridge they take each other's packets",
            config.name,
            "; ".join(nics),
            extra={"remedies": [Advice(Remedy.GIVE_OTHER_MAC)]},
        )
    if not disks:
        return
    fact = f"{config.name} would write to disks that other domains write to: {'; '.join(disks)}"
    if not force:
        raise DomainError(
            f"{fact}; both would destroy what is on them; no changes were made",
            name=ErrorName.DISKS_IN_USE,
            remedies=[Advice(Remedy.GIVE_OTHER_DISKS)],
        )
    LOG.warning("%s; restored all the same, because of the request", fact)


@contextmanager
def disks_kept(config: GuestConfig, *, force: bool, wait_s: float = 0.0) -> Iterator[None]:
    """Inside this block no other restore of ours makes a domain that writes to its disks. DomainError, naming the
    disk, when one does; with `force` a warning, and the disks that are free are kept all the same. `wait_s`: how
    long each is waited for.

    From before `check` until libxl has the domain's record, which it writes when the domain is complete: until then
    nobody finds its disks.
    """
    with ExitStack() as stack:
        for place, path in sorted(_written(config).items()):
            text = "\0".join(place).encode(errors="surrogatepass")
            busy = f"{config.name} would write to {path}; a domain that writes to it is being restored"
            lock = f"restore-disk-{hashlib.sha256(text).hexdigest()[:32]}"
            try:
                stack.enter_context(held(lock, busy, wait_s=wait_s))
            except DomainError as error:
                if not force:
                    advise(error, Advice(Remedy.GIVE_OTHER_DISKS))
                    raise
                LOG.warning("%s; restored all the same", error)
        yield


def _running(handles: Handles, config: GuestConfig) -> Iterator[tuple[Domain, GuestConfig]]:
    """The other domains of this host that may run, as far as libxl knows them, and what it keeps of them."""
    for domain in all_domains(handles):
        info = domain.info
        if info.dying or (info.shutdown and not info.suspended) or info.uuid == config.uuid:
            continue
        with contextlib.suppress(OSError, ImageError):
            yield domain, configs.parse(userdata_path(domain.domid, info.uuid).read_bytes())


def _written(config: GuestConfig) -> dict[Place, str]:
    """The disks that it can write to: what they are, and name and path for people."""
    found = {}
    for number, disk in enumerate(config.raw.get("disks") or []):
        path = str(disk.get("pdev_path") or "")
        if path and is_written(disk):
            found[_place(disk, path)] = f"disk {disk.get('vdev') or number}: {path}"
    return found


def _place(disk: dict[str, object], path: str) -> Place:
    backend = disk.get("backend_domname")
    served_by = "" if backend in DOM0_NAMES else str(backend)
    if not served_by and not disk.get("backend_domid"):
        with contextlib.suppress(OSError, ValueError):
            status = Path(path).stat()  # by whatever name: a volume has several
            return (
                ("device", str(status.st_rdev))
                if status.st_rdev
                else ("file", f"{status.st_dev}:{status.st_ino}")
            )
    return (str(disk.get("backend_domid") or served_by), str(disk.get("script") or ""), path)


def _macs(config: GuestConfig) -> set[str]:
    found = {str(nic.get("mac") or NO_MAC).lower() for nic in config.raw.get("nics") or []}
    return found - {NO_MAC}
