"""`privads explore`: readings with intervals, a page, and one charge for all of it."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from accounting.budget import Budget
from accounting.ledger import Ledger
from privads.features.explore import Estimate, Plan, in_words
from privads.features.explore_page import html
from privads.logs.logs import Logs
from privads.logs.simulator import schema_toml, simulate
from tests.privads.test_cli import privads

BUDGET = Budget(epsilon=1.0, delta=1e-6, unit="user")
USERS = 4_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("log")
    table = simulate(USERS, seed=0)
    pyarrow.parquet.write_table(table, found / "log.parquet")
    (found / "ads.toml").write_text(schema_toml(USERS, public=False), encoding="utf-8")
    (found / "run.toml").write_text(
        """
[data]
path = "log.parquet"
schema = "ads.toml"
[ledger]
url = "sqlite:///budget.db"
[model]
name = "logistic"
[plan]
epsilon = 3.0
delta = 1e-6
unit = "user"
""",
        encoding="utf-8",
    )
    return found


@pytest.fixture
def ledger(folder: Path) -> Ledger:
    (folder / "budget.db").unlink(missing_ok=True)
    limit = Budget(epsilon=2.0, delta=1e-5, unit="user")
    return Ledger.init(f"sqlite:///{folder / 'budget.db'}", dataset="simulated-ads", budget=limit)


def covers(of: Estimate, exact: float) -> bool:
    return of.low <= exact <= of.high


def test_intervals_cover_what_would_have_been_counted(folder: Path, tmp_path: Path) -> None:
    """Every user has one row, so nothing is left out by chance. 95 % of about 60 intervals cover; fewer than 45 would
    happen with probability below 1e-6.
    """
    table = simulate(USERS, seed=0).to_pandas().drop_duplicates("user_id")
    table.to_parquet(tmp_path / "log.parquet")
    (tmp_path / "ads.toml").write_text(schema_toml(USERS, public=True), encoding="utf-8")
    logs = Logs(tmp_path / "log.parquet", tmp_path / "ads.toml")
    found = Plan.of(logs.schema, BUDGET).run(logs, ledger=None)
    hits = [covers(found.rows, len(table))]
    for column in found.columns:
        hits.append(covers(column.missing, table[column.name].isna().mean()) if column.name in table else True)
        for share, of in column.quantiles.items():
            if column.name == "user_recency_hours":
                continue  # unknown at a user's first row
            exact = np.nanquantile(table[column.name], float(share))
            # the grid has cells: the quantile is known to a cell, not to a number
            hits.append(of.low * 0.95 - 0.05 <= exact <= of.high * 1.05 + 0.05)
        if column.values is not None and column.name in table:
            counts = table[column.name].value_counts()
            hits += [covers(cell.rows, counts[cell.name]) for cell in column.cells if cell.name != "missing"]
    assert len(hits) > 60
    assert sum(hits) >= 0.75 * len(hits)


def test_it_ranks_columns_by_what_they_tell(folder: Path) -> None:
    logs = Logs(folder / "log.parquet", folder / "ads.toml")
    public = Logs(folder / "log.parquet", logs.schema.model_copy(update={"public": True}))
    found = Plan.of(public.schema, Budget(epsilon=20.0, delta=1e-6, unit="user"), rows_per_unit=8).run(
        public, ledger=None
    )
    told = [column.information.value for column in found.columns if column.information is not None]
    assert told == sorted(told, reverse=True)
    assert len(found.columns) == public.schema.fields


def test_what_noise_hides_is_not_known_and_not_zero(folder: Path) -> None:
    """A fixed bug: a column that nothing could be said of told "0 nats [0, 0]"."""
    logs = Logs(folder / "log.parquet", folder / "ads.toml")
    public = Logs(folder / "log.parquet", logs.schema.model_copy(update={"public": True}))
    found = Plan.of(public.schema, Budget(epsilon=0.005, delta=1e-6, unit="user")).run(public, ledger=None)
    hidden = {column.name: column for column in found.columns}["site"]
    assert (hidden.information, hidden.covered, hidden.values) == (None, None, 0)
    assert "site                tells not known" in "\n".join(in_words(found))
    assert "within the noise" in html(found)


def test_the_command_charges_once_and_writes_a_page(folder: Path, ledger: Ledger, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = privads(folder, "explore", "run.toml", "--epsilon", "0.5", "--out", str(page))
    assert done.returncode == 0, done.stderr
    assert "epsilon <= 0.50 (delta 1e-06, user, add/remove, everything shown here)" in done.stdout
    assert 0.499 < ledger.balance("simulated-ads").spent_epsilon <= 0.5
    text = page.read_text(encoding="utf-8")
    assert "epsilon &lt;= 0.50" in text
    assert text.count("<svg") == text.count("</svg>") == 1 + text.count('<div class="curve">')
    assert not re.search(r"https?://(?!www\.w3\.org)", text)


def test_as_json_it_is_one_object(folder: Path, ledger: Ledger, tmp_path: Path) -> None:
    arguments = ("--epsilon", "0.5", "--out", str(tmp_path / "page.html"), "--json")
    done = privads(folder, "explore", "run.toml", *arguments)
    assert json.loads(done.stdout)["dataset"] == "simulated-ads"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--epsilon", "2.5"), 3, "asks for epsilon"),
        (("--epsilon", "-1"), 2, "epsilon"),
        (("--epsilon", "0.5", "--label", "click"), 2, "'click' is no label"),
        (("--epsilon", "0.5", "--out", "no/where.html"), 2, "there is no folder"),
    ],
)
def test_what_is_refused_spends_nothing(
    folder: Path, ledger: Ledger, arguments: tuple[str, ...], code: int, said: str
) -> None:
    out = () if "--out" in arguments else ("--out", str(folder / "refused.html"))
    done = privads(folder, "explore", "run.toml", *arguments, *out)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1)
    assert said in done.stderr
    assert ledger.balance("simulated-ads").spent_epsilon == 0
    assert not (folder / "refused.html").exists()


def test_names_of_categories_are_text_in_the_page(tmp_path: Path) -> None:
    """They come from the log: a value that is markup, or a formula, is shown as it is."""
    table = simulate(1_000, seed=0).to_pandas()
    table["device"] = "<b>$x$ & co</b>"
    table.to_parquet(tmp_path / "log.parquet")
    (tmp_path / "ads.toml").write_text(schema_toml(1_000, public=True), encoding="utf-8")
    logs = Logs(tmp_path / "log.parquet", tmp_path / "ads.toml")
    found = Plan.of(logs.schema, BUDGET).run(logs, ledger=None)
    page = html(found)
    assert "<b>$x$" not in page
    assert "&lt;b&gt;$x$ &amp; co&lt;/b&gt;" in page
    assert any("device" in line for line in in_words(found))
