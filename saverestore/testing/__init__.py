"""Domains without Xen, for tests of tools that are built on this library.

`MemoryDomain` is a domain in this process: memory, page tables, processors. `MemorySave` and `MemoryRestore` open it
through the same ports as a real domain, and one contract suite holds both to the same promises. A test writes to the
domain at a chosen call, or lets that call fail (`Moments`), and looks at what the tool made of it. Here the guest
writes one more page while it is being saved, and the image has that page too:

    >>> import tempfile
    >>> from saverestore.engine.restore import restore
    >>> from saverestore.engine.save import SaveSettings, save
    >>> from saverestore.guest.ports import Channels
    >>> from saverestore.stream.reader import LibxcReader
    >>> from saverestore.testing import MemoryDomain, MemoryRestore, MemorySave, empty_like
    >>> from saverestore.transport.fd import FdSink, FdSource

    >>> domain = MemoryDomain.pvh(nr_pfns=1024)
    >>> guest = MemorySave(domain)
    >>> guest.moments.on("suspend", 0, lambda: domain.write([100], 0x55))
    >>> file = tempfile.TemporaryFile()
    >>> with FdSink(file.fileno(), "the image", close_fd=False) as sink:
    ...     figures = save(guest, sink, SaveSettings(live=True))
    >>> domain.suspended
    True

    >>> copy = MemoryRestore(empty_like(domain))
    >>> at_start = file.seek(0)
    >>> with FdSource(file.fileno(), "the image", close_fd=False) as source:
    ...     rings, figures = restore(LibxcReader(source), source, copy, Channels(store_port=1, console_port=2))
    >>> bool((copy.domain.read([100]) == 0x55).all())
    True

At the end, close the domains: `MemoryDomain.close` raises BufferError where a tool still holds a view of the memory.

    >>> file.close(), domain.close(), copy.domain.close()
    (None, None, None)

Nothing here needs Xen or a compiler. That a tool works on real domains is shown by real domains only.
"""

from saverestore.testing.domain import MemoryDomain, Processors
from saverestore.testing.guest import MemoryRestore, MemorySave, MemoryThrottle, empty_like
from saverestore.testing.moments import Moments

__all__ = [
    "MemoryDomain",
    "MemoryRestore",
    "MemorySave",
    "MemoryThrottle",
    "Moments",
    "Processors",
    "empty_like",
]
