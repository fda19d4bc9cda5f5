"""The utility benchmark says what it measured in the agreed form. No test looks at how good or how fast it was."""

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console

from benchmarks.harness import Figure, Spread, json_line
from benchmarks.utility import CannotMeasureError, main, simulated_config, trials

ROOT = Path(__file__).resolve().parents[2]
METRICS = ("auc", "log_loss", "normalized_entropy", "calibration")


def utility(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.utility", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def last_line(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1], parse_constant=refuse)
    return report


@pytest.fixture(scope="module")
def quick() -> dict[str, Any]:
    return last_line(utility("--quick", "--json", "--seeds", "2"))


def test_the_last_line_has_the_agreed_keys(quick: dict[str, Any]) -> None:
    assert quick["benchmark"] == "utility"
    assert {"processor", "cores", "threads", "python", "versions"} <= set(quick["machine"])
    assert quick["skipped"] == []
    for figure in quick["figures"]:
        assert set(figure) == {"name", "value", "unit", "target", "holds"}


def test_every_metric_of_every_epsilon_is_a_figure(quick: dict[str, Any]) -> None:
    names = {figure["name"] for figure in quick["figures"]}
    assert names == {f"simulator_{metric}_epsilon_{end}" for metric in METRICS for end in ("3", "none")}


def test_every_epsilon_has_a_result_with_its_terms_and_its_plan(quick: dict[str, Any]) -> None:
    private, twin = quick["results"]
    terms = ("epsilon", "delta", "unit", "neighbors", "released")
    assert [private[term] for term in terms] == [3.0, 1e-6, "user", "add-remove", "final model"]
    assert twin["epsilon"] is None
    assert (private["plan"]["noise_multiplier"] > 0, twin["plan"]["noise_multiplier"]) == (True, 0)
    assert (private["plan"]["clip_norm"] > 0, twin["plan"]["clip_norm"]) == (True, None)
    same = ("population", "batch", "steps", "rows_per_unit", "averaging", "optimizer")
    assert [private["plan"][key] for key in same] == [twin["plan"][key] for key in same]
    for result in (private, twin):
        assert (result["dataset"], result["task"], result["seeds"]) == ("simulator", "conversion", 2)
        assert result["seconds"] >= 0
        for metric in METRICS:
            assert result[metric]["low"] <= result[metric]["mean"] <= result[metric]["high"]


def test_a_figure_is_the_mean_in_its_result(quick: dict[str, Any]) -> None:
    values = {figure["name"]: figure["value"] for figure in quick["figures"]}
    for result, end in zip(quick["results"], ("3", "none"), strict=True):
        for metric in METRICS:
            assert values[f"simulator_{metric}_epsilon_{end}"] == result[metric]["mean"]


def test_without_json_the_terms_stand_beside_epsilon(capsys: pytest.CaptureFixture[str]) -> None:
    main(quick=True)
    shown = capsys.readouterr().out
    for word in ("simulator", "epsilon 3", "1e-06", "user", "add/remove"):
        assert word in shown


def test_a_missing_data_folder_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(data=tmp_path / "nowhere", only="criteo", as_json=True)
    captured = capsys.readouterr()
    report = json.loads(captured.out.splitlines()[-1])
    assert (report["skipped"], report["figures"], report["results"]) == (["criteo"], [], [])
    (line,) = captured.err.splitlines()
    assert "criteo: skipped" in line


def test_a_split_without_positives_is_refused_before_training(tmp_path: Path) -> None:
    config = simulated_config(tmp_path, users=50, epochs=1.0)
    late = config.data.model_copy(update={"test_after": datetime(2027, 1, 1)})
    with pytest.raises(CannotMeasureError, match="2027-01-01"):
        trials("simulator", config.model_copy(update={"data": late}), epsilons=[None], seeds=1, log=Console())


def test_an_unknown_data_set_is_refused_in_one_line() -> None:
    done = utility("--only", "criteoo")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "--only" in line
    assert "criteo, talkingdata" in line


def test_quick_has_no_other_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as refused:
        main(quick=True, only="avazu")
    assert refused.value.exit_code == 2
    assert capsys.readouterr().err == "--only must be one of simulator with --quick, got 'avazu'\n"


def test_a_target_holds_from_its_value_on() -> None:
    below, reached = (Figure(name="n", value=value, unit="u", at_least=0.7) for value in (0.6999999, 0.7))
    assert (below.holds, reached.holds) == (False, True)
    assert reached.as_dict() == {"name": "n", "value": 0.7, "unit": "u", "target": ">= 0.7", "holds": True}
    assert Figure(name="n", value=0.7, unit="u").holds is None


def test_the_interval_is_students() -> None:
    # t is 2.776 at 4 degrees of freedom in any table; the std of 1..5 is sqrt(2.5), that of their mean sqrt(0.5)
    spread = Spread.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert spread.mean == 3.0
    assert spread.std == pytest.approx(2.5**0.5)
    assert spread.high - spread.mean == pytest.approx(2.776 * 0.5**0.5, rel=1e-3)
    assert spread.mean - spread.low == pytest.approx(spread.high - spread.mean)


def test_one_seed_has_no_interval_and_the_line_says_null() -> None:
    line = json_line("utility", [], results=[vars(Spread.of([0.5]))])
    (result,) = json.loads(line, parse_constant=refuse)["results"]
    assert result == {"mean": 0.5, "std": None, "low": None, "high": None}
