"""What is decided by the architecture of the host, before anything is done."""

from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace

import pytest

try:
    import pyxc.arm64
except ImportError as error:
    pytest.skip(f"needs the compiled binding: {error}", allow_module_level=True)

from fake_host import FakeHost, FakeToolstack, RestoringHost

from saverestore.errors import Advice, DomainError, ImageError, Remedy
from saverestore.guest.arm64 import host
from saverestore.guest.arm64.restore import check_platform, check_size
from saverestore.guest.kinds import ARM64_HOST, X86_HOST
from saverestore.operations import restore
from saverestore.operations.preflight import Findings
from saverestore.operations.prepare_save import prepare
from saverestore.operations.requests import RestoreRequest, SaveRequest
from saverestore.stream.layout import DomainType
from saverestore.stream.records import Arm64Platform


def test_an_arm64_image_is_refused_on_an_x86_host():
    with pytest.raises(
        ImageError, match="holds an arm64 domain, and this is an x86 host; no changes were made"
    ):
        X86_HOST.of_image(DomainType.ARM64, "pvh")


@pytest.mark.parametrize(("domain_type", "said"), [(DomainType.X86_PV, "pv"), (DomainType.X86_HVM, "pvh")])
def test_an_x86_image_is_refused_on_an_arm64_host(domain_type, said):
    with pytest.raises(ImageError, match="holds an x86 domain, and this is an arm64 host"):
        ARM64_HOST.of_image(domain_type, said)


@pytest.mark.parametrize(
    ("vcpus", "kib", "message"),
    [
        (2, 131072, "has 1 vCPUs, its configuration would make one with 2"),
        (1, 65536, "has 131072 KiB of memory, its configuration would make one with 65536"),
    ],
)
def test_an_image_whose_configuration_is_of_another_domain_is_refused(vcpus, kib, message):
    with pytest.raises(ImageError, match=message):
        check_size(PLATFORM, vcpus, kib)


def test_an_image_of_a_domain_that_had_given_memory_back_fits_its_configuration():
    check_size(PLATFORM, 1, 131072)
    check_size(PLATFORM, 1, 262144)


INTERRUPTS = """\
           CPU0       CPU1
 10:      31410      20007     {chip}  27 Level     arch_timer
 11:       2024          0  xen-dyn    -event     xenbus
"""


@pytest.mark.parametrize(("chip", "version"), [("GICv3", 3), ("GICv2", 2), ("GIC-0", 2)])
def test_the_version_of_the_gic_is_told_by_dom0s_own_interrupts(tmp_path, chip, version):
    interrupts = tmp_path / "interrupts"
    interrupts.write_text(INTERRUPTS.format(chip=chip))
    assert host.gic_version(None, interrupts) == version
    assert host.gic_version("default", interrupts) == version


def test_a_configuration_that_says_the_version_is_believed(tmp_path):
    assert host.gic_version("v2", tmp_path / "missing") == 2


@pytest.mark.parametrize("chips", ["", "GICv3 GICv2"])
def test_interrupts_that_do_not_tell_the_version_are_refused(tmp_path, chips):
    interrupts = tmp_path / "interrupts"
    interrupts.write_text(chips)
    with pytest.raises(DomainError, match="does not report the version of this host's GIC"):
        host.gic_version(None, interrupts)


PLATFORM = Arm64Platform(gic=3, nr_vcpus=1, midr=0x411FD070, cntfrq=62_500_000, banks=((0x40000, 0x8000),))


@pytest.mark.parametrize(
    ("midr", "cntfrq", "gic", "message", "name"),
    [
        (0x411FD070, 62_500_000, 2, "has a GICv3, this host gives domains a GICv2", "host_incompatible"),
        (
            0x411FD070,
            50_000_000,
            3,
            "counts time at 62500000 Hz, this host at 50000000 Hz",
            "host_incompatible",
        ),
        (0x410FD034, 62_500_000, 3, "another kind of processor", "cpu_features_missing"),
    ],
)
def test_an_image_for_another_host_is_refused_before_a_domain_is_made(
    monkeypatch, midr, cntfrq, gic, message, name
):
    monkeypatch.setattr("pyxc.arm64.processor", lambda: pyxc.arm64.Processor(midr, cntfrq))
    with pytest.raises(ImageError, match=message) as caught:
        check_platform(PLATFORM, gic, check_cpu=True)
    assert caught.value.name == name


def test_an_image_for_another_processor_can_be_forced_but_not_one_for_another_gic(monkeypatch, caplog):
    monkeypatch.setattr("pyxc.arm64.processor", lambda: pyxc.arm64.Processor(0x410FD034, 62_500_000))
    check_platform(PLATFORM, 3, check_cpu=False)
    assert "the guest may crash" in caplog.text
    with pytest.raises(ImageError):
        check_platform(PLATFORM, 2, check_cpu=False)


@pytest.mark.parametrize(
    ("architecture", "restoring_command"),
    [(X86_HOST, "xl restore"), (ARM64_HOST, None)],
    ids=["x86", "arm64"],
)
def test_what_is_advised_about_devices_follows_the_host_that_is_given(
    monkeypatch, architecture, restoring_command
):
    toolstack = FakeToolstack()
    monkeypatch.setattr(toolstack, "unsupported_devices", lambda _: ["a disk"])
    saving = FakeHost(toolstack=toolstack)
    saving.architecture = architecture
    with ExitStack() as stack, pytest.raises(DomainError) as caught:
        prepare(saving, SaveRequest("web1", "a.img"), Findings(), stack)
    assert caught.value.remedies == (Advice(Remedy.SAVE_WITHOUT_DEVICES, restoring_command),)

    restoring = RestoringHost()
    restoring.architecture = architecture
    config = SimpleNamespace(name="web1", devices=["a disk"], left_out=[])
    with ExitStack() as stack, pytest.raises(DomainError) as caught:
        restore._prepare(restoring, config, RestoreRequest("a.img"), Findings(), stack)
    by_xl = [] if restoring_command is None else [Advice(Remedy.RESTORE_BY_XL)]
    assert list(caught.value.remedies) == [Advice(Remedy.RESTORE_WITHOUT_DEVICES), *by_xl]
