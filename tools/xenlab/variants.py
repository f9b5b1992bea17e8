"""The variants of the lab: which Xen, on which Debian suite."""

from __future__ import annotations

from dataclasses import dataclass

from xenlab.errors import LabError


@dataclass(frozen=True)
class Variant:
    """One kind of dom0 that can be booted."""

    name: str
    suite: str
    xen: str
    shadow: bool = False
    """Boot a Xen built from the suite's source package with CONFIG_SHADOW_PAGING=y."""
    stock: bool = False
    """Only for stock xl, to write images of an old Xen: this suite's Python is too old for the project."""

    @property
    def packages(self) -> tuple[str, ...]:
        """Debian packages of the suite's root file system."""
        more = () if self.stock else PROJECT_PACKAGES
        return (f"xen-hypervisor-{self.xen}-amd64", f"xen-utils-{self.xen}", *DOM0_PACKAGES, *more)


DOM0_PACKAGES = (
    # the dom0
    "linux-image-amd64", "busybox-static", "iproute2", "kmod", "procps", "udev", "systemd-sysv",
    "openssh-server", "e2fsprogs", "strace", "psmisc", "less", "zstd",
    # the guest's programs, and lab-guest
    "gcc", "libc6-dev", "python3",
)  # fmt: skip

PROJECT_PACKAGES = (
    # HVM guests, and bridges for everybody
    "qemu-system-xen", "seabios", "ipxe-qemu", "bridge-utils",
    # the project: what it runs on, what compiles it, what tests it
    "libxen-dev", "libxxhash-dev", "make", "pkg-config", "python3-dev", "python3-venv",
    "python3-pip", "python3-setuptools", "python3-wheel", "python3-cffi", "python3-numpy",
    "python3-zstandard", "python3-tqdm", "python3-xxhash", "python3-pytest", "python3-hypothesis",
    "python3-pyroute2",
    # Xen from its source package (4.17-shadow)
    "dpkg-dev", "bison", "flex",
)  # fmt: skip

VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("4.17", "bookworm", "4.17"),
        Variant("4.20", "trixie", "4.20"),
        Variant("4.17-shadow", "bookworm", "4.17", shadow=True),
        Variant("4.14", "bullseye", "4.14", stock=True),
    )
}
DEFAULT = "4.17"


def variant_named(name: str) -> Variant:
    """Return the variant of that name; raises LabError naming the ones there are."""
    try:
        return VARIANTS[name]
    except KeyError:
        raise LabError(f"no variant {name!r}: choose one of {', '.join(VARIANTS)}") from None
