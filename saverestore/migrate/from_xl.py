"""The destination of a migration by stock `xl migrate`: a restore whose domain waits until xl grants it.

As in `destination`, but for what xl's protocol has and lacks. There is no offer: the configuration comes with the
image. xl resumes its own copy when it hears that this host could not start the domain and has removed it, so even
after COMMITTED a domain that does not start is given back. And xl cannot be asked when the connection has ended.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Mapping
from dataclasses import replace

from saverestore.engine.progress import Progress, RestoreReport
from saverestore.errors import (
    Advice,
    ErrorName,
    Remedy,
    SaveRestoreError,
    XenRefused,
    advise,
    fact_of,
    name_of,
    remedies_of,
)
from saverestore.guest.common.handles import XenError
from saverestore.migrate.copies import CopyOf, HostCopy, incoming_name, name_kept
from saverestore.migrate.handover import Event, State
from saverestore.migrate.journal import Journals
from saverestore.migrate.messages import Message, MessageType
from saverestore.migrate.peers import MigrationAborted
from saverestore.migrate.receiving import Received, Receiving
from saverestore.migrate.records import Head
from saverestore.migrate.side import Side
from saverestore.migrate.xl_peer import XlSender
from saverestore.migrate.xl_recovery import not_granted_by_xl
from saverestore.migrate.xl_words import AskedFor
from saverestore.operations.host import Host
from saverestore.operations.image import opened_in
from saverestore.operations.preflight import Findings
from saverestore.operations.requests import STDIN, RestoreRequest
from saverestore.toolstack.config import GuestConfig

LOG = logging.getLogger(__name__)


def receive_from_xl(
    peer: XlSender,
    asked: AskedFor,
    host: Host,
    progress: Progress,
    report: RestoreReport | None = None,
    *,
    journals: Journals | None = None,
    copy_of: CopyOf = HostCopy,
    helper: Mapping[str, str] | None = None,
) -> Received:
    """Take the domain that `xl migrate` sends. When it returns, the domain is this host's, and runs unless paused.

    InDoubt when it is complete here and paused, and the way to xl broke before it was granted. On any other error
    nothing is left of it here, and xl has it, or hears so; unless a note says otherwise.
    """
    report = RestoreReport() if report is None else report
    peer.greet()
    journals = journals or Journals()
    with _Receiver(peer, asked, host, progress, report, journals, copy_of, helper or {}) as receiver:
        return receiver.run()


class _Receiver(Receiving):
    """One domain."""

    def __init__(
        self,
        peer: XlSender,
        asked: AskedFor,
        host: Host,
        progress: Progress,
        report: RestoreReport,
        journals: Journals,
        copy_of: CopyOf,
        helper: Mapping[str, str],
    ) -> None:
        request = RestoreRequest(image=STDIN, paused=True)
        super().__init__(host, progress, report, journals, copy_of, helper, request)
        self._peer = peer
        self._asked = asked

    def _say(self, message: Message) -> None:
        """See Receiving. That this host has given up xl learns by the end of the connection."""
        if message.type is MessageType.READY:
            self._peer.say_ready()

    def _is_watched(self) -> bool:
        """See Receiving."""
        return self._asked.watched

    def run(self) -> Received:
        """The whole of it."""
        with opened_in(self._peer.source) as image:
            name = incoming_name(image.config.name)
            self._refuse_unfit(image.config)
            head, side = self._begun(
                image.config, uuid.uuid4(), self._peer.peer, paused=self._asked.paused, with_xl=True
            )
            side.happen(Event.HEARD_OFFER)
            try:
                domid = self._take(side, head, replace(image, config=image.config.replaced(name=name)))
            except BaseException as error:
                self._end(side, error)
                raise
        assert side.journal is not None
        with side.journal:
            self._await_grant(side, head)
            self._start(side, head)
        return self._is_ours(head, domid)

    def _refuse_unfit(self, config: GuestConfig) -> None:
        """All that stands in the way, before anything is made. xl keeps its own when this process ends."""
        findings = Findings(dry=True)
        self._check(config, findings)
        if not findings.errors:
            return
        first, *others = findings.errors
        for other in others:
            first.add_note(fact_of(other))
            for advice in remedies_of(other):
                advise(first, advice)
        raise first

    def _end(self, side: Side, error: BaseException) -> None:
        """Nothing is left of it here."""
        assert side.journal is not None
        # READY: whether or not that could be written down, and xl has heard it. It keeps its own copy until it has
        # a report, and there is none.
        event = Event.GIVEN_BACK if side.state is State.READY else Event.FAILED
        with side.journal:
            self._give_up(side, event, error)

    def _await_grant(self, side: Side, head: Head) -> None:
        """READY: InDoubt when nobody knows whether xl has granted it."""
        self._progress.phase(f"{head.name} is complete; waiting for xl's permission to start it")
        try:
            if side.unsaid is not None:
                raise side.unsaid
            refused = self._peer.await_grant()
        except SaveRestoreError as error:
            side.happen(Event.LINK_LOST)
            raise not_granted_by_xl(head, fact_of(error)) from error
        if refused is not None:
            ungranted = MigrationAborted(f"{head.name} was not granted to this host: {refused}")
            self._give_back(side, ungranted)
            raise ungranted

    def _start(self, side: Side, head: Head) -> None:
        """Granted: it is started here, or xl has it back."""
        try:
            with name_kept(self._host, head):
                side.happen(Event.HEARD_GRANT)
            if side.state is not State.RUNNING:
                raise XenRefused(
                    f"{head.name} was granted to this host, and could not be started",
                    name=ErrorName.LIBXL_FAILED,
                )
        except (SaveRestoreError, XenError) as error:
            if side.state is not State.RUNNING:
                self._give_back(side, error)
                raise
            LOG.warning("%s is this host's now, but %s", head.name, fact_of(error))
        try:
            self._peer.report_started()
        except SaveRestoreError as error:
            LOG.warning(
                "%s is this host's now, but xl at %s could not be notified: %s",
                head.name,
                head.peer,
                error,
                extra={"remedies": [Advice(Remedy.DESTROY_OUTGOING, head.name)]},
            )

    def _give_back(self, side: Side, error: BaseException) -> None:
        """It has not been started here. xl resumes its own copy once this host has none."""
        with contextlib.suppress(SaveRestoreError):  # it finds the end of the connection, too
            self._peer.report_failure()
        try:
            if side.state in (State.READY, State.COMMITTED):
                side.happen(Event.GIVEN_BACK, reason=fact_of(error), name=str(name_of(error)))
        except (SaveRestoreError, XenError) as second:
            error.add_note(f"giving it back failed: {fact_of(second)}")
        if not self._is_gone(side):
            error.add_note(f"a copy is still here, paused; xl at {self._peer.peer} does not resume its own")
            return
        try:
            self._peer.give_back()
        except SaveRestoreError:
            error.add_note("xl has not heard that")
        else:
            error.add_note("nothing is left of it here, and xl has it back")

    def _is_gone(self, side: Side) -> bool:
        try:
            return not side.copy.is_here()
        except XenError:
            return False
