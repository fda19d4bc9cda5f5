"""`privads release`: what a dry run says and does not touch, what is charged, and what is refused at no cost."""

import json
from pathlib import Path

import pandas as pd
import pytest

from accounting.ledger import Ledger
from privads.signals.saved import load_tables
from tests.privads.test_cli import Done, privads, refused, simulated

RUN_TOML = """\
[data]
path = "log.parquet"
schema = "ads.toml"
test_fraction = 0.2
[ledger]
url = "sqlite:///budget.db"
[plan]
epsilon = 2.0
delta = 1e-6
unit = "user"
[release]
columns = ["device", "ad_position"]
label = "conversion"
rows_per_unit = 2
out = "tables"
[release.edges]
ad_position = [1, 4, 10]
"""
COST = "epsilon <= 2.00 (delta 1e-06, user, add/remove, all tables)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return simulated(tmp_path, RUN_TOML, users=500, epsilon=5.0)


def release(folder: Path, *settings: str, options: tuple[str, ...] = ()) -> Done:
    given = [word for one in settings for word in ("--set", one)]
    return privads(folder, "release", "run.toml", *given, *options)


def entries(folder: Path) -> int:
    return len(Ledger.open(f"sqlite:///{folder / 'budget.db'}").history("simulated-ads"))


def without_rows(folder: Path) -> None:
    """Leave the log's header, and make every row of it unreadable."""
    file = folder / "log.parquet"
    whole = file.read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    file.write_bytes(b"PAR1" + b"\xff" * (len(whole) - footer - 4) + whole[-footer:])


def test_a_dry_run_says_noise_and_cost_and_reads_charges_and_writes_nothing(folder: Path) -> None:
    without_rows(folder)
    done = release(folder, options=("--dry-run",))
    assert done.returncode == 0, done.stderr
    first, bounds, _, device, position, _, advice = done.stdout.splitlines()
    assert first == f"2 tables for {COST}"
    assert bounds == "of one user at most 2 rows are counted"
    assert device.startswith("by device: keys found in the log, noise std ")
    assert "shown from" in device
    assert position.startswith("by ad_position: 3 cells, noise std ")
    assert "shown" not in position
    assert "`privads learn`" in advice
    assert "release.values_from" in advice
    assert entries(folder) == 0
    assert not (folder / "tables").exists()
    assert release(folder).returncode == 2  # the rows cannot be read, and a dry run did not


def test_a_release_is_one_entry_for_all_its_tables_at_the_stated_budget(folder: Path) -> None:
    done = release(folder)
    assert done.returncode == 0, done.stderr
    assert f"{COST}; charged as entry " in done.stdout
    assert done.stdout.splitlines()[-1] == "tables: tables"
    assert entries(folder) == 1
    ledger = Ledger.open(f"sqlite:///{folder / 'budget.db'}")
    assert 1.98 < ledger.balance("simulated-ads").spent_epsilon <= 2.0
    tables = load_tables(folder / "tables")
    assert [[getattr(part, "column", part) for part in one.query.by] for one in tables] == [["device"], ["ad_position"]]
    assert {one.terms.entry for one in tables} == {done.stdout.split("charged as entry ")[1].split()[0]}


def test_json_is_one_object_with_the_noise_of_every_measure(folder: Path) -> None:
    asked = 'release.sums=[{column = "price_usd", most = 100.0, step = 1.0}]'
    planned = json.loads(release(folder, asked, options=("--dry-run", "--json")).stdout)
    done = release(folder, asked, options=("--json",))
    made = json.loads(done.stdout)
    assert done.stderr == ""
    assert (made["delta"], made["unit"], made["neighbors"]) == (1e-6, "user", "add-remove")
    assert 1.98 < made["epsilon"] <= 2.0
    assert made["entry"] is not None
    assert "entry" not in planned
    for ours, theirs, table in zip(made["tables"], planned["tables"], load_tables(folder / "tables"), strict=True):
        assert set(ours["noise_std"]) == {"positives", "negatives", "sum of price_usd"}
        assert ours["noise_std"] == theirs["noise_std"]
        assert all(table.noise_std[name][0] == std for name, std in ours["noise_std"].items())


def test_pairs_consistency_and_bounds_are_asked_for_in_one_line_each(folder: Path) -> None:
    values = 'release.values.device=["desktop", "tv"]'
    done = release(folder, values, "release.pairs=true", "release.consistent=true", "release.keys_per_unit=1")
    assert done.returncode == 0, done.stderr
    assert "of one user at most 2 rows are counted, in 1 cells of a table" in done.stdout
    one, _, both = load_tables(folder / "tables")
    assert one.combined
    assert both.combined
    assert both.rows.reshape(4, 3).sum(axis=1) == pytest.approx(one.rows)


def test_an_earlier_release_names_the_values_of_the_next_and_its_cost_is_told(folder: Path) -> None:
    found = 'release.tables=[{by = ["device"]}]'
    assert release(folder, found, "release.columns=[]", "release.edges={}", "release.rows_per_unit=1").returncode == 0
    (earlier,) = load_tables(folder / "tables")
    assert earlier.threshold is not None
    done = release(folder, "release.values_from.device=tables", options=("--out", "next"))
    assert done.returncode == 0, done.stderr
    assert f"{COST}, and on top the release that named its values: {COST}; charged" in done.stdout
    device, _ = load_tables(folder / "next")
    assert [key[0] for key in device.keys[:-2]] == [key[0] for key in earlier.keys if key[0] is not None]
    assert device.threshold is None
    assert device.terms.named_by == (COST,)
    named = pd.read_parquet(folder / "next" / "000-device.parquet")["value of device"]
    assert list(named[:-2]) == [key[0] for key in device.keys[:-2]]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (['release.columns=["campain", "ad_position"]'], ["'campain' is no categorical column", "known: campaign"]),
        (["release.label=click"], ["'click' is no label", "conversion"]),
        (["release.labl=click"], ["release.labl", "did you mean 'label'"]),
        (['release.values.ad_position=["1"]'], ["'ad_position' is a number", "release.edges"]),
        (["release.edges.device=[1, 2]"], ["'device' is a category", "release.values"]),
        (["release.values.device=[1, 2]"], ["release.values.device"]),
        (['release.values.site=["a"]'], ["'site'", "no table is by it"]),
        (["release.values_from.device=nowhere"], ["there is no file or folder nowhere"]),
        (["release.values_from.device=log.parquet"], ["log.parquet is no noisy table"]),
        (['release.values.device=["tv"]', "release.values_from.device=x"], ["give one"]),
        (["release.consistent=true"], ["public places"]),
        (["release.backend=opendp"], ["declared keys"]),
        (["plan.unit=household"], ["unit must be 'example' or 'user'", "'household'"]),
        (["plan.epsilon=-1"], ["epsilon must be"]),
        (["data.path=nowhere.parquet"], ["nowhere.parquet"]),
        (["release.columns=[]", "release.edges={}"], ["nothing to release"]),
    ],
)
def test_bad_input_is_one_line_and_costs_nothing_with_and_without_a_dry_run(
    folder: Path, settings: list[str], words: list[str]
) -> None:
    refused(release(folder, *settings, options=("--dry-run",)), 2, *words)
    refused(release(folder, *settings), 2, *words)
    assert entries(folder) == 0
    assert not (folder / "tables").exists()


def test_a_folder_that_exists_is_refused_before_the_charge(folder: Path) -> None:
    (folder / "tables").mkdir()
    refused(release(folder), 2, "tables exists already", "--out")
    assert entries(folder) == 0


def test_a_budget_that_is_spent_is_exit_code_three_and_reads_no_row(folder: Path) -> None:
    without_rows(folder)
    refused(release(folder, "release.epsilon=6"), 3, "'simulated-ads' has epsilon 5", "asks for epsilon 5.99")
    assert entries(folder) == 0
    assert not (folder / "tables").exists()


def test_what_is_no_toml_or_has_no_release_is_bad_input(folder: Path) -> None:
    (folder / "run.toml").write_text(RUN_TOML.split("[release]")[0])
    refused(release(folder), 2, "run.toml has no [release]", "columns")
    (folder / "run.toml").write_text("[data\n")
    refused(release(folder), 2, "not valid TOML")
    assert entries(folder) == 0
