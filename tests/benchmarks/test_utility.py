"""The utility benchmark says what it measured in the agreed form. No test looks at how good or how fast it was."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console

import privads
from benchmarks.harness import Figure, Kept, Spread, json_line
from benchmarks.utility.command import main
from benchmarks.utility.datasets import DATA_SETS, CannotMeasureError, simulated_config
from benchmarks.utility.plot import draw
from benchmarks.utility.results import distances, figures, results, tables
from benchmarks.utility.trials import Trial, trials
from privads.logs.logs import Logs
from privads.models import MODELS, build
from privads.training import defaults

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
METRICS = ("auc", "log_loss", "normalized_entropy", "calibration")
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="the real logs are not part of the repository: no ../shared/data"
)


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


def test_every_metric_of_logistic_and_the_entropy_of_every_other_model_is_a_figure(quick: dict[str, Any]) -> None:
    names = {figure["name"] for figure in quick["figures"] if "distance" not in figure["name"]}
    logistic = {f"simulator_{metric}_epsilon_{end}" for metric in METRICS for end in ("3", "none")}
    assert names == logistic | {f"simulator_fm_normalized_entropy_epsilon_{end}" for end in ("3", "none")}


def test_every_epsilon_has_a_result_with_its_terms_and_its_plan(quick: dict[str, Any]) -> None:
    assert [(one["model"], one["epsilon"]) for one in quick["results"]] == [
        ("logistic", 3.0),
        ("fm", 3.0),
        ("logistic", None),
        ("fm", None),
    ]
    private, _, twin, _ = quick["results"]
    terms = ("epsilon", "delta", "unit", "neighbors", "released")
    assert [private[term] for term in terms] == [3.0, 1e-6, "user", "add-remove", "final model"]
    assert twin["epsilon"] is None
    assert (private["plan"]["noise_multiplier"] > 0, twin["plan"]["noise_multiplier"]) == (True, 0)
    assert (private["plan"]["clip_norm"] > 0, twin["plan"]["clip_norm"]) == (True, None)
    same = ("population", "batch", "steps", "rows_per_unit", "averaging", "optimizer")
    assert [private["plan"][key] for key in same] == [twin["plan"][key] for key in same]
    for result in quick["results"]:
        assert (result["dataset"], result["task"], result["seeds"]) == ("simulator", "conversion", 2)
        assert result["seconds"] >= 0
        for metric in METRICS:
            assert result[metric]["low"] <= result[metric]["mean"] <= result[metric]["high"]


def test_a_figure_is_the_mean_in_its_result(quick: dict[str, Any]) -> None:
    values = {figure["name"]: figure["value"] for figure in quick["figures"]}
    for result in quick["results"]:
        end = "none" if result["epsilon"] is None else "3"
        if result["model"] == "logistic":
            for metric in METRICS:
                assert values[f"simulator_{metric}_epsilon_{end}"] == result[metric]["mean"]
        else:
            mean = result["normalized_entropy"]["mean"]
            assert values[f"simulator_fm_normalized_entropy_epsilon_{end}"] == mean


def test_what_is_aggregated_already_is_left_out_with_its_reason(quick: dict[str, Any]) -> None:
    assert "no row" in quick["left_out"]["facebook-ads-kag"]


def test_without_json_the_terms_stand_beside_epsilon(capsys: pytest.CaptureFixture[str]) -> None:
    main(quick=True, models="logistic")
    shown = capsys.readouterr().out
    for word in ("simulator", "epsilon 3", "1e-06", "user", "add/remove", "final model", "facebook-ads-kag: left out"):
        assert word in shown


def test_every_data_set_of_a_missing_folder_is_skipped_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = [name for name in DATA_SETS if not name.startswith("simulator")]
    main(data=tmp_path / "nowhere", only=",".join(real), as_json=True)
    captured = capsys.readouterr()
    report = json.loads(captured.out.splitlines()[-1])
    assert (report["skipped"], report["figures"], report["results"]) == (real, [], [])
    for name, line in zip(real, captured.err.splitlines(), strict=True):
        assert line.startswith(f"{name}: skipped, there is no ")


@needs_data
@pytest.mark.parametrize("name", [name for name in DATA_SETS if name not in ("pinterest", "simulator-1m")])
def test_every_data_set_at_hand_is_configured_with_models_that_fit(name: str, tmp_path: Path) -> None:
    config = DATA_SETS[name].config(DATA, tmp_path)
    assert (config.data.test_after is None) != (config.data.test_fraction is None)
    logs = Logs(config.data.path, config.data.schema_)
    logs.check()
    assert config.plan.delta is not None
    assert config.plan.delta * (config.plan.population or logs.schema.population_of(config.plan.unit)) < 1
    for model in DATA_SETS[name].models:
        build(model, logs.schema)


def test_every_model_that_fits_one_label_is_measured_somewhere_and_the_others_where_there_are_several() -> None:
    measured = {model for dataset in DATA_SETS.values() for model in dataset.models}
    assert measured == set(MODELS)


def test_a_split_without_positives_is_refused_before_training(tmp_path: Path) -> None:
    config = simulated_config(tmp_path, users=50, epochs=1.0)
    late = config.data.model_copy(update={"test_after": datetime(2027, 1, 1)})
    with pytest.raises(CannotMeasureError, match="2027-01-01"):
        measured(tmp_path, kept=Kept(Trial, None), config=config.model_copy(update={"data": late}))


def measured(folder: Path, *, kept: Kept[Trial], epochs: float = 1.0, config: Any = None) -> list[Trial]:
    chosen = config or simulated_config(folder, users=500, epochs=epochs)
    return trials("s", chosen, runs={"logistic": 2}, epsilons=[None], kept=kept, log=Console(quiet=True))


def test_a_trial_that_is_kept_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "trials.jsonl"
    first = measured(tmp_path, kept=Kept(Trial, file))
    assert [one.seed for one in first] == [0, 1]
    assert len(file.read_text().splitlines()) == 2
    with monkeypatch.context() as patched:
        patched.setattr(privads, "fit", lambda *_: pytest.fail("a kept trial was run again"))
        assert measured(tmp_path, kept=Kept(Trial, file)) == first


def test_a_trial_of_another_plan_is_another_trial(tmp_path: Path) -> None:
    file = tmp_path / "trials.jsonl"
    first = measured(tmp_path, kept=Kept(Trial, file))
    other = measured(tmp_path, kept=Kept(Trial, file), epochs=2.0)
    assert not {one.key for one in first} & {one.key for one in other}
    assert len(file.read_text().splitlines()) == 4


def test_a_trial_of_another_default_step_is_another_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "trials.jsonl"
    first = measured(tmp_path, kept=Kept(Trial, file))
    monkeypatch.setattr(defaults, "STABLE_STEP", 0.5)
    other = measured(tmp_path, kept=Kept(Trial, file))
    assert not {one.key for one in first} & {one.key for one in other}


def test_a_line_cut_off_by_a_kill_is_run_again_and_spoils_no_other(tmp_path: Path) -> None:
    file = tmp_path / "trials.jsonl"
    first = measured(tmp_path, kept=Kept(Trial, file))
    text = file.read_text()
    file.write_text(text[:-40])
    again = measured(tmp_path, kept=Kept(Trial, file))
    assert again[0] == first[0]
    assert [one.key for one in again] == [one.key for one in first]
    assert set(Kept(Trial, file).found) == {one.key for one in first}


def trial(model: str, epsilon: float | None, entropy: float, *, seed: int = 0, dataset: str = "d") -> Trial:
    return Trial(
        dataset=dataset,
        model=model,
        epsilon=epsilon,
        seed=seed,
        made_of=f"{model}{epsilon}",
        terms={"said": f"epsilon {epsilon}", "delta": 1e-6, "unit": "user"},
        plan={},
        test={"y": {"rows": 100, "positives": 10, "reference": None}},
        metrics={"y": {"auc": 0.6, "log_loss": 0.3, "normalized_entropy": entropy, "calibration": 1.0}},
        seconds=1.0,
    )


def made_up(dataset: str = "d") -> Sequence[Trial]:
    entropies = {("logistic", 3.0): 0.90, ("fm", 3.0): 0.95, ("logistic", None): 0.82, ("fm", None): 0.80}
    return [
        trial(*of, entropy + 0.001 * seed, seed=seed, dataset=dataset)
        for of, entropy in entropies.items()
        for seed in (-1, 0, 1)
    ]


def test_the_distance_closed_is_between_the_constant_and_the_best_model_without_privacy() -> None:
    (found,) = distances(results(made_up()))
    # (1 - 0.90) / (1 - 0.80): logistic regression is the best with privacy, the factorization machine without
    assert found.share == pytest.approx(0.5)
    assert (found.private.first.model, found.without.first.model) == ("logistic", "fm")


def test_there_is_no_distance_where_nothing_beats_the_constant() -> None:
    assert not list(distances(results([trial("logistic", 3.0, 1.1), trial("logistic", None, 1.01)])))


def test_a_million_impressions_have_the_figure_with_the_target() -> None:
    (found,) = (one for one in figures(results(made_up("simulator-1m"))) if "closed" in one.name)
    assert (found.name, found.at_least) == ("simulator_1m_distance_closed", 0.8)
    assert found.holds is False


def test_a_model_is_marked_where_the_interval_of_its_difference_to_logistic_leaves_out_zero() -> None:
    marks = {(one.first.model, one.first.epsilon): one.mark for one in results(made_up())}
    assert marks == {("logistic", 3.0): "", ("fm", 3.0): "▲", ("logistic", None): "", ("fm", None): "▼"}
    unsure = [
        trial(model, 1.0, entropy, seed=seed) for model in ("logistic", "fm") for seed, entropy in ((0, 1), (1, 0))
    ]
    assert [one.mark for one in results([*unsure[:2], *reversed(unsure[2:])])] == ["", ""]


def test_labels_of_one_data_set_are_figures_of_their_own() -> None:
    two = dataclasses.replace(
        trial("logistic", 1.0, 0.9), metrics={task: trial("logistic", 1.0, 0.9).metrics["y"] for task in ("y", "z")}
    )
    names = {one.name for one in figures(results([two])) if "entropy" in one.name}
    assert names == {"d_y_normalized_entropy_epsilon_1", "d_z_normalized_entropy_epsilon_1"}


def test_a_table_has_a_line_for_each_model_and_a_column_for_each_epsilon() -> None:
    (shown,) = tables(results(made_up()))
    assert [column.header for column in shown.columns] == ["model", "epsilon 3", "epsilon none"]
    assert list(shown.columns[0].cells) == ["logistic", "fm"]


def test_the_plot_names_every_model_and_its_data_set(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(results(made_up()), tmp_path / "plot.svg")
    draw(results([*made_up(), *made_up("e"), *made_up("f"), *made_up("g")]), tmp_path / "plot.png")
    assert "<svg" in (tmp_path / "plot.svg").read_text()
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "criteoo"], "--only must be of adult, "),
        (["--quick", "--only", "avazu"], "--only must be of simulator with --quick, got 'avazu'"),
        (["--models", "fm,dcm"], "got 'dcm'"),
        (["--epsilons", "1,nothing"], "--epsilons must be numbers or none"),
        (["--plot", "plot.pdf"], "a plot is written as .svg or .png"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    app = typer.Typer()
    app.command()(main)
    with pytest.raises(SystemExit) as refused:
        app(arguments)
    assert refused.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert said in line


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
