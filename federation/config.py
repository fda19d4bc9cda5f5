"""The `[federation]` table of `run.toml`. It imports no torch, so that a typing error is answered at once.

What the run may cost, whom it protects and which data, model and ledger it is about is said where `privads train` says
it: one file serves both verbs, and this table, which may be left out, holds what only rounds have.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from privads.config import parse_model
from privads.run_config import RunConfig


class FederationTable(BaseModel):
    """How rounds are run. Everything has a default computed from public facts (`federation.defaults`).

    silo_paths: the rows of each silo, in place of ``data.path``. silos: how many of them a user may be in; by default
    all. shared_units: as `federate` has it. server: the optimizer that is fed the noised mean. All else: as
    `FederatedPlan` and `Task` have it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    cohort: int | None = Field(default=None, gt=0)
    rounds: int | None = Field(default=None, gt=0)
    clip_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    clip_quantile: float | None = Field(default=None, gt=0, lt=1)
    over_selection: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    silo_paths: list[str] = Field(default=[], min_length=1)
    silos: int | None = Field(default=None, gt=0)
    shared_units: bool = False
    mechanism: Literal["central", "local"] = "central"
    participations: int | None = Field(default=None, gt=0)
    local_learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    local_steps: int | None = Field(default=None, gt=0)
    rows_per_user: int | None = Field(default=None, gt=0)
    local_rows: int | None = Field(default=None, gt=0)
    table_noise: Literal["dense", "lazy", "adafest"] = "dense"
    selection_noise_multiplier: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    selection_threshold: float | None = Field(default=None, allow_inf_nan=False)
    server: Literal["momentum", "sgd", "adam"] | None = None
    server_learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class _Around(BaseModel):
    """Stands around the table, so that errors name its keys as they stand in the file."""

    federation: FederationTable


def federation_table(config: RunConfig, *, source: Path) -> FederationTable:
    """Returns the table of a job; raises `ConfigError` naming the key, and the nearest known one."""
    return parse_model(_Around, {"federation": config.federation or {}}, source=str(source)).federation
