"""A report keeps its figures, its noise and its facts, whatever its keys look like."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from accounting import mechanisms
from accounting.budget import Budget
from privads.signals.report import MOST_LINES, Report

KEYS = (("=SUM(A1)", "a"), ("\x1b[31mred", "b"), ("-2+3|cmd", 'c"\n'), ("größe", "\u202ed"))


def report(keys: tuple[tuple[str, ...], ...] = KEYS, *, seen: dict[str, float] | None = None) -> Report:
    figures = np.arange(len(keys)) + 0.5
    return Report(
        api="w3c",
        by=("site", "ad"),
        keys=keys,
        values={"conversions": figures, "price": figures * 10},
        noise_std={"conversions": figures + 1, "price": figures + 2},
        law="discrete Laplace of scale 2",
        promise="one site learns little",
        limits={"site_budget": 1.0, "global_budget": 8.0},
        event=mechanisms.discrete_laplace(scale=2.0, sensitivity=4),
        budget=Budget(epsilon=3.0, delta=1e-6, unit="user"),
        epsilon=2.0,
        entry="7",
        seen=seen or {},
    )


def test_a_parquet_file_holds_cells_as_rows_and_the_facts_beside_them(tmp_path: Path) -> None:
    made = report()
    made.save(tmp_path / "report.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "report.parquet")
    assert table.to_pydict() == {
        "site": [key[0] for key in KEYS],
        "ad": [key[1] for key in KEYS],
        "conversions": [0.5, 1.5, 2.5, 3.5],
        "conversions_noise_std": [1.5, 2.5, 3.5, 4.5],
        "price": [5.0, 15.0, 25.0, 35.0],
        "price_noise_std": [2.5, 3.5, 4.5, 5.5],
    }
    facts = json.loads(table.schema.metadata[b"privads.report"])
    assert mechanisms.to_json(mechanisms.from_dict(facts["event"])) == mechanisms.to_json(made.event)
    stated = {"api": "w3c", "epsilon": 2.0, "delta": 1e-6, "unit": "user", "neighbors": "add-remove", "entry": "7"}
    assert stated.items() <= facts.items()
    assert facts["limits"] == {"site_budget": 1.0, "global_budget": 8.0}
    assert facts["law"] == made.law
    assert facts["promise"] == made.promise


def test_a_json_file_holds_the_same(tmp_path: Path) -> None:
    made = report()
    made.save(tmp_path / "report.json")
    found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert found == json.loads(json.dumps(made.to_dict()))
    assert [tuple(cell["key"]) for cell in found["cells"]] == list(KEYS)
    assert found["cells"][1]["values"] == {"conversions": 1.5, "price": 15.0}
    assert found["cells"][1]["noise_std"] == {"conversions": 2.5, "price": 3.5}


def test_a_key_does_not_move_a_terminals_cursor_or_break_a_line() -> None:
    lines = report().in_words()
    assert "\x1b" not in "".join(lines)
    assert "\u202e" not in "".join(lines)
    assert not any("\n" in line for line in lines)
    assert lines[0] == "=SUM(A1) / a: conversions 0.5 +- 1.5, price 5 +- 2.5"
    assert lines[3].startswith("größe / ")


def test_the_words_end_with_both_budgets_and_the_cost() -> None:
    *_, limits, cost = report().in_words()
    assert limits == "limits: site_budget 1, global_budget 8"
    assert cost == "epsilon <= 2.00 (delta 1e-06, user, add/remove, w3c report)"
    assert "on the devices (public rows): reports 9" in report(seen={"reports": 9}).in_words()


def test_of_many_cells_some_are_printed() -> None:
    lines = report(tuple((str(i), "x") for i in range(MOST_LINES + 5))).in_words()
    assert "and 5 more cells" in lines
    assert sum(" / x: " in line for line in lines) == MOST_LINES


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"written as .parquet or .json"):
        report().save(tmp_path / "report.csv")
