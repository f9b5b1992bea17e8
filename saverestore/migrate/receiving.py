"""A domain that comes from another host, as the destination sees it: a restore that waits until it is granted.

What is the same for a source of ours (`destination`) and for stock xl (`from_xl`) is here; what the source says and
hears is theirs.
"""

from __future__ import annotations

import logging
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from saverestore.engine.progress import DomainState, Progress, RestoreReport
from saverestore.errors import Advice, Remedy, SaveRestoreError, XenRefused, exit_code_of, fact_of, name_of
from saverestore.guest.common.handles import XenError
from saverestore.migrate.copies import CopyOf, check_name_free, incoming_name
from saverestore.migrate.handover import Event, Role, State
from saverestore.migrate.journal import Journal, Journals, boot_id, now
from saverestore.migrate.messages import Message
from saverestore.migrate.records import Head
from saverestore.migrate.side import Notes, Side
from saverestore.operations.host import Host
from saverestore.operations.image import OpenedImage
from saverestore.operations.preflight import Findings
from saverestore.operations.requests import RestoreRequest
from saverestore.operations.restore import check_fits, restoring
from saverestore.toolstack import moving, shared_disks
from saverestore.toolstack.config import GuestConfig

if TYPE_CHECKING:
    from saverestore.toolstack.watcher import Watcher

LOG = logging.getLogger(__name__)


@dataclass
class Received:
    """What came of it. `name`: the domain's; None where nothing came to be here."""

    name: str | None = None
    domid: int = -1


class Receiving(ABC):
    """One domain. `request`: how it is restored. `helper`: see `operations.restore.restore_domain`.

    A context manager: at its end a watcher that was given no domain is ended.
    """

    def __init__(
        self,
        host: Host,
        progress: Progress,
        report: RestoreReport,
        journals: Journals,
        copy_of: CopyOf,
        helper: Mapping[str, str],
        request: RestoreRequest,
    ) -> None:
        self._host = host
        self._progress = progress
        self._report = report
        self._journals = journals
        self._copy_of = copy_of
        self._helper = helper
        self._request = request
        self._stack = ExitStack()
        self._watcher: Watcher | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    @abstractmethod
    def _say(self, message: Message) -> None:
        """Whatever the table of the hand-over says, as far as the source has a word for it."""

    def _is_whole(self) -> None:
        """The domain is complete and paused: next comes READY."""
        return

    def _check(self, config: GuestConfig, findings: Findings) -> str:
        """All that can be known before anything is made, of any source: the toolstack that would restore it."""
        toolstack = check_fits(self._host, config, self._request, findings)
        with findings.check():
            shared_disks.check_movable(config)
        with findings.check():
            check_name_free(self._host, incoming_name(config.name))
        return toolstack

    def _begun(
        self,
        config: GuestConfig,
        migration: uuid.UUID,
        peer: str,
        *,
        peer_journals: str = "",
        paused: bool,
        with_xl: bool = False,
        **noted: str,
    ) -> tuple[Head, Side]:
        """This host's side; it is not in a journal yet. `noted`: what is written down with the first state."""
        head = Head(
            role=Role.DESTINATION,
            migration=migration,
            name=config.name,
            uuid=config.uuid,
            domid=-1,
            boot=boot_id(),
            peer=peer,
            peer_journals=peer_journals,
            began=now(),
            paused=paused,
            with_xl=with_xl,
        )

        def create(state: State, notes: Notes) -> Journal:
            return self._journals.create(head, state, **notes, **noted)

        copy = self._copy_of(self._host, head)
        return head, Side(Role.DESTINATION, migration, copy, create=create, say=self._say)

    def _take(self, side: Side, head: Head, image: OpenedImage) -> int:
        """Until the domain is whole and READY is said: its domid. `image` has the name of a copy that comes in."""
        if self._is_watched():
            # Now, as it takes its time to start: meanwhile the domain is filled.
            self._watcher = self._stack.enter_context(self._host.watcher(head.name))
        with (
            ExitStack() as stack,
            restoring(self._host, image, self._request, self._helper, stack) as fresh,
        ):
            side.happen(Event.BEGUN)
            domid = fresh.fill(self._progress, self._report)
            # Kept from now on, paused: what becomes of it is decided by the hand-over.
            fresh.activate()
            self._report.domain_state = DomainState.PAUSED
            moving.note_brought(self._host.handles.store, domid, str(side.migration))
            self._is_whole()
            side.happen(Event.VERIFIED, domid=domid)
        return domid

    def _give_up(self, side: Side, event: Event, error: BaseException) -> None:
        """Nothing is left of it here, and the source hears why. `error` gets a note where something is left."""
        notes: Notes = {
            "reason": fact_of(error),
            "name": str(name_of(error)),
            "exit_code": int(exit_code_of(error)),
        }
        try:
            side.happen(event, **notes)
        except (SaveRestoreError, XenError) as second:
            error.add_note(f"its copy could not be taken away: {fact_of(second)}")

    def _is_ours(self, head: Head, domid: int) -> Received:
        """It is this host's for good, and runs or is paused. That perhaps nobody watches it is no failure."""
        self._report.domain_state = DomainState.PAUSED if head.paused else DomainState.RUNNING
        if self._watcher is not None:
            try:
                self._watcher.watch(domid)
            except XenRefused as error:
                LOG.warning(
                    "nothing watches %s: %s",
                    head.name,
                    error,
                    extra={"remedies": [Advice(Remedy.WATCH, domid)]},
                )
        return Received(head.name, domid)

    def _is_watched(self) -> bool:
        """Whether a process is to look after the domain when it powers off, reboots or crashes."""
        return True
