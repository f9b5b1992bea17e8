"""The compiled kernel and its twin in numpy copy the same bytes, and none besides."""

from __future__ import annotations

import numpy as np
import pytest

from saverestore.kernels import compiled
from saverestore.kernels import copying as module
from saverestore.kernels.copying import copy_in_numpy, copy_to

KIB = 1 << 10


@pytest.mark.parametrize("nr_bytes", [0, 1, 4096, 256 * KIB - 1, 256 * KIB, 256 * KIB + 1, 3 << 20])
@pytest.mark.parametrize("copy", [copy_to, copy_in_numpy])
def test_all_is_copied_and_nothing_besides(copy, nr_bytes):
    source = np.random.default_rng(nr_bytes).integers(1, 256, nr_bytes, dtype=np.uint8)
    to = np.zeros(nr_bytes + 2, dtype=np.uint8)
    copy(to[1:-1], memoryview(source.tobytes()))
    assert to[1:-1].tobytes() == source.tobytes()
    assert not to[0] and not to[-1]


@pytest.mark.parametrize("size", [4095, 4097])
def test_buffers_of_different_lengths_are_refused(size):
    with pytest.raises(ValueError):
        copy_to(np.zeros(4096, dtype=np.uint8), memoryview(bytes(size)))


@pytest.mark.skipif(compiled() is None, reason="saverestore._kernels is not compiled")
def test_memory_that_may_only_be_read_is_not_copied_to():
    with pytest.raises((BufferError, ValueError)):
        copy_to(np.frombuffer(bytes(4096), dtype=np.uint8), memoryview(bytes(4096)))


def test_without_the_kernel_the_twin_is_used(monkeypatch):
    monkeypatch.setattr(module, "compiled", lambda: None)
    to = np.zeros(2, dtype=np.uint8)
    copy_to(to, memoryview(b"ab"))
    assert to.tobytes() == b"ab"
