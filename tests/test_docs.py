"""The pages name every key there is, and the defaults they state are the code's."""

from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from accounting.budget import Budget
from accounting.report.phrase import round_up
from federation import defaults as federated
from federation.config import FederationTable, federation_table
from federation.plan import FederatedPlan
from privads.logs.schema import Schema, known_formats
from privads.models import MODELS
from privads.run_config import (
    DEFAULT_MODEL,
    AttributionTable,
    AuditTable,
    DataTable,
    EvaluationTable,
    FeaturesTable,
    LearnTable,
    LedgerTable,
    ModelTable,
    PlanTable,
    ReleaseTable,
    ReportTable,
    RunTable,
    read_config,
)
from privads.training import defaults, plan, sizes
from privads.training.selection import SELECTABLE

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "configuration.md").read_text(encoding="utf-8")


def keys(table: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in table.model_fields.items()]


def test_the_page_names_every_key_of_a_run_file() -> None:
    tables = {
        "data": DataTable,
        "ledger": LedgerTable,
        "features": FeaturesTable,
        "evaluation": EvaluationTable,
        "attribution": AttributionTable,
        "audit": AuditTable,
        "release": ReleaseTable,
        "learn": LearnTable,
        "federation": FederationTable,
        "model": ModelTable,
        "plan": PlanTable,
        "report": ReportTable,
        "run": RunTable,
    }
    for name, table in tables.items():
        for key in keys(table):
            assert f"`{name}.{key}`" in PAGE, f"{name}.{key}"


def test_the_page_names_every_key_of_a_schema() -> None:
    for key in keys(Schema):
        assert f"| `{key}` |" in PAGE, key


def test_the_page_names_every_format_and_model() -> None:
    for name in (*known_formats(), *MODELS):
        assert f"`{name}`" in PAGE, name


def test_the_page_states_the_codes_defaults() -> None:
    assert f'| `"{DEFAULT_MODEL}"`, whatever the data' in PAGE
    assert f"| {plan.CLIP_NORM} |" in PAGE
    assert f"| {plan.AVERAGING} |" in PAGE
    assert f"else {sizes.ROWS_PER_UNIT} |" in PAGE
    assert f"min(population / 2, {sizes.SMALL_BATCH})), {sizes.LARGEST_DEFAULT_BATCH})" in PAGE
    noise, stable = defaults.LOGIT_NOISE, defaults.STABLE_STEP
    assert f"{1 - defaults.MOMENTUM:.1f} min({noise} / (noise std √steps), {stable:.0f}, steps)" in PAGE


def test_the_page_states_the_defaults_of_federated_runs() -> None:
    assert f"a user's whole update | {federated.CLIP_NORM} |" in PAGE
    assert f"| {federated.LOCAL_LEARNING_RATE}, {federated.LOCAL_STEPS} |" in PAGE
    assert f"chosen at random | {federated.ROWS_PER_USER} |" in PAGE
    step = f"(1 - momentum) min({federated.LOGIT_NOISE} / (noise std √rounds), {federated.LARGEST_REACH:.0f})"
    assert step in PAGE
    assert f"of `adam` {federated.ADAM_STEP} |" in PAGE


TRAINING = (Path(__file__).resolve().parent.parent / "docs" / "training.md").read_text(encoding="utf-8")


def test_the_training_pages_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(TRAINING.partition("```python\n")[2].partition("```")[0], {})
    assert "epsilon <= 3.00" in capsys.readouterr().out


def test_the_training_page_names_every_choice_of_a_plan() -> None:
    for choices in (plan.Sampler, plan.TableNoise):
        for choice in get_args(choices):
            assert f"| `{choice}` |" in TRAINING, choice
    for name in ("rows_per_unit", "records", "clipping", "clip_quantile", "rows_at_once", "clip_norm"):
        assert f"`{name}" in TRAINING, name


def test_the_training_pages_optimizers_are_those_that_may_step_selected_rows() -> None:
    row = next(line for line in TRAINING.splitlines() if line.startswith("| `adafest` |"))
    for kind in SELECTABLE:
        assert kind.__name__ in row


EVALUATION = (Path(__file__).resolve().parent.parent / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_the_evaluation_pages_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(EVALUATION.partition("```python\n")[2].partition("```")[0], {})
    assert "calibration 0.8" in (said := capsys.readouterr().out)
    assert "mended 1.00" in said


SIGNALS = (Path(__file__).resolve().parent.parent / "docs" / "signals.md").read_text(encoding="utf-8")


def test_the_signals_pages_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(SIGNALS.partition("```python\n")[2].partition("```")[0], {})
    assert capsys.readouterr().out.startswith("('phone-")
    assert len(list((tmp_path / "tables").glob("*.parquet"))) == 3


def test_the_signals_pages_run_file_is_accepted(tmp_path: Path) -> None:
    first, second, *_ = [part.partition("```")[0] for part in SIGNALS.split("```toml\n")[1:]]
    text = f'[data]\npath = "log.parquet"\nschema = "ads.toml"\n{first}{second}'
    (tmp_path / "run.toml").write_text(text, encoding="utf-8")
    read = read_config(tmp_path / "run.toml")
    assert read.release is not None
    assert read.release.values["device"] == ["phone", "tablet", "desktop"]
    assert read.learn is not None
    assert read.learn.sample == 100_000


FEDERATION = (Path(__file__).resolve().parent.parent / "docs" / "federation.md").read_text(encoding="utf-8")


def test_the_federation_pages_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    first, *others = (part.partition("```")[0] for part in FEDERATION.split("```python\n")[1:])
    names: dict[str, object] = {}
    exec(first, names)
    said = capsys.readouterr().out
    assert "epsilon <= 8.00 (delta 1e-06, user, add/remove, models of all rounds)" in said
    assert "no user has rows in more than 2 of the 3 silos" in said
    pytest.importorskip("flwr", reason="the page's second example needs flwr: pip install 'privads[federation]'")
    for other in others:
        exec(other, names)
    assert "no user has rows in more than 2 of the 3 silos" in str(names["run"])


def test_the_federation_pages_table_is_accepted(tmp_path: Path) -> None:
    stated = FEDERATION.partition("```toml\n")[2].partition("```")[0]
    text = (
        '[data]\npath = "log.parquet"\nschema = "ads.toml"\n[plan]\nepsilon = 3\ndelta = 1e-6\nunit = "user"\n' + stated
    )
    (tmp_path / "run.toml").write_text(text, encoding="utf-8")
    table = federation_table(read_config(tmp_path / "run.toml"), source=tmp_path / "run.toml")
    assert table.silo_paths[0] == str(tmp_path / "shop-a.parquet")


@pytest.mark.parametrize("row", ["silos of one user, j", "over_selection"])
def test_the_federation_pages_epsilons_are_what_plans_cost(row: str) -> None:
    lines = FEDERATION.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(f"| {row} |"))
    cells = [line.split("|") for line in lines[first : first + 4] if line]
    stated = {one[1].strip(): one[2:-1] for one in cells}
    for value, epsilon in zip(stated[row], stated["epsilon"], strict=True):
        asked = {"silos": int(value)} if row.startswith("silos") else {"over_selection": float(value)}
        found = FederatedPlan(
            budget=Budget(epsilon=1e4, delta=1e-6, unit="user"),
            population=100_000,
            cohort=1000,
            rounds=1000,
            clip_norm=1.0,
            noise_multiplier=1.0,
            **asked,
        )
        assert round_up(found.spent.upper) == epsilon.strip()
