"""The accounting verbs of the command line: what a reviewer types, and what comes back."""

import csv
import io
import json
import math
from pathlib import Path

import pytest

from accounting import mechanisms
from accounting.accountant import Bounds, epsilon
from accounting.ledger import Charge, Entry, Ledger
from accounting.report.phrase import round_up
from tests.privads.test_cli import Done, privads, refused

URL = "sqlite:///budget.db"
WHERE = ("--ledger", URL, "--dataset", "ads")
RUN = mechanisms.dp_sgd(sampling_rate=0.01, noise_multiplier=1.5, steps=100)


def init(folder: Path, *options: str, epsilon: str = "3", delta: str = "1e-6", unit: str = "user") -> Done:
    limit = ("--epsilon", epsilon, "--delta", delta, "--unit", unit)
    return privads(folder, "budget", "init", *WHERE, *limit, *options)


def ledger(folder: Path) -> Ledger:
    return Ledger.open(f"sqlite:///{folder / 'budget.db'}")


def reserve(folder: Path, purpose: str = "train dcn", **fields: object) -> Entry:
    charge = Charge(**{"event": mechanisms.to_json(RUN), "delta": 1e-8, "unit": "user", "purpose": purpose, **fields})  # type: ignore[arg-type]
    return ledger(folder).reserve("ads", charge)


def shown(folder: Path, verb: str, *options: str) -> dict[str, object]:
    done = privads(folder, "budget", verb, *options, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert init(tmp_path).returncode == 0
    return tmp_path


def test_show_prints_limit_spent_left_and_the_joint_figure_with_their_terms(folder: Path) -> None:
    own = ledger(folder)
    own.commit(
        own.open_rows(own.reserve("ads", Charge(event=mechanisms.to_json(RUN), delta=1e-8, unit="user", purpose="a")))
    )
    reserve(folder)
    done = privads(folder, "budget", "show", *WHERE)
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == ["limit", "spent", "left", "joint"]
    for line in lines[:4]:
        assert ", user, add/remove, data set ads)" in line
    assert "reported and not enforced" in lines[3]
    assert lines[4] == "open:  1 of the charges; they count as spent"
    found = shown(folder, "show", *WHERE)
    one = epsilon(RUN, delta=1e-8).upper
    assert found["spent"]["epsilon"] == pytest.approx(2 * one, abs=3e-9)  # type: ignore[index]
    both = epsilon(mechanisms.repeated(RUN, 2), delta=1e-6).upper
    assert found["joint"]["epsilon"] == both  # type: ignore[index]
    assert both < 2 * one


def test_history_lists_charges_and_draws_their_spending(folder: Path) -> None:
    ledger(folder).abort(reserve_own(folder))
    reserve(folder, "train after")
    done = privads(folder, "budget", "history", *WHERE, "--plot", "spending.svg")
    assert done.returncode == 0, done.stderr
    assert "aborted" in done.stdout
    assert "train after" in done.stdout
    assert "2 charges" in done.stdout
    assert (folder / "spending.svg").read_text().startswith("<?xml")
    assert privads(folder, "budget", "history", *WHERE, "--plot", "spending.png").returncode == 0
    assert (folder / "spending.png").read_bytes().startswith(b"\x89PNG")
    entries = shown(folder, "history", *WHERE)["entries"]
    assert [one["state"] for one in entries] == ["aborted", "reserved"]  # type: ignore[attr-defined]
    assert mechanisms.from_json(json.dumps(entries[1]["event"])) == RUN  # type: ignore[index]
    refused(privads(folder, "budget", "history", *WHERE, "--plot", "spending.gif"), 2, ".svg or .png")


def reserve_own(folder: Path) -> Entry:
    return reserve(folder, "to be aborted")


def test_verify_finds_tampering_and_says_what_it_cannot_see(folder: Path) -> None:
    before = shown(folder, "verify", "--ledger", URL)
    reserve(folder)
    head = str(before["head"])
    anchored = shown(folder, "verify", "--ledger", URL, "--head", head)
    assert (anchored["anchored"], before["anchored"]) == (True, False)
    assert "not anchored" in privads(folder, "budget", "verify", "--ledger", URL).stdout
    refused(privads(folder, "budget", "verify", "--ledger", URL, "--head", "0" * 64), 2, "broken")


def test_verify_accounts_history_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve(folder)
    assert shown(folder, "verify", "--ledger", URL, "--reaccount")["understated"] == []
    dearer = epsilon(RUN, delta=1e-8).upper * 2

    def corrected(*_: object, **__: object) -> object:
        return type("Bounds", (), {"upper": dearer})

    monkeypatch.setattr("accounting.accountant.epsilon", corrected)
    done = privads(folder, "budget", "verify", "--ledger", URL, "--reaccount")
    assert done.returncode == 4
    assert "charged less than today's accountant finds: train dcn" in done.stdout


def test_export_writes_the_log_as_json_and_csv(folder: Path) -> None:
    reserve(folder)
    rows = json.loads(privads(folder, "budget", "export", *WHERE).stdout)["rows"]
    assert [row["kind"] for row in rows] == ["init", "reserve"]
    assert privads(folder, "budget", "export", *WHERE, "--format", "csv", "--out", "log.csv").returncode == 0
    lines = list(csv.DictReader(io.StringIO((folder / "log.csv").read_text())))
    assert [line["hash"] for line in lines] == [row["hash"] for row in rows]
    refused(privads(folder, "budget", "export", *WHERE, "--format", "xml"), 2, "json or csv")


def test_release_stale_is_recorded_and_only_for_what_was_never_opened(folder: Path) -> None:
    stale, opened = reserve(folder), reserve_own(folder)
    ledger(folder).open_rows(opened)
    options = ("--reason", "the machine was lost", "--by", "ada")
    done = privads(folder, "budget", "release-stale", *WHERE, "--entry", str(stale.id), *options)
    assert done.returncode == 0, done.stderr
    entries = shown(folder, "history", *WHERE)["entries"]
    assert (entries[0]["state"], entries[0]["released_by"], entries[0]["released_because"]) == (  # type: ignore[index]
        "aborted",
        "ada",
        "the machine was lost",
    )
    refused(privads(folder, "budget", "release-stale", *WHERE, "--entry", str(opened.id), *options), 2, "opened")
    refused(privads(folder, "budget", "release-stale", *WHERE, "--entry", "99", *options), 2, "99")


def test_init_sets_columns_rule_and_blocks_once(tmp_path: Path) -> None:
    labels = "unit=example,epsilon=2,delta=1e-9,neighbors=replace-label"
    day = "unit=user-day,epsilon=1,delta=1e-7"
    done = init(tmp_path, "--also", day, "--also", labels, "--rule", "rdp", "--order", "32", "--block", "day")
    assert done.returncode == 0, done.stderr
    assert [line[:6] for line in done.stdout.splitlines()] == [*["limit:", "rule: "] * 3, "ledger"]
    columns = shown(tmp_path, "show", *WHERE)["columns"]
    assert [(one["unit"], one["label_only"]) for one in columns] == [  # type: ignore[attr-defined]
        ("user", False),
        ("user-day", False),
        ("example", True),
    ]
    assert {one["order"] for one in columns} == {32.0}  # type: ignore[attr-defined]
    assert "labels only, kept apart" in privads(tmp_path, "budget", "show", *WHERE).stdout
    refused(init(tmp_path), 2, "set once")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--epsilon", "-1"), ["epsilon must be"]),
        (("--epsilon", "nan"), ["epsilon must be"]),
        (("--epsilon", "inf"), ["epsilon must be"]),
        (("--epsilon", "5e-324"), ["epsilon must be"]),
        (("--delta", "0.5"), ["delta"]),
        (("--delta", "1e-5", "--population", "1000000"), ["delta", "1 / population"]),
        (("--unit", "Some User"), ["unit must be"]),
        (("--neighbors", "twin"), ["neighbors must be"]),
        (("--rule", "fancy"), ["rule", "basic"]),
        (("--rule", "rdp", "--order", "1"), ["order"]),
        (("--block", "year"), ["block", "month"]),
        (("--also", "user-day"), ["--also must read"]),
        (("--also", "unit=user-day,epsilon=x,delta=1e-7"), ["numbers"]),
        (("--also", "unit=user,epsilon=1,delta=1e-7"), ["user"]),
    ],
    ids=str,
)
def test_a_bad_limit_is_one_clear_line_and_creates_nothing(
    tmp_path: Path, options: tuple[str, ...], words: list[str]
) -> None:
    refused(init(tmp_path, *options), 2, *words)
    assert not (tmp_path / "budget.db").exists()


@pytest.mark.parametrize(
    ("given", "found", "low", "high"),
    [
        (("--sampling-rate", "0.01", "--steps", "10000"), "noise_multiplier", 1.7083, 1.7095),
        (("--batch", "100", "--population", "10000", "--epochs", "100"), "noise_multiplier", 1.7083, 1.7095),
        (("--sampling-rate", "0.01", "--noise-multiplier", "1.7083"), "steps", 9950, 10010),
        (("--steps", "10000", "--noise-multiplier", "1.7083"), "sampling_rate", 0.00995, 0.01001),
    ],
)
def test_calibrate_finds_the_one_that_is_left_out(
    tmp_path: Path, given: tuple[str, ...], found: str, low: float, high: float
) -> None:
    budget = ("--epsilon", "3", "--delta", "1e-6", "--unit", "user")
    done = privads(tmp_path, "calibrate", *budget, *given, "--json")
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["found"] == found
    assert low <= values[found] <= high
    assert values["epsilon"] <= 3.0
    event = mechanisms.from_json(json.dumps(values["event"]))
    assert epsilon(event, delta=1e-6).upper == values["epsilon"]
    text = privads(tmp_path, "calibrate", *budget, *given).stdout
    assert text.startswith(f"{found}: ")
    assert "epsilon <= 3.00 (delta 1e-06, user, add/remove" in text


def test_calibrate_leaves_room_for_what_stands_beside(tmp_path: Path) -> None:
    tables = mechanisms.gaussian(noise_multiplier=4.0)
    (tmp_path / "tables.json").write_text(mechanisms.to_json(tables))
    asked = ("--epsilon", "2", "--delta", "1e-6", "--unit", "user", "--sampling-rate", "0.02", "--steps", "500")
    alone = json.loads(privads(tmp_path, "calibrate", *asked, "--json").stdout)
    beside = json.loads(privads(tmp_path, "calibrate", *asked, "--beside", "tables.json", "--json").stdout)
    assert beside["noise_multiplier"] > alone["noise_multiplier"]
    both = mechanisms.composed(tables, mechanisms.from_json(json.dumps(beside["event"])))
    assert 1.99 < epsilon(both, delta=1e-6).upper <= 2.0
    (tmp_path / "tables.json").write_text(mechanisms.to_json(mechanisms.gaussian(noise_multiplier=1.0)))
    refused(privads(tmp_path, "calibrate", *asked, "--beside", "tables.json"), 2, "nothing is left")


def test_calibrate_for_users_who_own_several_rows_needs_more_noise(tmp_path: Path) -> None:
    asked = (
        "--epsilon",
        "2",
        "--delta",
        "1e-6",
        "--unit",
        "user",
        "--sampling-rate",
        "0.02",
        "--steps",
        "500",
        "--json",
    )
    one, four = (json.loads(privads(tmp_path, "calibrate", *asked, "--records", str(k)).stdout) for k in (1, 4))
    ratio = four["noise_multiplier"] / one["noise_multiplier"]
    assert 3.0 < ratio < 4.5  # four rows of one owner are nearly one row of four times the size
    assert one["whole_units"] is None
    assert four["whole_units"]["noise_multiplier"] == one["noise_multiplier"]
    # A unit's sum has the squared length 4 + 12 rho: equal noise where that is the square of the ratio.
    assert 4 + 12 * four["whole_units"]["less_noise_below_cosine"] == pytest.approx(ratio**2)
    assert "clipping whole units instead" in privads(tmp_path, "calibrate", *asked[:-1], "--records", "4").stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), ["give two of"]),
        (("--sampling-rate", "0.1"), ["give two of"]),
        (("--sampling-rate", "0.1", "--steps", "5", "--noise-multiplier", "1"), ["give two of"]),
        (("--sampling-rate", "0.1", "--batch", "5", "--population", "10", "--steps", "5"), ["not both"]),
        (("--batch", "5", "--steps", "5"), ["--population"]),
        (("--epochs", "5", "--noise-multiplier", "1"), ["--epochs"]),
        (("--epochs", "inf", "--batch", "5", "--population", "10"), ["--epochs must be positive and finite"]),
        (("--epochs", "nan", "--batch", "5", "--population", "10"), ["--epochs must be positive and finite"]),
        (("--population", "10", "--sampling-rate", "0.1", "--steps", "5"), ["--population belongs to --batch"]),
        (("--sampling-rate", "2", "--steps", "5"), ["sampling_rate must be"]),
        (("--sampling-rate", "0.1", "--steps", "0"), ["steps must be"]),
        (("--sampling-rate", "0.1", "--noise-multiplier", "0.2"), ["not even one step"]),
        (("--steps", "10", "--noise-multiplier", "1e12"), []),
    ],
    ids=str,
)
def test_calibrate_says_what_is_missing(tmp_path: Path, options: tuple[str, ...], words: list[str]) -> None:
    done = privads(tmp_path, "calibrate", "--epsilon", "1", "--delta", "1e-6", "--unit", "user", *options)
    if words:
        refused(done, 2, *words)
    else:
        assert "sampling_rate: 1" in done.stdout


def test_a_purpose_that_reads_like_markup_is_shown_as_it_is(folder: Path) -> None:
    purpose = "[/b] :smile: " + "long " * 60 + "end"
    reserve(folder, purpose)
    done = privads(folder, "budget", "history", *WHERE)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "reserved " in line and "[/b]" in line]
    assert purpose in line, "in a pipe a charge is one line"


def test_history_rounds_against_us_and_names_every_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert init(tmp_path, "--also", "unit=user-day,epsilon=3,delta=1e-6").returncode == 0
    one = reserve(tmp_path, delta=1.2345e-8)
    lines = privads(tmp_path, "budget", "history", *WHERE).stdout.splitlines()
    assert f" {round_up(one.epsilon)} " in lines[1]
    assert " 1.24e-08 " in lines[1]
    spent = [line for line in lines if line.startswith("spent: ")]
    assert [", user, add/remove, data set ads)" in line for line in spent] == [True, False]
    assert ", user-day, add/remove, data set ads)" in spent[1]


def test_show_says_which_block_is_the_dearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert init(tmp_path, "--block", "day", unit="user-day").returncode == 0
    for block in ("2026-11-01", "2026-11-02", "2026-11-02"):
        reserve(tmp_path, unit="user-day", blocks=(block,))
    done = privads(tmp_path, "budget", "show", *WHERE)
    assert "the most in one block, of 2 with charges of their own: 2026-11-02" in done.stdout


def test_show_and_init_state_the_rule_in_its_own_measure(tmp_path: Path) -> None:
    line = "of Renyi divergence of order 32; it spends delta once"
    assert line in init(tmp_path, "--rule", "rdp", "--order", "32").stdout
    assert line in privads(tmp_path, "budget", "show", *WHERE).stdout


@pytest.mark.parametrize("head", ["", "abc", "A" * 64])
def test_what_is_no_head_is_not_taken_for_a_broken_ledger(folder: Path, head: str) -> None:
    refused(privads(folder, "budget", "verify", "--ledger", URL, "--head", head), 2, "--head must be")


def test_export_never_writes_another_format_than_was_asked_for(folder: Path) -> None:
    refused(privads(folder, "budget", "export", *WHERE, "--format", "csv", "--json"), 2, "leave one out")
    done = privads(folder, "budget", "export", *WHERE, "--format", "csv", "--json", "--out", "log.csv")
    assert json.loads(done.stdout) == {"dataset": "ads", "format": "csv", "out": "log.csv"}
    assert (folder / "log.csv").read_text().startswith("seq,")


def test_a_limit_stated_twice_is_refused(tmp_path: Path) -> None:
    refused(init(tmp_path, "--also", "unit=user-day,epsilon=1,epsilon=2,delta=1e-7"), 2, "--also must read")
    assert not (tmp_path / "budget.db").exists()


def test_an_infinite_figure_is_null_in_json(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terms = {"delta": 1e-6, "neighbors": "add-remove", "method": "m", "grid": None, "library": "l"}
    unknown = Bounds(lower=None, upper=math.inf, epsilon=None, **terms)  # type: ignore[arg-type]
    monkeypatch.setattr(Ledger, "joint", lambda *_, **__: unknown)
    assert shown(folder, "show", *WHERE)["joint"]["epsilon"] is None  # type: ignore[index]
    assert "epsilon <= infinity (delta 1e-06" in privads(folder, "budget", "show", *WHERE).stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("budget", "init", *WHERE, "--epsilon", "x", "--delta", "1e-6", "--unit", "user"), "not a valid float"),
        (("budget", "show", "--dataset", "ads"), "Missing option '--ledger'"),
        (("budget", "shwo"), "No such command 'shwo'"),
        (("calibrate", "--no-such"), "see `privads calibrate --help`"),
        (("budget", "history", *WHERE, "--plot", "no-folder/x.svg"), "no-folder/x.svg: No such file"),
        (("budget", "export", *WHERE, "--out", "no-folder/x"), "no-folder/x: No such file"),
    ],
    ids=str,
)
def test_a_usage_error_is_one_line(folder: Path, words: tuple[str, ...], said: str) -> None:
    refused(privads(folder, *words), 2, said)


def test_calibrate_prints_every_digit_of_what_it_found(tmp_path: Path) -> None:
    asked = ("--epsilon", "3", "--delta", "1e-6", "--unit", "user", "--sampling-rate", "0.01", "--steps", "100")
    said = privads(tmp_path, "calibrate", *asked).stdout.splitlines()[0]
    found = json.loads(privads(tmp_path, "calibrate", *asked, "--json").stdout)
    assert said == f"noise_multiplier: {found['noise_multiplier']}", "a rounded one may cost more than the budget"


@pytest.mark.parametrize("held", [b"\xff\xfe", b"", b'{"event": "foo"}', b'{"event":"composed","events":[' * 3000])
def test_an_event_that_cannot_be_read_is_refused_with_its_file(tmp_path: Path, held: bytes) -> None:
    (tmp_path / "event.json").write_bytes(held)
    asked = ("--epsilon", "3", "--delta", "1e-6", "--unit", "user", "--sampling-rate", "0.01", "--steps", "100")
    done = privads(tmp_path, "calibrate", *asked, "--beside", "event.json")
    refused(done, 2, "--beside event.json holds no event")
    assert len(done.stderr) < 500
