import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import saverestore
from saverestore.kernels import compiled

# The samples belong to the vectors, and are shared by several folders of tests.
sys.path.insert(0, str(Path(__file__).parents[2] / "vectors"))


@pytest.fixture
def without_kernels() -> Iterator[None]:
    """As where there was no C compiler when the package was installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "saverestore._kernels", None)
        patch.delattr(saverestore, "_kernels", raising=False)
        compiled.cache_clear()
        assert compiled() is None
        yield
    compiled.cache_clear()
