"""Errors say in one line what to change; --set changes one value and nothing else."""

import datetime as dt
import doctest

import pytest
from pydantic import BaseModel, ConfigDict, Field

from privads import config
from privads.config import ConfigError, nearest_name, override, parse_model


class Inner(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    epochs: int = Field(default=1, gt=0)


class Outer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    plan: Inner = Inner()
    maybe: Inner | None = None
    many: dict[str, str | Inner] = {}


def message(data: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_model(Outer, data, source="run.toml")
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_doctests_run() -> None:
    assert doctest.testmod(config).failed == 0


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"name": "a", "plam": {}}, "run.toml: unknown key 'plam'; did you mean 'plan'?"),
        ({"nam": "a"}, "run.toml: unknown key 'nam'; did you mean 'name'?"),
        ({"name": "a", "plan": {"epoch": 1}}, "run.toml: unknown key 'plan.epoch'; did you mean 'epochs'?"),
        ({"name": "a", "maybe": {"epoch": 1}}, "run.toml: unknown key 'maybe.epoch'; did you mean 'epochs'?"),
        ({"name": "a", "many": {"x": {"epoch": 1}}}, "run.toml: unknown key 'many.x.epoch'; did you mean 'epochs'?"),
        ({"name": "a", "zzzzzz": 1}, "run.toml: unknown key 'zzzzzz'"),
        ({}, "run.toml: missing key 'name'"),
        ({"name": "a", "plan": {"epochs": 0}}, "run.toml: plan.epochs: Input should be greater than 0"),
        ({"name": "a", "many": {"x": {"epochs": 0}}}, "run.toml: many.x.epochs: Input should be greater than 0"),
    ],
    ids=str,
)
def test_one_line_names_the_key_and_the_nearest_known_one(data: dict[str, object], expected: str) -> None:
    assert message(data) == expected


def test_a_good_file_is_read() -> None:
    assert parse_model(Outer, {"name": "a", "plan": {"epochs": 3}}, source="x").plan.epochs == 3


def test_nothing_near_is_not_suggested() -> None:
    assert nearest_name("epoch", ["epochs", "plan"]) == "; did you mean 'epochs'?"
    assert nearest_name("epoch", []) == ""
    assert nearest_name("epoch", ["zzz"]) == ""


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("plan.epochs=8", {"plan": {"epochs": 8, "unit": "user"}, "top": 1}),
        (" plan . epochs = 8 ", {"plan": {"epochs": 8, "unit": "user"}, "top": 1}),
        ("plan.unit=example", {"plan": {"epochs": 4, "unit": "example"}, "top": 1}),
        ('plan.unit="a=b"', {"plan": {"epochs": 4, "unit": "a=b"}, "top": 1}),
        ("run.out=runs/a", {"plan": {"epochs": 4, "unit": "user"}, "top": 1, "run": {"out": "runs/a"}}),
        ("top=[1, 2]", {"plan": {"epochs": 4, "unit": "user"}, "top": [1, 2]}),
        ("top=2026-11-15T00:00:00", {"plan": {"epochs": 4, "unit": "user"}, "top": dt.datetime(2026, 11, 15)}),
        ("top=", {"plan": {"epochs": 4, "unit": "user"}, "top": ""}),
    ],
)
def test_override_sets_one_value_as_toml_or_else_as_text(setting: str, expected: dict[str, object]) -> None:
    data = {"plan": {"epochs": 4, "unit": "user"}, "top": 1}
    assert override(data, setting) == expected
    assert data == {"plan": {"epochs": 4, "unit": "user"}, "top": 1}  # the input is left as it was


@pytest.mark.parametrize("setting", ["plan.epochs", "", "=3", "top.deeper=1"])
def test_a_malformed_setting_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        override({"top": 1}, setting)
