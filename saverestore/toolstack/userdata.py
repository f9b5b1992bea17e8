"""The record that libxl keeps of each of its domains: the configuration, as JSON.

libxl writes it last of all when it creates or restores a domain, and so does the bare toolstack.
"""

from __future__ import annotations

import uuid
from pathlib import Path

USERDATA_DIR = Path("/var/lib/xen")
"""Where libxl keeps what it knows of running domains (XEN_LIB_DIR)."""


def userdata_path(domid: int, domain_uuid: uuid.UUID) -> Path:
    """The file in which libxl keeps a running domain's configuration."""
    return USERDATA_DIR / f"userdata-d.{domid}.{domain_uuid}.libxl-json"
