"""The commit that a report names is the checkout's, and says where files were changed."""

import subprocess
from pathlib import Path

from privads.provenance import commit, of_checkout


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_commit_is_the_checkouts_and_says_where_files_were_changed(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("1")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-qm", "first")
    git(tmp_path, "tag", "named")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert of_checkout(tmp_path) == head
    (tmp_path / "a.py").write_text("2")
    assert of_checkout(tmp_path) == f"{head}-dirty"


def test_where_there_is_no_commit_none_is_made_up(tmp_path: Path) -> None:
    (tmp_path / ".git").write_text("nonsense")
    assert of_checkout(tmp_path) is None
    assert commit() is None or len(commit() or "") >= 40
