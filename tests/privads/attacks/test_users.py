"""Canary users: rows that the schema allows, scored by what they teach a model, at every step or at the end."""

from pathlib import Path

import numpy as np
import pytest
import torch

from privads.attacks.users import FinalUsers, WatchedUsers, along_own_rows, made_up
from privads.logs.schema import Schema
from privads.models import Logistic
from privads.training.engine import PrivateEngine
from tests.privads.attacks.helpers import audited, log, plan, schema


def test_made_up_rows_are_within_what_the_schema_allows_and_of_categories_of_their_own() -> None:
    labels = {
        "click": "click",
        "stars": {"value": "stars", "kind": "ordinal", "most": 5},
        "spent": {"value": "spent", "kind": "log-normal", "most": 90},
        "buy": {"time": "bought_at", "within_hours": 24, "waiting": True},
    }
    facts = schema().model_dump(mode="json") | {"labels": labels, "time": "shown_at"}
    batch = made_up(Schema.load(facts), 300, np.random.default_rng(0))
    assert batch.rows == 300
    assert set(batch.dense.unique().tolist()) == {-1.0, 1.0}
    ids = batch.ids.view(300, 2)
    assert all(len(ids[:, field].unique()) == 300 for field in range(2))
    assert ids[:, 0].min() >= 1
    assert ids[:, 0].max() < 1024 < ids[:, 1].min()
    assert ids[:, 1].max() < 2048
    assert {task: set(one.unique().tolist()) for task, one in batch.labels.items()} == {
        "click": {0.0, 1.0},
        "stars": {1.0, 5.0},
        "spent": {0.0, 90.0},
        "buy": {0.0, 1.0},
    }
    assert batch.hours["buy"].tolist() == [[0.0, 24.0]] * 300


def test_a_canary_is_looked_for_along_its_gradient_and_most_where_no_other_one_reads() -> None:
    gradient = np.array([[0.0, 0.0], [3.0, 4.0], [2.0, 0.0], [0.0, 0.0]])
    pairs = np.array([[0, 1], [0, 2], [1, 2], [2, 3]])  # canaries 0 and 1 share row 2, which has the sum of both
    direction, lengths = along_own_rows(gradient, pairs, 3)
    first = np.array([3.0, 4.0, 0.5, 0.0])
    assert direction.places[0].tolist() == [2, 3, 4, 5]
    assert direction.weights[0].numpy() == pytest.approx(first / np.linalg.norm(first))
    assert direction.along(torch.tensor([[0.0, 0], [0, 0], [7, 0], [0, 0]])).tolist()[1:] == pytest.approx([7.0, 0.0])
    assert lengths == pytest.approx([(25 + 0.5) / np.linalg.norm(first), 1.0, 0.0])


def test_looking_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    rows = log(tmp_path)
    model = Logistic(rows.schema).train()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    made = made_up(rows.schema, 60, np.random.default_rng(0))
    WatchedUsers(
        np.ones(60, dtype=bool),
        plan(),
        made,
        lambda outputs, batch: loss(outputs["click"], batch.labels["click"], reduction="none"),
        model,
        list(model.parameters()),
    )
    assert model.training
    assert all(one.grad is None for one in model.parameters())
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


def test_where_tables_have_noise_of_their_own_users_are_seen_in_the_final_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    evidence = PrivateEngine._evidence

    def spying(self: PrivateEngine) -> object:
        seen.append(self._watch)
        return evidence(self)

    monkeypatch.setattr(PrivateEngine, "_evidence", spying)
    chosen = plan(epsilon=3.0, table_noise="lazy", averaging=0.0)
    report = audited(log(tmp_path), chosen, kind="user", count=100).report()
    assert isinstance(seen[0], FinalUsers)
    assert report.audit[0].threat_model == "sees the final model, and how it began"
    assert not report.contradictions
