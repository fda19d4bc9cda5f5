"""Each model's logits from its paper's definition, computed row by row in the obvious way."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from privads.logs.schema import Schema
from privads.models import build
from privads.models.layers import sum_of_pairs
from privads.models.losses import per_row
from tests.privads.models.samples import random_batch, schema
from tests.privads.models.test_contract import SCHEMAS, randomized

Values = dict[str, NDArray[np.float64]]
ROWS = 5


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(scores) / np.exp(scores).sum()


class ByHand:
    """A model's numbers, and its rows as the papers describe them."""

    def __init__(self, name: str, facts: Schema, settings: dict[str, object]) -> None:
        self.facts, self.tasks = facts, len(facts.tasks)
        model, self.batch = randomized(name, facts, settings), random_batch(facts, ROWS, longest=3)
        self.found = {task: logit.detach().double().numpy() for task, logit in model(self.batch).items()}
        self.value: Values = {name: one.detach().double().numpy() for name, one in model.named_parameters()}
        self.root = facts.fields**-0.5

    def bags(self, row: int) -> list[NDArray[np.float64]]:
        fields, batch = len(self.facts.categorical), self.batch
        ends = batch.offsets[row * fields : (row + 1) * fields + 1].tolist()
        table = self.value["features.table.weight"]
        return [sum((table[one] for one in batch.ids[a:b].tolist()), 0 * table[0]) for a, b in pairwise(ends)]

    def dense(self, row: int) -> NDArray[np.float64]:
        return self.batch.dense[row].double().numpy()

    def wide(self, row: int) -> NDArray[np.float64]:
        found = sum((bag[: self.tasks] for bag in self.bags(row)), np.zeros(self.tasks))
        return self.root * (found + self.value["features.linear.weight"] @ np.append(self.dense(row), 1.0))

    def vectors(self, row: int) -> list[NDArray[np.float64]]:
        return [self.root * bag[self.tasks :] for bag in self.bags(row)]

    def with_numbers(self, row: int) -> list[NDArray[np.float64]]:
        vectors = self.vectors(row)
        for number, x in enumerate(self.dense(row)):
            vectors.append(self.root * x * self.value["features.numbers.weight"][number])
        return vectors

    def x0(self, row: int) -> NDArray[np.float64]:
        return np.concatenate([*self.vectors(row), self.root * self.dense(row)])

    def tower(self, name: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
        layer = 0
        while f"{name}.{layer}.weight" in self.value:
            x = np.maximum(self.value[f"{name}.{layer}.weight"] @ x + self.value[f"{name}.{layer}.bias"], 0)
            layer += 2
        return x

    def heads(self, inputs: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        return np.array(
            [
                (self.value[f"heads.logits.{t}.weight"] @ self.tower(f"heads.towers.{t}", x)).item()
                for t, x in enumerate(inputs)
            ]
        )

    def check(self, row: int, logits: NDArray[np.float64]) -> None:
        for t, task in enumerate(self.facts.tasks):
            assert self.found[task][row] == pytest.approx(logits[t], rel=1e-4, abs=1e-4)


EACH = pytest.mark.parametrize("facts", SCHEMAS.values(), ids=SCHEMAS)


@EACH
@pytest.mark.parametrize("name", ["fm", "deepfm"])
def test_factorization_machines_add_up_the_product_of_each_pair(name: str, facts: Schema) -> None:
    hand = ByHand(name, facts, {"dim": 3})
    for row in range(ROWS):
        vectors = [one.reshape(hand.tasks, 3) for one in hand.with_numbers(row)]
        logits = hand.wide(row)
        for one, two in combinations(vectors, 2):
            logits = logits + 0.1 * (one * two).sum(1)
        if name == "deepfm":
            x0 = np.concatenate(hand.with_numbers(row))
            logits = logits + 0.1 * hand.value["head.weight"] @ hand.tower("tower", x0)
        hand.check(row, logits)


def test_the_sum_of_pairs_is_the_double_loop() -> None:
    vectors = torch.randn(4, 6, 2, 3, dtype=torch.float64)
    expected = sum((vectors[:, i] * vectors[:, j]).sum(-1) for i, j in combinations(range(6), 2))
    torch.testing.assert_close(sum_of_pairs(vectors), expected)


@EACH
def test_wide_and_deep_adds_a_tower_to_the_linear_model(facts: Schema) -> None:
    hand = ByHand("wide-deep", facts, {"dim": 3, "tower": [5, 4]})
    for row in range(ROWS):
        deep = hand.value["head.weight"] @ hand.tower("tower", hand.x0(row))
        hand.check(row, hand.wide(row) + 0.1 * deep)


@EACH
def test_dlrm_reads_the_dot_product_of_each_pair_and_the_numbers_tower(facts: Schema) -> None:
    hand = ByHand("dlrm", facts, {"dim": 3, "bottom": [5], "top": [6]})
    for row in range(ROWS):
        z0 = hand.tower("bottom", hand.root * np.append(hand.dense(row), 1.0))
        dots = [one @ two for one, two in combinations([z0, *hand.vectors(row)], 2)]
        top = hand.tower("top", np.append(z0, dots))
        hand.check(row, hand.wide(row) + 0.1 * hand.value["head.weight"] @ top)


@EACH
def test_shared_bottom_puts_a_tower_for_each_task_on_one_for_all(facts: Schema) -> None:
    hand = ByHand("shared-bottom", facts, {"dim": 3, "bottom": [5, 4], "tower": [3]})
    for row in range(ROWS):
        bottom = hand.tower("bottom", hand.x0(row))
        hand.check(row, hand.wide(row) + 0.1 * hand.heads([bottom] * hand.tasks))


@EACH
def test_mmoe_mixes_experts_by_each_task_s_softmax(facts: Schema) -> None:
    hand = ByHand("mmoe", facts, {"dim": 3, "experts": 3, "expert": [5, 4], "tower": [3]})
    for row in range(ROWS):
        x0 = hand.x0(row)
        experts = [hand.tower(f"experts.towers.{k}", x0) for k in range(3)]
        shares = [softmax(hand.value[f"gates.{t}.linear.weight"] @ x0) for t in range(hand.tasks)]
        mixed = [sum(share * expert for share, expert in zip(one, experts, strict=True)) for one in shares]
        hand.check(row, hand.wide(row) + 0.1 * hand.heads(mixed))


@EACH
@pytest.mark.parametrize("layers", [1, 3])
def test_ple_mixes_own_and_shared_experts_layer_by_layer(facts: Schema, layers: int) -> None:
    settings: dict[str, object] = {"dim": 3, "layers": layers, "experts": 2, "shared": 1, "expert": [5], "tower": [3]}
    hand = ByHand("ple", facts, settings)
    for row in range(ROWS):
        own, common = [hand.x0(row)] * hand.tasks, hand.x0(row)
        for layer in range(layers):
            prefix = f"layers.{layer}"
            of = [[hand.tower(f"{prefix}.experts.{t}.towers.{k}", own[t]) for k in range(2)] for t in range(hand.tasks)]
            of_all = [hand.tower(f"{prefix}.experts.{hand.tasks}.towers.0", common)]
            following = []
            for t in range(hand.tasks):
                shares = softmax(hand.value[f"{prefix}.gates.{t}.linear.weight"] @ own[t])
                following.append(np.stack(of[t] + of_all).T @ shares)
            if layer < layers - 1:
                shares = softmax(hand.value[f"{prefix}.gates.{hand.tasks}.linear.weight"] @ common)
                common = np.stack([expert for one in of for expert in one] + of_all).T @ shares
            own = following
        assert f"layers.{layers - 1}.gates.{hand.tasks}.linear.weight" not in hand.value
        hand.check(row, hand.wide(row) + 0.1 * hand.heads(own))


TWO = [one for one in SCHEMAS.values() if len(one.tasks) == 2]


@pytest.mark.parametrize("facts", TWO)
@pytest.mark.parametrize("swapped", [False, True])
def test_esmm_s_conversions_are_the_product_of_probabilities(facts: Schema, swapped: bool) -> None:
    names = dict(zip(("click", "conversion"), reversed(facts.tasks) if swapped else facts.tasks, strict=True))
    hand = ByHand("esmm", facts, {**names, "dim": 3, "tower": [5]})
    for row in range(ROWS):
        p_ctr, p_cvr = 1 / (1 + np.exp(-hand.wide(row) - 0.1 * hand.heads([hand.x0(row)] * 2)))
        found = {key: 1 / (1 + np.exp(-hand.found[name][row])) for key, name in names.items()}
        assert found["click"] == pytest.approx(p_ctr, rel=1e-4)
        assert found["conversion"] == pytest.approx(p_ctr * p_cvr, rel=1e-4)


def test_esmm_s_per_row_loss_is_the_paper_s() -> None:
    facts = schema()
    model, batch = randomized("esmm", facts), random_batch(facts, ROWS)
    losses, outputs = per_row(model(batch), batch).detach(), model(batch)
    for row in range(ROWS):
        expected = 0.0
        for task in facts.tasks:  # equation 3: the log loss of clicks, and that of click-and-conversion, on every row
            chance, label = outputs[task][row].double().sigmoid().item(), batch.labels[task][row].item()
            if batch.observed[task][row]:
                expected -= np.log(chance if label else 1 - chance)
        assert losses[row].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_esmm_s_product_stays_finite_at_extreme_logits(sign: float) -> None:
    facts = schema()
    model, batch = build("esmm", facts), random_batch(facts, ROWS)
    with torch.no_grad():
        model.features.linear.weight[:, -1] = sign * 200 * facts.fields**0.5
    outputs = model(batch)
    # p^2 is exp(-400), or 1 - 2 exp(-200): its logit is -400, or 200 - log 2
    expected = -400.0 if sign < 0 else 200 - np.log(2)
    assert outputs["buy"].detach().numpy() == pytest.approx(expected, rel=1e-4)
    per_row(outputs, batch).sum().backward()
    assert all(one.grad is not None and one.grad.isfinite().all() for one in model.parameters())


@pytest.mark.parametrize(
    ("tasks", "settings", "message"),
    [
        (("click",), {}, "an ESMM needs two labels, click and conversion; the schema has click"),
        (("a", "b", "c"), {}, "an ESMM needs two labels, click and conversion; the schema has a, b, c"),
        (("a", "b"), {"click": "c"}, "click 'c' and conversion 'a' must be the schema's labels, a, b"),
        (("a", "b"), {"click": "a", "conversion": "a"}, "click 'a' and conversion 'a' must be the schema's labels"),
    ],
    ids=str,
)
def test_esmm_refuses_other_labels(tasks: tuple[str, ...], settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("esmm", schema(tasks=tasks), settings)


def test_esmm_takes_the_other_label_where_one_is_named() -> None:
    for settings in ({"click": "buy"}, {"conversion": "click"}):
        model = build("esmm", schema(), settings)
        assert (model.click, model.conversion) == ("buy", "click")
