"""libxl's JSON, read as far as a restore needs it."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from saverestore.errors import ImageError
from saverestore.toolstack import config

UUID = "5d3c9a5a-6a9e-4b7e-9d0c-0123456789ab"


def raw(
    create: dict[str, Any] | None = None, build: dict[str, Any] | None = None, **top: Any
) -> dict[str, Any]:
    return {
        "c_info": {"type": "pvh", "name": "web1", "uuid": UUID} | (create or {}),
        "b_info": {"max_vcpus": 4, "avail_vcpus": [0, 1], "max_memkb": 262144, "target_memkb": 131072}
        | (build or {}),
    } | top


def parsed(*args: Any, **top: Any) -> config.GuestConfig:
    return config.parse(json.dumps(raw(*args, **top)).encode())


# ---- what is read --------------------------------------------------------------------------------


def test_what_every_domain_has_is_read():
    found = parsed()
    assert (found.name, found.uuid, found.kind) == ("web1", uuid.UUID(UUID), "pvh")
    assert (found.max_vcpus, found.online_vcpus) == (4, {0, 1})
    assert (found.target_kib, found.max_kib) == (131072, 262144)


def test_the_nul_that_xl_writes_behind_it_is_no_part_of_it():
    data = json.dumps(raw()).encode()
    assert config.parse(data + b"\0") == config.parse(data)


def test_what_libxl_leaves_out_is_filled_in_as_it_would():
    found = config.parse(
        json.dumps(
            {"c_info": {"type": "pv", "name": "a", "uuid": UUID}, "b_info": {"max_memkb": 1024}}
        ).encode()
    )
    assert (found.max_vcpus, found.online_vcpus, found.target_kib) == (1, {0}, 1024)
    assert (found.event_channels, found.timer_mode, found.tsc_mode) == (1023, 1, 0)
    assert (found.max_grant_frames, found.max_maptrack_frames, found.max_grant_version) == (-1, -1, 2)
    assert (found.hap, found.nested_virt, found.msr_relaxed) == (True, False, False)
    assert (found.paging_kib, found.ssidref) == (None, 0)


@pytest.mark.parametrize(
    ("written", "default", "wanted"),
    [
        ("True", False, True),
        ("False", True, False),
        (True, False, True),
        (False, True, False),
        ("<default>", True, True),
        ("<default>", False, False),
    ],
)
def test_a_defbool_is_read_in_all_its_forms(written, default, wanted):
    if default:
        assert parsed({"hap": written}).hap is wanted
    else:
        assert parsed(None, {"nested_hvm": written}).nested_virt is wanted
        assert parsed(None, {"arch_x86": {"msr_relaxed": written}}).msr_relaxed is wanted


@pytest.mark.parametrize(("written", "wanted"), [(64, 64), (0, 0), (0xFFFF_FFFF, -1), (None, -1)])
def test_a_limit_that_libxl_left_to_the_hypervisor_is_minus_one(written, wanted):
    found = parsed(None, {"max_grant_frames": written, "max_maptrack_frames": written})
    assert (found.max_grant_frames, found.max_maptrack_frames) == (wanted, wanted)


@pytest.mark.parametrize(("written", "wanted"), [(1, 1), (2, 2), (0, 0), (-1, 2), (99, 2), (None, 2)])
def test_a_grant_version_that_does_not_exist_is_the_highest(written, wanted):
    assert parsed(None, {"max_grant_version": written}).max_grant_version == wanted


def test_modes_are_read_by_name():
    found = parsed(None, {"timer_mode": "one_missed_tick_pending", "tsc_mode": "native"})
    assert (found.timer_mode, found.tsc_mode) == (3, 2)


def test_a_config_without_type_is_of_the_kind_whose_section_it_has():
    data = raw(None, {"type.pv": {"kernel": "/boot/vmlinuz"}})
    del data["c_info"]["type"]
    assert config.parse(json.dumps(data).encode()).kind == "pv"


def test_devices_are_told_for_people():
    found = parsed(disks=[{"vdev": "xvda"}, {"vdev": "xvdb"}], nics=[{"devid": 3}, {}], vkbs=[], vfbs=None)
    assert found.devices == ["disk xvda", "disk xvdb", "NIC 3", "NIC 1"]
    assert parsed().devices == []


# ---- what is not JSON of libxl -------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\0", id="a NUL"),
        pytest.param(b"{", id="half a JSON"),
        pytest.param(b"\xff\xfe{}", id="no UTF-8"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b'"text"', id="a string"),
        pytest.param(b"7", id="a number"),
        pytest.param(b"null", id="null"),
        pytest.param(b"{}", id="an empty object"),
        pytest.param(b'{"c_info": {}, "b_info": {}}', id="empty sections"),
        pytest.param(b'{"c_info": [], "b_info": 3}', id="sections of other types"),
        pytest.param(b"[" * 100_000, id="nested without end"),
    ],
)
def test_anything_else_is_an_image_error(data):
    with pytest.raises(ImageError, match="configuration"):
        config.parse(data)


@pytest.mark.parametrize(
    ("create", "build", "top"),
    [
        pytest.param({"uuid": "none"}, {}, {}, id="no uuid"),
        pytest.param({"uuid": 5}, {}, {}, id="a number for a uuid"),
        pytest.param({"type": "xen"}, {}, {}, id="an unknown kind"),
        pytest.param({}, {"max_vcpus": 0}, {}, id="no vcpus"),
        pytest.param({}, {"max_vcpus": "many"}, {}, id="a word for vcpus"),
        pytest.param({}, {"max_vcpus": float("inf")}, {}, id="infinitely many vcpus"),
        pytest.param({}, {"max_memkb": float("nan")}, {}, id="no number for memory"),
        pytest.param({}, {"max_memkb": -5}, {}, id="less than no memory"),
        pytest.param({}, {"avail_vcpus": 3}, {}, id="no list of vcpus"),
        pytest.param({}, {"arch_x86": [1]}, {}, id="a list for a section"),
        pytest.param({"hap": []}, {}, {}, id="a list for a flag"),
        pytest.param({}, {}, {"disks": {"vdev": "xvda"}}, id="an object for a list of devices"),
        pytest.param({}, {}, {"nics": [5]}, id="a number for a device"),
        pytest.param({}, {}, {"nics": "eth0"}, id="a string for a list of devices"),
        pytest.param({}, {}, {"disks": [{"pdev_path": 5}]}, id="a number for a path"),
        pytest.param({}, {}, {"disks": [{"script": ["block"]}]}, id="a list for a script of a disk"),
        pytest.param({}, {}, {"nics": [{"bridge": 5}]}, id="a number for a bridge"),
        pytest.param({}, {}, {"nics": [{"script": 5, "bridge": "b"}]}, id="a number for a script of a NIC"),
        pytest.param({}, {}, {"pcidevs": [{"bus": "x"}]}, id="a word for a PCI bus"),
        pytest.param({}, {}, {"pcidevs": [{"dev": [1]}]}, id="a list for a PCI device"),
        pytest.param({}, {"sched_params": [1]}, {}, id="a list for parameters of the scheduler"),
        pytest.param({}, {"type.pvh": [1]}, {}, id="a list for the section of a kind"),
    ],
)
def test_values_that_cannot_be_are_an_image_error(create, build, top):
    with pytest.raises(ImageError, match="configuration"):
        parsed(create, build, **top)


# ---- what is written -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [rb"\ud800", b"\xed\xa0\x80"], ids=["escaped", "as bytes"])
def test_a_name_that_is_no_text_is_an_image_error(name):
    """Neither xenstore nor a lock could be given it."""
    data = json.dumps(raw()).encode().replace(b'"name": "', b'"name": "' + name)
    with pytest.raises(ImageError, match=r"the name '\\ud800.*' is not UTF-8"):
        config.parse(data)


def test_fields_that_nobody_here_knows_pass_through():
    found = parsed({"future": {"a": [1, None]}}, {"type.pvh": {"kernel": "/k"}}, newdevs=[{"x": "é"}])
    assert json.loads(found.to_json()) == found.raw
    assert found.raw["newdevs"] == [{"x": "é"}]
    assert found.raw["c_info"]["future"] == {"a": [1, None]}
    assert config.parse(found.to_json()) == found


def test_replacing_changes_what_was_asked_and_nothing_else_and_leaves_the_original():
    original = parsed({"future": 1}, disks=[{"vdev": "xvda"}])
    before = json.dumps(original.raw)
    changed = original.replaced(name="web2", target_kib=5000, max_kib=6000, online_vcpus=frozenset({0, 2}))
    assert (changed.name, changed.target_kib, changed.max_kib) == ("web2", 5000, 6000)
    assert changed.online_vcpus == {0, 2}
    assert json.dumps(original.raw) == before
    back = changed.replaced(name="web1", target_kib=131072, max_kib=262144, online_vcpus=frozenset({0, 1}))
    assert back == original


def test_replacing_nothing_is_a_copy():
    original = parsed()
    assert original.replaced() == original
    assert original.replaced().raw is not original.raw


@pytest.mark.parametrize("kind", config.KINDS)
def test_a_domain_that_no_libxl_knows_can_be_described(kind):
    found = config.describe(
        name="made", domain_uuid=uuid.UUID(UUID), kind=kind, max_vcpus=3, target_kib=100, max_kib=200
    )
    assert (found.name, found.kind, found.max_vcpus) == ("made", kind, 3)
    assert (found.target_kib, found.max_kib, found.online_vcpus) == (100, 200, {0, 1, 2})
    assert f"type.{kind}" in found.raw["b_info"]
    assert config.parse(found.to_json()) == found


@pytest.mark.parametrize(
    "build",
    [
        {"event_channels": 1 << 40},
        {"event_channels": -1},
        {"target_memkb": -4},
        {"max_memkb": 1 << 60},
        {"shadow_memkb": -1},
        {"max_vcpus": 1 << 20},
        {"max_vcpus": -1},
        {"max_grant_frames": 1 << 40},
        {"max_maptrack_frames": -7},
    ],
)
def test_numbers_that_xen_cannot_take_are_refused_by_name(build):
    (name,) = build
    with pytest.raises(ImageError, match=f"{name} is {build[name]}"):
        parsed(build=build)


def test_libxls_word_for_no_value_is_none():
    found = parsed(build={"shadow_memkb": (1 << 64) - 1, "target_memkb": (1 << 64) - 1})
    assert (found.paging_kib, found.target_kib) == (None, 262144)


def test_a_part_that_is_missing_is_named():
    with pytest.raises(ImageError, match="it lacks 'b_info'"):
        config.parse(json.dumps({"c_info": {}}).encode())


def test_settings_that_are_not_brought_back_are_named_and_defaults_are_not():
    assert parsed(build={"sched_params": {"sched": "credit2", "weight": 256, "cap": 0}}).left_out == []
    assert parsed({"pool_name": "Pool-0"}, {"localtime": "False", "vcpu_hard_affinity": []}).left_out == []
    pinned = parsed({"pool_name": "rt"}, {"vcpu_hard_affinity": [[4, 5]], "sched_params": {"weight": 512}})
    assert pinned.left_out == ["its CPU pool", "CPU affinity", "scheduling weight and cap"]
    assert parsed(build={"localtime": "True"}).left_out == ["the offset of its clock"]
