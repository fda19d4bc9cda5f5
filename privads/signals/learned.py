"""Models learned from released tables, and what each of them promises to whom.

Two ways. From tables alone (`from_tables`): no row is read, so the model costs nothing beyond the tables, and it draws
synthetic logs too. With the rows' features (`with_features`): better where columns are tied to each other, but the rows
are read as they are. Unless they are declared public, what is left is a promise about labels: with the features fixed,
changing all labels of one unit moves the counts of positives and of negatives, each a vector of numbers from 0, from
``a`` to ``b``, and ``|a - b|^2 <= |a|^2 + |b|^2``. So it moves a part of a table by at most sqrt(2) times what leaving
the unit out does, and the release is the same Gaussian mechanism with its noise multipliers divided by sqrt(2).
"""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from dp_accounting import dp_event
from numpy.typing import NDArray

from accounting import accountant, mechanisms
from accounting.budget import EXAMPLE
from accounting.report.phrase import bound
from privads.config import ConfigError
from privads.logs.logs import Logs
from privads.logs.raw import Raw
from privads.logs.schema import Schema
from privads.signals.encoding import Encoding, Features, Floats
from privads.signals.glm import NoisyLogistic, learn
from privads.signals.margins import Margin
from privads.signals.maximum_entropy import MaximumEntropy, Progress
from privads.signals.maximum_entropy_fit import fit_maximum_entropy
from privads.signals.query import OTHER, Grid, OneOf, Query, Source
from privads.signals.release import drawing_delta
from privads.signals.report import Report
from privads.signals.rows import public_places
from privads.signals.saved import PartFacts
from privads.signals.statistics import noisy_sums
from privads.signals.summary import named_by
from privads.signals.table import NoisyTable, Terms, by_release

FORMAT = "privads learned 1"
OTHER_TEXT = "other"
"""What a synthetic log has in the place of a value that no table names."""

Public = Grid | OneOf


@dataclass(frozen=True, kw_only=True, eq=False)
class Learned:
    """A model of a label by public places of columns. parts: the columns, in the order of the model's."""

    parts: tuple[Public, ...]
    label: str
    model: NoisyLogistic | MaximumEntropy
    guarantee: str

    def predict(self, rows: NDArray[np.integer]) -> Floats:
        """Returns (rows,) probabilities. rows: (rows, columns) places, as `places_of` gives them."""
        return self.model.predict(np.asarray(rows, dtype=np.int64))

    def sample(self, count: int, *, seed: int, progress: Progress | None = None) -> pa.Table:
        """Returns a synthetic log of ``count`` rows: categories as texts, numbers as the middles of their cells.

        Free of cost: it comes from the tables alone. Refused of a model that read rows, which has no law of them.
        """
        if not isinstance(self.model, MaximumEntropy):
            raise ValueError("a synthetic log is drawn from a model of tables alone: learn it without features")
        rows, labels = self.model.sample(count, seed=seed, progress=progress)
        columns = {part.column: _texts(part, rows[:, i]) for i, part in enumerate(self.parts)}
        return pa.table({**columns, self.label: pa.array(labels)})

    def sample_schema(self, dataset: str, count: int) -> dict[str, Any]:
        """Returns the schema of `sample`, as TOML holds it. It is public: no row of it is anyone's."""
        numeric = {
            part.column: {"range": [part.edges[0], part.edges[-1]]} for part in self.parts if isinstance(part, Grid)
        }
        categorical = {
            part.column: {"buckets": max(16, 1 << (4 * len(part.names) - 1).bit_length())}
            for part in self.parts
            if isinstance(part, OneOf)
        }
        facts: dict[str, Any] = {"dataset": f"{dataset}-synthetic", "population": count, "public": True}
        facts["labels"] = {self.label: self.label}
        return facts | {name: one for name, one in (("numeric", numeric), ("categorical", categorical)) if one}

    def save(self, file: Path) -> None:
        """Write the model as JSON."""
        kind = "maximum-entropy" if isinstance(self.model, MaximumEntropy) else "logistic"
        parts = [PartFacts.of(part).model_dump(exclude_none=True) for part in self.parts]
        head = {"format": FORMAT, "guarantee": self.guarantee, "label": self.label, "parts": parts, "kind": kind}
        file.write_text(json.dumps({**head, "model": self.model.as_dict()}, allow_nan=False), encoding="utf-8")

    @classmethod
    def load(cls, file: Path) -> "Learned":
        """Returns the model that `save` wrote; raises `ConfigError`, one line, where the file holds none."""
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            if found["format"] != FORMAT:
                raise ValueError(f"its format is {found['format']!r}, not {FORMAT!r}")
            parts = tuple(PartFacts.model_validate(one).part for one in found["parts"])
            read = MaximumEntropy if found["kind"] == "maximum-entropy" else NoisyLogistic
            return cls(
                parts=tuple(one for one in parts if not isinstance(one, str)),
                label=str(found["label"]),
                model=read.from_dict(found["model"]),
                guarantee=str(found["guarantee"]),
            )
        except OSError as error:
            raise ConfigError(f"cannot read {file}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{file} holds no model that `privads learn` wrote ({type(error).__name__})") from None


def from_tables(
    tables: Sequence[NoisyTable],
    *,
    label: str | None = None,
    independent: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Learned:
    """Returns the maximum-entropy model of tables by single columns and by each pair of them; reads no row.

    tables: with the label's positives and negatives, by public places. independent: pairs may be missing, and you
    state that what two such columns have in common is in other pairs, or nothing. Where they are tied, their one effect
    is counted twice, and the model may be far worse than a constant. seed: of the chains that expectations are taken
    over.
    """
    task = label_of(tables, label)
    chosen = [table for table in tables if table.query.label == task and len(table.query.by) in (1, 2)]
    parts = _parts(chosen)
    apart = _apart(chosen, parts)
    if apart and not independent:
        raise ValueError(
            f"no table is by both {apart[0][0]!r} and {apart[0][1]!r}, so that it is not known how they go together: "
            "release tables by pairs too, or state learn.independent = true, under which an effect that such columns "
            "share is counted twice"
        )
    rows: list[Margin] = []
    positives: list[Margin] = []
    for table in chosen:
        columns = [parts.index(part) for part in _public(table.query)]
        order = np.argsort(columns)
        shape = table.query.shape
        places = tuple(sorted(columns))
        for kept, values, noise_std in (
            (rows, table.rows, table.rows_std),
            (positives, table.values["positives"], table.count_std),
        ):
            cells = np.transpose(values.reshape(shape), order)
            kept.append(Margin(columns=places, values=cells, noise_std=noise_std))
    source = _costs(releases(chosen))
    model = fit_maximum_entropy(rows, positives, source=source, seed=seed, progress=progress)
    guarantee = f"learned from tables alone: {source}; no row was read"
    if apart:
        guarantee += "; columns that no table has both of are taken to be independent"
    return Learned(parts=parts, label=task, model=model, guarantee=guarantee)


def with_features(
    tables: Sequence[NoisyTable],
    source: Source,
    *,
    features: Literal["public", "unprotected"],
    label: str | None = None,
    seed: int = 0,
) -> Learned:
    """Returns the logistic model of the rows' features and the tables' sums of labels. Reads features, no label.

    source: the rows that were counted; without the schema's labels it need not have any. features: "public" where they
    are declared so, else "unprotected": the model then promises something about labels only, and says so. seed: of
    which rows of a unit are read, as many as the tables count.
    """
    task, public = label_of(tables, label), features == "public"
    chosen = [table for table in tables if table.query.by and _positives(table, task) is not None]
    parts = _parts(chosen)
    _check_no_labels(source, parts, public=public)
    sizes = {part.column: len(part.names) for part in parts}
    encoding = Encoding(sizes=sizes, tables=tuple(table.query.columns for table in chosen))
    found = {}
    for own, table in zip(encoding.tables, chosen, strict=True):
        measure = _positives(table, task)
        stds = table.noise_std[str(measure)]
        found[own] = table.values[str(measure)], float(stds.max())
    terms = releases(chosen)
    said = _costs(terms, labels_alone=not public)
    neighbors = terms[0].budget.neighbors if public else "replace-label"
    statistic = noisy_sums(encoding, found, neighbors=neighbors, terms=said)
    rows = places_of(source, parts, bound_of=terms[0], seed=seed)
    model = learn(Features.of(encoding, rows, public=public), statistic)
    guarantee, schema = model.guarantee, source.schema
    if terms[0].budget.unit != EXAMPLE:
        how = "taken to be public" if public else "NOT protected"
        guarantee += f"; whose rows they are ({', '.join(schema.unit)}) is {how}"
    return Learned(parts=parts, label=task, model=model, guarantee=guarantee)


def with_report(
    report: Report, source: Source, *, measure: str, features: Literal["public", "unprotected"], label: str
) -> Learned:
    """Returns the logistic model of the rows' features and an attribution report's conversions by key.

    Rows whose key the report does not show are left out, as they are there. measure: of the report, what each
    impression that is credited adds 1 to; credit that budgets or caps kept back looks like none. label: what to call
    it. As in `with_features`, features that are not public leave a promise about labels: a unit's conversions are
    replaced by leaving them out and putting others in, which is two steps of the report's own neighbors.
    """
    parts = tuple(
        OneOf(column=column, values=tuple(dict.fromkeys(str(key[i]) for key in report.keys)))
        for i, column in enumerate(report.by)
    )
    _check_no_labels(source, parts, public=features == "public")
    if measure not in report.values:
        raise ValueError(f"the report has no measure {measure!r}; it has: {', '.join(report.values)}")
    encoding = Encoding(sizes={part.column: len(part.names) for part in parts}, tables=(tuple(report.by),))
    shape = tuple(len(part.names) for part in parts)
    values, variance = np.zeros(shape), np.zeros(shape)
    for place, key in enumerate(report.keys):
        cell = tuple(part.values.index(str(one)) for part, one in zip(parts, key, strict=True))
        values[cell] = report.values[measure][place]
        variance[cell] = report.noise_std[measure][place] ** 2
    rows = places_of(source, parts)
    shown = (np.asarray(variance)[tuple(rows.T)] > 0) if len(rows) else np.zeros(0, dtype=np.bool_)
    public, budget = features == "public", report.budget
    told = budget.neighbors if public else "replace-label"
    said = report.cost if public or budget.neighbors == "replace-label" else _twice(report)
    statistic = noisy_sums(encoding, {tuple(report.by): (values, 0.0)}, neighbors=told, terms=said)
    statistic = replace(statistic, variance=variance.ravel())
    model = learn(Features.of(encoding, rows[shown], public=public), statistic)
    return Learned(parts=parts, label=label, model=model, guarantee=model.guarantee)


def _twice(report: Report) -> str:
    """Returns the cost of two steps: (2 epsilon, (1 + exp(epsilon)) delta)."""
    budget = report.budget
    delta = (1 + np.exp(report.epsilon)) * budget.delta
    return bound(
        2 * report.epsilon, delta=delta, unit=budget.unit, neighbors="replace-label", released=f"{report.api} report"
    )


def places_of(
    source: Source, parts: Sequence[Public], *, bound_of: Terms | None = None, seed: int = 0
) -> NDArray[np.int32]:
    """Returns (rows, columns) the places of each row. Reads the rows' features.

    bound_of: of each unit at most as many rows are taken as these terms' tables count, at random.
    """
    check_parts(source.schema, parts)
    found, owners = [], []
    bounded = bound_of is not None and bound_of.budget.unit != EXAMPLE
    if bound_of is not None:
        source.schema.check_unit(bound_of.budget.unit)
    for raw in source.raw():
        found.append(places_in(raw, parts))
        if bounded:
            owners.append(pd.DataFrame(dict(enumerate(raw.units))))
    rows = np.concatenate(found) if found else np.zeros((0, len(parts)), dtype=np.int32)
    if bound_of is None or not bounded or not len(rows):
        return rows
    unit = pd.concat(owners).groupby(list(owners[0].columns), sort=False).ngroup().to_numpy()
    order = np.lexsort((np.random.default_rng(seed).random(len(unit)), unit))
    ranked = unit[order]
    return rows[np.sort(order[np.arange(len(unit)) - np.searchsorted(ranked, ranked) < bound_of.bounds.rows])]


def check_parts(schema: Schema, parts: Sequence[Public]) -> None:
    """Refuse columns that the schema does not have."""
    for part in parts:
        Query(by=(part,)).check(schema)


def places_in(raw: Raw, parts: Sequence[Public]) -> NDArray[np.int32]:
    """Returns (rows, columns) the places of rows that were read."""
    return np.stack([public_places(raw, part) for part in parts], axis=1)


def label_of(tables: Sequence[NoisyTable], label: str | None) -> str:
    """Returns the label that the tables are about; the one that is asked for, where there are several."""
    known = list(dict.fromkeys(one.query.label for one in tables if one.query.label is not None))
    known += [one.column for table in tables for one in table.query.sums if one.column not in known]
    if label is None and len(known) == 1:
        return known[0]
    if label not in known:
        said = f"the tables are about {', '.join(map(repr, known)) or 'no label'}"
        raise ValueError(f"{said}: say which to learn" if label is None else f"{said}, not {label!r}")
    return label


def releases(tables: Sequence[NoisyTable]) -> list[Terms]:
    """Returns the terms of each release that the tables come from, once."""
    return [terms for terms, _ in by_release(tables)]


def under_labels(terms: Terms) -> dp_event.DpEvent:
    """Returns the event of a release for a unit whose labels change and whose features stay; see the module.

    It is a Gaussian mechanism for a change of that length, whatever the neighbors are called. A key that is found by a
    label that is known may be the unit's alone before the change or after it: what is hidden with probability 1 - d on
    both sides is within ``(-log(1 - d), d)``. The draws' distance costs delta for this epsilon, which is at most twice
    the tables'.
    """
    made: list[dp_event.DpEvent] = []
    for event, count in mechanisms.parts(terms.event):
        if isinstance(event, dp_event.GaussianDpEvent):
            event = mechanisms.gaussian(noise_multiplier=event.noise_multiplier / np.sqrt(2.0))
        elif isinstance(event, mechanisms.ApproximateDpEvent) and event.epsilon == 0:
            event = mechanisms.approximate_dp(epsilon=-math.log1p(-event.delta), delta=event.delta)
        else:
            raise ValueError("labels alone are accounted for Gaussian noise: declare the features public")
        made.append(mechanisms.repeated(event, count))
    drawing = mechanisms.approximate_dp(epsilon=0.0, delta=drawing_delta(2 * terms.budget.epsilon))
    return mechanisms.composed(*made, drawing)


def _costs(terms: Sequence[Terms], *, labels_alone: bool = False) -> str:
    """Returns what each release costs, and where there are several, what all of them do to whoever is in all.

    Together at the sum of the deltas, where they protect the same unit; units of different names do not add up.
    """
    said = [_cost([one], "all tables", labels_alone=labels_alone) + named_by(one.named_by) for one in terms]
    if len(terms) > 1:
        alike = len({(one.budget.unit, one.budget.neighbors) for one in terms}) == 1
        released = f"all {len(terms)} releases together"
        said.append(_cost(terms, released, labels_alone=labels_alone) if alike else f"{released}: not stated")
    return "; ".join(said)


def _cost(terms: Sequence[Terms], released: str, *, labels_alone: bool) -> str:
    budget, delta = terms[0].budget, sum(one.budget.delta for one in terms)
    event = mechanisms.composed(*(under_labels(one) if labels_alone else one.event for one in terms))
    # What the labels move is in the event already: it is accounted as it is.
    spent = accountant.epsilon(event, delta=delta, neighbors="add-remove" if labels_alone else budget.neighbors).upper
    neighbors = "replace-label" if labels_alone else budget.neighbors
    return bound(spent, delta=delta, unit=budget.unit, neighbors=neighbors, released=released)


def _check_no_labels(source: Source, parts: Sequence[Public], *, public: bool) -> None:
    """Refuse features that may be made of labels, such as how often a user had clicked, and rows that were chosen by
    their labels: what is read as it is would tell them.
    """
    schema = source.schema
    if isinstance(source, Logs) and not schema.public:
        source.check_side()
    for part in () if public else parts:
        own = schema.numeric.get(part.column) or schema.categorical.get(part.column)
        if own is not None and own.history is not None:
            raise ValueError(
                f"{part.column!r} is made from other rows, perhaps from their labels, which nothing would protect "
                'then: learn without it, from tables alone, or declare features = "public"'
            )


def _positives(table: NoisyTable, label: str) -> str | None:
    """Returns the measure that counts positives."""
    if table.query.label == label:
        return "positives"
    own = next((one for one in table.query.sums if one.column == label and one.most == one.step == 1.0), None)
    return None if own is None else own.name


def _public(query: Query) -> tuple[Public, ...]:
    return tuple(part for part in query.by if not isinstance(part, str))


def _parts(tables: Sequence[NoisyTable]) -> tuple[Public, ...]:
    if not tables:
        raise ValueError("no table is by a column and counts the label: release.label, or a sum of it, is missing")
    for table in tables:
        found = next((part for part in table.query.by if isinstance(part, str)), None)
        if found is not None or not table.query.dense:
            raise ValueError(
                f"the values of {found!r} were found in the log, and a model needs tables with declared ones: release "
                f"again with release.values, or with release.values_from.{found} = this release's folder"
            )
    parts = list(dict.fromkeys(part for table in tables for part in _public(table.query)))
    if len({part.column for part in parts}) < len(parts):
        raise ValueError("tables must have the same places of a column wherever they are by it")
    return tuple(parts)


def _apart(tables: Sequence[NoisyTable], parts: Sequence[Public]) -> list[tuple[str, str]]:
    """Returns the pairs of columns that no table is by."""
    together = {frozenset(table.query.columns) for table in tables}
    columns = itertools.combinations([part.column for part in parts], 2)
    return [pair for pair in columns if frozenset(pair) not in together]


def _texts(part: Public, places: NDArray[np.int64]) -> pa.Array:
    if isinstance(part, Grid):
        middles = np.append(part.middles, np.nan)[places]
        return pa.array(middles, mask=np.isnan(middles))
    names = [OTHER_TEXT if name == OTHER else name for name in part.names]
    return pa.array(np.array(names, dtype=object)[places], type=pa.string())
