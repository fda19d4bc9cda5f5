"""Errors say in one line what to change; --set changes one value and nothing else."""

import datetime as dt
import doctest
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from privads import config
from privads.config import ConfigError, nearest_name, override, parse_model


class Inner(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    epochs: int = Field(default=1, gt=0)


class Walk(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["walk"] = "walk"
    legs: int = 2


class Swim(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["swim"] = "swim"
    lake: str
    deep: bool = False  # equal to 0, the place of a first entry


WALK = {"kind": "walk"}


class Outer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    plan: Inner = Inner()
    maybe: Inner | None = None
    many: dict[str, str | Inner] = {}
    steps: tuple[Annotated[Walk | Swim, Field(discriminator="kind")], ...] = ()


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
        ({"name": "a", "zzzzzz": 1}, "run.toml: unknown key 'zzzzzz'; known: name, plan, maybe, many, steps"),
        ({"name": "a", "plan": 3}, "run.toml: plan: Input should be a table"),
        ({"name": "a", "steps": {}}, "run.toml: steps: Input should be a list"),
        ({"name": "a", "steps": [WALK, 3]}, "run.toml: steps.#2: Input should be a table"),
        ({"name": "a", "steps": [{"legs": 2}]}, "run.toml: steps.#1: Input needs its kind"),
        (
            {"name": "a", "steps": [WALK, {"kind": "wakl"}]},
            "run.toml: steps.#2: unknown kind 'wakl'; did you mean 'walk'?; known: walk, swim",
        ),
        (
            {"name": "a", "steps": [WALK, {"kind": "swim", "zzz": 2}]},
            "run.toml: unknown key 'steps.#2.zzz'; known: kind, lake, deep",
        ),
        (
            {"name": "a", "steps": [{"kind": "walk", "leg": 2}]},
            "run.toml: unknown key 'steps.#1.leg'; did you mean 'legs'?",
        ),
        ({"name": "a", "steps": [{"kind": "swim"}]}, "run.toml: missing key 'steps.#1.lake'"),
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
    assert nearest_name("campaign", ["ad_position", "shown_at"]) == ""  # what is only a little alike is no hint
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
