"""Randomized labels: charged before read, drawn once, nothing else of a label shown, and learned from rightly."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats
from torch import Tensor

from accounting import mechanisms
from accounting.accountant import epsilon as account
from accounting.budget import Budget, BudgetExceeded
from accounting.ledger import Ledger
from privads.batch import Batch
from privads.logs.logs import Logs
from privads.logs.reader import LogError
from privads.logs.schema import Schema
from privads.models import Logistic
from privads.models.heads import EVENT
from privads.models.losses import per_row
from privads.noise import Randomness
from privads.signals.channel import Channel
from privads.signals.event_reports import EventReports
from privads.signals.randomized_labels import LabelRelease, RandomizedHead, open_states

ALPHA = 1e-6
ENDS = (2.0, 8.0, 24.0)
SPLIT = "2026-11-02T00:00:00"
START = np.datetime64("2026-11-01", "us")
DELAYED = {"time": "bought", "within_hours": 24, "waiting": True, "rate": 0.3}


def budget(epsilon: float = 1.0, **changes: Any) -> Budget:
    return Budget(**{"epsilon": epsilon, "delta": 1e-9, "unit": "example", "neighbors": "replace-label", **changes})


def facts(labels: Mapping[str, Any] | None = None, **changes: object) -> Schema:
    stated = {"buy": DELAYED, "click": "click"} if labels is None else labels
    return Schema.load(
        {
            "dataset": "small",
            "population": 100,
            "unit": ["user"],
            "time": "shown",
            "public": True,
            "labels": stated,
            "categorical": {"site": {"buckets": 8}},
            **changes,
        }
    )


def write(path: Path, *, hours: list[float], delays: list[float | None], clicks: list[int | None]) -> Path:
    """Rows shown so many hours before the split; None is an event that never came."""
    shown = [np.datetime64(SPLIT, "us") - np.timedelta64(round(3.6e9 * one), "us") for one in hours]
    gaps = [None if delay is None else np.timedelta64(round(3.6e9 * delay), "us") for delay in delays]
    bought = [None if gap is None else when + gap for when, gap in zip(shown, gaps, strict=True)]
    rows = len(hours)
    table = pa.table(
        {
            "user": [f"u{row}" for row in range(rows)],
            "shown": pa.array(shown, pa.timestamp("us")),
            "bought": pa.array(bought, pa.timestamp("us")),
            "click": pa.array(clicks, pa.int64()),
            "site": [f"s{row % 3}" for row in range(rows)],
        }
    )
    pq.write_table(table, path)
    return path


HOURS = [30.0, 30.0, 30.0, 30.0, 30.0, 5.0, 5.0, 5.0, 1.0, 1.0]
DELAYS = [None, 1.0, 3.0, 20.0, 29.0, 1.0, 4.0, 7.0, 0.5, None]
CLICKS: list[int | None] = [0, 1, 1, 0, None, 1, 0, 0, 1, 1]
REPORTED = [0, 1, 2, 3, 0, 1, 0, 0, 0, 0]
"""29 hours is beyond the label's window, 4 of 5 lies in a window that is open, and 0.5 of 1 too."""


@pytest.fixture
def train(tmp_path: Path) -> Logs:
    path = write(tmp_path / "log.parquet", hours=HOURS, delays=DELAYS, clicks=CLICKS)
    return Logs(path, facts()).split(after=SPLIT)[0]


def all_of(rows: Any) -> Batch:
    return rows.take(np.arange(len(rows.units)))


def test_a_row_reports_its_event_when_the_window_has_closed(train: Logs) -> None:
    release = LabelRelease.of(train.schema, "buy", budget(), ends_hours=ENDS)
    assert release.states(all_of(train)).tolist() == REPORTED
    whole = LabelRelease.of(train.schema, "buy", budget())
    assert whole.ends_hours == (24.0,)
    assert whole.states(all_of(train)).tolist() == [0, 1, 1, 1, 0, 0, 0, 0, 0, 0]


def test_a_missing_label_is_answered_like_no(train: Logs) -> None:
    release = LabelRelease.of(train.schema, "click", budget())
    assert release.states(all_of(train)).tolist() == [0, 1, 1, 0, 0, 1, 0, 0, 1, 1]
    found = release.run(train, ledger=None, insecure_seed=1)
    assert all_of(found).observed["click"].all()


@pytest.mark.parametrize(("task", "ends"), [("click", ()), ("buy", ENDS), ("buy", (24.0,))])
def test_answers_come_as_often_as_the_channel_says(train: Logs, task: str, ends: tuple[float, ...]) -> None:
    """50,000 answers or more of every state. The noise of epsilon 0.9 in place of 1 moves the share of the true one by
    0.02, 9 standard errors or more where 5.5 are seen: power above 0.999."""
    release = LabelRelease.of(train.schema, task, budget(), ends_hours=ends)
    batch = train.take(np.tile(np.arange(len(HOURS)), 50_000))
    answers, states = release.answers(batch, Randomness()), release.states(batch)
    k = release.channel.states
    for state in set(states.tolist()):
        seen = np.bincount(answers[states == state], minlength=k)
        total = seen.sum()
        law = np.full(k, 1.0)
        law[state] = math.e  # k-ary randomized response: the true one is e^epsilon times as likely as any other
        assert stats.chisquare(seen, total * law / law.sum()).pvalue > ALPHA
    assert release.channel.matrix == pytest.approx(
        np.full((k, k), 1 / (k - 1 + math.e)) * (1 + np.eye(k) * (math.e - 1))
    )


def test_nothing_but_the_answer_depends_on_a_label(tmp_path: Path) -> None:
    """Two logs that differ in the labels alone, answered alike: every tensor that a learner gets is the same."""
    other_delays = [None if one is not None else 1.5 for one in DELAYS]
    other_clicks: list[int | None] = [None if one == 0 else 0 for one in CLICKS]
    for task in ("buy", "click"):
        batches = []
        for name, delays, clicks in (("one", DELAYS, CLICKS), ("two", other_delays, other_clicks)):
            path = write(tmp_path / f"{name}.parquet", hours=HOURS, delays=delays, clicks=clicks)
            log = Logs(path, facts()).split(after=SPLIT)[0]
            release = LabelRelease.of(log.schema, task, budget())
            batches.append(release.seen(all_of(log), np.arange(len(HOURS)) % 2))
        one, two = batches
        assert torch.equal(one.ids, two.ids)
        for mapping in ("labels", "observed", "hours"):
            first, second = getattr(one, mapping), getattr(two, mapping)
            assert set(first) == set(second) <= {task}
            assert all(torch.equal(first[key], second[key]) for key in first)
        assert task == "click" or torch.equal(one.hours["buy"][:, 0], one.hours["buy"][:, 1])


def test_answers_are_drawn_once(train: Logs) -> None:
    found = LabelRelease.of(train.schema, "click", budget()).run(train, ledger=None)
    assert torch.equal(all_of(found).labels["click"], all_of(found).labels["click"])
    some = found.take(np.array([7, 2, 2]))
    assert some.labels["click"].tolist() == found.answers[[7, 2, 2]].tolist()
    assert found.reference("click") is None
    assert set(found.schema.labels) == {"click"}


class Watched:
    """Rows that count how often they are read."""

    def __init__(self, schema: Schema, batch: Batch, *, fails: bool = False) -> None:
        self.schema, self.batch, self.fails, self.reads = schema, batch, fails, 0

    def check(self) -> None:
        pass

    @property
    def units(self) -> np.ndarray:
        self.reads += 1
        if self.fails:
            raise RuntimeError("user u7 has a label of 12")
        return np.arange(self.batch.rows)

    def take(self, row_numbers: np.ndarray) -> Batch:
        self.reads += 1
        return self.batch

    def reference(self, task: str) -> None:
        return None


def watched(train: Logs, *, public: bool = False, fails: bool = False) -> Watched:
    return Watched(train.schema.model_copy(update={"public": public}), all_of(train), fails=fails)


def new_ledger(tmp_path: Path, limit: float = 1.0) -> Ledger:
    return Ledger.init(f"sqlite:///{tmp_path}/budget.db", dataset="small", budget=budget(limit))


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0, math.pi])
def test_the_charge_is_that_of_randomized_response_and_fits_its_own_limit(
    train: Logs, tmp_path: Path, epsilon: float
) -> None:
    rows, ledger = watched(train), new_ledger(tmp_path, epsilon)
    for_windows = LabelRelease.of(rows.schema, "buy", budget(epsilon), ends_hours=ENDS)
    assert mechanisms.pure_epsilon(for_windows.event) == pytest.approx(epsilon, abs=1e-8)
    assert account(for_windows.event, delta=1e-300, neighbors="replace-label").upper <= epsilon
    found = for_windows.run(rows, ledger=ledger)
    assert found.entry is not None
    (entry,) = ledger.history("small")
    assert (entry.state, entry.unit, entry.neighbors) == ("committed", "example", "replace-label")
    assert mechanisms.from_json(entry.event) == for_windows.event
    with pytest.raises(BudgetExceeded):
        for_windows.run(rows, ledger=ledger)


def test_no_row_is_read_before_the_ledger_was_charged(train: Logs, tmp_path: Path) -> None:
    rows, ledger = watched(train), new_ledger(tmp_path, 0.5)
    with pytest.raises(BudgetExceeded):
        LabelRelease.of(rows.schema, "click", budget()).run(rows, ledger=ledger)
    with pytest.raises(ValueError, match="needs its ledger"):
        LabelRelease.of(rows.schema, "click", budget()).run(rows, ledger=None)
    with pytest.raises(ValueError, match="insecure_seed is refused"):
        LabelRelease.of(rows.schema, "click", budget(0.5)).run(rows, ledger=ledger, insecure_seed=1)
    with pytest.raises(ValueError, match="another schema"):
        LabelRelease.of(train.schema, "click", budget(0.5)).run(rows, ledger=ledger)
    assert rows.reads == 0
    assert ledger.history("small") == []


def test_a_failure_tells_no_row_and_gives_nothing_back(train: Logs, tmp_path: Path) -> None:
    rows, ledger = watched(train, fails=True), new_ledger(tmp_path)
    with pytest.raises(LogError) as error:
        LabelRelease.of(rows.schema, "click", budget()).run(rows, ledger=ledger)
    assert "u7" not in str(error.value)
    (entry,) = ledger.history("small")
    assert entry.state == "opened"


def test_the_guarantee_says_what_it_is_and_what_it_is_not_about(train: Logs) -> None:
    guarantee = LabelRelease.of(train.schema, "buy", budget(2.0)).guarantee
    assert (guarantee.epsilon, guarantee.delta, guarantee.unit, guarantee.neighbors) == (
        2.0,
        0.0,
        "example",
        "replace-label",
    )
    assert str(guarantee) == (
        "epsilon <= 2.00 (delta 0, example, replace/label, randomized answers for the label 'buy'); "
        "not protected: which rows there are, and their user, shown, site"
    )


def test_rows_that_a_label_puts_on_a_side_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "log.parquet", hours=HOURS, delays=DELAYS, clicks=CLICKS)
    ownerless = facts(unit=[])
    by_hash, by_time = (Logs(path, ownerless).split(**how)[0] for how in ({"test_fraction": 0.5}, {"after": SPLIT}))  # type: ignore[arg-type]
    release = LabelRelease.of(ownerless, "click", budget())
    with pytest.raises(ValueError, match="split them by time"):
        release.run(by_hash, ledger=None)
    assert len(release.run(by_time, ledger=None).answers) == len(HOURS)


@pytest.mark.parametrize("correction", ["forward", "backward"])
def test_the_head_reads_windows_and_sums_over_those_that_may_still_come(correction: Any) -> None:
    head = LabelRelease.of(facts(), "buy", budget(), ends_hours=ENDS).head(correction)
    outputs = torch.tensor([[0.3, -0.2, 0.5]], dtype=torch.float64)
    event = 1 / (1 + math.exp(-(0.3 + math.log(0.3 / 0.7))))
    scores = np.exp([0.0, -0.2, 0.5])
    p = np.array([1 - event, *(event * scores / scores.sum())])
    read = head.read(outputs)
    assert list(read) == ["window 1", "window 2", "window 3", "probability"]
    assert [one.item() for one in read.values()] == pytest.approx([*p[1:], event])
    matrix = np.full((4, 4), 1.0) + np.eye(4) * (math.exp(head.channel.epsilon) - 1)
    matrix /= matrix.sum(axis=1, keepdims=True)
    for elapsed, open_ in ((30.0, ()), (24.0, ()), (9.0, (0, 3)), (8.0, (0, 3)), (7.9, (0, 2, 3)), (0.0, (0, 1, 2, 3))):
        hours = torch.tensor([[elapsed, elapsed]], dtype=torch.float64)
        losses = [head.loss(outputs, torch.tensor([float(answer)]), hours).item() for answer in range(4)]
        for answer in range(4):
            possible = open_ if answer in open_ else (answer,)
            if correction == "forward":
                chance = (p @ matrix)[list(possible)].sum()
                assert losses[answer] == pytest.approx(-math.log(chance), rel=1e-8, abs=1e-8)
            else:
                known = -math.log(p[list(possible)].sum())
                assert matrix[answer] @ losses == pytest.approx(known, abs=1e-8)


def test_open_states_are_none_and_the_windows_to_come() -> None:
    found = open_states(torch.tensor([0.0, 2.0, 23.9, 24.0]), ENDS).int().tolist()
    assert found == [[1, 1, 1, 1], [1, 0, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0]]


def test_certain_answers_are_the_log_loss() -> None:
    """At epsilon 40 nothing flips: forward and backward are both what a clean label has."""
    logit, label = torch.tensor([0.4, -2.0], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    for correction in ("forward", "backward"):
        head = RandomizedHead(channel=Channel.binary(epsilon=40.0), correction=correction)  # type: ignore[arg-type]
        assert head.loss(logit, label, None).numpy() == pytest.approx(EVENT.loss(logit, label, None).numpy(), rel=1e-12)


@pytest.mark.parametrize(("task", "ends"), [("click", ()), ("buy", ENDS)])
def test_a_model_of_the_library_learns_from_the_answers(train: Logs, task: str, ends: tuple[float, ...]) -> None:
    release = LabelRelease.of(train.schema, task, budget(), ends_hours=ends)
    found = release.run(train, ledger=None, insecure_seed=0)
    batch, model, heads = all_of(found), Logistic(found.schema), {task: release.head()}
    loss = per_row(model(batch), batch, heads=heads)
    assert loss.shape == (len(HOURS),)
    loss.sum().backward()
    assert all(torch.isfinite(one.grad).all() for one in model.parameters() if one.grad is not None)
    # one row's loss does not depend on the others, and an open row of a label of one window says nothing
    alone = found.take(np.array([3]))
    assert per_row(model(alone), alone, heads=heads).item() == pytest.approx(loss[3].item(), rel=1e-5)


def learned(head: RandomizedHead, label: Tensor, elapsed: Tensor) -> list[float]:
    """What rows with the same features teach: the probabilities at the optimum. Rows that are all alike are one."""
    kinds, counts = torch.unique(torch.stack([label.double(), elapsed.double()], dim=1), dim=0, return_counts=True)
    hours = kinds[:, 1:].expand(-1, 2)
    outputs = torch.zeros(1, head.width, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([outputs], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = head.loss(outputs.expand(len(kinds), -1), kinds[:, 0], hours) @ (counts / counts.sum()).double()
        loss.backward()
        return loss

    optimizer.step(closure)
    return [one.item() for one in head.read(outputs.detach()).values()]


@pytest.mark.parametrize("correction", ["forward", "backward"])
def test_late_is_not_negative(correction: Any) -> None:
    """Half of 40,000 rows have only their first window closed, with 0.1 of events there and 0.2 later, at epsilon 2.

    The probability of an event is found within 0.02, five standard errors (0.004 from those that are whole, of which
    there are 20,000 with 4 states); counting late ones as none would find 0.2."""
    epsilon, rows = 2.0, 40_000
    release = LabelRelease.of(facts(), "buy", budget(epsilon), ends_hours=ENDS)
    rng = np.random.default_rng(11)
    states = rng.choice(4, rows, p=[0.7, 0.1, 0.05, 0.15])
    elapsed = np.where(np.arange(rows) % 2 == 0, 24.0, 3.0)
    delay = np.array([25.0, 1.0, 5.0, 20.0])[states]
    came = (states > 0) & (delay <= elapsed)
    batch = Batch(
        dense=torch.zeros(rows, 0),
        ids=torch.zeros(rows, dtype=torch.int64),
        offsets=torch.arange(rows + 1),
        labels={"buy": torch.from_numpy(came.astype(np.float32))},
        observed={"buy": torch.ones(rows, dtype=torch.bool)},
        weights=torch.ones(rows),
        hours={"buy": torch.from_numpy(np.stack([np.minimum(delay, elapsed), elapsed], axis=1))},
    )
    assert release.reports == EventReports(windows=(3,), most=1)
    seen = release.seen(batch, release.answers(batch, Randomness(insecure_seed=12)))
    *windows, probability = learned(release.head(correction), seen.labels["buy"], seen.hours["buy"][:, 1])
    assert probability == pytest.approx(0.3, abs=0.02)
    assert windows == pytest.approx([0.1, 0.05, 0.15], abs=0.02)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LabelRelease.of(facts(), "nonsense", budget()), "is no label of the schema"),
        (lambda: LabelRelease.of(facts(), "click", budget(unit="user")), "the budget must have unit 'example'"),
        (lambda: LabelRelease.of(facts(), "click", budget(neighbors="replace")), "the budget must have unit 'example'"),
        (lambda: LabelRelease.of(facts(), "click", budget(1e-8)), "epsilon must be at least"),
        (lambda: LabelRelease.of(facts(), "click", budget(), ends_hours=(2.0,)), "is a column of 0 and 1"),
        (lambda: LabelRelease.of(facts(), "buy", budget(), ends_hours=(2.0, 8.0)), "must end with the label's, 24"),
        (lambda: LabelRelease.of(facts(), "buy", budget(), ends_hours=(8.0, 2.0, 24.0)), "ends_hours must rise"),
        (
            lambda: LabelRelease.of(facts({"buy": {"time": "bought", "within_hours": 24}}), "buy", budget()),
            "add waiting = true",
        ),
        (
            lambda: LabelRelease.of(facts({"n": {"value": "n", "kind": "count", "most": 3}}), "n", budget()),
            "is a number",
        ),
        (
            lambda: LabelRelease.of(facts(numeric={"n": {"range": [0, 1], "history": {}}}), "click", budget()),
            "may hold their labels",
        ),
        (lambda: RandomizedHead(channel=Channel.binary(epsilon=1.0), ends_hours=ENDS), "ends_hours must be 1"),
        (lambda: RandomizedHead(channel=Channel.binary(epsilon=1.0), rate=1.0), "rate must be in"),
        (
            lambda: RandomizedHead(channel=Channel.binary(epsilon=1.0), ends_hours=(1.0,)).loss(
                torch.zeros(1), torch.zeros(1), None
            ),
            "need how long each row has waited",
        ),
    ],
)
def test_bad_input_is_one_clear_line(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
