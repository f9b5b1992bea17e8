"""Save and restore Xen domains, live, in Xen's own image format.

`save` and `restore` work on domains and need Xen; `open_image` reads an image on any machine. Importing this package
is cheap: what a function needs is loaded when it is called.

    >>> import saverestore
    >>> with saverestore.open_image("web1.img") as image:
    ...     print(image.domain_name, image.nr_pages)
    ...     print(len(image.page(0x1000)))
    web1 2
    4096
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.3.0"

if TYPE_CHECKING:
    from saverestore.api import Image, open_image, restore, save
    from saverestore.engine.progress import Progress, RestoreReport, SaveReport
    from saverestore.errors import (
        DomainError,
        ImageError,
        SaveRestoreError,
        TransportError,
        UsageError,
        XenRefused,
    )
    from saverestore.operations.restore import Restored

__all__ = [
    "DomainError",
    "Image",
    "ImageError",
    "Progress",
    "RestoreReport",
    "Restored",
    "SaveReport",
    "SaveRestoreError",
    "TransportError",
    "UsageError",
    "XenRefused",
    "__version__",
    "open_image",
    "restore",
    "save",
]

_HOME = {
    "DomainError": "errors",
    "Image": "api",
    "ImageError": "errors",
    "Progress": "engine.progress",
    "RestoreReport": "engine.progress",
    "Restored": "operations.restore",
    "SaveReport": "engine.progress",
    "SaveRestoreError": "errors",
    "TransportError": "errors",
    "UsageError": "errors",
    "XenRefused": "errors",
    "open_image": "api",
    "restore": "api",
    "save": "api",
}
"""The module of each name, below this package."""


def __getattr__(name: str) -> Any:
    """Load what is used."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
