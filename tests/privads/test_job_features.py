"""`[features]` in a run file: fitted, charged and kept before training, and never for nothing."""

import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import torch

from accounting.budget import Budget
from accounting.ledger import Ledger
from privads.features.pipeline import Features
from privads.logs.logs import Logs
from privads.training.checkpoint import load, load_features
from tests.privads.test_cli import ADS_TOML, RUN_TOML, Done, privads, write_log

FEATURES = """
[features]
epsilon = 0.5
file = "features.json"
transforms = [
  {kind = "vocabulary", columns = ["site"], label = "click"},
  {kind = "rate", columns = ["site"], label = "click"},
  {kind = "quantiles", column = "bid", buckets = 4},
]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_log(tmp_path)
    (tmp_path / "ads.toml").write_text(ADS_TOML.format(public="false"))
    (tmp_path / "run.toml").write_text(RUN_TOML + FEATURES)
    return tmp_path


def ledger(folder: Path, epsilon: float) -> Ledger:
    budget = Budget(epsilon=epsilon, delta=9e-5, unit="user")
    return Ledger.init(f"sqlite:///{folder / 'budget.db'}", dataset="small", budget=budget)


def train(folder: Path, out: str, *arguments: str) -> Done:
    return privads(folder, "train", "run.toml", "--quiet", "--out", out, *arguments)


def spent(of: Ledger) -> float:
    return of.balance("small").spent_epsilon


def test_features_are_charged_once_and_found_again_by_the_next_run(folder: Path) -> None:
    budget = ledger(folder, 10.0)
    first = train(folder, "one")
    assert first.returncode == 0, first.stderr
    assert spent(budget) == pytest.approx(3.5, abs=0.01)
    assert "its features by themselves: epsilon <= 0.50" in (folder / "one" / "report.json").read_text()
    second = train(folder, "two")
    assert second.returncode == 0, second.stderr
    assert spent(budget) == pytest.approx(6.5, abs=0.01)
    kept = Features.load(folder / "features.json")
    assert load_features(folder / "one") == load_features(folder / "two") == kept
    scored = privads(folder, "predict", "one", "log.parquet", "--out", "scores.parquet")
    assert scored.returncode == 0, scored.stderr


def test_a_job_whose_training_would_not_fit_fits_no_features(folder: Path) -> None:
    budget = ledger(folder, 3.2)
    done = train(folder, "one")
    assert done.returncode == 3
    assert "features and training together ask for 3.4" in done.stderr
    assert spent(budget) == 0
    assert not (folder / "features.json").exists()


def test_a_file_of_other_features_is_refused(folder: Path) -> None:
    ledger(folder, 10.0)
    assert train(folder, "one").returncode == 0
    (folder / "run.toml").write_text((RUN_TOML + FEATURES).replace("buckets = 4", "buckets = 5"))
    done = train(folder, "two")
    assert done.returncode == 2
    assert "was fitted to other transforms" in done.stderr


def test_features_that_read_the_held_out_rows_are_refused(folder: Path) -> None:
    """A fixed bug: fitted to all rows, they told a later run's model of the rows that it was judged by."""
    ledger(folder, 10.0)
    (folder / "run.toml").write_text(RUN_TOML.replace("test_fraction = 0.3\n", "") + FEATURES)
    assert train(folder, "one").returncode == 0
    (folder / "run.toml").write_text(RUN_TOML + FEATURES)
    done = train(folder, "two")
    assert done.returncode == 2
    assert "was fitted to all rows" in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"rate"', '"rates"', "'rates'"),
        ("epsilon = 0.5\n", "", "missing key 'features.epsilon'"),
        ('file = "features.json"', 'file = "no/features.json"', "cannot write"),
        ('columns = ["site"], label = "click"}', 'columns = ["sight"]}', "'sight' is no categorical column"),
        ('"features.json"', '"features.json"\ntransform = 1', "unknown key 'features.transform'"),
    ],
)
def test_a_wrong_table_is_one_clear_line_and_costs_nothing(folder: Path, old: str, new: str, said: str) -> None:
    budget = ledger(folder, 10.0)
    (folder / "run.toml").write_text(RUN_TOML + FEATURES.replace(old, new, 1))
    done = train(folder, "one")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr
    assert spent(budget) == 0


def test_a_run_with_a_checkpoint_keeps_its_features(folder: Path) -> None:
    budget = ledger(folder, 10.0)
    (folder / "run.toml").write_text((RUN_TOML + FEATURES).replace('file = "features.json"\n', ""))
    done = train(folder, "one", "--set", 'run.checkpoint="work.ckpt"')
    assert done.returncode == 2
    assert "features.file" in done.stderr
    assert spent(budget) == 0


def test_free_features_cost_nothing(folder: Path) -> None:
    budget = ledger(folder, 10.0)
    free = '[features]\ntransforms = [{kind = "hashed", columns = ["site", "ad"], buckets = 16}]\n'
    assert tomllib.loads(free)
    (folder / "run.toml").write_text(RUN_TOML + free)
    done = train(folder, "one")
    assert done.returncode == 0, done.stderr
    assert spent(budget) == pytest.approx(3.0, abs=0.01)
    assert "its features by themselves: free" in (folder / "one" / "report.json").read_text()


BACK = """
[features]
transforms = [
  {kind = "hashed", columns = ["site"], buckets = 8},
  {kind = "frequency", within_hours = 24, most = 4},
  {kind = "recency", columns = ["ad"]},
]
"""


@pytest.fixture
def timed(folder: Path) -> Path:
    """The same log in order of time, with each row's moment."""
    table = pyarrow.parquet.read_table(folder / "log.parquet")
    hours = np.random.default_rng(1).integers(0, 100, len(table))
    moments = np.datetime64("2026-11-15", "us") + hours.astype("timedelta64[h]")
    table = table.append_column("time", pyarrow.array(moments)).sort_by("time")
    pyarrow.parquet.write_table(table, folder / "log.parquet")
    (folder / "ads.toml").write_text('time = "time"\n' + ADS_TOML.format(public="false"))
    (folder / "run.toml").write_text(RUN_TOML + BACK)
    return folder


def scores(folder: Path, log: str, out: str) -> list[float | None]:
    done = privads(folder, "predict", "one", log, "--out", out)
    assert done.returncode == 0, done.stderr
    return pyarrow.parquet.read_table(folder / out)["click_probability"].to_pylist()


def test_a_model_of_a_user_s_past_is_trained_and_predicts_with_the_past_that_the_file_holds(timed: Path) -> None:
    budget = ledger(timed, 10.0)
    done = train(timed, "one")
    assert done.returncode == 0, done.stderr
    assert spent(budget) == pytest.approx(3.0, abs=0.01)
    table = pyarrow.parquet.read_table(timed / "log.parquet")
    users, found = pd.Series(table["user"].to_pylist()), np.array(scores(timed, "log.parquet", "scores.parquet"))
    features, (model, _) = load_features(timed / "one"), load(timed / "one")
    assert features is not None
    log = Logs(timed / "log.parquet", timed / "ads.toml").with_features(features)
    with torch.no_grad():
        own = torch.sigmoid(model(log.take(np.arange(len(table))))["click"].double()).numpy()
    # the cache numbers rows by user, and those of one user keep the order of the file
    by_user = np.argsort(pd.factorize(users)[0], kind="stable")
    assert found[by_user] == pytest.approx(own, abs=1e-6)
    first = ~users.duplicated().to_numpy()
    new = table.slice(len(table) - 100)  # a file of new rows holds no more of the past
    pyarrow.parquet.write_table(new, timed / "new.parquet")
    alone, beside = np.array(scores(timed, "new.parquet", "new_scores.parquet")), found[-100:]
    assert (np.abs(alone - beside) > 1e-6).any()
    assert alone[first[-100:]] == pytest.approx(beside[first[-100:]], abs=1e-9)


def test_to_predict_by_a_past_needs_owners_and_times_but_no_labels(timed: Path) -> None:
    ledger(timed, 10.0)
    assert train(timed, "one").returncode == 0
    table = pyarrow.parquet.read_table(timed / "log.parquet").drop_columns(["click", "buy"])
    users = [None, *table["user"].to_pylist()[1:]]
    place = table.schema.get_field_index("user")
    table = table.set_column(place, "user", pyarrow.array(users, pyarrow.string()))
    pyarrow.parquet.write_table(table, timed / "unlabelled.parquet")
    found = scores(timed, "unlabelled.parquet", "scores.parquet")
    assert found[0] is None
    assert None not in found[1:]
    pyarrow.parquet.write_table(table.drop_columns(["time"]), timed / "timeless.parquet")
    done = privads(timed, "predict", "one", "timeless.parquet", "--out", "no.parquet")
    assert (done.returncode, "no column 'time'" in done.stderr) == (2, True)


@pytest.mark.parametrize("costly", [True, False])
@pytest.mark.parametrize("kept", [True, False])
def test_a_past_under_single_rows_is_one_clear_line_and_costs_nothing(timed: Path, costly: bool, kept: bool) -> None:
    """Found when the model is trained, what its features cost would be gone."""
    budget = Ledger.init(
        f"sqlite:///{timed / 'budget.db'}", dataset="small", budget=Budget(epsilon=9.0, delta=9e-5, unit="example")
    )
    features = BACK.replace("transforms = [", 'transforms = [{kind = "vocabulary", columns = ["ad"]},\n')
    text = RUN_TOML.replace('unit = "user"', 'unit = "example"\nrows_per_unit = 1')
    text += features.replace("[features]", "[features]\nepsilon = 0.5") if costly else BACK
    (timed / "run.toml").write_text(text + 'file = "features.json"\n' * kept)
    done = train(timed, "one")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "frequency looks at other rows of the same user, which unit 'example' does not protect" in done.stderr
    assert spent(budget) == 0
    assert not (timed / "features.json").exists()


def test_features_that_cost_more_than_is_stated_are_refused(folder: Path) -> None:
    budget = ledger(folder, 10.0)
    assert train(folder, "one").returncode == 0
    before = spent(budget)
    second = train(folder, "two", "--set", "features.epsilon=0.1")
    assert second.returncode != 0
    assert "not what [features] states" in second.stderr
    assert spent(budget) == before
