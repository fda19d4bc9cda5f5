"""Which source of privads is running, for the report."""

import json
import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

_GIT = ("git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


@lru_cache(maxsize=1)
def commit() -> str | None:
    """Returns the commit of the source, "-dirty" behind it where files were changed; None where it cannot be known.

    It is that of the checkout that the package lies in, or the one that it was installed from.
    """
    root = Path(__file__).resolve().parent.parent
    return of_checkout(root) if (root / ".git").exists() else _installed_from()


def of_checkout(root: Path) -> str | None:
    """Returns the commit that is checked out in ``root``; None where git does not say."""
    try:
        done = subprocess.run(_GIT, cwd=root, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _installed_from() -> str | None:
    try:
        stated = distribution("privads").read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    found = json.loads(stated or "{}").get("vcs_info", {}).get("commit_id")
    return found if isinstance(found, str) else None
