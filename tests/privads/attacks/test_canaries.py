"""Canaries are units like any other: behind the log's rows, put in by fair coins, drawn by the plan's own sampler."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from accounting.budget import Budget
from privads.attacks.canaries import Canaries, WithCanaries, entropy
from privads.attacks.padded import PaddedUnits
from privads.attacks.users import made_up
from privads.batch import Batch, joined, taken
from privads.models import DCN, Logistic
from privads.training.fit import fit
from tests.privads.attacks.helpers import audited, log, plan, schema

COINS = tuple(bool(place % 3) for place in range(60))


def values(batch: Batch) -> list[Any]:
    """Every field of a batch, by row: categories as lists, whatever their length."""
    fields = (len(batch.offsets) - 1) // batch.rows
    bags = [
        batch.ids[a:b].tolist() for a, b in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True)
    ]
    found = zip(batch.dense.tolist(), batch.labels["click"].tolist(), batch.weights.tolist(), strict=True)
    return [[*one, bags[row * fields : (row + 1) * fields]] for row, one in enumerate(found)]


def test_rows_are_taken_in_any_order_with_bags_of_any_length() -> None:
    batch = Batch(
        dense=torch.tensor([[0.0], [1.0], [2.0]]),
        ids=torch.tensor([5, 6, 7, 8, 9, 10]),
        offsets=torch.tensor([0, 2, 2, 3, 5, 5, 6]),
        labels={"click": torch.tensor([0.0, 1.0, 2.0])},
        observed={"click": torch.tensor([True, False, True])},
        weights=torch.tensor([1.0, 2.0, 3.0]),
    )
    found = taken(batch, np.array([2, 0, 2]))
    assert values(found) == [
        [[2.0], 2.0, 3.0, [[], [10]]],
        [[0.0], 0.0, 1.0, [[5, 6], []]],
        [[2.0], 2.0, 3.0, [[], [10]]],
    ]
    assert found.observed["click"].tolist() == [True, True, True]


def test_canaries_stand_behind_the_rows_of_the_log_and_are_units_of_their_own(tmp_path: Path) -> None:
    rows = log(tmp_path)
    planted = made_up(rows.schema, 3, np.random.default_rng(0))
    mixed = WithCanaries(rows, planted, np.array([4, 4, 9]))
    count, units = len(rows.units), int(rows.units.max()) + 1
    assert mixed.units.tolist() == [*rows.units.tolist(), units, units, units + 1]
    assert mixed.first == count
    numbers = np.array([count + 2, 5, count, 0])
    expected = joined(joined(taken(planted, np.array([2])), rows.take(np.array([5]))), taken(planted, np.array([0])))
    assert values(mixed.take(numbers)) == values(joined(expected, rows.take(np.array([0]))))
    assert mixed.canaries_in(numbers, 12).tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0]


def test_coins_are_fair_and_of_another_source_than_the_runs() -> None:
    tossed = Canaries(count=100_000).tossed(entropy(None))
    # two-sided at 1e-6; a coin of 0.51 is missed with probability below 0.08
    assert stats.binomtest(int(tossed.sum()), tossed.size, 0.5).pvalue > 1e-6
    assert (Canaries(count=60).tossed(entropy(3)) == Canaries(count=60).tossed(entropy(3))).all()
    assert (entropy(3).integers(0, 2**60, 8) != np.random.default_rng(3).integers(0, 2**60, 8)).all()


@pytest.mark.parametrize("table_noise", ["dense", "lazy"])
@pytest.mark.parametrize("kind", ["gradient", "row", "user"])
def test_a_run_with_every_canary_left_out_is_the_run_without_an_audit_bit_for_bit(
    tmp_path: Path, kind: Any, table_noise: str
) -> None:
    rows = log(tmp_path)
    chosen = plan(table_noise=table_noise, averaging=0.25 if table_noise == "dense" else 0.0)
    canaries = Canaries(count=60, kind=kind, coins=(False,) * 60)
    torch.manual_seed(0)
    plain = fit(DCN(rows.schema), rows, chosen, insecure_seed=5)
    torch.manual_seed(0)
    with_audit = fit(DCN(rows.schema), rows, chosen, insecure_seed=5, canaries=canaries)
    assert plain.facts.weights_sha256 == with_audit.facts.weights_sha256
    assert with_audit.plan.event == plain.plan.event


SAMPLERS: list[Mapping[str, Any]] = [
    {},
    {"sampler": "balls-in-bins"},
    {"unit": "user", "records": 2, "rows_per_unit": 1},
]


@pytest.mark.parametrize("settings", SAMPLERS)
def test_canaries_are_drawn_as_often_as_units_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Mapping[str, Any]
) -> None:
    drawn: list[NDArray[np.int64]] = []
    original = PaddedUnits.counts

    def seen(self: PaddedUnits) -> NDArray[np.int64]:
        drawn.append(original(self))
        return drawn[-1]

    monkeypatch.setattr(PaddedUnits, "counts", seen)
    rows, chosen = log(tmp_path), plan(epsilon=3.0, **settings)
    coins = Canaries(count=60, coins=COINS)
    fit(Logistic(rows.schema), rows, chosen, canaries=coins)
    counts = np.array(drawn)
    assert counts.shape == (chosen.steps, 60)
    assert not counts[:, ~np.array(COINS)].any()
    total, trials = int(counts.sum()), chosen.steps * sum(COINS) * chosen.records
    # two-sided at 1e-6 for 2,400 draws or more at 0.1: a rate of 0.15 is missed with probability below 0.01
    assert stats.binomtest(total, trials, chosen.sampling_rate).pvalue > 1e-6


def test_the_report_says_that_the_model_has_learned_from_canaries(tmp_path: Path) -> None:
    report = audited(log(tmp_path), plan(), count=100).report()
    assert "its model has learned from up to 100 planted canaries" in report.headline
    (audit,) = report.audit
    assert (audit.canaries, audit.canary_kind, audit.in_model) == (100, "gradient", True)
    assert report.from_json(report.to_json()) == report


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": 10}, "from 50 to 100000 canaries"),
        ({"count": 100, "kind": "unit"}, "kind must be"),
        ({"count": 100, "coins": (True,)}, "one for each of 100"),
    ],
)
def test_canaries_that_prove_nothing_are_refused(fields: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Canaries(**fields)


def test_a_claim_that_canaries_cannot_contradict_is_refused() -> None:
    with pytest.raises(ValueError, match="makes no claim"):
        Canaries(count=100).check(None)
    with pytest.raises(ValueError, match="a delta of at most 0.005"):
        Canaries(count=100).check(Budget(epsilon=1.0, delta=0.01, unit="user"))
    assert schema().public
