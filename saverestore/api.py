"""The front door: `save`, `restore` and `open_image`, as `import saverestore` offers them.

Nothing is printed, no signal handler is set (see `interrupts.handled`), and nothing of Xen is loaded before it is
used. All failures that are foreseen are `SaveRestoreError`s, and `pyxc.XenError`, an OSError, for a refused call of
Xen's. `str(error)` is the fact; `error.name`, of a `SaveRestoreError`, its stable name.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from saverestore.engine.progress import Progress, RestoreReport, SaveReport, Silence
from saverestore.errors import UsageError
from saverestore.stream.digest_algorithms import DEFAULT_DIGEST, DIGEST_OPTIONS

if TYPE_CHECKING:
    from types import TracebackType

    from saverestore.operations.restore import Restored
    from saverestore.stream.survey import Survey

ImagePath: TypeAlias = str | os.PathLike[str]
"""A file; "-" for standard input or output; or, to save and restore, "tcp://HOST:PORT", "unix:PATH" or "fd:N"."""

TOOLSTACKS = ("auto", "bare", "libxl")
ZSTD_LEVELS = range(1, 20)


def save(
    domain: str | int,
    image: ImagePath,
    *,
    final_state: Literal["destroyed", "running", "paused"] = "destroyed",
    live: bool = False,
    downtime_s: float | None = None,
    max_rounds: int | None = None,
    max_time_s: float | None = None,
    compress: int | None = None,
    digest: str = DEFAULT_DIGEST,
    overwrite: bool = False,
    suspend_timeout_s: float | None = None,
    toolstack: Literal["auto", "bare", "libxl"] = "auto",
    while_suspended: str | None = None,
    space_check: bool = True,
    cache: Literal["auto", "direct", "page"] = "auto",
    progress: Progress | None = None,
) -> SaveReport:
    """Save a running domain into an image, as `pysave` does. Needs root in the control domain.

    `domain`: number, name or UUID. `final_state`: what the domain is once its image is complete and on the disk.
    `live`: send memory while the domain runs; only then may `downtime_s`, `max_rounds` and `max_time_s` bound its
    rounds, and defaults match xl. `compress`: a level of zstd, 1 to 19; None writes the image as it is. `digest`:
    "xxh3", "sha256", "blake3" or "none". `suspend_timeout_s`: how long the guest may take to suspend; None: 60.
    `toolstack`: as of `pysave --toolstack`. `while_suspended`: a command line for sh(1), run while the domain is
    suspended, to snapshot its disks; it sees PYSAVE_DOMAIN, PYSAVE_DOMID, PYSAVE_UUID and PYSAVE_IMAGE, and when it
    fails the save fails. `space_check`: refuse where the file system has no room for the image. `cache`: "direct"
    writes the file by direct I/O, "page" through the page cache; "auto": direct where the file system takes it, but
    through the page cache while a domain that is to resume is suspended. `progress`: is called while the save works.

    Returns what was done: pages, rounds, downtime. On any error there is no image, and the domain is as it was
    before, unless the error says otherwise.

    Raises `UsageError` (a file exists, a value makes no sense), `DomainError`, `TransportError` (disk full),
    `XenRefused`, `pyxc.XenError`, and ImportError on a machine without the binding.
    """
    _check_save(
        live=live,
        rounds={"downtime_s": downtime_s, "max_rounds": max_rounds, "max_time_s": max_time_s},
        compress=compress,
        suspend_timeout_s=suspend_timeout_s,
    )
    _check_choice("digest", digest, DIGEST_OPTIONS)
    _check_choice("toolstack", toolstack, TOOLSTACKS)
    from saverestore.engine.policy import Limits
    from saverestore.operations.requests import FinalState, SaveRequest
    from saverestore.operations.save import save_domain
    from saverestore.transport.cache import Cache

    _check_choice("final_state", final_state, [state.value for state in FinalState])
    _check_choice("cache", cache, [one.value for one in Cache])
    request = SaveRequest(
        domain=str(domain),
        image=os.fspath(image),
        final_state=FinalState(final_state),
        live=live,
        limits=Limits(max_rounds=max_rounds, max_time_s=max_time_s, downtime_s=downtime_s),
        compress=compress,
        digest=digest,
        overwrite=overwrite,
        suspend_timeout_s=suspend_timeout_s,
        toolstack=toolstack,
        while_suspended=while_suspended,
        space_check=space_check,
        cache=Cache(cache),
    )
    return save_domain(request, progress or Silence())


def restore(
    image: ImagePath,
    *,
    name: str | None = None,
    config: ImagePath | None = None,
    new_uuid: bool = False,
    paused: bool = False,
    require_digest: bool = False,
    force: bool = False,
    watch: bool = True,
    toolstack: Literal["auto", "bare", "libxl"] = "auto",
    progress: Progress | None = None,
) -> Restored:
    """Restore a domain from an image of pysave or xl, as `pyrestore` does. Needs root in the control domain.

    `name`: of the new domain, instead of the image's. `config`: a file of xl's, or libxl's JSON, with the name, disks
    and NICs that it gets instead of the image's. `new_uuid`: a copy beside the original, with a UUID of its own.
    `paused`: leave the new domain paused. `require_digest`: refuse an image without a digest; one that is there is
    compared in any case. `force`: restore even if this host lacks a disk, bridge or CPU feature, if a disk was
    written to after the save, or if another domain writes to one. `watch`: start a `pysave-watch` for it.
    `toolstack`: as of `pyrestore --toolstack`.

    Returns the new domain's number and name, and what was done. On any error there is no new domain.

    Raises `UsageError`, `DomainError` (its name or UUID is taken, the host lacks something), `ImageError` (damaged,
    incomplete, not for this host), `TransportError`, `XenRefused`, `pyxc.XenError`, and ImportError on a machine
    without the binding.
    """
    _check_choice("toolstack", toolstack, TOOLSTACKS)
    if name == "":
        raise UsageError("name: must not be empty")
    from saverestore.operations.requests import RestoreRequest
    from saverestore.operations.restore import restore_domain
    from saverestore.toolstack.given_config import read

    request = RestoreRequest(
        image=os.fspath(image),
        paused=paused,
        name=name,
        config=None if config is None else read(os.fspath(config)),
        new_uuid=new_uuid,
        force=force,
        require_digest=require_digest,
        watch=watch,
        toolstack=toolstack,
    )
    return restore_domain(request, progress or Silence(), RestoreReport())


def _check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise UsageError(f"{name}: {value!r} is not one of: {', '.join(choices)}")


def _check_save(
    *, live: bool, rounds: dict[str, float | None], compress: int | None, suspend_timeout_s: float | None
) -> None:
    """UsageError for a number that makes no sense, as the commands have it."""
    for name, value in rounds.items():
        if value is None:
            continue
        if not live:
            raise UsageError(f"{name}: is for live saves only")
        if name == "max_rounds" and value < 1:
            raise UsageError(f"{name}: must be at least 1, not {value}")
        if not value > 0:  # nor NaN
            raise UsageError(f"{name}: must be greater than 0, not {value}")
    if compress is not None and compress not in ZSTD_LEVELS:
        raise UsageError(
            f"compress: {compress} is not a level of zstd, {ZSTD_LEVELS[0]} to {ZSTD_LEVELS[-1]}"
        )
    if suspend_timeout_s is not None and not suspend_timeout_s >= 1:
        raise UsageError(f"suspend_timeout_s: must be at least 1, not {suspend_timeout_s}")


def open_image(image: ImagePath) -> Image:
    """Open an image to read any of its pages: a plain file, or one in seekable zstd. Needs no Xen.

    Raises `UsageError` for a pipe, an image compressed otherwise and coded pages of draft-b: `pyimage convert` makes
    an image that can be opened. Raises `ImageError` for a file that is no image, or is damaged, as far as that shows
    without reading its pages: `Image.verify` reads them all.
    """
    return Image(os.fspath(image))


class Image:
    """An image that is open, made by `open_image`. A context manager; `close()` a second time does nothing.

    Its index, 8 bytes for each page of the domain, is in memory; pages are read when they are asked for.
    """

    def __init__(self, image: str) -> None:
        from saverestore.image.access import open_image
        from saverestore.image.index import index_image

        self.name = image
        self._stack = ExitStack()
        with ExitStack() as stack:
            self._access = open_image(image)
            stack.callback(self._access.close)
            self._index = index_image(self._access)
            self._stack = stack.pop_all()

    @property
    def config(self) -> dict[str, Any]:
        """The domain's configuration, as libxl's JSON has it; empty where the image has none."""
        return dict(self._index.config or {})

    @property
    def domain_name(self) -> str | None:
        """The domain's name, from its configuration."""
        creation = self.config.get("c_info")
        name = creation.get("name") if isinstance(creation, dict) else None
        return name if isinstance(name, str) else None

    @property
    def provenance(self) -> dict[str, Any]:
        """The image's note of host, time, domain and options; empty where it has none."""
        from saverestore.stream.layout import RecordType

        found = self._index.records_of(RecordType.PROVENANCE)
        return dict(getattr(found[0], "fields", {})) if found else {}

    @property
    def nr_pages(self) -> int:
        """How many pages have content."""
        from saverestore.image.pages import count_with_data

        return count_with_data(self._index.pages)

    def pfns(self) -> list[int]:
        """The page frame numbers of these pages, rising."""
        from saverestore.image.pages import pfns_with_data

        return [int(pfn) for pfn in pfns_with_data(self._index.pages)]

    def page(self, pfn: int) -> bytes:
        """The 4096 bytes of a page: its last version. UsageError where the image has no such page."""
        from saverestore.image.pages import check_range, pages_from

        check_range(self._index, pfn, pfn)
        (batch,) = pages_from(self._access, self._index.pages, pfn, pfn)
        return batch.pages.tobytes()

    def pages(self) -> Iterator[tuple[int, bytes]]:
        """All pages with content, each once, as (pfn, 4096 bytes); in the order in which they are read fastest."""
        from saverestore.image.pages import batches_of

        for batch in batches_of(self._access, self._index.pages):
            for pfn, content in zip(batch.pfns.tolist(), batch.pages, strict=True):
                yield pfn, content.tobytes()

    def verify(self) -> Survey:
        """Read the whole image and compare its digest. Whole if `is_whole` of the result; else `error` says
        why not."""
        from saverestore.stream.survey import note_trailing_bytes, survey
        from saverestore.transport.opening import open_image

        with open_image(self.name) as source:
            found = survey(source)
            if found.is_whole:
                note_trailing_bytes(found, source.skip_to_end())
            return found

    def close(self) -> None:
        """Close the file."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
