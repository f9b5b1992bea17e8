"""`pysave` as it begins, with a domain in memory where its own would be: see `benchmarks.start`.

Nothing is loaded before the command loads it itself, and of what is for tests nothing before the first byte.
"""

from __future__ import annotations

import sys
from typing import Any

NOT_THERE = "no-such-domain"


def main() -> None:
    from saverestore.cli import start

    sys.argv[1:] = [NOT_THERE, "-", "--quiet"]
    # The command would load it later, when it has read its options; it finds it there.
    from saverestore.operations import save

    save.save_domain = _save_domain  # type: ignore[assignment]
    start.pysave()


def _save_domain(*_: Any, process_ends: bool) -> None:
    """Ask for Xen and a domain, which are not there, and write an image all the same."""
    from saverestore.engine.save import save as save_image
    from saverestore.engine.settings import SaveSettings
    from saverestore.errors import SaveRestoreError
    from saverestore.guest.common.handles import XenError
    from saverestore.operations.host import opened_host
    from saverestore.stream.header_digest import HeaderDigestSink
    from saverestore.stream.libxl import LibxlWriter
    from saverestore.stream.trailer import TrailerBuffer
    from saverestore.stream.xl import XlHeader
    from saverestore.transport.fd import FdSink

    try:
        with opened_host(process_ends=process_ends) as host:
            host.find(NOT_THERE)
    except (XenError, SaveRestoreError):
        pass
    sink = FdSink(1, "standard output")
    outside = HeaderDigestSink(sink)
    XlHeader.write(outside, b"{}")  # the first byte
    stream = LibxlWriter(outside)
    stream.libxc_context()
    behind = TrailerBuffer(sink.name)
    stream.continue_in(behind)
    stream.end()

    from saverestore.testing.domain import MemoryDomain
    from saverestore.testing.guest import MemorySave

    save_image(
        MemorySave(MemoryDomain.pvh(512)), sink, SaveSettings(header_digest=outside.digest()), trailer=behind
    )


if __name__ == "__main__":
    main()
