"""The signals benchmark says what it measured in the agreed form. No test looks at how good or how fast it was."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from benchmarks.harness import Figure
from benchmarks.signals import command, from_tables, speed
from benchmarks.signals.command import PARTS, main
from privads.signals.margins import Margin

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def quick() -> dict[str, Any]:
    arguments = [sys.executable, "-m", "benchmarks.signals", "--quick", "--json", "--only", "speed,learning,tables"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def test_the_last_line_has_the_agreed_keys(quick: dict[str, Any]) -> None:
    assert quick["benchmark"] == "signals"
    assert {"processor", "cores", "threads", "python", "versions"} <= set(quick["machine"])
    for figure in quick["figures"]:
        assert set(figure) == {"name", "value", "unit", "target", "holds"}


def test_every_promise_about_learning_and_noise_has_its_target(quick: dict[str, Any]) -> None:
    targets = {figure["name"]: figure["target"] for figure in quick["figures"]}
    assert targets["simulator_click_singles_example_epsilon_5_share"] == ">= 0.75"
    assert targets["simulator_click_singles_example_epsilon_1_above_constant"] == ">= -0.005"
    assert targets["simulator_click_singles_example_epsilon_1_above_ignoring_noise_low"] == ">= 0"
    assert targets["noise_off_below_logistic_regression"] == "<= 0.001"
    assert targets["from_tables_share_example_epsilon_5"] == ">= 0.75"
    assert targets["from_tables_likelihood_example_epsilon_1"] == ">= -0.005"
    assert targets["from_tables_above_ignoring_noise_epsilon_1_low"] == ">= 0"
    for law in ("discrete_gaussian", "discrete_laplace", "rounded_gaussian"):
        assert targets[f"{law}_draws"] == ">= 5000000"


def test_every_figure_has_a_name_of_its_own(quick: dict[str, Any]) -> None:
    names = [figure["name"] for figure in quick["figures"]]
    assert len(set(names)) == len(names)


def test_trials_are_there_seed_by_seed(quick: dict[str, Any]) -> None:
    seeds = {trial["seed"] for trial in quick["trials"] if trial["epsilon"] == 1 and trial["ignorant"] is not None}
    assert seeds == {0, 1}


def test_what_is_not_measured_is_said(quick: dict[str, Any]) -> None:
    assert set(quick["left_out"]) == {"pipeline_dp", *from_tables.REAL}


def test_all_ways_count_the_same_declared_cells_but_for_other_and_missing_values(tmp_path: Path) -> None:
    # values of 2 columns: 10 and 100; a declared column has a place for other and one for missing values beside
    speed.write(tmp_path / "rows.parquet", 500, 2)
    assert speed.by_pandas(tmp_path / "rows.parquet", 2) == 2 * (10 + 100 + 10 * 100)
    assert speed.by_privads(tmp_path / "rows.parquet", 2) == 2 * (12 + 102 + 12 * 102)


def test_ten_million_rows_have_a_minute_and_no_other_size_has_a_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "write", lambda *_: None)
    monkeypatch.setattr(speed, "measured", lambda *_: speed.Run(seconds=60.1, cells=10, mebibytes=None))
    made = {one.name: one for one in speed.release_figures(tmp_path, speed.Sizes())}
    assert (made["ten_million_rows_seconds"].target, made["ten_million_rows_seconds"].holds) == ("<= 60", False)
    assert {name for name, one in made.items() if one.target} == {"ten_million_rows_seconds", "ten_million_rows_cells"}


def test_declared_cells_are_fewer_than_ten_million() -> None:
    assert sum(query.cells * len(query.measures) for query in speed.plan(20).queries) < 10_000_000


def test_pipeline_dp_is_asked_where_its_python_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho \'{"seconds": 2.0, "cells": 30, "mebibytes": null}\'\n', encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.setattr(speed, "measured", lambda *_: speed.Run(seconds=1.0, cells=10, mebibytes=None))
    made = {one.name: one.value for one in speed.release_figures(tmp_path, speed.QUICK, pipeline_dp=python)}
    assert made["pipeline_dp_1000_rows_3_columns_seconds"] == 2.0


def test_a_part_is_measured_only_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = command.Measured(figures=[Figure(name="n", value=0.1, unit="u", at_least=0.75)])
    monkeypatch.setitem(PARTS, "tables", lambda _: made)
    main(only="tables", quick=True, as_json=True)
    (figure,) = json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]
    assert figure == {"name": "n", "value": 0.1, "unit": "u", "target": ">= 0.75", "holds": False}


def test_a_part_that_is_not_known_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer()
    app.command()(main)
    with pytest.raises(SystemExit) as refused:
        app(["--only", "sped"])
    assert refused.value.code == 2
    assert capsys.readouterr().err.splitlines() == ["--only must be of speed, learning, tables, labels, got 'sped'"]


def test_tables_made_as_if_exact_have_one_total_and_no_negative_count() -> None:
    rows = [Margin(columns=(0,), values=np.array([6.0, 3.0]), noise_std=2.0)]
    hits = [Margin(columns=(0,), values=np.array([-1.0, 4.0]), noise_std=1.0)]
    rows += [Margin(columns=(1,), values=np.array([10.0, 10.0]), noise_std=2.0)]
    hits += [Margin(columns=(1,), values=np.array([1.0, 1.0]), noise_std=1.0)]
    found_rows, found_hits = from_tables.as_if_exact(rows, hits)
    # positives: [0, 4] and [1, 1], of mean total 3; rows: [6, 4], at least the positives, and [10, 10], of mean 15
    assert [one.values.tolist() for one in found_hits] == [[0.0, 3.0], [1.5, 1.5]]
    assert [one.values.tolist() for one in found_rows] == [[9.0, 6.0], [7.5, 7.5]]
    assert {one.noise_std for one in (*found_rows, *found_hits)} == {0.0}
