"""How a domain is after a save that failed, and who looks after what may still come."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from saverestore.engine.progress import DomainState, SaveReport
from saverestore.errors import Advice, Remedy, XenRefused
from saverestore.operations.host import Host
from saverestore.operations.prepare_save import Prepared
from saverestore.toolstack.condition import Condition, Found
from saverestore.toolstack.domains import Domain

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Account:
    """`what`: to follow the domain's name in a sentence; `remedies`: those that help it as it is."""

    state: DomainState
    what: str
    remedies: tuple[Advice, ...] = ()


def account_of(host: Host, domain: Domain) -> Account:
    """What the domain is now."""
    found = host.look_up(domain)
    return Account(DomainState[found.condition.name], found.what, found.remedies)


def account_after_failure(host: Host, prepared: Prepared, report: SaveReport) -> Account:
    """The same when a save has failed and undone what it could. Who may suspend late is looked after from now on."""
    found = host.look_up(prepared.domain)
    account = Account(DomainState[found.condition.name], found.what, found.remedies)
    match found.condition:
        case Condition.SUSPENDED:
            return replace(account, state=DomainState.STUCK)
        case Condition.RUNNING:
            return _of_running(host, prepared, report, found)
        case _:
            return account


def _of_running(host: Host, prepared: Prepared, report: SaveReport, found: Found) -> Account:
    domain = prepared.domain
    if report.domain_state is DomainState.STUCK:
        recover = (Advice(Remedy.RECOVER, domain.domid),)
        if prepared.device_model is not None:
            what = "is running, but its device model may still be stopped"
            return Account(DomainState.HALF_RESUMED, what, recover)
        return Account(DomainState.RUNNING, "is running, but may still be asked to suspend", recover)
    if prepared.suspending.is_late:
        what = "is running, and may still suspend, as it has taken the request"
        try:
            who = host.resume_if_late(domain)
        except XenRefused as error:
            LOG.warning("%s", error)
            return Account(DomainState.RUNNING, what, (Advice(Remedy.RECOVER_IF_LATE, domain.domid),))
        return Account(DomainState.RUNNING, f"{what}: {who} resumes it then")
    untouched = report.downtime is None  # it was never asked to suspend
    return Account(DomainState.UNTOUCHED if untouched else DomainState.RUNNING, found.what, found.remedies)
