"""Whether an image's domain would run on this host's processors: found by a second look into the file."""

from __future__ import annotations

import stat
from pathlib import Path

from saverestore.errors import ImageError
from saverestore.guest.arm64.host import gic_version, is_arm64_host
from saverestore.guest.common.handles import FORCE, Handles
from saverestore.guest.x86.common import check_cpu_policy
from saverestore.operations.image import opened
from saverestore.operations.requests import STDIN
from saverestore.stream.layout import DomainType, RecordType
from saverestore.stream.reader import LibxcReader, PageData
from saverestore.stream.records import Arm64Platform, X86CpuidPolicy, X86MsrPolicy


def check(handles: Handles, image: str, *, force: bool) -> None:
    """ImageError or DomainError when it would not. What comes through a pipe is checked once the domain is there."""
    if image == STDIN or not stat.S_ISREG(Path(image).stat().st_mode):
        return
    with opened(image) as found:
        reader = LibxcReader(found.source)
        unless = None if force else FORCE
        check_architecture(reader.domain.type)
        leaves = msrs = b""
        while not reader.static_data_ended:
            record = reader.next()
            if isinstance(record, PageData) or record.type == RecordType.END:
                break
            if isinstance(record, X86CpuidPolicy):
                leaves = record.leaves
            elif isinstance(record, X86MsrPolicy):
                msrs = record.entries
            elif isinstance(record, Arm64Platform):
                from saverestore.guest.arm64.restore import check_platform, check_size

                check_platform(record, gic_version(found.config.gic_version), unless=unless)
                check_size(record, found.config.max_vcpus, found.config.max_kib)
        if reader.domain.type is not DomainType.ARM64:
            is_hvm = reader.domain.type == DomainType.X86_HVM
            check_cpu_policy(handles.xen, is_hvm, leaves, msrs, unless=unless)


def check_architecture(domain_type: DomainType) -> None:
    """ImageError when the image's domain ran on another architecture than this host's."""
    if (domain_type is DomainType.ARM64) != is_arm64_host():
        names = ("arm64", "x86") if domain_type is DomainType.ARM64 else ("x86", "arm64")
        raise ImageError(
            f"the image holds an {names[0]} domain, and this is an {names[1]} host; nothing was done"
        )
