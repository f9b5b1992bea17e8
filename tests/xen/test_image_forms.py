"""Images in all their forms on real Xen: with digests, compressed, in the dialect draft-b, and damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scenarios import copy_goes_on
from xen_lab import Guest, domid_of, must, must_pipe, run

slow = pytest.mark.slow
PV, PVH = ("pv", 1), ("pvh", 1)
pvh_only = pytest.mark.parametrize("guest", [("pvh", 1)], indirect=True, ids=["pvh"])


@slow
@pytest.mark.parametrize("guest", [pytest.param(PV, id="pv"), pytest.param(PVH, id="pvh")], indirect=True)
def test_a_compressed_image_restores_by_pyrestore_and_by_stock_xl_through_zstd(guest: Guest, images: Path):
    before = guest.state()
    image = str(images / "a.img")
    must("pysave", "--compress", "zstd", guest.name, image)
    assert "digest holds" in must("pyimage", "verify", image)
    must("pyrestore", "--require-digest", image)
    guest.goes_on(before)
    must("pysave", "--overwrite", "--compress", "zstd:3", guest.name, image)
    must("bash", "-o", "pipefail", "-c", f"zstd -dc {image} | xl restore /dev/stdin")
    guest.goes_on(before)


@slow
@pytest.mark.parametrize("guest", [("pv", 1)], indirect=True, ids=["pv"])
def test_a_compressed_image_goes_through_pipes_and_the_bare_toolstack(guest: Guest, images: Path):
    before = guest.state()
    image = str(images / "a.img")
    must_pipe(["pysave", "-q", "--compress", "zstd", guest.name, "-"], ["dd", "bs=1M", f"of={image}"])
    must_pipe(["dd", "bs=1M", f"if={image}"], ["pyrestore", "-q", "-"])
    guest.goes_on(before)
    must("pysave", "--overwrite", "--compress", "zstd", guest.name, image)
    must("pyrestore", "--toolstack", "bare", image)
    guest.goes_on(before)


@pytest.mark.parametrize(
    ("guest", "codec"),
    [
        pytest.param(PV, "zstd", id="pv-zstd"),
        pytest.param(PVH, "deflate", id="pvh-deflate", marks=slow),
        pytest.param(PVH, "zstd", id="pvh-zstd", marks=slow),
        pytest.param(PV, "deflate", id="pv-deflate", marks=slow),
        pytest.param(PV, "lz4", id="pv-lz4", marks=slow),
        pytest.param(PVH, "lz4", id="pvh-lz4", marks=slow),
        pytest.param(PV, "none", id="pv-none", marks=slow),
        pytest.param(PVH, "none", id="pvh-none", marks=slow),
    ],
    indirect=["guest"],
)
def test_an_image_in_draft_b_restores(guest: Guest, images: Path, codec: str):
    before = guest.state()
    image = str(images / "a.img")
    must("pysave", "--format", "draft-b", "--codec", codec, guest.name, image)
    assert "digest holds" in must("pyimage", "verify", image)
    refused = run("xl", "restore", image)
    assert refused.returncode != 0
    assert domid_of(guest.name) is None
    must("pyrestore", image)
    guest.goes_on(before)


@pytest.mark.parametrize(
    "busy_guest", [pytest.param(PVH, id="pvh"), pytest.param(PV, id="pv", marks=slow)], indirect=True
)
def test_a_live_save_in_draft_b_with_deltas_restores(busy_guest: Guest, images: Path):
    guest, image = busy_guest, str(images / "a.img")
    before = guest.state()
    must("pysave", "--live", "-c", "--format", "draft-b", "--codec", "xor", guest.name, image)
    guest.goes_on(before)
    assert "digest holds" in must("pyimage", "verify", image)
    guest.destroy()
    must("pyrestore", image)
    copy_goes_on(guest, before)


@pytest.mark.parametrize("toolstack", ["libxl", pytest.param("bare", marks=slow)])
@pvh_only
def test_a_changed_byte_in_a_page_is_found_before_the_domain_runs(guest: Guest, images: Path, toolstack: str):
    before = guest.state()
    image = images / "a.img"
    must("pysave", guest.name, str(image))
    with image.open("r+b") as file:
        for flip in (True, False):  # and back
            file.seek(image.stat().st_size // 2)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 0x40]))
            file.flush()
            if not flip:
                continue
            assert json.loads(run("pyimage", "verify", "--json", str(image)).stdout)["error"]
            said = run("pyrestore", "--toolstack", toolstack, str(image))
            assert said.returncode == 4, said.stderr
            assert "XXH3-128 digest" in said.stderr
            assert domid_of(guest.name) is None
    must("pyrestore", "--toolstack", toolstack, str(image))
    guest.goes_on(before)


@slow
@pytest.mark.parametrize("guest", [("hvm", 1)], indirect=True, ids=["hvm"])
@pytest.mark.parametrize("way", ["file", "pipe"])
def test_a_changed_byte_in_the_state_of_a_device_model_is_found_before_the_domain_runs(
    guest: Guest, images: Path, way: str
):
    """It comes behind the libxc stream, where libxl reads: the helper looks ahead in a file, the relay on the way."""
    before = guest.state()
    image = images / "a.img"
    restore = {"file": f"pyrestore {image}", "pipe": f"cat {image} | pyrestore -"}[way]
    must("pysave", guest.name, str(image))
    whole = image.read_bytes()
    behind = whole.rindex(b"QEVM")  # as QEMU's state begins
    with image.open("r+b") as file:
        file.seek(behind + 5000)
        file.write(bytes([whole[behind + 5000] ^ 1]))
    assert run("pyimage", "verify", str(image)).returncode == 4
    said = run("bash", "-c", restore)
    assert said.returncode == 4, said.stderr
    assert "behind the libxc stream" in said.stderr
    assert domid_of(guest.name) is None
    image.write_bytes(whole)
    must("bash", "-o", "pipefail", "-c", restore)
    guest.goes_on(before)


@slow
@pvh_only
def test_a_compressed_image_that_is_damaged_is_told_before_a_domain_is_left(guest: Guest, images: Path):
    before = guest.state()
    image = images / "a.img"
    must("pysave", "--compress", "zstd", guest.name, str(image))
    whole = image.read_bytes()
    for name, data in {
        "cut": whole[:-1000],
        "flipped": whole[: len(whole) // 2]
        + bytes([whole[len(whole) // 2] ^ 1])
        + whole[len(whole) // 2 + 1 :],
    }.items():
        (images / name).write_bytes(data)
        said = run("pyrestore", str(images / name))
        assert said.returncode == 4, (name, said.stderr)
        assert domid_of(guest.name) is None, name
        (images / name).unlink()
    must("pyrestore", str(image))
    guest.goes_on(before)
