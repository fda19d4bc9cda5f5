"""The data sets: where each one's rows are, which are held out, whose they are, and which models fit its labels.

One rule for all: a data set states its rows, split, unit and delta, and nothing else. Rows are held out by time where
the log has one, by a salted hash of the unit's key otherwise, and on TalkingData: of two days and a half, the clicks of
one before any test day would have a day to convert in, with some sixty conversions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet

from privads.logs.convert import convert
from privads.logs.simulator import schema_toml, simulate
from privads.run_config import RunConfig, read_config

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

ONE_LABEL = ("logistic", "fm", "wide-deep", "deepfm", "dcn", "dlrm")
SEVERAL_LABELS = (*ONE_LABEL, "shared-bottom", "mmoe", "ple")

SEEDS, SEEDS_OF_AVAZU = 5, 20
"""Logistic regression's means on Avazu are held against targets, and five seeds leave its AUC open by a hundredth."""

REFERENCE = "logistic"
"""The model that no default may lose to, and the one that targets are of."""

SPLIT_FROM_THE_REST = 0.2
"""The share of units that is held out where there is no time to split by."""

USERS, USERS_OF_A_MILLION, QUICK_USERS = 40_000, 250_000, 2_000
"""Of the simulated logs, about four impressions each."""

TEST_DAY = "2026-11-15T00:00:00"
"""The last of a simulated log's seven days."""

LEFT_OUT = {"facebook-ads-kag": "its rows are sums over people, so there is no row of anyone to train on"}
"""What the data folder also has, and why it is not measured here."""


class CannotMeasureError(ValueError):
    """A data set that cannot be measured here; the message says why."""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set by its public facts.

    config: (data folder, folder for files of its own) -> the job, for any model and budget. models: those that fit.
    epsilons: at most these are measured; None measures all that are asked for. seeds: of `REFERENCE`, where nobody
    says how many; other models have `SEEDS`.
    """

    config: Callable[[Path, Path], RunConfig]
    models: tuple[str, ...] = ONE_LABEL
    epsilons: tuple[float | None, ...] | None = None
    seeds: int = SEEDS

    def runs_of(self, model: str) -> int:
        """Returns how many runs ``model`` has at each epsilon where nobody says how many."""
        return self.seeds if model == REFERENCE else SEEDS


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a job needs to know about public rows. split: `test_after` or `test_fraction` of the [data] table."""

    unit: str = "example"
    delta: float = 1e-5
    split: Mapping[str, Any] = field(default_factory=lambda: {"test_fraction": SPLIT_FROM_THE_REST})
    population: int | None = None

    def config(self, path: Path, schema: str | Path) -> RunConfig:
        """Returns the job that trains on the rows at ``path``."""
        return RunConfig.model_validate(
            {
                "data": {"path": str(path), "schema": str(schema), **self.split},
                "model": {"name": "logistic"},
                "plan": {"epsilon": 3.0, "delta": self.delta, "unit": self.unit, "population": self.population},
            }
        )


def example(file: str, *, seeds: int = SEEDS) -> DataSet:
    """Returns the data set of an example's configuration, with its rows under the data folder."""

    def config(data: Path, _: Path) -> RunConfig:
        found = read_config(EXAMPLES / file)
        path = _existing(data.joinpath(*Path(found.data.path).parts[-2:]))
        return found.model_copy(update={"data": found.data.model_copy(update={"path": str(path)})})

    return DataSet(config=config, seeds=seeds)


def named(path: str, schema: str, facts: Facts, models: tuple[str, ...] = ONE_LABEL) -> DataSet:
    """Returns a data set whose format privads knows by name."""
    return DataSet(config=lambda data, _: facts.config(_existing(data / path), schema), models=models)


def converted(paths: Mapping[str, str], converter: str, facts: Facts, models: tuple[str, ...] = ONE_LABEL) -> DataSet:
    """Returns a data set that is no table. paths: {part: place}, the parts converted each by itself and read as one."""

    def config(data: Path, folder: Path) -> RunConfig:
        places = {part: _existing(data / path) for part, path in paths.items()}
        outs = {part: folder / converter / f"part={part}" / "rows.parquet" for part in paths}
        for part, out in outs.items():
            if not out.exists():
                convert(converter, places[part], out)
        first, *others = outs.values()
        return facts.config(folder / converter / "*" / "rows.parquet" if others else first, first.parent / "ads.toml")

    return DataSet(config=config, models=models)


def simulated_config(folder: Path, *, users: int, epochs: float | None = None, seed: int = 0) -> RunConfig:
    """Returns the configuration of a simulated log, which is written to ``folder``."""
    path, schema = folder / f"{users}-{seed}.parquet", folder / f"{users}.toml"
    if not path.exists():
        pyarrow.parquet.write_table(simulate(users, seed=seed), path)
        schema.write_text(schema_toml(users, public=True), encoding="utf-8")
    found = Facts(unit="user", delta=1e-6, split={"test_after": TEST_DAY}).config(path, schema)
    return found.model_copy(update={"plan": found.plan.model_copy(update={"epochs": epochs})})


def simulator(users: int, models: tuple[str, ...] = ONE_LABEL, *, epsilons: Any = None) -> DataSet:
    """Returns a simulated log of so many users."""
    return DataSet(config=lambda _, folder: simulated_config(folder, users=users), models=models, epsilons=epsilons)


def _existing(path: Path) -> Path:
    if not path.exists():
        raise CannotMeasureError(f"there is no {path}")
    return path


A_MILLION = "simulator-1m"

DATA_SETS: dict[str, DataSet] = {
    "adult": named("adult/adult.data.gz", "adult", Facts()),
    "alibaba": converted(
        {"all": "alibaba-ecomm"},
        "alibaba",
        Facts(unit="user", split={"test_after": "2019-06-18T00:00:00"}),
        SEVERAL_LABELS,
    ),
    "avazu": example("avazu_ctr.toml", seeds=SEEDS_OF_AVAZU),
    "criteo": example("criteo_ctr.toml"),
    "hillstrom": named("hillstrom/hillstrom.csv.gz", "hillstrom", Facts(), (*SEVERAL_LABELS, "esmm")),
    "ipinyou": converted({"all": "ipinyou-deepctr"}, "libfm", Facts()),
    "obd": converted(
        {name: f"obd-small/{name.replace('-', '/')}" for name in ("bts-men", "random-men", "random-women")},
        "open-bandit",
        Facts(split={"test_after": "2019-11-29T00:00:00"}, population=30_000),
    ),
    "online-shoppers": named("online-shoppers/online_shoppers_intention.csv.gz", "online-shoppers", Facts()),
    # one column, the item: there is nothing to cross it with
    "pinterest": converted({"all": "pinterest-10core/train.txt.gz"}, "interactions", Facts(unit="user"), ("logistic",)),
    "talkingdata": example("talkingdata_conversion.toml"),
    "wns": named(
        "wns-ad-click/wns_ad_click.csv.gz",
        "wns-ad-click",
        Facts(unit="user", split={"test_after": "2017-07-07T00:00:00"}),
    ),
    "simulator": simulator(USERS),
    A_MILLION: simulator(USERS_OF_A_MILLION, ("logistic", "fm"), epsilons=(3.0, None)),
}
"""Every data set by the name that `--only` takes."""
