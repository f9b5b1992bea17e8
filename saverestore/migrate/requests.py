"""What a migration is asked for at the source, and what comes of it, whoever is at the other side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from saverestore.engine.policy import Limits
from saverestore.engine.progress import SaveReport
from saverestore.migrate.codecs import CodecOptions
from saverestore.migrate.messages import Running
from saverestore.migrate.source_link import LinkOptions
from saverestore.operations.requests import FinalState, SaveRequest
from saverestore.toolstack import choice
from saverestore.toolstack.given_config import GivenConfig
from saverestore.transport.sockets import Address

SETTLE_S = 60.0
"""Longer than the other host may take to notice that a link is dead."""


@dataclass(frozen=True)
class MigrateRequest:
    """What `pymigrate` was asked for. `name`: what the domain is called there; None: as here, or as `config` has it.

    `config`: what it has there instead of its configuration here, as far as that can be.

    `settle_for_s`: how long an answer to the grant is waited for on each connection, and how long the other host is
    asked again when there is none. `back`: how it
    reaches this host; None: by this host's name. `link`: the connections to the destination, see LinkOptions.
    `codecs`: how pages are coded for it.
    """

    domain: str
    destination: Address
    name: str | None = None
    config: GivenConfig | None = None
    paused: bool = False
    dirty: str = "auto"
    limits: Limits = field(default_factory=Limits)
    suspend_timeout_s: float | None = None
    toolstack: str = choice.AUTO
    settle_for_s: float = SETTLE_S
    back: str | None = None
    ssh: Sequence[str] = ("ssh",)
    link: LinkOptions = field(default_factory=LinkOptions)
    codecs: CodecOptions = field(default_factory=CodecOptions)

    def as_save(self) -> SaveRequest:
        """The save that it is at the source."""
        return SaveRequest(
            domain=self.domain,
            image=self.destination.text,
            final_state=FinalState.DESTROY,
            live=True,
            dirty=self.dirty,
            limits=self.limits,
            suspend_timeout_s=self.suspend_timeout_s,
            toolstack=self.toolstack,
            # They are compared when it is offered. What comes is restored at once, and what the other host sees of
            # a shared file's times may be older.
            note_disks=False,
            name=self.name,
            config=self.config,
        )


@dataclass
class Migrated:
    """What came of it. `answer`: the destination's. `handover_s`: from the grant to that."""

    answer: Running
    report: SaveReport
    handover_s: float
