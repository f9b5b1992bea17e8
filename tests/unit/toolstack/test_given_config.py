"""Another configuration for an image's domain: what is the file's, what is the image's, and what must fit."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from saverestore.errors import ErrorName, UsageError
from saverestore.toolstack import config, decisions, given_config
from saverestore.toolstack.given_config import GivenConfig, read

IMAGE_UUID = "00000000-0000-4000-8000-000000000001"


def image_of(**more) -> config.GuestConfig:
    raw = {
        "c_info": {"type": "pvh", "name": "web1", "uuid": IMAGE_UUID, "pool_name": "Pool-0"},
        "b_info": {
            "max_vcpus": 2,
            "avail_vcpus": [0],
            "max_memkb": 262144,
            "target_memkb": 131072,
            "kernel": "/boot/old",
            "cpuid": [{"leaf": 1}],
            "type.pvh": {"pvshim": "False"},
        },
        "disks": [{"vdev": "xvda", "pdev_path": "/disks/web1", "readwrite": 1}],
        "nics": [{"devid": 0, "mac": "00:16:3e:00:00:01", "bridge": "br0"}],
        "on_crash": "restart",
    }
    raw["b_info"] |= more
    return config.parse(json.dumps(raw).encode())


def over(given: dict, image: config.GuestConfig | None = None) -> config.GuestConfig:
    return GivenConfig("web1.cfg", given).over(image or image_of())


def test_surroundings_are_the_files_and_the_machine_is_the_images():
    found = over(
        {
            "c_info": {"type": "pvh", "name": "copy", "uuid": "00000000-0000-4000-8000-00000000000f"},
            "b_info": {
                "max_vcpus": 2,
                "max_memkb": 262144,
                "target_memkb": 262144,
                "kernel": "/boot/new",
                "vcpu_hard_affinity": [[1]],
                "cpuid": [],
            },
            "disks": [{"vdev": "xvda", "pdev_path": "/disks/copy", "readwrite": 1}],
            "nics": [{"devid": 0, "mac": "00:16:3e:00:00:02", "bridge": "br1"}],
        }
    )
    raw = found.raw
    assert (found.name, str(found.uuid)) == ("copy", IMAGE_UUID)
    assert (found.max_vcpus, found.online_vcpus, found.target_kib) == (2, {0}, 131072)
    assert (raw["b_info"]["kernel"], raw["b_info"]["cpuid"]) == ("/boot/new", [{"leaf": 1}])
    assert raw["b_info"]["vcpu_hard_affinity"] == [[1]]
    assert raw["disks"][0]["pdev_path"] == "/disks/copy"
    assert raw["nics"] == [{"devid": 0, "mac": "00:16:3e:00:00:02", "bridge": "br1"}]


def test_what_the_file_does_not_have_of_its_own_the_domain_has_not_either(caplog):
    found = over({"c_info": {}, "b_info": {}})
    assert found.name == "web1"
    assert "on_crash" not in found.raw
    assert found.devices == []
    assert "devices that are not in web1.cfg: disk xvda, NIC 0" in caplog.text


@pytest.mark.parametrize("name", [None, ""], ids=repr)
def test_a_file_with_an_empty_name_leaves_the_domain_its_own(name):
    found = over({"c_info": {"name": name}, "b_info": {}})
    assert (found.name, found.raw["c_info"]["name"]) == ("web1", "web1")


@pytest.mark.parametrize("name", [5, ["x"], "a\0b"], ids=repr)
def test_a_file_whose_name_is_none_that_a_domain_can_have_is_refused(name):
    with pytest.raises(UsageError, match=r"web1\.cfg: .*the name"):
        over({"c_info": {"name": name}, "b_info": {}})


def test_a_disk_at_another_place_is_reported_and_one_at_the_same_is_not(caplog):
    disk = {"vdev": "xvda", "pdev_path": "/disks/snapshot", "readwrite": 1}
    nic = {"bridge": "br0"}
    over({"disks": [disk], "nics": [nic]})
    assert "disk xvda: /disks/snapshot, and the domain had /disks/web1" in caplog.text
    caplog.clear()
    over({"disks": [{**disk, "pdev_path": "/disks/web1"}], "nics": [nic]})
    assert caplog.text == ""


@pytest.mark.parametrize("nic", [{}, {"devid": 0}, {"mac": "00:00:00:00:00:00"}], ids=str)
def test_a_nic_without_a_mac_keeps_the_one_that_the_guest_knows(nic):
    assert over({"nics": [nic]}).raw["nics"][0]["mac"] == "00:16:3e:00:00:01"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"c_info": {"type": "pv"}}, 'type is "pv", and the domain has "pvh"'),
        ({"b_info": {"max_vcpus": 4}}, "max_vcpus is 4, and the domain has 2"),
        ({"b_info": {"max_memkb": 524288}}, "max_memkb is 524288, and the domain has 262144"),
        ({"b_info": {"type.pvh": {"pvshim": "True"}}}, 'pvshim is "True", and the domain has "False"'),
    ],
    ids=str,
)
def test_another_machine_than_the_images_is_refused_with_both_values(given, said):
    with pytest.raises(UsageError, match="for another machine than web1: ") as caught:
        over(given)
    assert said in str(caught.value)
    assert caught.value.name is ErrorName.CONFIGURATION_DIFFERS


def test_all_that_does_not_fit_is_named_at_once():
    with pytest.raises(UsageError) as caught:
        over({"b_info": {"max_vcpus": 1, "max_memkb": 1}})
    assert "max_vcpus" in str(caught.value)
    assert "max_memkb" in str(caught.value)


@pytest.mark.parametrize(
    "build",
    [{"apic": "<default>"}, {"tsc_mode": "default"}, {"event_channels": 0}, {"max_grant_frames": 4294967295}],
    ids=str,
)
def test_a_default_fits_whatever_the_image_has(build):
    image = image_of(apic="True", tsc_mode="native", event_channels=2047, max_grant_frames=64)
    found = over({"b_info": build}, image)
    assert found.raw["b_info"]["event_channels"] == 2047


def test_parts_of_what_an_architecture_has_are_compared_one_by_one():
    image = image_of(arch_arm={"gic_version": "v2", "vuart": "sbsa_uart"})
    over({"b_info": {"arch_arm": {"gic_version": "v2"}}}, image)
    with pytest.raises(UsageError, match=r"arch_arm\.gic_version"):
        over({"b_info": {"arch_arm": {"gic_version": "v3"}}}, image)


def test_displays_are_the_files_and_firmware_must_fit():
    hvm = {"type.hvm": {"bios": "ovmf", "vnc": {"enable": "False"}, "timeoffset": "3600"}}
    raw = json.loads(image_of(**hvm).to_json())
    raw["c_info"]["type"] = "hvm"
    image = config.parse(json.dumps(raw).encode())
    found = over({"b_info": {"type.hvm": {"bios": "ovmf", "vnc": {"enable": "True"}}}}, image)
    assert found.raw["b_info"]["type.hvm"] == {
        "bios": "ovmf",
        "vnc": {"enable": "True"},
        "timeoffset": "3600",
    }
    with pytest.raises(UsageError, match="bios"):
        over({"b_info": {"type.hvm": {"bios": "seabios"}}}, image)


def test_a_value_that_cannot_be_is_an_error_of_the_file():
    with pytest.raises(UsageError, match=r"web1\.cfg: the domain's configuration is not libxl's JSON"):
        over({"disks": {"vdev": "xvda"}})


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (given_config.CONFIG, decisions.CONFIG),
        (given_config.CREATE, decisions.CREATE),
        (given_config.BUILD, decisions.BUILD),
    ],
)
def test_each_field_that_has_a_decision_has_an_origin(ours, theirs):
    assert ours.keys() == theirs.keys()


# ---- reading it ------------------------------------------------------------------------------------


@pytest.fixture
def xl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An `xl` that prints this JSON for `create -q -n FILE`, or fails."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def make(script: str) -> None:
        (folder / "xl").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "xl").chmod(0o755)

    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return make


def test_a_file_of_xls_is_read_by_xl(tmp_path: Path, xl):
    path = tmp_path / "web1.cfg"
    path.write_text('name = "web1"\n')
    xl('[ "$1 $2 $3" = "create -q -n" ] && [ -f "$4" ] && echo \'{"c_info": {"name": "web1"}}\'')
    assert read(str(path)) == GivenConfig(str(path), {"c_info": {"name": "web1"}})


def test_a_file_that_can_be_read_once_only_is_read_by_xl_too(xl):
    """--config <(sed s/web1/web1-copy/ web1.cfg), in bash."""
    reading, writing = os.pipe()
    os.write(writing, b'name = "web1"\n')
    os.close(writing)
    xl('grep -q web1 "$4" && [ -f "$4" ] && echo \'{"c_info": {"name": "web1"}}\'')
    try:
        assert read(f"/dev/fd/{reading}").raw == {"c_info": {"name": "web1"}}
    finally:
        os.close(reading)


def test_what_xl_does_not_accept_is_an_error_with_its_words(tmp_path: Path, xl):
    path = tmp_path / "web1.cfg"
    path.write_text("name = \n")
    xl("echo 'config parsing error near line 1' >&2; exit 1")
    with pytest.raises(UsageError, match="xl does not accept it: config parsing error near line 1"):
        read(str(path))


def test_words_of_xls_that_are_no_text_are_shown_as_far_as_they_are(tmp_path: Path, xl):
    path = tmp_path / "web1.cfg"
    path.write_text("name = \n")
    xl(r"printf 'near \377' >&2; exit 1")
    with pytest.raises(UsageError, match="xl does not accept it: near \ufffd"):
        read(str(path))


def test_without_xl_its_files_cannot_be_read_and_that_is_said(tmp_path: Path, monkeypatch):
    path = tmp_path / "web1.cfg"
    path.write_text("name = 'web1'\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="xl, which would have to read it, cannot be run"):
        read(str(path))


@pytest.mark.parametrize(
    "text", ['{"c_info": {}}', '[{"config": {"c_info": {}}}]', '{"config": {"c_info": {}}}']
)
def test_libxls_json_is_read_in_all_its_forms(tmp_path: Path, text: str):
    path = tmp_path / "web1.json"
    path.write_text(text)
    assert read(str(path)).raw == {"c_info": {}}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[" * 100_000,
        "[]",
        '{"c_info": 3}',
        '{"disks": {"vdev": "a"}}',
        '{"nics": [5]}',
        '{"b_info": {"type.pv": 1}}',
        "\xff",
    ],
)
def test_what_is_no_configuration_is_an_error(tmp_path: Path, text: str):
    path = tmp_path / "web1.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match="is no configuration"):
        read(str(path))


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path):
    with pytest.raises(UsageError, match="No such file"):
        read(str(tmp_path / "none.cfg"))
