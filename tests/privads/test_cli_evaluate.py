"""`privads evaluate`: a finished run is judged by private rows, for a stated budget, and bad input costs nothing."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet
import pytest

from accounting import mechanisms
from accounting.budget import Budget
from accounting.ledger import Ledger
from privads.logs.logs import Logs
from privads.noise import Randomness
from tests.privads.test_cli import ADS_TOML, RUN_TOML, Done, privads, refused, write_log
from tests.privads.test_job_features import FEATURES


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log, a run of it and a ledger of which epsilon 3 is spent."""
    folder = tmp_path_factory.mktemp("trained")
    write_log(folder)
    (folder / "ads.toml").write_text(ADS_TOML.format(public="false"))
    (folder / "run.toml").write_text(RUN_TOML)
    Ledger.init(
        f"sqlite:///{folder / 'budget.db'}", dataset="small", budget=Budget(epsilon=5.0, delta=9e-5, unit="user")
    )
    assert privads(folder, "train", "run.toml", "--quiet", "--out", "run").returncode == 0
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "copy")


def ledger(folder: Path) -> Ledger:
    return Ledger.open(f"sqlite:///{folder / 'budget.db'}")


def evaluate(folder: Path, *arguments: str, epsilon: str = "0.5") -> Done:
    return privads(folder, "evaluate", "run", "--epsilon", epsilon, *arguments)


def test_the_rows_that_a_run_held_out_are_judged_for_an_entry(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sides = []
    whole = Logs._read

    def watched(self: Logs, *, raw: bool) -> Iterator[object]:
        (*_, last) = ledger(folder).history("small")
        sides.append((str(self.side), last.purpose, last.state))
        return whole(self, raw=raw)

    monkeypatch.setattr(Logs, "_read", watched)
    before = {file.name: file.read_bytes() for file in (folder / "run").iterdir()}
    done = evaluate(folder)
    assert done.returncode == 0, done.stderr
    _, entry = ledger(folder).history("small")
    assert done.stdout.splitlines()[-1] == (
        "epsilon <= 0.50 (delta 1e-05, user, add/remove, all metrics of these rows), "
        f"charged by itself as entry {entry.id}"
    )
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["AUC", "calibration", "epsilon"]
    assert "(noisy)" in done.stdout
    assert sides == [
        ("units whose salted hash (salt 'privads') falls in the test share of 0.3", "release metrics", "opened")
    ]
    assert (entry.unit, entry.neighbors, entry.delta, entry.state) == ("user", "add-remove", 1e-5, "committed")
    assert {file.name: file.read_bytes() for file in (folder / "run").iterdir()} == before


def test_the_only_label_that_is_judged_is_named_where_the_model_has_others(folder: Path) -> None:
    """A number is not judged with noise: without the name, whose AUC it is would have to be guessed."""
    schema = (folder / "ads.toml").read_text()
    (folder / "ads.toml").write_text(
        schema.replace("[labels]\n", '[labels]\nworth = {value = "bid", kind = "count", most = 9}\n').replace(
            "bid = {range = [0, 10]}\n", ""
        )
    )
    done = privads(
        folder,
        "train",
        "run.toml",
        "--quiet",
        "--out",
        "two",
        "--set",
        "plan.epsilon=1.2",
        "--set",
        "evaluation.epsilon=0.3",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("click: AUC ")
    done = privads(folder, "evaluate", "two", "--epsilon", "0.3")
    assert done.stdout.startswith("click: AUC "), done.stderr


def test_other_rows_segments_and_terms_are_stated(folder: Path) -> None:
    table = pyarrow.parquet.read_table(folder / "log.parquet")
    pyarrow.parquet.write_table(table.slice(0, 500), folder / "other.parquet")
    more = ("--data", "other.parquet", "--delta", "1e-6", "--rows-per-unit", "3", "--segment", "site=s1,s2", "--json")
    done = evaluate(folder, *more, "--out", "figures.json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said == json.loads((folder / "figures.json").read_text())
    assert said["rows"].endswith("other.parquet: all rows")
    assert (said["delta"], said["unit"], said["rows_per_unit"]) == (1e-6, "user", 3)
    assert [task["segment"] for task in said["metrics"]] == [None, "site = s1", "site = s2"]
    _, entry = ledger(folder).history("small")
    assert str(entry.id) == said["entry"]
    each = mechanisms.gaussian(noise_multiplier=said["noise_std"] / 3)
    (tables, times), *_ = sorted(mechanisms.parts(mechanisms.from_json(entry.event)), key=lambda part: -part[1])
    assert (tables, times) == (each, 2)  # all rows, and by site


def test_without_noise_the_figures_are_those_of_the_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores of `privads predict`, judged by scikit-learn; a histogram ties the rows of one bin."""
    from sklearn.metrics import log_loss, roc_auc_score

    monkeypatch.setattr(Randomness, "rounded_gaussian", lambda self, count, *, noise_std: 0 * self.below(count, 2))
    url = f"sqlite:///{folder / 'large.db'}"  # at a large epsilon little noise is reckoned with
    Ledger.init(url, dataset="small", budget=Budget(epsilon=1e4, delta=9e-5, unit="user"))
    more = ("--data", "log.parquet", "--rows-per-unit", "5", "--ledger", url, "--json")  # no user has more
    done = evaluate(folder, *more, epsilon="28")
    assert done.returncode == 0, done.stderr
    (task,) = json.loads(done.stdout)["metrics"]
    assert privads(folder, "predict", "run", "log.parquet", "--out", "scores.parquet").returncode == 0
    scores = pyarrow.parquet.read_table(folder / "scores.parquet")["click_probability"].to_numpy()
    clicks = pyarrow.parquet.read_table(folder / "log.parquet")["click"].to_numpy()
    assert task["rows"] == pytest.approx(len(clicks), abs=10)
    assert task["scores"]["auc"]["value"] == pytest.approx(roc_auc_score(clicks, scores), abs=0.01)
    assert task["scores"]["log_loss"]["value"] == pytest.approx(log_loss(clicks, scores), abs=0.01)
    assert task["scores"]["calibration"]["value"] == pytest.approx(scores.sum() / clicks.sum(), rel=0.02)


def test_a_run_with_features_reads_the_rows_through_them(folder: Path) -> None:
    (folder / "run.toml").write_text(RUN_TOML.replace("epsilon = 3.0", "epsilon = 0.5") + FEATURES)
    assert privads(folder, "train", "run.toml", "--quiet", "--out", "other").returncode == 0
    done = privads(folder, "evaluate", "other", "--epsilon", "0.2", "--segment", "site=s1")
    assert done.returncode == 0, done.stderr
    assert "click, site = s1: AUC" in done.stdout


def test_a_budget_that_does_not_suffice_is_3_and_nothing_is_charged(folder: Path) -> None:
    refused(evaluate(folder, epsilon="2.5"), 3, "left", "small")
    assert len(ledger(folder).history("small")) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--data", "missing.parquet"), "no such file"),
        (("--data", "ads.toml"), "ads.toml"),
        (("--ledger", "sqlite:///none.db"), "none.db"),
        (("--segment", "site"), "--segment takes COLUMN=VALUE,VALUE"),
        (("--segment", "sight=s1"), "'sight' is no categorical column"),
        (("--segment", "site=s1,s1"), "named once each"),
        (("--segment", "site=s1", "--segment", "site=s2"), "each column once"),
        (("--out", "run.toml"), "exists already"),
        (("--out", "no/figures.json"), "cannot write"),
        (("--delta", "2"), "delta"),
        (("--rows-per-unit", "0"), "rows-per-unit"),
    ],
)
def test_bad_input_is_one_line_and_costs_nothing(folder: Path, arguments: tuple[str, ...], said: str) -> None:
    refused(evaluate(folder, *arguments), 2, said)
    assert len(ledger(folder).history("small")) == 1


def test_what_the_folder_does_not_say_must_be_stated(folder: Path) -> None:
    refused(privads(folder, "evaluate", "nowhere", "--epsilon", "1"), 2, "nowhere is not a run folder")
    refused(privads(folder, "evaluate", "run"), 2, "--epsilon")
    file = folder / "run" / "report.json"
    whole = file.read_text()
    file.write_text(whole.replace('"test_fraction": 0.3', '"test_fraction": null'))
    refused(evaluate(folder), 2, "the run held out no rows")
    stated = json.loads(whole)
    stated["run"]["config"]["ledger"] = {"url": "postgresql+psycopg://ads:***@host/db"}
    file.write_text(json.dumps(stated))
    refused(evaluate(folder), 2, "keeps no password")
    del stated["run"]["config"]["ledger"]
    file.write_text(json.dumps(stated))
    refused(evaluate(folder), 2, "names no ledger")
    assert len(ledger(folder).history("small")) == 1


def test_a_failure_in_the_rows_is_one_line_that_tells_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Logs) -> Iterator[object]:
        raise RuntimeError("the row of u17")

    monkeypatch.setattr(Logs, "judged", broken)
    done = evaluate(folder)
    refused(done, 2, "cannot be counted")
    assert "u17" not in done.stderr
    assert ledger(folder).balance("small").spent_epsilon == pytest.approx(3.5, abs=0.01)
