from __future__ import annotations

from pathlib import Path

import pytest
from xenlab import cache


def test_key_depends_on_where_one_part_ends_and_the_next_begins() -> None:
    assert cache.key_of("ab", "c") != cache.key_of("a", "bc")


def test_key_of_files_does_not_depend_on_their_order_but_on_names_and_contents(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    two.write_text("2")
    before = cache.key_of_files(one, two)
    assert cache.key_of_files(two, one) == before
    one.write_text("2")
    two.write_text("1")
    assert cache.key_of_files(one, two) != before


def test_root_is_the_override_else_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.delenv("PYSAVE_LAB_CACHE", raising=False)
    assert cache.cache_root() == Path("/x/pysave-lab")
    monkeypatch.setenv("PYSAVE_LAB_CACHE", "/y")
    assert cache.cache_root() == Path("/y")


def test_artefact_is_built_once_and_replaces_its_older_key(lab_cache: Path) -> None:
    built: list[str] = []

    def build(folder: Path) -> None:
        built.append(folder.name)
        (folder / "file").write_text("x")

    old = cache.ensure("thing", "old", build)
    assert cache.ensure("thing", "old", build) == old
    new = cache.ensure("thing", "new", build)
    assert len(built) == 2
    assert (new / "file").read_text() == "x"
    assert [path.name for path in (lab_cache / "thing").iterdir()] == ["new"]


def test_failed_or_interrupted_build_leaves_nothing_and_keeps_the_older_key(lab_cache: Path) -> None:
    cache.ensure("thing", "old", lambda folder: None)

    def interrupted(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.ensure("thing", "new", interrupted)
    assert [path.name for path in (lab_cache / "thing").iterdir()] == ["old"]


def test_rubbish_of_a_killed_builder_goes_with_the_next_build(lab_cache: Path) -> None:
    (lab_cache / "thing/.building-1/deep").mkdir(parents=True)
    cache.ensure("thing", "key", lambda folder: None)
    assert [path.name for path in (lab_cache / "thing").iterdir()] == ["key"]
