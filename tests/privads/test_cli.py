"""The command line: what a user types, what comes back, and what bad input costs (nothing)."""

import contextlib
import io
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pyarrow.parquet
import pytest
import typer

from accounting.budget import Budget
from accounting.ledger import Ledger
from privads import cli
from privads.logs.simulator import schema_toml, simulate
from privads.training.engine import PrivateEngine
from tests.privads.training.helpers import write_log

ADS_TOML = """\
dataset = "small"
population = 400
rows = 1200
unit = ["user"]
public = {public}
[labels]
click = "click"
[numeric]
bid = {{range = [0, 10]}}
[categorical]
site = {{buckets = 8}}
ad = {{buckets = 16}}
"""
RUN_TOML = """\
[data]
path = "log.parquet"
schema = "ads.toml"
test_fraction = 0.3
[ledger]
url = "sqlite:///budget.db"
[model]
name = "logistic"
[plan]
epsilon = 3.0
delta = 1e-5
unit = "user"
epochs = 5
"""


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def privads(folder: Path, *arguments: str) -> Done:
    """The command line in this process: torch is imported once, not sixty times."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["privads", *arguments])
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_log(tmp_path)
    (tmp_path / "ads.toml").write_text(ADS_TOML.format(public="false"))
    (tmp_path / "run.toml").write_text(RUN_TOML)
    return tmp_path


@pytest.fixture
def with_budget(folder: Path) -> Path:
    init(folder)
    return folder


def init(folder: Path, epsilon: str = "7", delta: str = "9e-5") -> Done:
    ledger = ("--ledger", "sqlite:///budget.db", "--dataset", "small")
    return privads(folder, "budget", "init", *ledger, "--epsilon", epsilon, "--delta", delta, "--unit", "user")


def simulated(folder: Path, run_toml: str, *, users: int, epsilon: float) -> Path:
    """The folder with a private simulated log, run.toml, and a ledger with so much for its data set."""
    pyarrow.parquet.write_table(simulate(users, seed=0), folder / "log.parquet")
    (folder / "ads.toml").write_text(schema_toml(users))
    (folder / "run.toml").write_text(run_toml)
    budget = Budget(epsilon=epsilon, delta=1e-5, unit="user")
    Ledger.init(f"sqlite:///{folder / 'budget.db'}", dataset="simulated-ads", budget=budget)
    return folder


def spent(folder: Path) -> float:
    return Ledger.open(f"sqlite:///{folder / 'budget.db'}").balance("small").spent_epsilon


def refused(done: Done, code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0]


def test_train_prints_five_lines_and_writes_the_run_folder(with_budget: Path) -> None:
    done = privads(with_budget, "train", "run.toml", "--out", "run")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["AUC", "calibration", "epsilon", "budget", "report:"]
    assert lines[2].startswith("epsilon <= 3.00 (delta 1e-05, user, add/remove, final model)")
    assert 2.9 < spent(with_budget) <= 3.0
    assert sorted(path.name for path in (with_budget / "run").iterdir()) == [
        "model.json",
        "model.safetensors",
        "report.html",
        "report.json",
    ]
    assert done.stderr == ""  # no terminal: no progress bar, and nothing else either


def test_a_run_that_names_no_model_trains_logistic_regression(with_budget: Path) -> None:
    (with_budget / "run.toml").write_text(RUN_TOML.replace('[model]\nname = "logistic"\n', ""))
    assert privads(with_budget, "train", "run.toml", "--out", "run").returncode == 0
    report = json.loads((with_budget / "run" / "report.json").read_text())
    assert report["model"]["name"] == "Logistic"
    assert report["run"]["config"]["model"] == {"name": "logistic"}


def test_a_setting_without_a_model_is_one_of_the_defaults(with_budget: Path) -> None:
    (with_budget / "run.toml").write_text(RUN_TOML.replace('name = "logistic"', "dim = 8"))
    refused(privads(with_budget, "train", "run.toml", "--out", "run"), 2, "model 'logistic' has no setting 'dim'")
    assert spent(with_budget) == 0


def test_help_says_every_word() -> None:
    """A fixed bug: a word in square brackets is markup for the help's printer, and was left out."""
    commands = [
        (app, command)
        for app in (cli.app, cli.cli_budget.app, cli.cli_report.app)
        for command in app.registered_commands
    ]
    assert len(commands) > 10
    for _, command in commands:
        parameters = get_type_hints(command.callback, include_extras=True).values()
        helps = [note.help or "" for one in parameters for note in getattr(one, "__metadata__", ())]
        for said in (command.callback.__doc__ or "", *helps):
            assert not re.search(r"\[[a-z/]", said), said


def test_the_installed_command_is_the_same(with_budget: Path) -> None:
    command = [sys.executable, "-m", "privads.cli", "train", "run.toml", "--out", "run", "--set", "plan.epsilon=0"]
    done = subprocess.run(command, cwd=with_budget, capture_output=True, text=True, check=False)
    refused(Done(done.returncode, done.stdout, done.stderr), 2, "epsilon must be a positive finite number")


def test_the_same_run_again_is_a_new_charge_until_the_budget_is_exceeded(with_budget: Path) -> None:
    for number in range(2):
        assert privads(with_budget, "train", "run.toml", "--out", f"run{number}").returncode == 0
    refused(privads(with_budget, "train", "run.toml", "--out", "run2"), 3, "epsilon", "left", "small")
    assert not (with_budget / "run2").exists()
    assert 5.8 < spent(with_budget) <= 6.0


def test_json_is_the_report(with_budget: Path) -> None:
    done = privads(with_budget, "train", "run.toml", "--out", "run", "--json")
    report = json.loads(done.stdout)
    assert report == json.loads((with_budget / "run" / "report.json").read_text())
    assert report["guarantee"]["unit"] == "user"
    assert report["budget"]["this_run_epsilon"] <= 3.0
    assert any("held-out rows without noise" in line for line in report["not_covered"])
    assert all(one["status"] in ("enforced", "checked") for one in report["assumptions"])


def test_predict_scores_every_row_in_order_without_labels(with_budget: Path) -> None:
    assert privads(with_budget, "train", "run.toml", "--out", "run").returncode == 0
    table = pyarrow.parquet.read_table(with_budget / "log.parquet")
    unlabeled = table.select(["ad", "bid", "site"])
    pyarrow.parquet.write_table(unlabeled, with_budget / "new.parquet")
    done = privads(with_budget, "predict", "run", "new.parquet", "--out", "scores.parquet")
    assert done.returncode == 0, done.stderr
    assert str(table.num_rows) in done.stdout
    scores = pyarrow.parquet.read_table(with_budget / "scores.parquet")["click_probability"].to_numpy()
    assert len(scores) == table.num_rows
    assert ((scores > 0) & (scores < 1)).all()
    reverse = unlabeled.take(list(range(table.num_rows))[::-1])
    pyarrow.parquet.write_table(reverse, with_budget / "reverse.parquet")
    privads(with_budget, "predict", "run", "reverse.parquet", "--out", "reverse_scores.parquet")
    again = pyarrow.parquet.read_table(with_budget / "reverse_scores.parquet")["click_probability"].to_numpy()
    np.testing.assert_allclose(scores, again[::-1], rtol=1e-5)


def test_budget_show_and_verify(with_budget: Path) -> None:
    privads(with_budget, "train", "run.toml", "--out", "run")
    ledger = ("--ledger", "sqlite:///budget.db")
    shown = json.loads(privads(with_budget, "budget", "show", *ledger, "--dataset", "small", "--json").stdout)
    assert (shown["limit"]["epsilon"], shown["limit"]["delta"]) == (7.0, 9e-5)
    history = json.loads(privads(with_budget, "budget", "history", *ledger, "--dataset", "small", "--json").stdout)
    assert [one["state"] for one in history["entries"]] == ["committed"]
    head = json.loads((with_budget / "run" / "report.json").read_text())["budget"]["head"]
    assert "contains the given head" in privads(with_budget, "budget", "verify", *ledger, "--head", head).stdout
    assert "not anchored" in privads(with_budget, "budget", "verify", *ledger).stdout
    refused(privads(with_budget, "budget", "verify", *ledger, "--head", "0" * 64), 2, "broken")


def test_without_privacy_runs_on_public_data_alone_and_says_so(folder: Path) -> None:
    settings = ("--set", "plan.without_privacy=true", "--set", "data.path=log.parquet")
    refused(privads(folder, "train", "run.toml", "--out", "run", *settings), 2, "not public")
    (folder / "ads.toml").write_text(ADS_TOML.format(public="true"))
    done = privads(folder, "train", "run.toml", "--out", "run", *settings)
    assert done.returncode == 0, done.stderr
    assert "NOT PRIVATE" in done.stdout


def test_simulate_writes_a_log_that_train_can_read(tmp_path: Path) -> None:
    done = privads(tmp_path, "simulate", "--users", "300", "--out", "logs/day.parquet", "--public")
    assert done.returncode == 0, done.stderr
    run = RUN_TOML.replace("log.parquet", "logs/day.parquet").replace('"ads.toml"', '"logs/ads.toml"')
    (tmp_path / "run.toml").write_text(run.replace('[ledger]\nurl = "sqlite:///budget.db"\n', ""))
    done = privads(tmp_path, "train", "run.toml", "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "Bayes optimum" in done.stdout


def test_simulate_overwrites_nothing_and_names_its_file_for_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "ads.toml").write_text("mine")
    refused(privads(tmp_path, "simulate", "--users", "3", "--out", "day.parquet"), 2, "ads.toml", "not overwritten")
    refused(privads(tmp_path, "simulate", "--users", "3", "--out", "new/day.csv"), 2, ".parquet", "day.csv")
    assert [file.name for file in tmp_path.iterdir()] == ["ads.toml"]
    assert (tmp_path / "ads.toml").read_text() == "mine"


@pytest.mark.parametrize("verb", [("train", "--out", "run"), ("explore", "--epsilon", "1")])
def test_a_private_log_without_a_ledger_is_refused_by_the_key_that_is_missing(
    folder: Path, verb: tuple[str, ...]
) -> None:
    (folder / "run.toml").write_text(RUN_TOML.replace('[ledger]\nurl = "sqlite:///budget.db"\n', ""))
    refused(privads(folder, verb[0], "run.toml", *verb[1:]), 2, "ledger.url is missing", "privads budget init")


def test_no_help_text_loses_words_in_brackets(tmp_path: Path) -> None:
    """A table's name in brackets is a style to the renderer of help texts: it was left out."""
    command = typer.main.get_command(cli.app)
    inner = [one for name in ("budget", "report") for one in command.commands[name].commands.values()]
    verbs = [command, *command.commands.values(), *inner]
    for verb in verbs:
        for text in (verb.help or "", *(getattr(one, "help", None) or "" for one in verb.params)):
            assert not re.search(r"\[[a-z]+\]", text), text


def test_convert_writes_a_log_that_train_can_read(tmp_path: Path) -> None:
    lines = [f"{row % 3 // 2} 0:{row % 7}:1 1:{row % 5}:1" for row in range(400)]
    (tmp_path / "train.ffm").write_text("\n".join(lines))
    done = privads(tmp_path, "convert", "libfm", "train.ffm", "--out", "logs/day.parquet")
    assert (done.returncode, done.stdout) == (0, "400 rows: logs/day.parquet; schema: logs/ads.toml\n"), done.stderr
    run = RUN_TOML.replace("log.parquet", "logs/day.parquet").replace('"ads.toml"', '"logs/ads.toml"')
    run = run.replace('[ledger]\nurl = "sqlite:///budget.db"\n', "").replace('unit = "user"', 'unit = "example"')
    (tmp_path / "run.toml").write_text(run)
    done = privads(tmp_path, "train", "run.toml", "--out", "run")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["libfn", "train.ffm", "--out", "x.parquet"], ["no converter 'libfn'", "did you mean 'libfm'"]),
        (["libfm", "train.ffm", "--out", "x.csv"], [".parquet", "x.csv"]),
        (["libfm", "none.ffm", "--out", "x.parquet"], ["no such file or folder: none.ffm"]),
        (["libfm", "train.ffm", "--out", "x.parquet"], ["train.ffm, line 2", "label"]),
        (["alibaba", "train.ffm", "--out", "x.parquet"], ["train.ffm is no folder", "items.tsv"]),
        (["open-bandit", ".", "--out", "x.parquet"], ["item_context.csv"]),
        (["interactions", "empty.txt", "--out", "x.parquet"], ["no rows"]),
    ],
)
def test_what_cannot_be_converted_is_one_clear_line_and_writes_nothing(
    tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    (tmp_path / "train.ffm").write_text("1 0:7:1\n9 0:7:1\n")
    (tmp_path / "empty.txt").write_text("")
    refused(privads(tmp_path, "convert", *arguments), 2, *words)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["empty.txt", "train.ffm"]


# Bad input: one clear line with the remedy, the right exit code, nothing half-written, nothing spent


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["data.path=missing.parquet"], ["no such file", "missing.parquet"]),
        (["data.schema=nowhere.toml"], ["nowhere.toml", "avazu"]),
        (["data.test_fracton=0.2"], ["data.test_fracton", "test_fraction"]),
        (["data.test_after=2026-01-01"], ["test_after and test_fraction"]),
        (["model.name=logistik"], ["logistik", "did you mean 'logistic'"]),
        (["model.dim=8"], ["no setting 'dim'"]),
        (["plan.epsilon=0"], ["epsilon must be a positive finite number", "0"]),
        (["plan.epsilon=-1"], ["epsilon"]),
        (["plan.epsilon=nan"], ["epsilon"]),
        (["plan.epsilon=inf"], ["epsilon"]),
        (["plan.delta=0.01"], ["delta must be below 1 / population"]),
        (["plan.delta=0"], ["delta must be a positive"]),
        (["plan.unit=household"], ["'example' or 'user'", "household"]),
        (["plan.batch=1000"], ["batch", "population = 400"]),
        (["plan.epochs=-1"], ["plan.epochs"]),
        (["plan.learning_rate=-1"], ["learning_rate"]),
        (["plan.unit=example"], ["unit", "example", "user"]),
        (["ledger.url=sqlite:///other.db"], ["privads budget init"]),
        (["ledger.url=mysql://x"], ["sqlite:///"]),
        (["nonsense"], ["TABLE.KEY=VALUE"]),
    ],
)
def test_bad_input_is_one_clear_line_and_spends_nothing(
    with_budget: Path, settings: list[str], words: list[str]
) -> None:
    before = sorted(path.name for path in with_budget.iterdir() if "budget" not in path.name)
    flags = [word for setting in settings for word in ("--set", setting)]
    refused(privads(with_budget, "train", "run.toml", "--out", "run", *flags), 2, *words)
    assert sorted(path.name for path in with_budget.iterdir() if "budget" not in path.name) == before
    assert spent(with_budget) == 0


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('unit = ["user"]', 'unit = ["usr"]', ["no column 'usr'", "did you mean 'user'"]),
        ("bid = ", "bidd = ", ["no column 'bidd'", "did you mean 'bid'"]),
        ('click = "click"', 'click = "clicked"', ["no column 'clicked'", "'click'"]),
        ("population = 400", "population = 0", ["population"]),
        ("population = 400", "populaton = 400", ["unknown key 'populaton'", "population"]),
        ('dataset = "small"', 'dataset = "big"', ["big", "privads budget init"]),
        ("range = [0, 10]", "range = [10, 0]", ["range", "smaller one first"]),
        ("buckets = 8", "buckets = 1", ["buckets"]),
        ('unit = ["user"]', "", ["unit columns"]),
    ],
)
def test_a_bad_schema_is_one_clear_line_and_spends_nothing(
    with_budget: Path, old: str, new: str, words: list[str]
) -> None:
    schema = with_budget / "ads.toml"
    schema.write_text(schema.read_text().replace(old, new))
    refused(privads(with_budget, "train", "run.toml", "--out", "run"), 2, *words)
    assert spent(with_budget) == 0


def test_a_run_folder_is_never_overwritten(with_budget: Path) -> None:
    (with_budget / "run").mkdir()
    (with_budget / "run" / "mine.txt").write_text("keep")
    refused(privads(with_budget, "train", "run.toml", "--out", "run"), 2, "exists already")
    assert spent(with_budget) == 0


def test_private_data_without_a_ledger_are_refused(folder: Path) -> None:
    (folder / "run.toml").write_text(RUN_TOML.replace('[ledger]\nurl = "sqlite:///budget.db"\n', ""))
    refused(privads(folder, "train", "run.toml", "--out", "run"), 2, "ledger", "small")


def test_an_unreadable_run_file_is_one_clear_line(folder: Path) -> None:
    refused(privads(folder, "train", "nowhere.toml"), 2, "cannot read nowhere.toml")
    (folder / "run.toml").write_text("[data\n")
    refused(privads(folder, "train", "run.toml"), 2, "not valid TOML")


def test_a_limit_is_set_once(with_budget: Path) -> None:
    refused(init(with_budget, epsilon="100"), 2, "set once")


@pytest.mark.parametrize(("epsilon", "delta"), [("0", "1e-5"), ("nan", "1e-5"), ("1", "1"), ("1", "0")])
def test_a_bad_limit_creates_no_ledger(folder: Path, epsilon: str, delta: str) -> None:
    refused(init(folder, epsilon=epsilon, delta=delta), 2, "must be")
    assert not (folder / "budget.db").exists()


def test_predict_refuses_what_is_no_run_folder(folder: Path) -> None:
    refused(privads(folder, "predict", ".", "log.parquet", "--out", "s.parquet"), 2, "not a run folder")


def test_what_rows_hold_decides_nothing_visible(with_budget: Path) -> None:
    # infinities, labels outside {0, 1}, missing users, one class only: the run goes through, and silently
    table = pyarrow.parquet.read_table(with_budget / "log.parquet").to_pandas()
    table["click"] = 0
    table.loc[0, "bid"] = np.inf
    table.loc[1, "click"] = 7
    table.loc[2, "user"] = None
    pyarrow.parquet.write_table(pyarrow.Table.from_pandas(table), with_budget / "log.parquet")
    done = privads(with_budget, "train", "run.toml", "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "not defined" in done.stdout
    assert done.stderr == ""


def test_a_run_folder_that_cannot_be_written_spends_nothing(with_budget: Path) -> None:
    (with_budget / "file").write_text("in the way")
    refused(privads(with_budget, "train", "run.toml", "--out", "file/run"), 2, "cannot write the run folder", "--out")
    assert spent(with_budget) == 0


def test_an_interrupted_run_says_that_its_charge_stays(with_budget: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("privads.training.engine.PrivateEngine.backward", interrupted)
    refused(privads(with_budget, "train", "run.toml", "--out", "run"), 130, "interrupted", "charge", "stays")
    assert spent(with_budget) > 2.9
    assert not (with_budget / "run").exists()


def test_the_first_run_finds_nothing_spent_before(with_budget: Path) -> None:
    report = json.loads(privads(with_budget, "train", "run.toml", "--out", "run", "--json").stdout)
    assert report["budget"]["spent_before_epsilon"] == 0
    assert report["budget"]["this_run_epsilon"] == spent(with_budget)


def test_the_encoded_rows_are_kept_only_where_asked_for(with_budget: Path) -> None:
    assert privads(with_budget, "train", "run.toml", "--out", "a/run").returncode == 0
    assert not (with_budget / "a" / "rows").exists()
    assert privads(with_budget, "train", "run.toml", "--out", "b/run", "--keep-cache").returncode == 0
    kept = with_budget / "b" / "rows"
    assert kept.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in kept.iterdir()} == {0o600}


def test_a_run_starts_from_an_earlier_ones_folder(with_budget: Path, tmp_path: Path) -> None:
    """Paths in the file are relative to its folder, those of --set to the working directory."""
    assert privads(with_budget, "train", "run.toml", "--out", "runs/monday", "--quiet").returncode == 0
    monday = json.loads((with_budget / "runs/monday/report.json").read_text())
    run_toml = with_budget / "run.toml"
    run_toml.write_text(f'{RUN_TOML}[run]\nstart = "runs/monday"\n')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = privads(elsewhere, "train", str(run_toml), "--out", str(with_budget / "runs/tuesday"), "--quiet", "--json")
    assert done.returncode == 0, done.stderr
    (start,) = json.loads(done.stdout)["run"]["started_from"]
    assert (start["run"], start["entry"], start["same_ledger"]) == (
        monday["run"]["id"],
        monday["budget"]["entry"],
        True,
    )
    assert spent(with_budget) == pytest.approx(6.0, abs=0.1)
    page = privads(with_budget, "report", "runs/tuesday")
    assert f"started from | run {monday['run']['id']}" in page.stdout
    wrong = ("--set", "run.start=runs/monday", "--quiet")
    refused(privads(elsewhere, "train", str(run_toml), *wrong), 2, "runs/monday is not a run folder")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("run.start=nowhere", ("nowhere is not a run folder", "model.json")),
        ("model.name=dcn", ("cannot start from run", "'logistic', this one 'dcn'")),
    ],
)
def test_a_start_that_cannot_be_is_refused_before_the_charge(
    with_budget: Path, setting: str, words: tuple[str, ...]
) -> None:
    privads(with_budget, "train", "run.toml", "--out", "runs/monday", "--quiet")
    before = spent(with_budget)
    started = ("--set", "run.start=runs/monday", "--set", setting)
    refused(privads(with_budget, "train", "run.toml", *started), 2, *words)
    assert spent(with_budget) == before


def test_an_interrupted_run_goes_on_from_its_checkpoint_for_nothing(
    with_budget: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_toml = with_budget / "run.toml"
    run_toml.write_text(f'{RUN_TOML}[run]\ncheckpoint = "secret/run.checkpoint"\ncheckpoint_every = 1\n')
    backward, calls = PrivateEngine.backward, []

    def interrupted(self: PrivateEngine, losses: object) -> None:
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        backward(self, losses)  # type: ignore[arg-type]

    monkeypatch.setattr(PrivateEngine, "backward", interrupted)
    started = ("train", "run.toml", "--out", "run", "--quiet")
    refused(privads(with_budget, *started), 130, "interrupted", "go on with --resume")
    kept = with_budget / "secret" / "run.checkpoint"
    assert kept.stat().st_mode & 0o777 == 0o600
    before = spent(with_budget)
    refused(privads(with_budget, *started), 2, "holds the checkpoint of an interrupted run")
    done = privads(with_budget, *started, "--resume")
    assert done.returncode == 0, done.stderr
    assert spent(with_budget) == before
    assert not kept.exists()
    assert "resumed after step 2 under the run's own charge" in privads(with_budget, "report", "run").stdout


def test_a_checkpoint_that_would_be_handed_out_or_is_not_named_is_refused(with_budget: Path) -> None:
    inside = ("--set", "run.checkpoint=run/secret", "--out", "run")
    refused(privads(with_budget, "train", "run.toml", *inside), 2, "run/secret", "handed")
    refused(privads(with_budget, "train", "run.toml", "--resume"), 2, "run.checkpoint")
    assert spent(with_budget) == 0
