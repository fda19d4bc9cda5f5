"""The schema: public facts, read strictly, one clear line for each fault."""

import doctest
from pathlib import Path

import pytest

from privads.config import ConfigError
from privads.logs import schema as schema_module
from privads.logs.labels import DelayedLabel
from privads.logs.schema import Schema, known_formats

ADS = """
dataset = "ads-2026q4"
population = 40000
unit = ["user_id"]
time = "shown_at"
[labels]
click = "is_click"
conversion = {time = "converted_at", within_hours = 24}
[reference]
click = "score"
[numeric]
bid_usd = {range = [0, 50]}
[categorical]
campaign = {buckets = 4096}
site = {buckets = 16}
hour = {buckets = 32, part = "hour"}
"""
FACTS = {
    "dataset": "x",
    "population": 10,
    "labels": {"y": "y"},
    "numeric": {"n": {"range": [0, 10]}},
    "categorical": {"c": {"buckets": 100}},
}


def refusal(**changes: object) -> str:
    with pytest.raises(ConfigError) as caught:
        Schema.load({**FACTS, **changes})
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix("schema: ")


def test_doctests_run() -> None:
    assert doctest.testmod(schema_module).failed == 0


def test_a_schema_says_what_the_file_says() -> None:
    schema = Schema.parse(ADS)
    assert schema.tasks == ("click", "conversion")
    assert schema.labels["conversion"] == DelayedLabel(time="converted_at", within_hours=24)
    assert schema.columns == ("user_id", "shown_at", "is_click", "converted_at", "score", "bid_usd", "campaign", "site")
    assert schema.bucket_starts == (0, 4096, 4112, 4144)
    assert schema.fields == 4
    assert (schema.protected_unit, schema.public) == ("user", False)


def test_a_schema_is_frozen_and_its_fingerprint_sees_every_fact() -> None:
    schema = Schema.parse(ADS)
    assert schema.sha256 == Schema.parse(ADS).sha256
    assert schema.sha256 != Schema.parse(ADS.replace("4096", "4097")).sha256
    assert schema.sha256 != Schema.parse(ADS.replace("population", "public = true\npopulation")).sha256
    with pytest.raises(ValueError, match="frozen"):
        schema.population = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"populaton": 3}, "unknown key 'populaton'; did you mean 'population'?"),
        ({"numeric": {"n": {"rang": [0, 1]}}}, "unknown key 'numeric.n.rang'; did you mean 'range'?"),
        ({"categorical": {"c": {"bucket": 5}}}, "unknown key 'categorical.c.bucket'; did you mean 'buckets'?"),
        (
            {"labels": {"y": {"time": "e", "within_hour": 24}}, "time": "t"},
            "unknown key 'labels.y.within_hour'; did you mean 'within_hours'?",
        ),
        ({"labels": {"y": {"time": "e"}}, "time": "t"}, "missing key 'labels.y.within_hours'"),
        (
            {"labels": {"y": {"time": "e", "within_hours": -1}}, "time": "t"},
            "labels.y.within_hours: Input should be greater than 0",
        ),
        (
            {"labels": {"y": {"time": "e", "within_hours": float("inf")}}, "time": "t"},  # overflowed after the charge
            "labels.y.within_hours: Input should be less than or equal to 1000000",
        ),
        ({"labels": {"y": 5}}, "labels.y: Input should be a valid string"),
        (
            {"numeric": {"n": {"range": [1, 0]}}},
            "numeric.n.range: range must be two finite numbers, the smaller one first, got [1.0, 0.0]",
        ),
        ({"numeric": {}, "categorical": {}}, "the schema names no feature: add a [numeric] or [categorical] table"),
        ({"labels": {}}, "the schema names no label: add a [labels] table"),
        ({"labels": {"y": "c"}}, "column 'c' is both a label and a feature: the model would see the answer"),
        ({"reference": {"y": "n"}}, "column 'n' is both a label and a feature: the model would see the answer"),
        ({"reference": {"z": "s"}}, "[reference] names ['z'], which is no label of yes or no"),
        ({"population": 0}, "population: Input should be greater than 0"),
        ({"population": -5}, "population: Input should be greater than 0"),
        ({"rows": 0}, "rows: Input should be greater than 0"),
        ({"categorical": {"c": {"buckets": 1}}}, "categorical.c.buckets: Input should be greater than or equal to 2"),
        (
            {"categorical": {"c": {"buckets": 2**31}}},  # row numbers of the table have 32 bits
            "all buckets together must be at most 2147483647, got 2147483648",
        ),
        ({"unit": ["u", "d"]}, 'a unit of several columns needs a name, such as unit_name = "user-day"'),
        ({"unit": ["u", "u"], "unit_name": "user"}, "unit names a column twice: ['u', 'u']"),
        ({"unit": ["u"], "unit_name": "User"}, "unit_name must be a lower-case word such as 'user-day', got 'User'"),
        ({"unit": ["u"], "unit_name": "example"}, "unit_name 'example' is reserved for single rows"),
        (
            {"labels": {"y": {"time": "e", "within_hours": 1}}},
            "a label with within_hours needs the time of the impression: add time = COLUMN",
        ),
        (
            {"categorical": {"c": {"buckets": 32, "part": "hour"}}},
            "a part of the time needs the time of the impression: add time = COLUMN",
        ),
        (
            {"text": {"missing": ["-1", "N"], "false": ["N"]}},
            "text: missing, true and false name 'N' twice",
        ),
        ({"text": {"delimeter": ";"}}, "unknown key 'text.delimeter'; did you mean 'delimiter'?"),
    ],
    ids=str,
)
def test_a_bad_schema_is_one_clear_line(changes: dict[str, object], expected: str) -> None:
    assert refusal(**changes) == expected


@pytest.mark.parametrize("delimiter", ["", "||", '"', "\n", "\r", "é"])
def test_a_delimiter_that_cannot_separate_is_refused(delimiter: str) -> None:
    assert "text.delimiter" in refusal(text={"delimiter": delimiter})


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^ads\.toml: missing key 'population'$"):
        Schema.parse(ADS.replace("population = 40000", ""), source="ads.toml")


def test_a_file_that_is_no_toml_is_one_clear_line(tmp_path: Path) -> None:
    for content in (b"a == 3", b"\xff = 1"):
        (tmp_path / "ads.toml").write_bytes(content)
        with pytest.raises(ConfigError, match=r"ads\.toml: not valid TOML") as caught:
            Schema.load(tmp_path / "ads.toml")
        assert "\n" not in str(caught.value)


def test_a_schema_is_loaded_from_a_file_a_table_itself_or_a_known_name(tmp_path: Path) -> None:
    (tmp_path / "ads.toml").write_text(ADS)
    schema = Schema.load(tmp_path / "ads.toml")
    assert schema == Schema.load(str(tmp_path / "ads.toml")) == Schema.parse(ADS) == Schema.load(schema)
    assert {"avazu", "criteo", "talkingdata"} <= set(known_formats())
    with pytest.raises(ConfigError, match="neither a file nor one of the formats adult, avazu, criteo"):
        Schema.load("criteoo")


@pytest.mark.parametrize("name", known_formats())
def test_every_known_format_is_public_and_reads(name: str) -> None:
    schema = Schema.load(name)
    assert schema.public
    assert schema.columns


def test_the_unit_of_a_log_is_its_columns_or_single_rows() -> None:
    by_row = Schema.load(FACTS)
    assert by_row.protected_unit == "example"
    assert by_row.population_of("example") == 10
    with pytest.raises(ValueError, match="needs unit columns"):
        by_row.check_unit("user")
    by_user = Schema.load({**FACTS, "unit": ["u"]})
    assert by_user.population_of("user") == 10
    with pytest.raises(ValueError, match="add rows = NUMBER"):
        by_user.population_of("example")
    assert Schema.load({**FACTS, "unit": ["u"], "rows": 70}).population_of("example") == 70
    with pytest.raises(ValueError, match="unit must be 'example' or 'user'"):
        by_user.check_unit("household")
    assert Schema.load({**FACTS, "unit": ["u", "d"], "unit_name": "user-day"}).protected_unit == "user-day"


def test_scoring_needs_no_labels_and_keeps_the_features() -> None:
    schema = Schema.parse(ADS).without_labels()
    assert schema.columns == ("shown_at", "bid_usd", "campaign", "site")
    assert schema.bucket_starts == Schema.parse(ADS).bucket_starts


def test_a_time_format_that_is_none_is_refused_with_the_schema() -> None:
    with pytest.raises(ConfigError, match="time_format '%!' is no strptime format"):
        Schema.parse('time_format = "%!"\n' + ADS, source="ads.toml")


# Features made from other rows


def with_history(history: dict[str, object], **changes: object) -> Schema:
    facts = {
        "dataset": "x",
        "population": 100,
        "rows": 1000,
        "unit": ["user"],
        "labels": {"click": "click"},
        "numeric": {"clicks_before": {"range": [0, 9], "history": history}},
        **changes,
    }
    return Schema.load(facts)


def test_a_users_own_history_is_protected_with_the_user() -> None:
    with_history({}).check_history("user")
    with_history({"of": ["user", "campaign"]}).check_history("user")


def test_a_history_is_refused_where_a_single_row_is_protected() -> None:
    with pytest.raises(ValueError, match=r"'clicks_before' is made from other rows.*or protect 'user'$"):
        with_history({}).check_history("example", records=50)


def test_a_history_of_few_later_rows_needs_the_event_of_all_that_come_and_go() -> None:
    # Found in review: without a row, 3 later rows stay and are others. 4 rows go, and 3 come.
    schema = with_history({"rows": 3})
    for records in (1, 4, 6):
        with pytest.raises(ValueError, match="plan with records = 7, or protect 'user'"):
            schema.check_history("example", records=records)
    schema.check_history("example", records=7)


def test_windows_over_the_same_rows_are_nested_and_over_others_add_up() -> None:
    def field(rows: int, *of: str) -> dict[str, object]:
        return {"range": [0, 9], "history": {"rows": rows, "of": list(of)}}

    nested = with_history({"rows": 3}, numeric={"a": field(3), "b": field(5, "user")})
    apart = with_history({"rows": 3}, numeric={"a": field(3), "b": field(5, "campaign")})
    assert (nested.records_of_row(), apart.records_of_row()) == (11, 17)
    assert with_history({}).records_of_row() is None
    assert Schema.load(FACTS).records_of_row() == 1


def test_a_history_of_a_user_is_refused_where_a_users_day_is_protected() -> None:
    by_day = {"unit": ["user", "day"], "unit_name": "user-day"}
    with pytest.raises(
        ValueError, match=r"share \['user'\], but a user-day owns only those that share \['user', 'day'\]"
    ):
        with_history({"of": ["user"], "rows": 1}, **by_day).check_history("user-day", records=50)
    with_history({}, **by_day).check_history("user-day")


def test_a_history_of_rows_that_nobody_owns_says_whose() -> None:
    with pytest.raises(ValueError, match="say whose, history.of"):
        with_history({"rows": 3}, unit=[])
    with_history({"rows": 3, "of": ["device"]}, unit=[]).check_history("example", records=7)
