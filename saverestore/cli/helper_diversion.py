"""`pysave-helper --enable`, `--disable` and `--status`: whose helper every xl of this host starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from saverestore.cli.common import say
from saverestore.cli.remedies import HELPER, in_full
from saverestore.errors import ErrorName, ExitCode, SaveRestoreError, XenRefused, exit_code_of

if TYPE_CHECKING:
    from saverestore.toolstack.diversion import Place

UNKNOWN = "unknown"
"""What `built_for` returns where the build could not find out."""

NO_XEN = "no Xen was found: /usr/lib/xen-*/bin has no libxl-save-helper"


def enable(root: Path = Path("/")) -> int:
    """Divert for each release of Xen that this package was built for: an exit code."""

    def work() -> None:
        from saverestore.guest.common.handles import built_for
        from saverestore.toolstack import diversion
        from saverestore.toolstack.programs import path_of

        diversion.require_root()
        ours, release, found = path_of(HELPER), built_for(), diversion.places(root)
        wanted = [place for place in found if release in (place.release, UNKNOWN)]
        for place in found:
            if place not in wanted:
                print(f"Xen {place.release}: left as it is; this package was built for Xen {release}")
        if not wanted:
            raise XenRefused(
                (f"no helper of Xen {release} was found" if found else NO_XEN),
                name=ErrorName.TOOLSTACK_UNAVAILABLE,
            )
        diversion.require_unclaimed(wanted)
        for place in wanted:
            already = "" if place.enable(ours) else " already"
            print(f"Xen {place.release}: xl starts {ours}{already}")

    return _run(work)


def disable(root: Path = Path("/")) -> int:
    """Take back what `enable` did, for each release of Xen: an exit code. Others' changes stay."""

    def work() -> None:
        from saverestore.toolstack import diversion

        diversion.require_root()
        found = diversion.places(root)
        for place in found:
            if place.state is diversion.State.OTHERS:
                print(f"Xen {place.release}: left as it is: {_describe(place)}")
                continue
            again = " again" if place.disable() else ""
            print(f"Xen {place.release}: {_own(place)}{again}")
        left = diversion.left_over(root)
        for place in left:
            place.disable()
            print(f"Xen {place.release}: is not installed, and no longer diverted")
        if not found and not left:
            print(NO_XEN)

    return _run(work)


def status(root: Path = Path("/")) -> int:
    """Print whose helper each release of Xen starts: an exit code, 0 whatever is found."""

    def work() -> None:
        from saverestore.toolstack import diversion

        found = diversion.places(root)
        for place in found:
            print(f"Xen {place.release}: {_describe(place)}")
        left = diversion.left_over(root)
        for place in left:
            print(
                f"Xen {place.release}: is not installed, and still diverted; '{HELPER} --disable' takes that back"
            )
        if not found and not left:
            print(NO_XEN)

    return _run(work)


WHAT: dict[str, Callable[[], int]] = {"enable": enable, "disable": disable, "status": status}
"""By the option's name."""


def _describe(place: Place) -> str:
    from saverestore.toolstack.diversion import State

    match place.state:
        case State.STOCK:
            return _own(place)
        case State.OURS:
            aside = stock if (stock := place.stock).exists() else "is not installed"
            return f"xl starts {place.target} (Xen's own helper: {aside})"
        case State.UNFINISHED:
            return f"half enabled; '{HELPER} --enable' or '{HELPER} --disable' completes it"
        case State.LOST:
            return (
                f"xl can save and restore nothing: {place.own} points to {place.target}, which does not exist; "
                f"'{HELPER} --disable' or '{HELPER} --enable' repairs it"
            )
        case State.OTHERS if place.target is not None:
            by_hand = f"which was not put there by '{HELPER} --enable'"
            if place.own.exists():
                return f"xl starts {place.target}, {by_hand}: {place.own}"
            return (
                f"xl can save and restore nothing: {place.own} points to {place.target}, which does not exist, and "
                f"{by_hand}"
            )
        case State.OTHERS:
            return f"xl starts a helper that is neither Xen's own nor this one: {place.own}"


def _own(place: Place) -> str:
    return "xl starts Xen's own helper" if place.own.exists() else "no helper is installed"


def _run(work: Callable[[], None]) -> int:
    try:
        work()
    except (SaveRestoreError, OSError, ImportError) as error:
        say(f"{HELPER}: {in_full(error, HELPER)}")
        return exit_code_of(error)
    return ExitCode.DONE
