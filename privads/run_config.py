"""`run.toml` as a value. It imports no torch, so that a typing error is answered at once."""

import itertools
import math
import tomllib
from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from accounting.report.fields import Text as Line
from privads.config import ConfigError, override, parse_model

SQLITE = "sqlite:///"

DEFAULT_MODEL = "logistic"
"""The model where a run names none, whatever its population, budget and labels: with privacy no other one was better on
all data sets, and nothing public told on which it would be (`docs/evaluation.md`, "What privacy costs")."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataTable(_Table):
    """Where the rows are, and which of them are held out."""

    path: str
    schema_: str = Field(alias="schema")
    test_after: datetime | None = None
    test_fraction: float | None = Field(default=None, gt=0, lt=1)
    salt: str = "privads"
    keep_cache: bool = False

    @model_validator(mode="after")
    def _one_split(self) -> Self:
        if self.test_after is not None and self.test_fraction is not None:
            raise ValueError("test_after and test_fraction are two ways to split: give one")
        return self


class LedgerTable(_Table):
    """Where the budget is kept."""

    url: str


class ModelTable(BaseModel):
    """Which model, and its settings."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str = DEFAULT_MODEL


class PlanTable(_Table):
    """What the run may cost. Everything but epsilon, delta and unit has a default computed from public facts."""

    epsilon: float | None = None
    delta: float | None = None
    unit: str
    without_privacy: bool = False
    population: int | None = Field(default=None, gt=0)
    batch: int | None = Field(default=None, gt=0)
    epochs: float | None = Field(default=None, gt=0)
    rows_per_unit: int | None = Field(default=None, gt=0)
    clip_norm: float | None = None
    learning_rate: float | None = None
    averaging: float | None = None
    table_noise: Literal["dense", "lazy", "adafest", "fest"] = "dense"
    sampler: Literal["poisson", "truncated-poisson", "balls-in-bins"] = "poisson"
    largest_batch: int | None = Field(default=None, gt=0)
    most_units: int | None = Field(default=None, gt=0)
    rows_at_once: int | None = Field(default=None, gt=0)
    records: int = Field(default=1, gt=0)
    combined: Literal["sum", "mean"] = "sum"
    clipping: Literal["flat", "per-group"] = "flat"
    clip_quantile: float | None = Field(default=None, gt=0, lt=1)
    selection_noise_multiplier: float | None = Field(default=None, gt=0)
    selection_threshold: float | None = None

    @model_validator(mode="after")
    def _budget_is_stated(self) -> Self:
        if not self.without_privacy and (self.epsilon is None or self.delta is None):
            missing = "epsilon" if self.epsilon is None else "delta"
            raise ValueError(f"missing key 'plan.{missing}': a privacy budget has no default")
        return self


class FeaturesTable(_Table):
    """What the model reads in place of the columns, and what fitting it may cost beside the run.

    transforms: each by its kind, as in `privads.features.transforms`. file: where the fitted features are kept; where
    it is there already, it is read and nothing is charged again.
    """

    transforms: list[dict[str, Any]] = Field(min_length=1)
    epsilon: float | None = None
    delta: float | None = None
    rows_per_unit: int = Field(default=1, gt=0)
    file: str | None = None


class EvaluationTable(_Table):
    """What releasing metrics of the held-out rows may cost beside the run.

    segments: columns, and of each the values that are judged apart. calibration: the map that is fitted to what the
    metrics are read from, for nothing more.
    """

    epsilon: float
    delta: float | None = None
    rows_per_unit: int = Field(default=1, gt=0)
    segments: dict[str, list[str]] = {}
    calibration: Literal["platt", "isotonic"] | None = None


class SumTable(_Table):
    """A sum of a column's or a label's values, as `privads.signals.query.Sum` has it."""

    column: str
    most: float = 1.0
    step: float = 1.0
    most_of_unit: float | None = None


class NoisyTableTable(_Table):
    """One table of a release: its columns, and what is counted where that is not as in `[release]`."""

    by: list[str]
    label: str | None = None
    sums: list[SumTable] | None = None
    counts: bool | None = None


class ReleaseTable(_Table):
    """Noisy tables of the rows (`privads release`), and what making them may cost.

    columns: a table by each, with pairs one by each pair too. values, edges: the public places of columns; a category
    without values has those found in the log, a number without edges ``cells`` places over its range. values_from: of a
    column, the folder or file of an earlier release, whose table by it names the values. label, sums, counts: what is
    counted. tables: more of them, one by one. shares_by: tables released before, by which the budget is shared for the
    least relative error of cells of at least ``least``. consistent: make them agree, at no cost.
    """

    epsilon: float | None = None
    delta: float | None = None
    rows_per_unit: int = Field(default=1, gt=0)
    rows_per_key: int | None = Field(default=None, gt=0)
    keys_per_unit: int | None = Field(default=None, gt=0)
    columns: list[str] = []
    pairs: bool = False
    values: dict[str, list[str]] = {}
    values_from: dict[str, str] = {}
    edges: dict[str, list[float]] = {}
    cells: int = Field(default=16, ge=1, le=1000)
    label: str | None = None
    sums: list[SumTable] = []
    counts: bool = True
    tables: list[NoisyTableTable] = []
    shares_by: str | None = None
    least: float = Field(default=100.0, gt=0, allow_inf_nan=False)
    consistent: bool = False
    backend: Literal["table", "opendp"] = "table"
    out: str | None = None


class AttributionTable(_Table):
    """What `privads attribute` makes of a log: by which interface, which cells, and what the interface is asked for.

    keys: columns of the impression, and of each the values that are shown; every combination is a cell. start, days:
    the impressions that count. epsilon: of the interface, by its own unit; what it costs an owner of the rows is
    another figure, which `plan.epsilon` must cover. value: a numeric column; without it conversions are counted.
    """

    api: Literal["w3c", "event", "summary"]
    epsilon: float = Field(gt=0, allow_inf_nan=False)
    label: str
    keys: dict[str, list[str]] = Field(min_length=1)
    start: datetime
    days: int = Field(ge=1, le=3660)
    lookback_days: int = Field(default=30, ge=1, le=30)
    value: str | None = None
    conversion_site: str | None = None
    impression_site: str | None = None
    value_steps: int = Field(default=100, ge=1, le=1 << 20)
    credit: list[float] = Field(default=[1.0], min_length=1, max_length=10)
    site_budget: float = Field(default=1.0, gt=0, le=4294)
    global_budget: float = Field(default=8.0, gt=0, le=4294)
    impression_site_quota: float = Field(default=4.0, gt=0, le=4294)
    epoch_days: int = Field(default=7, ge=1, le=3660)
    source_type: Literal["navigation", "event"] = "event"
    windows_days: list[int] | None = Field(default=None, min_length=1, max_length=5)
    value_edges: list[float] = Field(default=[], max_length=31)
    reports: int | None = Field(default=None, ge=1, le=20)
    sources_per_unit: int = Field(default=1, ge=1, le=1000)
    source_time: Literal["excluded", "included"] = "excluded"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for key in sorted(self.model_fields_set):
            apis = _ONLY_OF.get(key, (self.api,))
            if self.api not in apis:
                raise ValueError(f"{key} belongs to api = {' or '.join(map(repr, apis))}, and api is {self.api!r}")
        for column, values in self.keys.items():
            if not values:
                raise ValueError(f"keys.{column} names no value")
            if len(set(values)) < len(values):
                raise ValueError(
                    f"keys.{column} names a value twice: it would be shown with two noises, and paid for once"
                )
        most = MOST_API_EPSILON[self.api]
        if self.epsilon > most:
            raise ValueError(f"epsilon must be at most {most} for api = {self.api!r}, got {self.epsilon}")
        if self.value is None and {"value_steps", "value_edges"} & self.model_fields_set:
            raise ValueError("value_steps and value_edges are about a conversion's value: name its column, value")
        if self.value is not None and self.api == "event" and not self.value_edges:
            raise ValueError("event-level reports tell a value by its place among edges: state value_edges")
        for name, rising in (("value_edges", self.value_edges), ("windows_days", self.windows_days or [])):
            if not all(a < b for a, b in itertools.pairwise(rising)) or any(not math.isfinite(one) for one in rising):
                raise ValueError(f"{name} must rise, got {rising}")
        if self.windows_days and not 1 <= self.windows_days[0] <= self.windows_days[-1] <= self.lookback_days:
            raise ValueError(f"windows_days must be from 1 to lookback_days, {self.lookback_days}")
        if not all(0 < part < math.inf for part in self.credit):
            raise ValueError("credit must be finite and above 0")
        return self


MOST_API_EPSILON = {"w3c": 4294, "event": 14, "summary": 64}
"""The largest that each interface takes: 32 bits of micro-epsilon; Chromium's; the aggregation service's."""

_ONLY_OF = {
    **dict.fromkeys(("impression_site", "value_steps", "credit", "site_budget", "global_budget"), ("w3c",)),
    **dict.fromkeys(("impression_site_quota", "epoch_days"), ("w3c",)),
    **dict.fromkeys(("source_type", "windows_days", "value_edges"), ("event",)),
    "reports": ("event", "summary"),
    **dict.fromkeys(("sources_per_unit", "source_time"), ("summary",)),
}


class LearnTable(_Table):
    """A model from released tables (`privads learn`). tables: files and folders of `privads release`.

    label: where the tables are about several. features: "none" learns from the tables alone and reads no row; "public"
    and "unprotected" read the rows' features, which nothing protects then: "public" states that they are declared so.
    independent: states that columns are independent where no table is by both, of tables alone.
    sample: rows of a synthetic log to draw, which costs nothing.
    """

    tables: list[str] = Field(min_length=1)
    label: str | None = None
    features: Literal["none", "public", "unprotected"] = "none"
    independent: bool = False
    sample: int = Field(default=0, ge=0, le=100_000_000)
    out: str | None = None


class ReportTable(_Table):
    """What a run's report says that only people know. Each text is one line; what is left out is "not stated"."""

    author: Line | None = None
    product: Line | None = None
    description: Line | None = None
    curators: list[Line] = []
    intended_use: Line | None = None
    region: Line | None = None
    sector: Line | None = None
    published: date | None = None
    epsilon_chosen_by: Line | None = None
    epsilon_reason: Line | None = None
    access: Line | None = None
    log_retention: Line | None = None


class AuditTable(_Table):
    """An audit of the run with ``canaries`` made-up units of a ``kind``, as `privads.attacks.canaries` says."""

    canaries: int = Field(ge=50, le=100_000)
    kind: Literal["gradient", "row", "user"] = "gradient"


class RunTable(_Table):
    """Where the run folder and a working checkpoint go, the run it starts from, and seeds."""

    out: str | None = None
    start: str | None = None
    checkpoint: str | None = Field(default=None, min_length=1)
    checkpoint_every: int | None = Field(default=None, gt=0)
    seed: int = 0
    insecure_seed: int | None = None
    secure: bool = False

    @model_validator(mode="after")
    def _checkpoints_have_a_place(self) -> Self:
        if self.checkpoint_every is not None and self.checkpoint is None:
            raise ValueError("checkpoint_every says how often, and run.checkpoint is missing: name the file")
        return self


class RunConfig(_Table):
    """The whole of `run.toml`. federation: for `privads federate`, which knows its keys; no other verb reads them."""

    data: DataTable
    plan: PlanTable
    model: ModelTable = ModelTable()
    features: FeaturesTable | None = None
    evaluation: EvaluationTable | None = None
    release: ReleaseTable | None = None
    learn: LearnTable | None = None
    attribution: AttributionTable | None = None
    federation: dict[str, Any] | None = None
    ledger: LedgerTable | None = None
    audit: AuditTable | None = None
    report: ReportTable | None = None
    run: RunTable = RunTable()


def read_config(file: Path, settings: Sequence[str] = ()) -> RunConfig:
    """Returns the configuration in ``file`` with ``settings`` (TABLE.KEY=VALUE) applied.

    Paths inside the file are relative to its folder, paths in ``settings`` to the working directory.
    """
    try:
        data: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from None
    data = _anchored(data, file.parent)
    for setting in settings:
        data = override(data, setting)
    return parse_model(RunConfig, data, source=str(file))


def _anchored(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns ``data`` with its relative paths read from ``folder``."""
    result = dict(data)
    table = result.get("data")
    if isinstance(table, dict):
        table = dict(table)
        if isinstance(table.get("path"), str):
            table["path"] = str(folder / table["path"])
        if isinstance(table.get("schema"), str) and (folder / table["schema"]).is_file():
            table["schema"] = str(folder / table["schema"])
        result["data"] = table
    run = result.get("run")
    if isinstance(run, dict):
        paths = {key: str(folder / run[key]) for key in ("start", "checkpoint", "out") if isinstance(run.get(key), str)}
        result["run"] = {**run, **paths}
    for name, key in (("features", "file"), ("release", "out"), ("release", "shares_by"), ("learn", "out")):
        table = result.get(name)
        if isinstance(table, dict) and isinstance(table.get(key), str):
            result[name] = {**table, key: str(folder / table[key])}
    release = result.get("release")
    if isinstance(release, dict) and isinstance(release.get("values_from"), dict):
        places = release["values_from"].items()
        found = {key: str(folder / one) if isinstance(one, str) else one for key, one in places}
        result["release"] = {**release, "values_from": found}
    for name, key in (("learn", "tables"), ("federation", "silo_paths")):
        table = result.get(name)
        if isinstance(table, dict) and isinstance(table.get(key), list):
            result[name] = {**table, key: [str(folder / one) if isinstance(one, str) else one for one in table[key]]}
    ledger = result.get("ledger")
    if isinstance(ledger, dict) and isinstance(ledger.get("url"), str) and ledger["url"].startswith(SQLITE):
        result["ledger"] = {**ledger, "url": f"{SQLITE}{folder / ledger['url'].removeprefix(SQLITE)}"}
    return result
