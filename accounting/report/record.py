"""The privacy report of a run, as data.

`Report` is the source of truth: its JSON form is canonical, its JSON Schema is generated from the classes
below, and Markdown and HTML are rendered from it (`render.py`). What is missing is "not stated", never blank:
a text refuses to be empty, and None is rendered as not stated. Numbers that are stated twice are compared.
"""

import json
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import ConfigDict, Field, JsonValue, computed_field, model_validator

from accounting.budget import Neighbors
from accounting.mechanisms import merged
from accounting.report.audits import AuditResult
from accounting.report.fields import (
    Amount,
    Count,
    Delta,
    Json,
    Positive,
    Record,
    Sha256,
    Text,
    Time,
    Verdict,
    canonical,
)
from accounting.report.guarantee import Guarantee
from accounting.report.phrase import NOT_STATED, bound
from accounting.report.scores import TaskMetrics, ValueMetrics
from accounting.report.setting import Justification, Product, Security, Setting
from accounting.report.started import StartedFrom

Status = Literal["enforced", "checked", "asserted", "violated"]
"""How an assumption is known to hold: by construction, by a test on this run, by a person's word; or not."""


INTERVAL = "the exact figure is in"
"""Begins the part of the headline that states the interval of epsilon, where its lower end is known."""


class Run(Record):
    """Which run this is, and what is needed to repeat it."""

    id: Text
    created_at: Time
    library_version: Text
    library_commit: Text | None = None
    """Of the source it ran from, "-dirty" behind it where files differed; None where that cannot be known."""
    author: Text | None = None
    versions: dict[Text, Text]
    python: Text = NOT_STATED
    seconds: Amount | None = None
    seed: int | None
    """Governs initialization and bootstrap only; noise and batches never come from it."""
    insecure_seed: int | None
    """Makes noise and batches repeatable. Whoever knows it can subtract the noise."""
    config: Json
    """The exact configuration; a password inside a URL is replaced by stars."""
    started_from: tuple[StartedFrom, ...] = ()
    """The run whose weights this one began with, the run that that one had begun with, and so on."""

    @property
    def costs_before(self) -> bool:
        """Whether an earlier run that cost something is in the weights that this one began with."""
        return any(one.epsilon is not None for one in self.started_from)


class Mechanism(Record):
    """What was done to the data. `event` is the whole of it, as the accountant and the ledger read it."""

    event: Json
    sampler: Text
    sampling_rate: Annotated[float, Field(gt=0, le=1)] | None
    steps: Count
    batch: Positive
    """Expected units in a batch."""
    rows_per_unit: Count | None
    bounded_by: Text = NOT_STATED
    """The code that enforces rows_per_unit."""
    clip_norm: Positive | None
    noise_multiplier: Positive | None
    noise_std: Positive | None
    """noise_multiplier x clip_norm, in the gradient's own unit."""
    randomness: Text
    floating_point: Text
    sampled: Text = "units"
    """What is sampled and clipped by itself."""
    clipping: Text = NOT_STATED
    table_noise: Text = NOT_STATED
    other_noise_multipliers: tuple[Positive, ...] = ()
    """Of what a step releases of the same sample beside the gradients: counts of clipped units, of used rows."""
    implementation: Text = NOT_STATED
    """The code that computed, clipped and noised."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.clip_norm is not None and self.noise_multiplier is not None and self.noise_std is not None:
            product = self.noise_multiplier * self.clip_norm
            if not math.isclose(product, self.noise_std, rel_tol=1e-9):
                raise ValueError(f"noise_std is {self.noise_std}, not noise_multiplier x clip_norm = {product}")
        nodes = list(_nodes(self.event))
        for key, stated in (("sampling_rate", self.sampling_rate), ("noise_multiplier", self.noise_multiplier)):
            found = {node[key] for node in nodes if isinstance(node.get(key), int | float)}
            if stated is None or not found or stated in found:
                continue
            if key == "noise_multiplier" and any(math.isclose(self._noise_of_a_step, one) for one in found):
                continue
            raise ValueError(f"{key} is {stated}, but the event says {', '.join(map(str, found))}")
        bins = next((node["bins"] for node in nodes if isinstance(node.get("bins"), int)), None)
        steps = self.steps if bins is None else math.ceil(self.steps / bins)  # there the event counts epochs
        counts = {node["count"] for node in nodes if isinstance(node.get("count"), int)}
        if counts and steps not in counts:
            raise ValueError(f"steps is {self.steps}, but the event says {', '.join(map(str, counts))}")
        return self

    @property
    def _noise_of_a_step(self) -> float:
        """The noise multiplier of one Gaussian that loses what all sums of a step lose together."""
        return merged((self.noise_multiplier or math.inf, *self.other_noise_multipliers))

    @property
    def is_private(self) -> bool:
        """False if any part of the event is a step without privacy."""
        return all(node.get("event") != "non-private" for node in _nodes(self.event))


def _nodes(value: JsonValue) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from _nodes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _nodes(inner)


class Assumption(Record):
    """One condition of the guarantee, how it is known to hold, and by what or whom."""

    text: Text
    status: Status
    by: Text


class Data(Record):
    """Public facts of the data set."""

    dataset: Text
    population: Count | None
    """Declared, never counted: the true number of units is private under add/remove."""
    public: bool
    split: Text = NOT_STATED
    schema_sha256: Sha256 | None = None
    labels: tuple[Text, ...]
    categorical: Count
    numeric: Count
    unit_columns: tuple[Text, ...]
    features: Text | None = None
    """What fitting the transforms of the columns cost; None where the columns are read as the schema says."""


class Model(Record):
    """What was trained, and how."""

    name: Text
    parameters: Count
    optimizer: Text
    learning_rate: Positive | None
    averaging: Text = NOT_STATED
    calibration: Text | None = None
    """The map from the model's probabilities to calibrated ones; the metrics are of those before it."""
    settings: Json = Field(default_factory=dict)
    weights_sha256: Sha256 | None = None
    """Of the weights that were handed out, by which a later run knows what it starts from."""


class LedgerBudget(Record):
    """The budget of the data set, before and after this run, as the ledger holds it.

    ``this_run``: what the run was charged, in its own terms, ``charged_unit`` and ``charged_neighbors``; the ledger
    turned it into a cost for ``unit`` where that is another one. ``open_entries``: charges that count as spent and are
    not closed, this run's among them until it ends. ``blocks``: the parts of the data set that were charged, none where
    it was charged whole. ``refresh``: when a spent budget comes back.
    """

    dataset: Text
    unit: Text
    neighbors: Neighbors
    rule: Text = NOT_STATED
    """How charges add up: only under basic composition is what is left the limit less their sum."""
    limit_epsilon: Positive
    limit_delta: Delta
    spent_before_epsilon: Amount
    spent_before_delta: Amount | None = None
    this_run_epsilon: Amount
    this_run_delta: Amount | None = None
    charged_unit: Text
    charged_neighbors: Neighbors
    left_epsilon: Amount
    left_delta: Amount
    entry: Text
    head: Text
    open_entries: Count | None = None
    blocks: tuple[Text, ...] = ()
    refresh: Text = NOT_STATED


class Headline(NamedTuple):
    """The parts of the headline: what comes before the claim, the claim, what comes after it."""

    warnings: tuple[str, ...]
    claim: str
    notes: tuple[str, ...]

    def without_interval(self) -> "Headline":
        """Returns the headline without the interval that the figure is in."""
        return self._replace(notes=tuple(note for note in self.notes if not note.startswith(INTERVAL)))

    def __str__(self) -> str:
        return "".join(f"{warning}: " for warning in self.warnings) + " — ".join((self.claim, *self.notes))


def _publish_headline(schema: dict[str, Any]) -> None:
    """Add the computed headline to the schema: it stands in every report file."""
    schema["$schema"], schema["$id"] = "https://json-schema.org/draft/2020-12/schema", "urn:privads:report:1"
    schema["properties"]["headline"] = {"title": "Headline", "type": "string", "readOnly": True}
    schema["required"] = sorted({*schema["required"], "headline"})


class Report(Record):
    """The privacy report of one run. ``guarantee`` is None for a run without privacy.

    ``covered``, ``not_covered``: the uses of the data that epsilon covers, and those it does not, a sentence each.
    """

    model_config = ConfigDict(json_schema_extra=_publish_headline)

    report_version: Literal["1"] = "1"
    run: Run
    guarantee: Guarantee | None
    mechanism: Mechanism
    assumptions: tuple[Assumption, ...]
    covered: tuple[Text, ...] = ()
    not_covered: tuple[Text, ...]
    data: Data
    model: Model
    budget: LedgerBudget | None
    metrics: tuple[TaskMetrics, ...]
    values: tuple[ValueMetrics, ...] = ()
    audit: tuple[AuditResult, ...] = ()
    product: Product | None = None
    setting: Setting | None = None
    security: Security | None = None
    justification: Justification | None = None

    @model_validator(mode="after")
    def _blocks_agree(self) -> Self:
        promise, budget = self.guarantee, self.budget
        if promise and not self.mechanism.is_private:
            raise ValueError("a guarantee cannot rest on an event without privacy")
        if promise and budget:
            charged = budget.charged_unit, budget.charged_neighbors
            if (promise.unit, promise.neighbors) != charged:
                raise ValueError(
                    f"the guarantee is for {promise.unit} ({promise.neighbors}), "
                    f"but what was charged is for {charged[0]} ({charged[1]})"
                )
        for one in self.audit:
            self._check_verdict(one)
        return self

    def _check_verdict(self, audit: AuditResult) -> None:
        """Refuse a verdict that the bound does not bear: more than the claim was proved, or it was not."""
        if self.guarantee is None:
            if audit.verdict == "violation":
                raise ValueError(f"{audit.method} contradicts a claim that the report does not make")
        elif audit.delta == self.guarantee.delta and audit.kind == "bound":
            above = audit.epsilon_lower > self.guarantee.epsilon
            if above != (audit.verdict == "violation"):
                raise ValueError(
                    f"{audit.method} proves epsilon {audit.epsilon_lower}, the claim is {self.guarantee.epsilon}: "
                    f"the verdict cannot be {audit.verdict!r}"
                )

    def with_status(self, status: Status) -> tuple[str, ...]:
        """Returns the texts of the assumptions of one status."""
        return tuple(assumption.text for assumption in self.assumptions if assumption.status == status)

    @property
    def contradictions(self) -> tuple[AuditResult, ...]:
        """The audits that prove more than the claim."""
        return tuple(one for one in self.audit if one.verdict == "violation")

    @property
    def verdict(self) -> Verdict:
        """The headline in one word."""
        if self.guarantee is None:
            return "not private"
        if self.with_status("violated") or self.contradictions:
            return "violated"
        if self.run.insecure_seed is not None:
            return "not private"
        return "conditional" if self.with_status("asserted") or not self.assumptions else "private"

    @property
    def planted(self) -> int:
        """How many canaries its model has learned from at most, beside those of the runs that it goes on from."""
        return max((one.canaries for one in self.audit if one.in_model), default=0)

    @property
    def headline_parts(self) -> Headline:
        """The headline before it is joined to one line."""
        about = [f"goes on from run {one.run}, which is not counted here" for one in self.run.started_from[:1]]
        if self.data.features is not None:
            about.append(f"its features by themselves: {self.data.features}")
        about += [f"its metrics by themselves: {one}" for one in dict.fromkeys(t.release for t in self.metrics) if one]
        planted = self.planted + sum(one.canaries for one in self.run.started_from)
        if planted:
            about.append(f"its model has learned from up to {planted:,} planted canaries")
        if self.data.public:
            about.append(f"public data ({self.data.dataset})")
        if self.guarantee is None:
            return Headline((), "NOT PRIVATE", ("trained without differential privacy", *about))
        violated, asserted = self.with_status("violated"), self.with_status("asserted")
        warnings = ["VIOLATED"] if violated or self.contradictions else []
        within = self.guarantee.interval()
        notes = [] if within is None else [f"{INTERVAL} {within}"]
        notes += [f"an audit proves {self.proved(one)}" for one in self.contradictions]
        if violated:
            notes.append(f"does not hold: {_counted(violated, 'violated')}")
        if self.run.insecure_seed is not None:
            warnings.append("NOT PRIVATE TO ANYONE WHO KNOWS THE SEED")
        if asserted:
            notes.append(f"rests on {_counted(asserted, 'asserted')}")
        if not self.assumptions:
            notes.append("its assumptions are not stated")
        return Headline(tuple(warnings), self.guarantee.phrase(), (*notes, *about))

    def proved(self, audit: AuditResult) -> str:
        """Returns what an audit found, in the terms of the claim that it is about, and how sure that is."""
        figure = self.figure(audit, ">=" if audit.kind == "bound" else "=")
        if audit.kind == "estimate":
            return f"an estimate of {figure} by {audit.method}"
        return f"{figure} at {audit.confidence} by {audit.method}"

    def figure(self, audit: AuditResult, relation: str) -> str:
        """Returns an audit's epsilon in the terms of the claim, but for what its attacker saw, not what is released."""
        claim = self.guarantee
        return bound(
            audit.epsilon_lower,
            delta=audit.delta,
            unit=audit.canary_kind if claim is None else claim.unit,
            neighbors="add-remove" if claim is None else claim.neighbors,
            released="what the attacker saw",
            relation=relation,
        )

    @computed_field  # type: ignore[prop-decorator]
    @property
    def headline(self) -> str:
        """The whole report in one line."""
        return str(self.headline_parts)

    def to_json(self) -> str:
        """Returns the canonical JSON: sorted keys, two spaces, UTF-8 as it is, one newline at the end."""
        fields = self.model_dump(mode="json")
        return canonical(fields)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Returns the report that `to_json` wrote; refuses unknown keys and a headline not its own.

        The headline may be that of privads before it stated intervals.
        """
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise ValueError("a report is one JSON object")
        stated = fields.pop("headline", None)
        report = cls.model_validate_json(json.dumps(fields), strict=True)
        if stated not in (report.headline, str(report.headline_parts.without_interval())):
            raise ValueError(f"the headline says {stated!r}, the facts say {report.headline!r}")
        return report


def _counted(texts: tuple[str, ...], status: str) -> str:
    return f"{len(texts)} {status} assumption{'s' if len(texts) > 1 else ''}: {'; '.join(texts)}"
