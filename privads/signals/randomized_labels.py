"""Labels that went through randomized response once, and the head with which a model of any kind learns from them.

A label of yes or no has the states no and yes. A delayed label that waits has W windows that end at stated hours: its
states are none, and the first, ..., W-th window in which the event came. A row's state is answered by k-ary randomized
response (`EventReports`), once, before anything is learned; what is done with the answers later is free.

    guarantee   epsilon at delta 0, of one row (unit `example`) under neighbors `replace-label`: two logs that differ in
                one row's label are alike. Features, when a row was shown and which rows there are is not protected;
                an event that is the label of several rows is protected in each of them by itself.

What a row shows of its answer by now: windows that have closed. An event in a window that has not is no report yet, and
late is not negative: the likelihood sums over the answers that may still arrive (`channel`). A label that is missing or
misread is answered like "no", since whether there is one is part of the label. Guarantees, each with a test: the ledger
is charged in full before the first row is read; answers are drawn once; nothing but the answer depends on a label.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from dp_accounting import dp_event
from numpy.typing import NDArray
from torch import Tensor

from accounting import mechanisms
from accounting.budget import EXAMPLE, Budget, Neighbors, PrivacyUnit
from accounting.ledger import Ledger
from accounting.report.phrase import bound
from privads.batch import Batch, Rows
from privads.charge import charged, check_may_read
from privads.logs.labels import DelayedLabel, ValueLabel
from privads.logs.logs import Logs
from privads.logs.reader import telling_no_row
from privads.logs.schema import Schema
from privads.models.heads import logit_of, rate_of
from privads.noise import Randomness
from privads.signals.channel import Channel, Correction, corrected_loss, first_window
from privads.signals.event_reports import EventReports

LEDGER_STEP = 2e-9
"""Answers are given at an epsilon this much below the budget's: the ledger counts in steps of 1e-9 and rounds up."""

LEAST_EPSILON = 1e-6
"""Of a budget for labels: below, answers say nothing."""

_CHUNK_ROWS = 1 << 16

Whole = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RandomizedHead:
    """What a model's outputs say of a state that is seen through ``channel``; a `privads.models.heads.Head`.

    Outputs: the logit of any event, ``z - logit_of(rate)``, and for each window after the first its log odds against
    the first, given an event. ``p_0 = 1 - sigmoid(z)``, ``p_w = sigmoid(z) softmax(0, ...)_w``. The state 0 is none.

    ends_hours: when each window closes, rising; empty where every answer has arrived. A row that has waited for e hours
    has the windows open whose end is later. rate: about how often there is an event, where a model begins.
    """

    channel: Channel
    correction: Correction = "forward"
    ends_hours: tuple[float, ...] = ()
    rate: float = 0.5

    def __post_init__(self) -> None:
        if self.ends_hours:
            _check_ends(self.ends_hours)
            if len(self.ends_hours) != self.width:
                raise ValueError(f"ends_hours must be {self.width}, one for each window, got {len(self.ends_hours)}")
        if not 0 < self.rate < 1:
            raise ValueError(f"rate must be in (0, 1), got {self.rate}")

    @property
    def width(self) -> int:
        """One less than there are states."""
        return self.channel.states - 1

    def loss(self, outputs: Tensor, label: Tensor, hours: Tensor | None) -> Tensor:
        """Returns (rows,) the corrected loss of the answer. label: (rows,) the answers; hours: see `Batch`."""
        if self.ends_hours and hours is None:
            raise ValueError("answers of windows need how long each row has waited: Batch.hours")
        open_ = None if hours is None or not self.ends_hours else open_states(hours[:, 1], self.ends_hours)
        log_p = self.log_probabilities(outputs)
        return corrected_loss(self.correction, log_p, label.long(), self.channel, open_=open_)

    def read(self, outputs: Tensor) -> dict[str, Tensor]:
        """Returns the probability of each window where there are several, and of any event."""
        states = self.log_probabilities(outputs).exp()
        windows = {f"window {place}": states[:, place] for place in range(1, self.width + 1)} if self.width > 1 else {}
        return {**windows, "probability": torch.sigmoid(self._columns(outputs)[:, 0] + logit_of(self.rate))}

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """Returns (rows, states) the logarithm of each state's probability."""
        columns = self._columns(outputs)
        logit = columns[:, :1] + logit_of(self.rate)
        scores = torch.cat([torch.zeros_like(logit), columns[:, 1:]], dim=1)
        return torch.cat([F.logsigmoid(-logit), F.logsigmoid(logit) + F.log_softmax(scores, dim=1)], dim=1)

    def _columns(self, outputs: Tensor) -> Tensor:
        return outputs.reshape(len(outputs), self.width)


@dataclass(frozen=True, kw_only=True)
class LabelGuarantee:
    """What holds of the answers, and of whatever is learned from them. unprotected: what it says nothing about."""

    epsilon: float
    unit: PrivacyUnit
    neighbors: Neighbors
    task: str
    unprotected: tuple[str, ...]
    delta: float = 0.0

    def __str__(self) -> str:
        released = f"randomized answers for the label {self.task!r}"
        claim = bound(self.epsilon, delta=self.delta, unit=self.unit, neighbors=self.neighbors, released=released)
        return f"{claim}; not protected: which rows there are, and their {', '.join(self.unprotected)}"


@dataclass(frozen=True, kw_only=True)
class LabelRelease:
    """The plan of answering one label of every row once: what is drawn, what it costs, and how to learn from it.

    Made by `of`, from public facts only. source: the facts about the log. ends_hours: see `RandomizedHead`.
    """

    source: Schema
    task: str
    budget: Budget
    ends_hours: tuple[float, ...]

    @classmethod
    def of(cls, source: Schema, task: str, budget: Budget, *, ends_hours: tuple[float, ...] = ()) -> Self:
        """Returns the plan with the least noise that keeps ``budget``.

        ends_hours: of a label that waits, when its windows close, the last with the label's own; by default only that.
        budget: of unit `example` and neighbors `replace-label`. Its delta is what the ledger is asked at; none is used.
        """
        source.check_event(task)
        label = source.labels[task]
        if (budget.unit, budget.neighbors) != (EXAMPLE, "replace-label"):
            raise ValueError(
                "randomized labels protect single rows under neighbors 'replace-label': the budget must have unit "
                f"'example' and these neighbors, got {budget.unit!r} and {budget.neighbors!r}"
            )
        if budget.epsilon < LEAST_EPSILON:
            raise ValueError(f"epsilon must be at least {LEAST_EPSILON} for answers to say anything")
        if isinstance(label, DelayedLabel):
            if not label.waiting:
                raise ValueError(
                    f"whether {task!r} is known yet must follow from when its row was shown: add waiting = true to it"
                )
            ends_hours = ends_hours or (label.within_hours,)
            _check_ends(ends_hours)
            if ends_hours[-1] != label.within_hours:
                raise ValueError(f"the last window must end with the label's, {label.within_hours:g} hours")
        elif ends_hours:
            raise ValueError(f"ends_hours is about labels that wait, and {task!r} is a column of 0 and 1")
        if source.records_of_row() != 1:
            raise ValueError("a feature made from other rows may hold their labels: leave out columns with a history")
        return cls(source=source, task=task, budget=budget, ends_hours=ends_hours)

    @property
    def epsilon(self) -> float:
        """At which answers are drawn."""
        return self.budget.epsilon - LEDGER_STEP

    @property
    def reports(self) -> EventReports:
        """The states that answers are drawn from: at most one report, in one of the windows."""
        return EventReports(windows=(len(self.ends_hours) or 1,), most=1)

    @property
    def channel(self) -> Channel:
        """Between states numbered as in `RandomizedHead`."""
        return Channel.of_reports(self.reports, epsilon=self.epsilon, groups=first_window(self.reports))

    @property
    def event(self) -> dp_event.DpEvent:
        """What is executed on a row's label: k-ary randomized response."""
        p = self.reports.randomize_probability(self.epsilon)
        return mechanisms.randomized_response(randomize_probability=p, categories=self.reports.states)

    @property
    def guarantee(self) -> LabelGuarantee:
        """What holds of the answers."""
        shown = () if self.source.time is None else (self.source.time,)
        columns = (*self.source.unit, *shown, *self.source.numeric, *self.source.categorical)
        return LabelGuarantee(
            epsilon=self.budget.epsilon,
            unit=self.budget.unit,
            neighbors=self.budget.neighbors,
            task=self.task,
            unprotected=tuple(dict.fromkeys(columns)),
        )

    @property
    def schema(self) -> Schema:
        """The facts for a model that learns from the answers: this task alone, with as many outputs as its head reads.

        A label of several windows is stated as levels, of which a model has one output less, as of states.
        """
        label = self.source.labels[self.task]
        column = label if isinstance(label, str) else label.column
        states = self.reports.states
        own = column if states == 2 else ValueLabel(value=column, kind="ordinal", most=states)
        return self.source.model_copy(update={"labels": {self.task: own}, "reference": {}})

    def head(self, correction: Correction = "forward") -> RandomizedHead:
        """Returns what the outputs of a model for `schema` mean; give it to `losses.per_row` as ``heads``."""
        rate = rate_of(self.source.labels[self.task])
        return RandomizedHead(
            channel=self.channel,
            correction=correction,
            ends_hours=self.ends_hours,
            rate=0.5 if rate is None else rate,
        )

    def states(self, batch: Batch) -> Whole:
        """Returns (rows,) what each row would report by now without noise."""
        label, known = batch.labels[self.task], batch.observed[self.task]
        if not self.ends_hours:
            return np.asarray((known & (label == 1)).numpy(), dtype=np.int64)
        delay, elapsed = batch.hours[self.task].unbind(1)
        ends = torch.tensor(self.ends_hours, dtype=delay.dtype)
        window = torch.searchsorted(ends, delay.contiguous()).clamp(
            max=len(ends) - 1
        )  # the first that ends at or after
        reported = known & (label == 1) & (ends[window] <= elapsed)
        return np.asarray(torch.where(reported, window + 1, 0).numpy(), dtype=np.int64)

    def answers(self, batch: Batch, randomness: Randomness) -> Whole:
        """Returns (rows,) an answer for each row, drawn now; charges nothing, and twice for one row costs twice."""
        number = first_window(self.reports)  # of each state of the reports, as a head counts them
        drawn = self.reports.randomized(
            np.argsort(number)[self.states(batch)], epsilon=self.epsilon, randomness=randomness
        )
        return np.asarray(number[drawn])

    def seen(self, batch: Batch, answers: Whole) -> Batch:
        """Returns the rows with ``answers`` in place of the label, its delay and what was known of it."""
        hours = {}
        if self.ends_hours:
            elapsed = batch.hours[self.task][:, 1]
            hours[self.task] = torch.stack([elapsed, elapsed], dim=1)
        return replace(
            batch,
            labels={self.task: torch.from_numpy(answers).to(batch.weights.dtype)},
            observed={self.task: torch.ones(batch.rows, dtype=torch.bool)},
            hours=hours,
        )

    def run(
        self, rows: Rows, *, ledger: Ledger | None, purpose: str = "randomize labels", insecure_seed: int | None = None
    ) -> "RandomizedRows":
        """Returns the rows with their answers: checks, charges the ledger, reads, in this order."""
        schema = self.source
        if rows.schema.sha256 != schema.sha256:
            raise ValueError(f"these rows have another schema than the plan for {schema.dataset!r}")
        check_may_read(schema, ledger, insecure_seed=insecure_seed)
        if isinstance(rows, Logs):
            rows.check_side()
        randomness = Randomness(insecure_seed=insecure_seed)
        rows.check()
        with (
            charged(ledger, schema.dataset, self.event, self.budget, purpose=purpose) as entry,
            telling_no_row("the labels cannot be read as the schema says", public=schema.public),
        ):
            total = len(rows.units)
            starts = range(0, total, _CHUNK_ROWS)
            parts = [np.arange(start, min(start + _CHUNK_ROWS, total)) for start in starts]
            drawn = [self.answers(rows.take(part), randomness) for part in parts]
        answers = np.concatenate([*drawn, np.empty(0, dtype=np.int64)])
        return RandomizedRows(release=self, rows=rows, answers=answers, entry=None if entry is None else str(entry.id))


@dataclass(frozen=True, kw_only=True, eq=False)
class RandomizedRows:
    """Rows whose label is an answer, drawn once: `Rows` that any number of models may learn from.

    answers: (rows,) states, 0 is none; of a row whose window is still open see `RandomizedHead`. entry: of the ledger
    that was charged.
    """

    release: LabelRelease
    rows: Rows
    answers: Whole
    entry: str | None = None

    @property
    def schema(self) -> Schema:
        """The public facts, for a model that learns from the answers."""
        return self.release.schema

    def check(self) -> None:
        """Refuse what the rows refuse; reads none."""
        self.rows.check()

    @property
    def units(self) -> NDArray[np.int64]:
        """(rows,) who owns each row."""
        return self.rows.units

    def take(self, row_numbers: Whole) -> Batch:
        """Returns these rows with their answers."""
        return self.release.seen(self.rows.take(row_numbers), self.answers[row_numbers])

    def reference(self, task: str) -> None:
        """Returns None: another predictor's column may have been made from the label."""


def open_states(elapsed_hours: Tensor, ends_hours: tuple[float, ...]) -> Tensor:
    """Returns (rows, 1 + windows) bool, which states of a row cannot be told apart after so many hours: none at all,
    and the windows that have not closed; no state is open once the last window has closed.
    """
    ends = torch.tensor(ends_hours, dtype=elapsed_hours.dtype, device=elapsed_hours.device)
    later = elapsed_hours[:, None] < ends
    return torch.cat([later[:, -1:], later], dim=1)


def _check_ends(ends_hours: tuple[float, ...]) -> None:
    if not all(a < b for a, b in zip((0.0, *ends_hours), ends_hours, strict=False)):
        raise ValueError(f"ends_hours must rise from above 0, got {list(ends_hours)}")
