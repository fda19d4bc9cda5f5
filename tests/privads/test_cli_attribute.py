"""`privads attribute`: a report for a stated budget, written once, and bad input costs nothing."""

import json
from pathlib import Path

import pyarrow.parquet
import pytest

from accounting.ledger import Ledger
from tests.privads.test_cli import Done, privads, refused, simulated

RUN_TOML = """\
[data]
path = "log.parquet"
schema = "ads.toml"
[ledger]
url = "sqlite:///budget.db"
[plan]
epsilon = 2.0
delta = 1e-6
unit = "user"
[attribution]
api = "w3c"
epsilon = 1.0
label = "conversion"
keys = {device = ["desktop", "=cmd()"]}
start = 2026-11-09T00:00:00
days = 7
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return simulated(tmp_path, RUN_TOML, users=500, epsilon=3.0)


def attribute(folder: Path, *arguments: str) -> Done:
    return privads(folder, "attribute", "run.toml", *arguments)


def entries(folder: Path) -> int:
    return len(Ledger.open(f"sqlite:///{folder / 'budget.db'}").history("simulated-ads"))


def test_a_report_is_printed_written_and_charged(folder: Path) -> None:
    done = attribute(folder)
    assert done.returncode == 0, done.stderr
    *_, limits, cost, place = done.stdout.splitlines()
    assert "site_budget 1, global_budget 8" in limits
    assert cost == "epsilon <= 2.00 (delta 1e-06, user, add/remove, w3c report)"
    assert place == "report: attribution.parquet"
    assert "no guarantee where sites act together" in done.stdout
    table = pyarrow.parquet.read_table(folder / "attribution.parquet")
    assert table["device"].to_pylist() == ["desktop", "=cmd()"]
    assert entries(folder) == 1


def test_json_is_one_object_and_the_file_holds_the_same(folder: Path) -> None:
    done = attribute(
        folder,
        *("--json", "--out", "report.json", "--set", "attribution.api=summary"),
        *("--set", "attribution.sources_per_unit=2", "--set", "attribution.value=price_usd"),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert found["measures"] == ["conversions", "price_usd"]


def test_a_second_report_beyond_the_budget_exits_with_3_and_writes_nothing(folder: Path) -> None:
    assert attribute(folder).returncode == 0
    refused(attribute(folder, "--out", "again.parquet"), 3, "has epsilon 1")
    assert not (folder / "again.parquet").exists()
    assert entries(folder) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "log.parquet"], ["exists already"]),
        (["--out", "report.csv"], [".parquet or .json"]),
        (["--out", "nowhere/report.json"], ["there is no folder"]),
        (["--set", "plan.epsilon=1"], ["costs epsilon 2", "more than plan.epsilon, 1"]),
        (["--set", "plan.unit=example"], ["plan.unit must be 'user'"]),
        (["--set", "plan.without_privacy=true"], ["a report always has its noise"]),
        (["--set", "run.insecure_seed=1"], ["insecure_seed is refused"]),
        (["--set", "attribution.api=topics"], ["attribution.api", "'w3c', 'event' or 'summary'"]),
        (["--set", "attribution.keyz=1"], ["unknown key 'attribution.keyz'", "'keys'"]),
        (["--set", "attribution.keys={}"], ["attribution.keys"]),
        (["--set", "attribution.keys={device = []}"], ["keys.device names no value"]),
        (["--set", 'attribution.keys={device = ["tv", "tv"]}'], ["names a value twice"]),
        (["--set", "attribution.keys={device = [1]}"], ["attribution.keys.device", "valid string"]),
        (["--set", "attribution.epsilon=0"], ["attribution.epsilon"]),
        (["--set", "attribution.epsilon=nan"], ["attribution.epsilon"]),
        (["--set", "attribution.epsilon=5000"], ["at most 4294"]),
        (["--set", "attribution.days=-1"], ["attribution.days"]),
        (["--set", "attribution.days=1.5"], ["attribution.days"]),
        (["--set", "attribution.lookback_days=31"], ["attribution.lookback_days"]),
        (["--set", "attribution.start=soon"], ["attribution.start"]),
        (["--set", "attribution.reports=2"], ["reports belongs to api = 'event' or 'summary'"]),
        (["--set", "attribution.sources_per_unit=2"], ["sources_per_unit belongs to api = 'summary'"]),
        (["--set", "attribution.value_steps=5"], ["name its column, value"]),
        (["--set", "attribution.credit=[0]"], ["credit must be finite and above 0"]),
        (["--set", "attribution.credit=[nan]"], ["credit must be finite and above 0"]),
        (["--set", "attribution.site_budget=inf"], ["attribution.site_budget"]),
        (["--set", "attribution.label=click"], ["'click' is no label"]),
        (
            ["--set", "attribution.api=event", "--set", "attribution.windows_days=[7, 2]"],
            ["windows_days must rise"],
        ),
        (["--set", "attribution.api=event", "--set", "attribution.windows_days=[40]"], ["from 1 to lookback_days, 30"]),
        (["--set", "attribution.api=event", "--set", "attribution.value=price_usd"], ["state value_edges"]),
    ],
)
def test_bad_input_is_one_line_and_costs_nothing(folder: Path, arguments: list[str], words: list[str]) -> None:
    refused(attribute(folder, *arguments), 2, *words)
    assert entries(folder) == 0


def test_without_its_table_the_verb_says_what_to_add(folder: Path) -> None:
    (folder / "run.toml").write_text(RUN_TOML.partition("[attribution]")[0])
    refused(attribute(folder), 2, "no table [attribution]")
