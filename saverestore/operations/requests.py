"""What a person asks for, whole: these values travel from a command to where they are carried out."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from saverestore.engine.policy import Limits
from saverestore.stream.codecs import Coding
from saverestore.stream.digest_algorithms import DEFAULT_DIGEST
from saverestore.toolstack import choice
from saverestore.transport.cache import Cache

if TYPE_CHECKING:
    from saverestore.toolstack.given_config import GivenConfig
    from saverestore.transport.tls import Credentials
    from saverestore.transport.tls_peers import Allowed

STDIN = STDOUT = "-"


class FinalState(Enum):
    """What becomes of the domain once its image is safe."""

    DESTROY = "destroyed"
    RUN = "running"
    PAUSE = "paused"


@dataclass(frozen=True)
class SaveRequest:
    """What `pysave` was asked for.

    `digest`: "xxh3", "sha256", "blake3" or "none"; `plain` leaves it out, too. `compress`: the level of zstd or None.
    `coding`: of an image in the dialect `draft-b`; None for Xen's own format. `limits`: of a live save.
    `while_suspended`: a command line for sh(1), to be run while the domain is suspended. `tls`: of an image that goes
    to tcp://HOST:PORT, where that is to be by TLS. `store`: the folder in which the image gets a name made of domain
    and time; `image` is then not used. `restored_at_boot`: an image in a store, whose domain is destroyed, is noted
    as one that is to be restored (`pending`). `note_disks`: write what its disks are into the image. `name`: what the
    image calls the domain; None: by its own name. `config`: what the image is to have instead of the domain's
    configuration, as far as that can be; `name` goes before it. `space_check`: look whether there is room for the
    image, before it is begun and after each round. `bwlimit`: the most bytes per second that are written; None: no
    limit. `cache`: whether the image's file is written through the page cache, or directly; `Cache.AUTO`: directly
    where that can be done, but for what a domain that is to run again waits for.
    """

    domain: str
    image: str
    final_state: FinalState = FinalState.DESTROY
    live: bool = False
    dirty: str = "auto"
    limits: Limits = field(default_factory=Limits)
    plain: bool = False
    digest: str = DEFAULT_DIGEST
    compress: int | None = None
    suspend_timeout_s: float | None = None
    overwrite: bool = False
    force: bool = False
    toolstack: str = choice.AUTO
    coding: Coding | None = None
    while_suspended: str | None = None
    tls: Credentials | None = None
    store: Path | None = None
    restored_at_boot: bool = False
    note_disks: bool = True
    name: str | None = None
    config: GivenConfig | None = None
    space_check: bool = True
    bwlimit: int | None = None
    cache: Cache = Cache.AUTO


@dataclass(frozen=True)
class RestoreRequest:
    """What `pyrestore` was asked for.

    `config`: what to restore it with instead of the image's configuration, as far as that can be. `name`: goes before
    both. `new_uuid`: the domain gets a UUID of its own, so that it can be beside the one that was saved.
    `require_digest`: an image without a digest is refused. `watch`: a process is left behind that looks after the
    domain when it powers off, reboots or crashes. `tls`, `allowed`: of an image that comes to tcp://HOST:PORT, where
    that is to be by TLS, and who may send it. `pages`: how many the domain has, where that is known otherwise.
    `only_pending`: only if nobody has restored it since it was noted as one that is to be restored (`pending`).
    """

    image: str
    paused: bool = False
    name: str | None = None
    config: GivenConfig | None = None
    new_uuid: bool = False
    force: bool = False
    toolstack: str = choice.AUTO
    require_digest: bool = False
    watch: bool = True
    tls: Credentials | None = None
    allowed: Allowed | None = None
    pages: int = 0
    only_pending: bool = False
