"""Files and folders appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from keras_lmmvae.files import written_whole


def test_a_file_takes_the_place_of_another(tmp_path: Path) -> None:
    """The new text is there, and nothing is left beside it."""
    target = tmp_path / "a.txt"
    target.write_text("old")
    with written_whole(target) as fresh:
        fresh.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_takes_the_place_of_a_full_one(tmp_path: Path) -> None:
    """Files that only the old folder had are gone."""
    target = tmp_path / "deep" / "run"
    target.mkdir(parents=True)
    (target / "old").touch()
    with written_whole(target) as fresh:
        fresh.mkdir()
        (fresh / "new").touch()
    assert [path.name for path in target.iterdir()] == ["new"]


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_failure_leaves_what_was_there(tmp_path: Path, is_folder: bool) -> None:
    """A block that raises changes nothing and leaves no scratch folder."""
    target = tmp_path / "kept"
    target.mkdir() if is_folder else target.write_text("kept")

    def write() -> None:
        with written_whole(target) as fresh:
            fresh.write_text("half")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write()
    assert list(tmp_path.iterdir()) == [target]
    assert target.is_dir() == is_folder


def test_parents_are_made(tmp_path: Path) -> None:
    """A path in folders that do not exist can be written."""
    with written_whole(tmp_path / "a" / "b.txt") as fresh:
        fresh.write_text("")
    assert (tmp_path / "a" / "b.txt").exists()
