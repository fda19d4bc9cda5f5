"""`privads learn`: it reads no more than it says, promises no more than it keeps, and judges on public rows alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from accounting.ledger import Ledger
from privads.logs.simulator import DEVICES, schema_toml
from privads.run_config import read_config
from privads.signals.encoding import Floats
from privads.signals.learned import Learned
from privads.signals.learning_job import learn_from
from tests.privads.test_cli import Done, privads, refused, simulated

RUN_TOML = f"""\
[data]
path = "log.parquet"
schema = "ads.toml"
test_fraction = 0.2
[ledger]
url = "sqlite:///budget.db"
[plan]
epsilon = 4.0
delta = 1e-6
unit = "user"
[release]
columns = ["device", "ad_position"]
pairs = true
label = "conversion"
rows_per_unit = 2
out = "tables"
[release.values]
device = {json.dumps(list(DEVICES))}
[release.edges]
ad_position = [1, 4, 10]
[learn]
tables = ["tables"]
out = "learned"
"""
COST = "epsilon <= 4.00 (delta 1e-06, user, add/remove, all tables)"
FIRST = next(iter(DEVICES))
SYNTHETIC = """\
[data]
path = "learned/synthetic.parquet"
schema = "learned/ads.toml"
test_fraction = 0.2
[plan]
unit = "example"
without_privacy = true
epochs = 1
"""


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a private log, its ledger, and tables of it."""
    folder = simulated(tmp_path_factory.mktemp("released"), RUN_TOML, users=1000, epsilon=5.0)
    done = privads(folder, "release", "run.toml")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def folder(released: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(released, tmp_path / "own"))


@pytest.fixture
def public(folder: Path) -> Path:
    (folder / "ads.toml").write_text(schema_toml(1000, public=True))
    return folder


def learn(folder: Path, *settings: str, options: tuple[str, ...] = ()) -> Done:
    given = [word for one in settings for word in ("--set", one)]
    return privads(folder, "learn", "run.toml", *given, *options)


def entries(folder: Path) -> int:
    return len(Ledger.open(f"sqlite:///{folder / 'budget.db'}").history("simulated-ads"))


def test_without_features_no_row_is_read_and_nothing_charged(folder: Path) -> None:
    (folder / "log.parquet").unlink()
    done = learn(folder)
    assert done.returncode == 0, done.stderr
    what, promise, place = done.stdout.splitlines()
    assert what == "conversion by device, ad_position"
    assert promise == f"learned from tables alone: {COST}; no row was read"
    assert place == "model: learned/model.json"
    assert entries(folder) == 1  # the release's
    model = Learned.load(folder / "learned" / "model.json")
    scores = model.predict(np.array([[0, 0], [1, 1]]))
    assert scores.shape == (2,)
    assert ((scores > 0) & (scores < 1)).all()


def test_json_is_one_object_that_is_saved_too(folder: Path) -> None:
    done = learn(folder, options=("--json",))
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said.pop("out") == "learned"
    assert said == json.loads((folder / "learned" / "learned.json").read_text())
    assert said["metrics"] is None
    assert COST in said["guarantee"]


@pytest.mark.parametrize("features", ["none", "public", "unprotected"])
def test_metrics_are_of_public_logs_alone(folder: Path, features: str) -> None:
    private = learn(folder, f"learn.features={features}")
    assert private.returncode == 0, private.stderr
    assert "held-out" not in private.stdout
    (folder / "ads.toml").write_text(schema_toml(1000, public=True))
    public = learn(folder, f"learn.features={features}", options=("--out", "judged"))
    assert public.returncode == 0, public.stderr
    assert "held-out rows, which are public: AUC 0." in public.stdout
    assert json.loads((folder / "judged" / "learned.json").read_text())["metrics"]["rows"] > 0


def test_without_a_split_nothing_is_judged(public: Path) -> None:
    (public / "run.toml").write_text(RUN_TOML.replace("test_fraction = 0.2\n", ""))
    done = learn(public, "learn.features=public")
    assert done.returncode == 0, done.stderr
    assert "held-out" not in done.stdout


def test_unprotected_features_are_said_not_to_be_protected_and_labels_to_cost_more(folder: Path) -> None:
    done = learn(folder, "learn.features=unprotected")
    assert done.returncode == 0, done.stderr
    promise = done.stdout.splitlines()[1]
    assert "NOT protected are the features device, ad_position of the rows it read" in promise
    assert "labels alone are protected (neighbors replace-label)" in promise
    epsilon = float(promise.split("epsilon <= ")[1].split()[0])
    assert epsilon > 4.0  # labels of a unit move sums sqrt(2) times as far as leaving it out
    assert "NOT protected" in json.loads((folder / "learned" / "learned.json").read_text())["guarantee"]
    assert entries(folder) == 1


def test_public_features_keep_the_promise_of_the_tables(folder: Path) -> None:
    done = learn(folder, "learn.features=public")
    assert COST in done.stdout
    assert "the features it read are declared public" in done.stdout


def test_features_are_read_and_labels_are_not(folder: Path) -> None:
    log = pyarrow.parquet.read_table(folder / "log.parquet")
    first = learn(folder, "learn.features=unprotected", options=("--out", "first"))
    assert first.returncode == 0, first.stderr
    pyarrow.parquet.write_table(log.drop_columns(["converted_at"]), folder / "log.parquet")
    again = learn(folder, "learn.features=unprotected", options=("--out", "again"))
    assert again.returncode == 0, again.stderr
    assert (folder / "first" / "model.json").read_text() == (folder / "again" / "model.json").read_text()
    (folder / "log.parquet").unlink()
    refused(learn(folder, "learn.features=unprotected"), 2, "no such file", "log.parquet")


def test_a_synthetic_log_is_told_and_trains_and_scores_the_real_one(folder: Path) -> None:
    done = learn(folder, "learn.sample=2000")
    assert "synthetic log: learned/synthetic.parquet, 2,000 rows; schema: learned/ads.toml" in done.stdout
    (folder / "syn.toml").write_text(SYNTHETIC)
    trained = privads(folder, "train", "syn.toml", "--quiet", "--out", "run")
    assert trained.returncode == 0, trained.stderr
    scored = privads(folder, "predict", "run", "log.parquet", "--out", "scores.parquet")
    assert scored.returncode == 0, scored.stderr
    assert pyarrow.parquet.read_metadata(folder / "scores.parquet").num_rows > 0
    refused(
        learn(folder, "learn.sample=10", "learn.features=public", options=("--out", "no")),
        2,
        "leave learn.features out",
    )


def test_evaluate_says_what_a_learned_folder_is_for(folder: Path) -> None:
    assert learn(folder).returncode == 0
    said = privads(folder, "evaluate", "learned", "--epsilon", "1")
    refused(said, 2, "`privads learn` wrote it", "`privads predict`", "learn.sample")


def test_a_report_of_a_learned_folder_names_the_file_that_says_what_it_cost(folder: Path) -> None:
    assert learn(folder).returncode == 0
    refused(privads(folder, "report", "learned"), 2, "what it cost stands in learned/learned.json")


def test_a_folder_that_exists_is_left_as_it_is(folder: Path) -> None:
    (folder / "learned").mkdir()
    refused(learn(folder), 2, "learned exists already", "--out")
    assert list((folder / "learned").iterdir()) == []


def test_values_found_in_the_log_are_refused_with_what_to_do(public: Path) -> None:
    text = RUN_TOML.replace("[release.values]\n", "").replace(f"device = {json.dumps(list(DEVICES))}\n", "")
    (public / "run.toml").write_text(text)
    assert privads(public, "release", "run.toml", "--out", "found").returncode == 3  # 4 + 4 is more than 5
    found = privads(public, "release", "run.toml", "--set", "release.epsilon=0.9", "--out", "found")
    assert found.returncode == 0, found.stderr
    refused(learn(public, 'learn.tables=["found"]'), 2, "'device' were found in the log", "release.values_from.device")


def test_tables_of_another_log_are_refused(folder: Path) -> None:
    schema = folder / "ads.toml"
    schema.write_text(schema.read_text().replace('"simulated-ads"', '"others"'))
    refused(learn(folder, "learn.features=public"), 2, "'simulated-ads'", "data.schema is of 'others'")
    log = (folder / "run.toml").read_text().replace('[ledger]\nurl = "sqlite:///budget.db"\n', "")
    (folder / "run.toml").write_text(log)
    schema.write_text(schema.read_text().replace("public = false", "public = true"))
    assert privads(folder, "release", "run.toml", "--out", "theirs").returncode == 0
    refused(learn(folder, 'learn.tables=["tables", "theirs"]'), 2, "several logs, others, simulated-ads")


def test_a_corrupted_table_is_one_line(folder: Path) -> None:
    table = folder / "tables" / "000-device.parquet"
    whole = table.read_bytes()
    for broken in (b"", b"hi", whole[: len(whole) // 2]):
        table.write_bytes(broken)
        refused(learn(folder), 2, "000-device.parquet")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (['learn.tables=["nowhere"]'], ["there is no file or folder nowhere"]),
        (['learn.tables=["log.parquet"]'], ["log.parquet is no noisy table"]),
        (["learn.tables=[]"], ["learn.tables"]),
        (["learn.label=click"], ["the tables are about 'conversion', not 'click'"]),
        (["learn.features=all"], ["learn.features", "'unprotected'"]),
        (["learn.feature=public"], ["did you mean 'features'"]),
        (["learn.sample=-1"], ["learn.sample"]),
    ],
)
def test_bad_input_is_one_line(folder: Path, settings: list[str], words: list[str]) -> None:
    refused(learn(folder, *settings), 2, *words)
    assert not (folder / "learned").exists()


def test_a_file_without_learn_is_bad_input(folder: Path) -> None:
    (folder / "run.toml").write_text(RUN_TOML.split("[learn]")[0])
    refused(learn(folder), 2, "run.toml has no [learn]", "tables")


def test_progress_is_of_public_steps_and_tells_nothing_of_rows_that_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    told: dict[str, list[tuple[str, int, int]]] = {}
    for features in ("none", "unprotected"):
        settings = [f"learn.features={features}", *(["learn.sample=10"] if features == "none" else [])]
        read = read_config(Path("run.toml"), settings)
        assert read.learn is not None
        own: list[tuple[str, int, int]] = []
        learn_from(read, read.learn, lambda doing, own=own: lambda done, of: own.append((doing, done, of)))  # type: ignore[misc]
        told[features] = own
    assert told["unprotected"] == []
    assert {doing for doing, _, _ in told["none"]} == {"learning from the tables", "drawing a synthetic log"}
    assert all(1 <= done <= of for _, done, of in told["none"])


def test_single_columns_alone_are_learned_from_where_they_are_stated_to_be_independent(folder: Path) -> None:
    (folder / "tables" / "002-device-ad_position.parquet").unlink()
    refused(learn(folder), 2, "no table is by both 'device' and 'ad_position'", "release tables by pairs too")
    done = learn(folder, "learn.independent=true")
    assert done.returncode == 0, done.stderr
    assert "no row was read; columns that no table has both of are taken to be independent" in done.stdout
    with_features = learn(folder, "learn.independent=true", "learn.features=public", options=("--out", "other"))
    refused(with_features, 2, "learn.independent is for tables alone")


def predict(folder: Path, log: str) -> Done:
    return privads(folder, "predict", "learned", log, "--out", "scores.parquet")


def scores(folder: Path) -> Floats:
    table = pyarrow.parquet.read_table(folder / "scores.parquet")
    assert table.column_names == ["conversion_probability"]
    return np.asarray(table[0].to_numpy(zero_copy_only=False))


@pytest.mark.parametrize("features", ["none", "unprotected"])
def test_a_learned_folder_scores_a_log_row_by_row_in_its_order_without_labels(folder: Path, features: str) -> None:
    assert learn(folder, f"learn.features={features}").returncode == 0
    devices, positions = ["tv", None, FIRST, "unheard of"], [1.0, 5.0, None, 200.0]
    table = pa.table({"ad_position": positions, "more": [1, 2, 3, 4], "device": devices})
    pyarrow.parquet.write_table(table, folder / "new.parquet")
    done = predict(folder, "new.parquet")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "4 rows scored: scores.parquet\n"
    # By hand: a device's place is that in the file, then any other's, then a missing one's; positions [1, 4), [4, 10].
    tv = list(DEVICES).index("tv") if "tv" in DEVICES else len(DEVICES)
    places = np.array([[tv, 0], [len(DEVICES) + 1, 1], [0, 2], [len(DEVICES), 1]])
    model = Learned.load(folder / "learned" / "model.json")
    assert scores(folder) == pytest.approx(model.predict(places), abs=1e-12)


def test_a_text_log_is_scored_as_its_schema_reads_it_and_a_row_that_does_not_fit_is_null(folder: Path) -> None:
    schema = (folder / "ads.toml").read_text()
    (folder / "ads.toml").write_text(schema + '\n[text]\ndelimiter = ";"\nmissing = ["-1"]\n')
    assert learn(folder).returncode == 0
    (folder / "new.csv").write_text(f"device;ad_position\n{FIRST};-1\n{FIRST};word\n")
    assert predict(folder, "new.csv").returncode == 0
    missing, misfit = scores(folder)
    model = Learned.load(folder / "learned" / "model.json")
    assert missing == pytest.approx(model.predict(np.array([[0, 2]]))[0])
    assert np.isnan(misfit)


def test_a_model_that_was_learned_where_no_log_is_scores_one_too(folder: Path) -> None:
    (folder / "run.toml").write_text(RUN_TOML.replace("test_fraction = 0.2\n", ""))
    (folder / "ads.toml").unlink()
    assert learn(folder).returncode == 0
    assert predict(folder, "log.parquet").returncode == 0
    found = scores(folder)
    assert len(found) == pyarrow.parquet.read_metadata(folder / "log.parquet").num_rows
    assert ((found > 0) & (found < 1)).all()


def test_what_cannot_be_scored_is_one_line_and_leaves_no_file(folder: Path) -> None:
    assert learn(folder).returncode == 0
    pyarrow.parquet.write_table(pa.table({"device": ["tv"]}), folder / "new.parquet")
    refused(predict(folder, "new.parquet"), 2, "no column 'ad_position'")
    (folder / "learned" / "schema.json").write_text("{")
    refused(predict(folder, "log.parquet"), 2, "schema.json was changed")
    (folder / "learned" / "model.json").write_text("{}")
    refused(predict(folder, "log.parquet"), 2, "model.json holds no model")
    assert not (folder / "scores.parquet").exists()
