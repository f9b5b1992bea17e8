"""Byte sources and sinks: where an image comes from and where it goes."""

from saverestore.transport.base import ByteSink, ByteSource, EndOfStream
from saverestore.transport.fd import FdSink, FdSource

__all__ = ["ByteSink", "ByteSource", "EndOfStream", "FdSink", "FdSource"]
