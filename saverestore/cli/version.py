"""What `--version` prints: the version, and which parts were compiled when the package was installed."""

from __future__ import annotations

from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import saverestore

HERE = Path(saverestore.__file__).parent
PYXC = HERE.parent / "pyxc"


def version_text(prog: str) -> str:
    """One line: "pysave 0.3.0 (built for Xen 4.17 with libxl; compiled kernels)"."""
    return f"{prog} {saverestore.__version__} ({'; '.join(built_in())})"


def built_in() -> list[str]:
    """What was compiled, a phrase each. Compiled modules are looked for and not loaded, which would need their
    libraries; only the release that the binding is for is asked of it, where it loads."""
    if not _is_compiled(PYXC, "_xen"):
        return ["images only: built without Xen", _kernels()]
    release = _release()
    libxl = "with libxl" if _is_compiled(PYXC, "_libxl") else "without libxl"
    return [f"built for Xen {release}, {libxl}", _kernels()]


def _kernels() -> str:
    return "compiled kernels" if _is_compiled(HERE, "_kernels") else "no compiled kernels: digests are slower"


def _is_compiled(folder: Path, name: str) -> bool:
    return any((folder / f"{name}{suffix}").is_file() for suffix in EXTENSION_SUFFIXES)


def _release() -> str:
    try:
        from saverestore.guest.common.handles import built_for

        return built_for()
    except ImportError:  # the libraries of another release: `pysave` itself says so, in full
        return "of another release than this host's"
