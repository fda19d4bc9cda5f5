"""The pages name every key there is, and the defaults they state are the code's."""

from pathlib import Path

from pydantic import BaseModel

from privads.logs.schema import Schema, known_formats
from privads.models import MODELS
from privads.run_config import DataTable, LedgerTable, ModelTable, PlanTable, RunTable
from privads.training import defaults, plan, sizes

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "configuration.md").read_text(encoding="utf-8")


def keys(table: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in table.model_fields.items()]


def test_the_page_names_every_key_of_a_run_file() -> None:
    tables = {"data": DataTable, "ledger": LedgerTable, "model": ModelTable, "plan": PlanTable, "run": RunTable}
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
    assert f"| {plan.CLIP_NORM} |" in PAGE
    assert f"| {plan.AVERAGING} |" in PAGE
    assert f"else {sizes.ROWS_PER_UNIT} |" in PAGE
    assert f"min(population / 2, {sizes.SMALL_BATCH})), {sizes.LARGEST_DEFAULT_BATCH})" in PAGE
    noise, stable = defaults.LOGIT_NOISE, defaults.STABLE_STEP
    assert f"{1 - defaults.MOMENTUM:.1f} min({noise} / (noise std √steps), {stable:.0f}, steps)" in PAGE
