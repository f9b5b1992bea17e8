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
    arch: str = "amd64"
    """Debian's name of it: "amd64" or "arm64"."""
    gic: int = 3
    """arm64: the version of the machine's interrupt controller, which guests get, too."""

    @property
    def is_arm64(self) -> bool:
        """Whether it is another architecture than the machine's: nothing of its packages can run here."""
        return self.arch == "arm64"

    @property
    def place(self) -> str:
        """What is the same for this and other variants of its suite and architecture is in folders of this name."""
        return self.suite if self.arch == "amd64" else f"{self.suite}-{self.arch}"

    @property
    def packages(self) -> tuple[str, ...]:
        """Debian packages of the suite's root file system."""
        xen = (f"xen-hypervisor-{self.xen}-{self.arch}", f"xen-utils-{self.xen}")
        if self.is_arm64:
            return (*xen, *ARM64_PACKAGES)
        return (*xen, *DOM0_PACKAGES, *(() if self.stock else PROJECT_PACKAGES))


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
    # tests of disks and file systems
    "lvm2",
    # the project: what it runs on, what compiles it, what tests it
    "libxen-dev", "libxxhash-dev", "make", "pkg-config", "python3-dev", "python3-venv",
    "python3-pip", "python3-setuptools", "python3-wheel", "python3-cffi", "python3-numpy",
    "python3-zstandard", "python3-tqdm", "python3-xxhash", "python3-pytest", "python3-hypothesis",
    "python3-lz4", "python3-pyroute2", "python3-cryptography", "python3-prometheus-client",
    # file systems that tests make
    "nfs-kernel-server", "dosfstools", "btrfs-progs", "xfsprogs", "quota",
    # Xen from its source package (4.17-shadow)
    "dpkg-dev", "bison", "flex",
)  # fmt: skip

ARM64_PACKAGES = (
    # What every Debian has, but has to be named where packages are only unpacked.
    "base-files", "base-passwd", "bash", "dash", "coreutils", "util-linux", "mount", "login", "passwd", "hostname",
    "grep", "sed", "mawk", "findutils", "diffutils", "tar", "gzip", "usr-is-merged",
    # the dom0
    "linux-image-arm64", "busybox-static", "iproute2", "kmod", "procps", "openssh-server", "e2fsprogs", "strace",
    "psmisc", "less", "zstd", "xenstore-utils", "bridge-utils",
    # the project, and the headers that it is compiled with
    "libxen-dev", "libxxhash-dev", "libc6-dev", "python3", "python3-dev", "python3-cffi", "python3-numpy",
    "python3-zstandard", "python3-tqdm", "python3-xxhash", "python3-pytest", "python3-hypothesis",
    "python3-pyroute2", "python3-cryptography",
)  # fmt: skip

VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("4.17", "bookworm", "4.17"),
        Variant("4.20", "trixie", "4.20"),
        Variant("4.17-shadow", "bookworm", "4.17", shadow=True),
        Variant("4.14", "bullseye", "4.14", stock=True),
        Variant("4.17-arm64", "bookworm", "4.17", arch="arm64"),
        Variant("4.17-arm64-gic2", "bookworm", "4.17", arch="arm64", gic=2),
    )
}
DEFAULT = "4.17"
ARCHITECTURES = ("amd64", "arm64")


def variant_named(name: str) -> Variant:
    """Return the variant of that name; raises LabError naming the ones there are."""
    try:
        return VARIANTS[name]
    except KeyError:
        raise LabError(f"no variant {name!r}: choose one of {', '.join(VARIANTS)}") from None


def of_architecture(name: str, arch: str) -> str:
    """Return the name of the variant that has this variant's Xen on that architecture; LabError when none has."""
    if VARIANTS[name].arch == arch:
        return name
    wanted = f"{VARIANTS[name].xen}-{arch}"
    if wanted not in VARIANTS or VARIANTS[wanted].arch != arch:
        raise LabError(f"there is no variant {name!r} on {arch}: choose one of {', '.join(VARIANTS)}")
    return wanted
