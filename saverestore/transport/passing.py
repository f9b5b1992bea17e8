"""A sink that passes everything to another one; its kinds add one thing each: a digest, a rate, a measurement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from saverestore.transport.base import ByteSink

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


SinkT = TypeVar("SinkT", bound=ByteSink)


class PassingSink(Generic[SinkT]):
    """A `ByteSink` before another one, with that one's name and offset. A kind overrides `writev` alone."""

    def __init__(self, sink: SinkT) -> None:
        self._sink = sink

    @property
    def name(self) -> str:
        """See ByteSink."""
        return self._sink.name

    @property
    def offset(self) -> int:
        """See ByteSink."""
        return self._sink.offset

    def write(self, data: ReadableBuffer) -> None:
        """See ByteSink."""
        self.writev((data,))

    def writev(self, buffers: Sequence[ReadableBuffer]) -> None:
        """See ByteSink."""
        self._sink.writev(buffers)

    def close(self) -> None:
        """See ByteSink."""
        self._sink.close()
