"""`[features]` in a run file: fitted, charged and kept before training, and never for nothing."""

import tomllib
from pathlib import Path

import pytest

from accounting.budget import Budget
from accounting.ledger import Ledger
from privads.features.pipeline import Features
from privads.training.checkpoint import load_features
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


def test_features_that_cost_more_than_is_stated_are_refused(folder: Path) -> None:
    budget = ledger(folder, 10.0)
    assert train(folder, "one").returncode == 0
    before = spent(budget)
    second = train(folder, "two", "--set", "features.epsilon=0.1")
    assert second.returncode != 0
    assert "not what [features] states" in second.stderr
    assert spent(budget) == before
