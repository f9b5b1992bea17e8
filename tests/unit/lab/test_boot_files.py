from __future__ import annotations

import gzip
import lzma
import struct
import subprocess
from pathlib import Path

import pytest
from xenlab import modules, push, rootfs
from xenlab.cpio import Archive
from xenlab.errors import LabError


def entries(archive: bytes) -> dict[str, tuple[int, bytes]]:
    found, at = {}, 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name_end = at + 110 + fields[11]
        name = archive[at + 110 : name_end - 1].decode()
        data_at = name_end + -name_end % 4
        data_end = data_at + fields[6]
        if name == "TRAILER!!!":
            return found
        found[name] = (fields[1], archive[data_at:data_end])
        at = data_end + -data_end % 4


def test_cpio_archive_holds_files_links_and_their_parents_once() -> None:
    archive = Archive()
    archive.file("/a/b/file", b"hello", 0o755)
    archive.symlink("a/b/link", "file")
    archive.directory("a")
    found = entries(archive.finish())
    assert list(found) == ["a", "a/b", "a/b/file", "a/b/link"]
    assert found["a/b/file"] == (0o100755, b"hello")
    assert found["a/b/link"][1] == b"file"


def test_cpio_archive_refuses_a_second_file_of_that_name() -> None:
    archive = Archive()
    archive.file("x", b"")
    with pytest.raises(ValueError, match="x is in the archive"):
        archive.file("x", b"")


def test_modules_load_after_what_they_need_each_once_and_built_in_ones_need_no_file() -> None:
    dep = "k/a.ko.xz: k/b-x.ko.xz k/c.ko.xz\nk/b-x.ko.xz: k/c.ko.xz\nk/c.ko.xz:\n"
    files = modules.loading_order(dep, "kernel/fs/ext4.ko\n", ["b_x", "a", "ext4"])
    assert files == ["k/c.ko.xz", "k/b-x.ko.xz", "k/a.ko.xz"]
    with pytest.raises(LabError, match="no module zzz"):
        modules.loading_order(dep, "", ["zzz"])


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress])
def test_kernel_is_found_in_its_packed_image(pack) -> None:  # type: ignore[no-untyped-def]
    payload = pack(b"\x7fELF kernel") + b"size"
    image = bytearray(0x400 + 512 + 16)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, len(image) - 1024, len(payload))
    assert rootfs.uncompressed_kernel(bytes(image) + payload) == b"\x7fELF kernel"


def test_checkout_is_mirrored_without_ignored_files_and_build_products_stay(tmp_path: Path) -> None:
    checkout, target = tmp_path / "checkout", tmp_path / "target"
    (checkout / "pkg").mkdir(parents=True)
    (target / "build").mkdir(parents=True)
    (target / "build/kept.so").write_text("")
    (target / "gone.py").write_text("")
    (checkout / ".gitignore").write_text("*.pyc\n")
    (checkout / "pkg/new.py").write_text("1")
    (checkout / "pkg/old.pyc").write_text("")
    subprocess.run(["git", "init", "-q", str(checkout)], check=True)
    files = push.checkout_files(checkout)
    assert push.mirror(checkout, files, target) == 3
    assert push.mirror(checkout, files, target) == 0
    left = sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())
    assert left == [".gitignore", "build/kept.so", "pkg/new.py"]


def test_payload_is_the_same_for_the_same_tree_and_names_dom0s_folders(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "source/tests").mkdir(parents=True)
    (tmp_path / "source/pyproject.toml").write_text("")
    first = push.pack(tmp_path / "target", tmp_path / "source")
    assert first == push.pack(tmp_path / "target", tmp_path / "source")
    assert b"root/pysave.new/pyproject.toml" in first.tar
