"""`privads federate`: the file that `train` reads serves it too, it charges once, and a killed run goes on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from accounting.budget import Budget
from accounting.ledger import Ledger
from accounting.report.record import Report
from federation import server
from tests.privads.test_cli import ADS_TOML, RUN_TOML, Done, init, privads, refused, spent, write_log

FEDERATION = """
[federation]
cohort = 60
rounds = 4
"""
CLAIM = "epsilon <= 3.00 (delta 1e-05, user, add/remove, models of all rounds)"
CHECKPOINT = ("--set", "run.checkpoint=kept/round")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_log(tmp_path)
    (tmp_path / "ads.toml").write_text(ADS_TOML.format(public="false"))
    (tmp_path / "run.toml").write_text(RUN_TOML + FEDERATION)
    init(tmp_path)
    return tmp_path


def federate(folder: Path, *settings: str, out: str = "run", flags: tuple[str, ...] = ()) -> Done:
    given = [word for setting in settings for word in ("--set", setting)]
    return privads(folder, "federate", "run.toml", "--out", out, *given, *flags)


def report_of(folder: Path, out: str = "run") -> Report:
    return Report.from_json((folder / out / "report.json").read_text())


def interrupted_in_round(at: int, patch: pytest.MonkeyPatch) -> None:
    """The run ends in round ``at``, before its sum has been noised."""
    of_a_round = server.after_round
    calls = []

    def after_round(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == at + 1:  # the first is the rehearsal
            raise KeyboardInterrupt
        return of_a_round(*arguments)  # type: ignore[arg-type]

    patch.setattr(server, "after_round", after_round)


def interrupt(folder: Path, *, at: int = 3) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupted_in_round(at, patch)
        done = federate(folder, flags=CHECKPOINT)
    assert done.returncode == 130
    assert "go on with --resume" in done.stderr


def test_it_prints_five_lines_and_writes_a_run_folder_that_others_read(folder: Path) -> None:
    done = federate(folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["AUC", "calibration", "epsilon", "budget", "report:"]
    assert lines[2].startswith(CLAIM)
    assert done.stderr == ""
    assert 2.9 < spent(folder) <= 3.0
    files = sorted(path.name for path in (folder / "run").iterdir())
    assert files == ["model.json", "model.safetensors", "report.html", "report.json"]
    scored = privads(folder, "predict", "run", "log.parquet", "--out", "scores.parquet")
    assert scored.returncode == 0, scored.stderr
    scores = pyarrow.parquet.read_table(folder / "scores.parquet")["click_probability"].to_numpy()
    assert np.ptp(scores) > 0
    told = privads(folder, "report", "run")
    assert CLAIM in told.stdout
    assert "without noise. Show them only to people who may see those rows" in told.stdout
    assert report_of(folder).verdict == "private"


def test_the_file_of_a_training_run_serves_without_an_edit(folder: Path) -> None:
    (folder / "run.toml").write_text(RUN_TOML)
    done = federate(folder, "federation.rounds=2")
    assert done.returncode == 0, done.stderr
    mechanism = report_of(folder).mechanism
    assert (mechanism.batch, mechanism.steps) == (200, 2)  # half of a small population, as train takes it
    (folder / "run.toml").write_text(RUN_TOML + FEDERATION)
    assert privads(folder, "train", "run.toml", "--out", "trained").returncode == 0


def test_json_is_the_report_and_holds_what_was_asked_for(folder: Path) -> None:
    settings = ("federation.local_steps=2", "federation.server='adam'", "report.author='Ada'")
    done = federate(folder, *settings, flags=("--json", "--quiet"))
    told = json.loads(done.stdout)
    assert told == json.loads((folder / "run" / "report.json").read_text())
    assert told["run"]["config"]["federation"]["local_steps"] == 2
    assert told["run"]["config"]["plan"]["cohort"] == 60
    assert told["run"]["config"]["task"]["local_steps"] == 2
    assert told["model"]["optimizer"].startswith("Adam on the server")
    assert told["run"]["author"] == "Ada"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("federation.cohrot=3", ["unknown key 'federation.cohrot'", "did you mean 'cohort'"]),
        ("federation.cohort=0", ["federation.cohort", "greater than 0"]),
        ("federation.cohort=1000", ["at most the population of 400", "1000"]),
        ("federation.mechanism=secret", ["federation.mechanism", "central"]),
        ("federation.server=adagrad", ["federation.server", "momentum"]),
        ("federation.participations=2", ["participations", "'local'"]),
        ("federation.clip_quantile=1.5", ["federation.clip_quantile"]),
        ("federation.silo_paths=['nowhere.parquet']", ["nowhere.parquet"]),
        ("federation.silo_paths='log.parquet'", ["federation.silo_paths", "list"]),
        ("federation.silo_paths=[]", ["federation.silo_paths", "at least 1"]),
        ("federation.silos=2", ["federation.silos", "at most their number of 1, got 2"]),
        ("federation.mechanism=local", ["--neighbors replace"]),
        ("plan.unit=example", ["protects users", "'user'"]),
        ("plan.epsilon=-1", ["epsilon must be a positive"]),
        ("plan.delta=0.01", ["delta"]),
        ("plan.without_privacy=true", ["not public"]),
        ("run.start=run", ["run.start"]),
        ("run.insecure_seed=1", ["insecure_seed", "public"]),
        ("model.name=logistik", ["did you mean 'logistic'"]),
        ("ledger.url=sqlite:///other.db", ["privads budget init"]),
        ("features.transforms=[{kind = 'quantiles', column = 'bid', buckets = 4}]", ["features"]),
    ],
)
def test_bad_input_is_one_clear_line_and_spends_nothing(folder: Path, setting: str, words: list[str]) -> None:
    before = sorted(path.name for path in folder.iterdir())
    refused(federate(folder, setting), 2, *words)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert spent(folder) == 0


def test_what_does_not_fit_the_budget_is_refused_before_a_row_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("a row was read")

    monkeypatch.setattr("privads.logs.logs.cached", read)
    refused(federate(folder, "plan.epsilon=8.0"), 3, "epsilon", "left", "small")
    assert not (folder / "run").exists()
    assert spent(folder) == 0


def test_a_place_that_cannot_be_written_is_refused_before_the_charge(folder: Path) -> None:
    (folder / "file").write_text("in the way")
    refused(federate(folder, out="file/run"), 2, "cannot write the run folder", "--out")
    (folder / "run").mkdir()
    (folder / "run" / "mine").write_text("keep")
    refused(federate(folder), 2, "exists already")
    assert spent(folder) == 0


def test_an_interrupted_run_goes_on_from_its_last_round_under_its_own_charge(folder: Path) -> None:
    interrupt(folder, at=3)
    assert not (folder / "run").exists()
    refused(federate(folder, flags=CHECKPOINT), 2, "resume it")
    done = federate(folder, flags=(*CHECKPOINT, "--resume"))
    assert done.returncode == 0, done.stderr
    assert 2.9 < spent(folder) <= 3.0
    said = report_of(folder).with_status("enforced")
    assert "resumed after round 2 under the run's own charge, which one process can do once" in said
    assert not (folder / "kept" / "round").exists()


def test_a_resume_that_cannot_be_paid_keeps_the_model_and_says_after_how_many_rounds(folder: Path) -> None:
    interrupt(folder, at=3)
    shutil.copy(folder / "kept" / "round", folder / "kept" / "copy")
    (folder / "kept" / "copy").chmod(0o600)
    assert federate(folder, flags=(*CHECKPOINT, "--resume")).returncode == 0
    assert federate(folder, "plan.epsilon=3.9", out="other").returncode == 0  # what was left is spent by another run
    done = federate(folder, out="rest", flags=("--set", "run.checkpoint=kept/copy", "--resume"))
    assert done.returncode == 3
    assert "to go on cost more than is left: the run ended after 2 of 4 rounds, and its model is in rest" in done.stderr
    assert CLAIM in done.stdout
    said = report_of(folder, "rest").with_status("enforced")
    assert "the run ended after 2 of 4 rounds: to go on cost more than was left" in said
    assert privads(folder, "predict", "rest", "log.parquet", "--out", "scores.parquet").returncode == 0


def split_in_three(folder: Path) -> str:
    """Three companies' files of the log, by user; returns them as the setting takes them."""
    table = pyarrow.parquet.read_table(folder / "log.parquet")
    number = np.array([int(user[1:]) for user in table["user"].to_pylist()])
    for company in range(3):
        pyarrow.parquet.write_table(table.filter(number % 3 == company), folder / f"company{company}.parquet")
    return "federation.silo_paths=['company0.parquet', 'company1.parquet', 'company2.parquet']"


def test_a_user_is_taken_to_be_in_all_silos_where_nobody_says_in_how_many(folder: Path) -> None:
    paths = split_in_three(folder)
    done = federate(folder, paths)
    assert done.returncode == 0, done.stderr
    found = report_of(folder)
    assert found.run.config["plan"]["silos"] == 3
    assert found.verdict == "private"
    stated = federate(folder, paths, "federation.silos=1", out="stated")
    assert "rests on 1 asserted assumption: no user has rows in more than 1 of the 3 silos" in stated.stdout
    noises = [report_of(folder, out).mechanism.noise_multiplier for out in ("run", "stated")]
    assert noises[0] > noises[1]


def test_silos_that_name_users_alike_assert_nothing_of_them(folder: Path) -> None:
    paths = split_in_three(folder)
    done = federate(folder, paths, "federation.silos=1", "federation.shared_units=true")
    assert done.returncode == 0, done.stderr
    found = report_of(folder)
    assert found.verdict == "private"
    assert any("at most 1 of the 3 silos use one user's rows" in one for one in found.with_status("enforced"))


@pytest.mark.parametrize("noise", ["lazy", "adafest"])
def test_tables_may_owe_their_noise_or_select_their_rows(folder: Path, noise: str) -> None:
    done = federate(folder, f"federation.table_noise={noise}")
    assert done.returncode == 0, done.stderr
    assert report_of(folder).mechanism.table_noise == noise
    refused(federate(folder, "federation.table_noise=lazy", "federation.server=momentum", out="other"), 2, "momentum")


def test_silos_in_a_file_are_found_beside_it(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    paths = split_in_three(folder).partition("=")[2]
    (folder / "run.toml").write_text(RUN_TOML + FEDERATION + f"silo_paths = {paths}\n")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = privads(elsewhere, "federate", str(folder / "run.toml"), "--out", str(elsewhere / "run"))
    assert done.returncode == 0, done.stderr


def test_noise_of_the_users_is_charged_for_a_replaced_one(folder: Path) -> None:
    (folder / "budget.db").unlink()
    limit = Budget(epsilon=7.0, delta=9e-5, unit="user", neighbors="replace")
    Ledger.init(f"sqlite:///{folder / 'budget.db'}", dataset="small", budget=limit)
    done = federate(folder, "federation.mechanism=local", "federation.participations=2")
    assert done.returncode == 0, done.stderr
    assert "epsilon <= 3.00 (delta 1e-05, user, replace, messages of one user in the whole run)" in done.stdout


def test_without_privacy_runs_on_public_rows_alone_and_says_so(folder: Path) -> None:
    (folder / "ads.toml").write_text(ADS_TOML.format(public="true"))
    done = federate(folder, "plan.without_privacy=true")
    assert done.returncode == 0, done.stderr
    assert "NOT PRIVATE" in done.stdout


def test_metrics_are_released_as_an_entry_of_their_own(folder: Path) -> None:
    done = federate(folder, "evaluation.epsilon=2.0")
    assert done.returncode == 0, done.stderr
    assert "(noisy)" in done.stdout
    assert "its metrics by themselves: epsilon <= 2.00" in done.stdout
    assert spent(folder) == pytest.approx(5.0, abs=0.1)
    refused(federate(folder, "evaluation.epsilon=2.0", out="again"), 3, "evaluation and training together")


def test_free_transforms_are_read_by_the_model_and_kept_with_it(folder: Path) -> None:
    features = "features.transforms=[{kind = 'hashed', columns = ['site'], buckets = 8}]"
    done = federate(folder, features)
    assert done.returncode == 0, done.stderr
    assert (folder / "run" / "features.json").is_file()
    assert privads(folder, "predict", "run", "log.parquet", "--out", "scores.parquet").returncode == 0
