"""`pyimage list` and `pyimage prune`."""

from __future__ import annotations

import json

import pytest
from stream_samples import golden

from saverestore.cli.pyimage import main, store
from saverestore.cli.pyimage.common import size_text
from saverestore.errors import ErrorName, ImageError, TransportError
from saverestore.operations.pending import to_be_restored
from saverestore.operations.store import in_use


def put(folder, name, day, data):
    path = folder / f"{name}@2026-11-{day}T05-00-00Z.img"
    path.write_bytes(data)
    return path


@pytest.fixture
def whole():
    return golden("hvm-v3")


@pytest.fixture
def cut(whole):
    return whole[:-8]


def days(folder):
    return sorted(path.name.partition("T")[0][-2:] for path in folder.iterdir())


def test_list_prints_what_there_is_and_whether_it_is_whole(tmp_path, capsys, whole, cut):
    put(tmp_path, "web1", 28, whole)
    put(tmp_path, "web1", 29, cut)
    assert main(["list", str(tmp_path)]) == 4
    head, first, second, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["IMAGE", "ON", "DISK", "KIND", "XEN", "STATE"]
    assert first.startswith("web1@2026-11-28T05-00-00Z ") and first.endswith("whole")
    assert "DAMAGED: " in second
    assert last.startswith("2 images of ")


def test_list_as_json_has_sizes_kind_and_state(tmp_path, capsys, whole, cut):
    put(tmp_path, "web1", 28, whole)
    put(tmp_path, "web1", 29, cut)
    main(["list", str(tmp_path), "--json"])
    good, bad = json.loads(capsys.readouterr().out)
    assert good["whole"] and good["error"] is None
    assert good["file_bytes"] == len(whole) and good["when"] == "2026-11-28T05:00:00+00:00"
    assert not bad["whole"] and bad["error"]


def test_list_of_a_compressed_image_and_with_verify(tmp_path, capsys, whole):
    plain = tmp_path / "plain"
    plain.write_bytes(whole)
    target = tmp_path / "web1@2026-11-29T05-00-00Z.img"
    assert main(["convert", str(plain), "-o", str(target), "--compress", "zstd"]) == 0
    assert main(["list", str(tmp_path)]) == 0
    assert main(["list", "--verify", str(tmp_path)]) == 0


def test_a_changed_byte_is_found_with_verify_only(tmp_path, whole):
    made = tmp_path / "made"
    (tmp_path / "raw").write_bytes(whole)
    assert main(["convert", str(tmp_path / "raw"), "-o", str(made), "--digest", "xxh3"]) == 0
    data = bytearray(made.read_bytes())
    at = data.rindex(b"\0" * 64) if b"\0" * 64 in data else len(data) // 2
    data[at + 5] ^= 1
    put(tmp_path, "web1", 29, bytes(data))
    assert main(["list", "--verify", str(tmp_path)]) == 4


def test_list_of_an_empty_store(tmp_path, capsys):
    assert main(["list", str(tmp_path)]) == 0
    assert "no images" in capsys.readouterr().out
    assert main(["list", str(tmp_path / "absent")]) == 2


def test_prune_keeps_what_the_rules_say_for_each_domain(tmp_path, capsys, whole):
    for day in (26, 27, 28, 29):
        put(tmp_path, "web1", day, whole)
    put(tmp_path, "web2", 20, whole)
    (tmp_path / "notes.txt").touch()
    assert main(["prune", str(tmp_path), "--keep-last", "2"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "notes.txt",
        "web1@2026-11-28T05-00-00Z.img",
        "web1@2026-11-29T05-00-00Z.img",
        "web2@2026-11-20T05-00-00Z.img",
    ]
    said = capsys.readouterr()
    assert "last 1" in said.out
    freed = 2 * next(tmp_path.glob("web1@*")).stat().st_blocks * 512
    assert said.err == f"pyimage: 3 images kept, 2 removed ({size_text(freed)})\n"


def test_prune_says_what_it_would_do_and_does_nothing(tmp_path, capsys, whole):
    for day in (28, 29):
        put(tmp_path, "web1", day, whole)
    assert main(["prune", str(tmp_path), "--keep-last", "1", "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "would remove    web1@2026-11-28T05-00-00Z" in said.out
    assert said.err.startswith("pyimage: 1 image kept, 1 would be removed (")
    assert days(tmp_path) == ["28", "29"]


def test_prune_without_a_rule_is_wrong_usage(tmp_path, capsys):
    assert main(["prune", str(tmp_path)]) == 2
    assert main(["prune", str(tmp_path), "--keep-last", "0"]) == 2
    assert "--keep-last" in capsys.readouterr().err


def test_the_only_whole_image_of_a_domain_is_never_removed(tmp_path, capsys, whole, cut):
    put(tmp_path, "web1", 26, whole)
    put(tmp_path, "web1", 27, whole)
    put(tmp_path, "web1", 28, cut)
    put(tmp_path, "web1", 29, cut)
    assert main(["prune", str(tmp_path), "--keep-last", "1"]) == 0
    assert days(tmp_path) == ["27", "29"]
    assert "the only whole image of its domain" in capsys.readouterr().out


UNREADABLE = [
    TransportError("reading failed: Input/output error"),
    ImageError("the package lz4 is not installed", name=ErrorName.PACKAGE_MISSING),
    ImageError("version 9 of the format is unknown here", name=ErrorName.IMAGE_UNSUPPORTED),
]


def failing(monkeypatch, failure, *days):
    """Images of these days cannot be read, whether they are whole or not."""
    look_through = store._look_through

    def look(path, *more, **how):
        if any(f"-{day}T" in path.name for day in days):
            raise failure
        return look_through(path, *more, **how)

    monkeypatch.setattr(store, "_look_through", look)


@pytest.mark.parametrize("failure", UNREADABLE)
def test_where_no_image_that_is_kept_is_known_to_be_whole_those_that_cannot_be_read_are_kept(
    tmp_path, capsys, monkeypatch, whole, cut, failure
):
    """They may be whole, and may be read again tomorrow."""
    for day in (26, 27, 28):
        put(tmp_path, "web1", day, whole)
    put(tmp_path, "web1", 29, cut)
    failing(monkeypatch, failure, 27, 28)
    assert main(["prune", str(tmp_path), "--keep-last", "1"]) == 0
    assert days(tmp_path) == ["26", "29"]  # the one of the 26th is whole
    put(tmp_path, "web1", 28, whole)
    failing(monkeypatch, failure, 26, 28)
    assert main(["prune", str(tmp_path), "--keep-last", "1"]) == 0
    assert days(tmp_path) == ["26", "28", "29"]
    assert "it cannot be read, and no other is whole" in capsys.readouterr().out


@pytest.mark.parametrize("failure", UNREADABLE)
def test_list_does_not_call_an_image_damaged_that_cannot_be_read(
    tmp_path, capsys, monkeypatch, whole, failure
):
    put(tmp_path, "web1", 29, whole)
    failing(monkeypatch, failure, 29)
    assert main(["list", str(tmp_path)]) == 4
    assert f"UNREADABLE: {failure}" in capsys.readouterr().out
    assert main(["list", "--json", str(tmp_path)]) == 4
    (one,) = json.loads(capsys.readouterr().out)
    assert not one["whole"] and not one["readable"] and one["error"] == str(failure)


def test_an_image_that_is_being_restored_is_kept(tmp_path, capsys, whole):
    old = put(tmp_path, "web1", 28, whole)
    put(tmp_path, "web1", 29, whole)
    with in_use(str(old)):
        assert main(["prune", str(tmp_path), "--keep-last", "1"]) == 0
    assert days(tmp_path) == ["28", "29"]
    assert "it is being restored" in capsys.readouterr().out


def test_an_image_that_becomes_one_to_be_restored_meanwhile_is_kept(tmp_path, capsys, monkeypatch, whole):
    """A restore that was about to let its domain run when prune looked, and then failed."""
    old = put(tmp_path, "web1", 28, whole)
    put(tmp_path, "web1", 29, whole)
    decide = store.decide

    def decided(*given, **how):
        found = decide(*given, **how)
        with to_be_restored(old):
            pass
        return found

    monkeypatch.setattr(store, "decide", decided)
    assert main(["prune", str(tmp_path), "--keep-last", "1"]) == 0
    assert old.exists()
    assert "keep            web1@2026-11-28T05-00-00Z (" in capsys.readouterr().out


def test_a_link_to_an_image_is_not_removed_and_does_not_count(tmp_path, whole):
    """Or the link would be kept, and what it points to removed."""
    old = put(tmp_path, "web1", 27, whole)
    put(tmp_path, "web1", 28, whole)
    link = tmp_path / "web1@2026-11-29T05-00-00Z.img"
    link.symlink_to(old.name)
    assert main(["prune", str(tmp_path), "--keep-last", "1"]) == 0
    assert days(tmp_path) == ["28", "29"]
    link.unlink()
    link.symlink_to(tmp_path / "web1@2026-11-28T05-00-00Z.img")
    assert main(["prune", str(tmp_path), "--keep-last", "1"]) == 0
    assert days(tmp_path) == ["28", "29"]


def test_prune_of_a_domain_of_which_there_is_no_image_is_wrong_usage(tmp_path, whole, capsys):
    put(tmp_path, "web1", 27, whole)
    assert main(["prune", str(tmp_path), "--keep-last", "1", "--domain", "wbe1"]) == 2
    assert f"pyimage: {tmp_path}: there is no image of 'wbe1'" in capsys.readouterr().err


def test_prune_of_one_domain_leaves_the_others(tmp_path, whole):
    for name in ("web1", "web2"):
        for day in (28, 29):
            put(tmp_path, name, day, whole)
    assert main(["prune", str(tmp_path), "--keep-last", "1", "--domain", "web1"]) == 0
    assert days(tmp_path) == ["28", "29", "29"]


# ---- images that vanish meanwhile ------------------------------------------------------------------


def vanishing(monkeypatch, path, *, after_stat: bool) -> None:
    """Somebody removes this image when its turn comes: before it is looked at, or before it is opened."""
    if after_stat:
        look_through = store._look_through

        def look(one, *more, **how):
            path.unlink(missing_ok=True)
            return look_through(one, *more, **how)

        monkeypatch.setattr(store, "_look_through", look)
        return
    describe = store.describe

    def before(entry, *, verify):
        path.unlink(missing_ok=True)
        return describe(entry, verify=verify)

    monkeypatch.setattr(store, "describe", before)


@pytest.mark.parametrize("after_stat", [False, True])
@pytest.mark.parametrize("how", [[], ["--verify"]], ids=["look", "verify"])
def test_an_image_that_vanishes_meanwhile_is_left_out_of_the_list(
    tmp_path, capsys, monkeypatch, whole, after_stat, how
):
    gone = put(tmp_path, "web1", 28, whole)
    put(tmp_path, "web2", 29, whole)
    vanishing(monkeypatch, gone, after_stat=after_stat)
    assert main(["list", str(tmp_path), *how]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "web1" not in printed.out
    assert "1 image of 1 domain" in printed.out


@pytest.mark.parametrize("after_stat", [False, True])
def test_one_that_vanishes_is_nobodys_last_whole_image(tmp_path, monkeypatch, whole, cut, after_stat):
    put(tmp_path, "web1", 27, whole)
    gone = put(tmp_path, "web1", 28, whole)
    put(tmp_path, "web1", 29, cut)
    vanishing(monkeypatch, gone, after_stat=after_stat)
    assert main(["prune", str(tmp_path), "--keep-last", "1"]) == 0
    assert days(tmp_path) == ["27", "29"]


def test_an_image_that_somebody_else_removed_first_is_no_failure_of_prune(tmp_path, monkeypatch, whole):
    old = put(tmp_path, "web1", 28, whole)
    put(tmp_path, "web1", 29, whole)
    monkeypatch.setattr(store, "line", lambda *_: old.unlink(missing_ok=True) or "")
    assert main(["prune", str(tmp_path), "--keep-last", "1"]) == 0
    assert days(tmp_path) == ["29"]
