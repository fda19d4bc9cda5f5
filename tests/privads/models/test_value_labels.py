"""Models of a schema that has a label of every kind: shapes, rows that do not mix, and the clipping oracle."""

import pytest
import torch

from privads.models import MODELS, build, losses
from privads.models.heads import heads_of
from privads.training.clipping import UnitGradients
from privads.training.probe import probe
from tests.privads.models.samples import EVERY_KIND, random_batch, schema
from tests.privads.models.test_contract import LARGER, only, randomized
from tests.privads.training.oracle import OWNERS, ROWS, Case, norm_of, oracle, ours, same, unit_gradients

FACTS = schema(labels=EVERY_KIND)
WIDTHS = {"click": 1, "orders": 1, "spend": 3, "stars": 3, "buy": 2, "install": 1}
NAMES = [name for name in MODELS if name != "esmm"]


def test_each_kind_has_its_outputs() -> None:
    assert {task: head.width for task, head in heads_of(FACTS).items()} == WIDTHS


@pytest.mark.parametrize("name", NAMES)
def test_outputs_have_their_kind_s_shape_and_depend_on_no_other_row(name: str) -> None:
    model, batch = randomized(name, FACTS, LARGER[name]), random_batch(FACTS, 6, longest=3)
    outputs = model(batch)
    shapes = {task: tuple(one.shape) for task, one in outputs.items()}
    assert shapes == {task: (6,) if width == 1 else (6, width) for task, width in WIDTHS.items()}
    loss = losses.for_schema(FACTS)
    rows = loss(outputs, batch)
    for row in range(6):
        alone = only(batch, row, len(FACTS.categorical))
        torch.testing.assert_close(loss(model(alone), alone)[0], rows[row], rtol=1e-4, atol=1e-4)


def test_the_loss_is_the_sum_of_the_kinds() -> None:
    batch, model = random_batch(FACTS, 20), randomized("logistic", FACTS)
    outputs = model(batch)
    expected = torch.zeros(20)
    for task, head in heads_of(FACTS).items():
        one = head.loss(outputs[task], batch.labels[task], batch.hours.get(task))
        expected += (2.0 if task == "spend" else 1.0) * one * batch.observed[task]
    found = losses.for_schema(FACTS, {"spend": 2.0})(outputs, batch)
    torch.testing.assert_close(found, expected)


def test_outputs_in_bfloat16_are_not_rounded_again_in_the_loss() -> None:
    """As autocast gives them. A count's output plus a constant, rounded, is 0.3 % off in every gradient."""
    batch, loss = random_batch(FACTS, 200), losses.for_schema(FACTS)
    generator = torch.Generator().manual_seed(0)
    given = {
        task: torch.randn(*((200,) if width == 1 else (200, width)), generator=generator).bfloat16()
        for task, width in WIDTHS.items()
    }
    exactly = loss({task: one.float() for task, one in given.items()}, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(given, batch), exactly)


def test_a_label_that_waits_is_not_read_as_none() -> None:
    """`per_row` alone takes a logit and a label: "none yet" would be "no"."""
    told = schema(labels={"install": EVERY_KIND["install"]})
    batch, outputs = random_batch(told, 4), {"install": torch.zeros(4)}
    assert losses.for_schema(told)(outputs, batch).shape == (4,)
    with pytest.raises(ValueError, match=r"labels that wait have losses of their own: use losses.for_schema\(schema\)"):
        losses.per_row(outputs, batch)


@pytest.mark.parametrize("name", NAMES)
def test_clipped_sums_equal_those_of_a_loop_over_units(name: str) -> None:
    batch, loss = random_batch(FACTS, ROWS, longest=3), losses.for_schema(FACTS)
    case = Case(randomized(name, FACTS, LARGER[name]), lambda m: loss(m(batch), batch))
    lengths = sorted(norm_of(gradient) for gradient in unit_gradients(case, OWNERS))
    for clip_norm in (0.01, lengths[2], 10 * lengths[-1]):
        assert same(ours(case, clip_norm, OWNERS), oracle(case, clip_norm, OWNERS), tolerance=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_probe_takes_every_model_and_its_loss(name: str) -> None:
    model = build(name, FACTS)
    for loss in (None, losses.for_schema(FACTS)):
        gradients = UnitGradients(model)
        probe(model, loss, FACTS, gradients)
        gradients.cleanup()


def test_a_product_of_clicks_and_conversions_is_refused_for_numbers_and_labels_that_wait() -> None:
    for task in ("orders", "buy"):
        facts = schema(labels={one: EVERY_KIND[one] for one in ("click", task)})
        with pytest.raises(ValueError, match=f"an ESMM needs labels of yes or no, and '{task}' is"):
            build("esmm", facts)


RATES = {
    "click": {"column": "click", "rate": 0.04},
    "buy": {"time": "bought_at", "within_hours": 24, "rate": 0.003},
    "later": {"time": "later_at", "within_hours": 24, "rate": 0.2, "waiting": True},
    "orders": EVERY_KIND["orders"],
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_begins_at_the_stated_rates(name: str) -> None:
    names = ("buy", "click") if name == "esmm" else tuple(RATES)
    facts = schema(labels={task: RATES[task] for task in names})
    torch.manual_seed(0)
    model = build(name, facts, {"click": "click"} if name == "esmm" else {})
    outputs, heads = model(random_batch(facts, 8)), heads_of(facts)
    for task in names:
        *_, predicted = heads[task].read(outputs[task].detach()).values()
        expected = {"orders": 1.0}.get(task) or RATES[task]["rate"]
        # pairs of random vectors add some hundredths to the logit, as the docstrings of fm and deepfm say
        assert torch.logit(predicted / 20) == pytest.approx(torch.logit(torch.full((8,), expected / 20)), abs=0.3)


def test_conversions_that_are_more_than_clicks_are_refused() -> None:
    facts = schema(labels={"click": RATES["click"], "buy": {**RATES["buy"], "rate": 0.05}})
    with pytest.raises(ValueError, match="the rate of 'buy' must be below that of 'click'"):
        build("esmm", facts)
