"""A folder appears whole or not at all, and over nothing that is there."""

from pathlib import Path

import pytest

from privads.new_folder import new_file, new_folder


def test_it_appears_at_the_end_and_not_before(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "run"
    with new_folder(place) as draft:
        (draft / "a").write_text("1")
        assert not place.exists()
    assert (place / "a").read_text() == "1"
    assert [one.name for one in place.parent.iterdir()] == ["run"]


def test_what_goes_wrong_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> None:
        with new_folder(tmp_path / "run") as draft:
            (draft / "a").write_text("1")
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        broken()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_gives_way_and_a_full_one_does_not(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with new_folder(tmp_path / "run") as draft:
        (draft / "a").write_text("1")
    with pytest.raises(OSError, match="not empty"), new_folder(tmp_path / "run") as draft:
        (draft / "b").write_text("2")
    assert [one.name for one in (tmp_path / "run").iterdir()] == ["a"]
    assert [one.name for one in tmp_path.iterdir()] == ["run"]


def test_a_file_is_replaced_at_the_end_and_left_where_anything_goes_wrong(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "scores"
    for text in ("1", "2"):
        with new_file(file) as draft:
            draft.write_text(text)
            assert not file.exists() or file.read_text() == "1"
    assert file.read_text() == "2"

    def broken() -> None:
        with new_file(file) as draft:
            draft.write_text("3")
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        broken()
    assert [(one.name, one.read_text()) for one in file.parent.iterdir()] == [("scores", "2")]
