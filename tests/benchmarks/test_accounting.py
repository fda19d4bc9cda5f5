"""The accounting benchmark says what it measured in the agreed form, and its loads find what they look for."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from accounting.ledger import Ledger
from benchmarks import accounting as benchmark
from benchmarks.harness import Figure

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def quick() -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.accounting", "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def test_the_last_line_has_the_agreed_keys(quick: dict[str, Any]) -> None:
    assert quick["benchmark"] == "accounting"
    assert {"processor", "cores", "python", "versions"} <= set(quick["machine"])
    for figure in quick["figures"]:
        assert set(figure) == {"name", "value", "unit", "target", "holds"}


def test_nothing_was_overspent_lost_or_overlooked(quick: dict[str, Any]) -> None:
    figures = {figure["name"]: figure for figure in quick["figures"]}
    databases = ["sqlite"] if "postgresql" in quick["skipped"] else ["sqlite", "postgresql"]
    safe = [f"{name}_{what}" for name in databases for what in ("over_the_limit", "lost", "accepted")]
    safe += ["kills_understated", "kills_unopenable", "inner_entries_named", "tails_found_by_head"]
    safe += ["tail_said_to_be_unanchored", "calibrated_epsilon", "short_run_gap"]
    for name in safe:
        assert figures[name]["holds"] is True, name


def by_name(figures: Iterator[Figure]) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures}


def test_a_ledger_that_forgets_a_charge_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = Ledger.history
    monkeypatch.setattr(Ledger, "history", lambda self, dataset: history(self, dataset)[1:])
    found = by_name(benchmark.concurrency_figures("sqlite", f"sqlite:///{tmp_path / 'many.db'}", processes=2, each=5))
    assert found["sqlite_lost"].holds is False
    assert found["sqlite_accepted"].holds is False


def test_a_ledger_that_opens_rows_in_memory_only_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ledger, "open_rows", lambda _, entry: entry)
    monkeypatch.setattr(Ledger, "commit", lambda _, entry: entry)
    found = by_name(benchmark.crash_figures(tmp_path, kills=3, within_seconds=2.0))
    assert found["kills_understated"].holds is False


def test_a_figure_holds_between_its_ends() -> None:
    for value, holds in ((0.9, False), (1.0, True), (2.0, True), (2.1, False)):
        figure = Figure(name="f", value=value, unit="s", at_least=1.0, at_most=2.0)
        assert (figure.holds, figure.target) == (holds, ">= 1 and <= 2")
    assert Figure(name="f", value=1.0, unit="s").holds is None
