"""What every model keeps: shapes, rows that do not mix, the start, and gradients that can be clipped by unit."""

import inspect
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from privads.batch import Batch
from privads.logs.schema import Schema
from privads.models import DCN, MODELS, Logistic, build, layers
from privads.models.losses import per_row
from privads.training.clipping import UnitGradients, UnsupportedModel
from privads.training.probe import probe
from tests.privads.models.samples import random_batch, schema
from tests.privads.models.test_dcn import SCHEMAS as SCHEMAS_OF_DCN
from tests.privads.training.oracle import OWNERS, ROWS, Case, norm_of, oracle, ours, same, unit_gradients

SCHEMAS = {
    **SCHEMAS_OF_DCN,
    "one category": schema(numeric=0, buckets=(5,)),
    "one number": schema(numeric=1, buckets=()),
}
BOTH = [(name, facts) for name in MODELS for facts in SCHEMAS if (name, facts) != ("esmm", "one task")]
LARGER: dict[str, dict[str, object]] = {
    "logistic": {},
    "fm": {"dim": 3},
    "wide-deep": {"dim": 3, "tower": [5, 4]},
    "deepfm": {"dim": 3, "tower": [5, 4]},
    "dcn": {"dim": 3, "crosses": 1, "tower": [5]},
    "dlrm": {"dim": 3, "bottom": [5, 4], "top": [6, 5]},
    "shared-bottom": {"dim": 3, "bottom": [5, 4], "tower": [3]},
    "mmoe": {"dim": 3, "experts": 2, "expert": [5, 4], "tower": [3]},
    "ple": {"dim": 3, "layers": 3, "experts": 2, "shared": 1, "expert": [5], "tower": [3]},
    "esmm": {"click": "buy", "conversion": "click", "dim": 3, "tower": [5, 4]},
}
STARTS_ABOVE_LOGISTIC = ("fm", "deepfm")  # their pairs add some hundredths, as their docstrings say


def randomized(name: str, facts: Schema, settings: dict[str, object] | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = build(name, facts, settings)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def only(batch: Batch, row: int, fields: int) -> Batch:
    """One row of a batch, by itself."""
    offsets = batch.offsets[row * fields : (row + 1) * fields + 1]
    here = slice(row, row + 1)
    return Batch(
        dense=batch.dense[here],
        ids=batch.ids[int(offsets[0]) : int(offsets[-1])],
        offsets=offsets - offsets[0],
        labels={task: one[here] for task, one in batch.labels.items()},
        observed={task: one[here] for task, one in batch.observed.items()},
        weights=batch.weights[here],
        hours={task: one[here] for task, one in batch.hours.items()},
    )


@pytest.mark.parametrize(("name", "facts"), BOTH)
@pytest.mark.parametrize("rows", [0, 1, 8])
@pytest.mark.parametrize("longest", [1, 3])
def test_one_logit_for_each_task_and_row(name: str, facts: str, rows: int, longest: int) -> None:
    known = SCHEMAS[facts]
    outputs = build(name, known)(random_batch(known, rows, longest=longest))
    assert {task: logit.shape for task, logit in outputs.items()} == dict.fromkeys(known.tasks, (rows,))
    assert list(outputs) == list(known.tasks)


@pytest.mark.parametrize(("name", "facts"), BOTH)
def test_a_row_s_logits_depend_on_no_other_row(name: str, facts: str) -> None:
    known = SCHEMAS[facts]
    model, batch = randomized(name, known), random_batch(known, 6, longest=3)
    outputs = model(batch)
    for row in range(6):
        for task, alone in model(only(batch, row, len(known.categorical))).items():
            torch.testing.assert_close(alone[0], outputs[task][row], rtol=1e-4, atol=1e-5)


def give_logistic(model: nn.Module, logistic: Logistic) -> None:
    """Makes the logistic regression in ``model`` that one."""
    tasks = logistic.outputs.width
    with torch.no_grad():
        if isinstance(model, DCN):
            model.table.weight.copy_(logistic.table.weight.repeat_interleave(model.dim, dim=1) / model.dim**0.5)
            model.linear.weight.copy_(logistic.linear.weight)
        elif isinstance(model, Logistic):
            model.load_state_dict(logistic.state_dict())
        else:
            model.features.table.weight[:, :tasks] = logistic.table.weight
            model.features.linear.weight.copy_(logistic.linear.weight)


@pytest.mark.parametrize(("name", "facts"), BOTH)
def test_a_model_starts_as_the_logistic_regression_it_contains(name: str, facts: str) -> None:
    known = SCHEMAS[facts]
    logistic = randomized("logistic", known)
    assert isinstance(logistic, Logistic)
    torch.manual_seed(0)
    model, batch = build(name, known), random_batch(known, 8, longest=3)
    give_logistic(model, logistic)
    expected, found = logistic(batch), model(batch)
    if name == "esmm":  # its conversions are products
        click, conversion = (expected[task].sigmoid().double() for task in known.tasks)
        expected[known.tasks[1]] = (click * conversion).logit().float()
    for task in known.tasks:
        tolerance = 0.3 if name in STARTS_ABOVE_LOGISTIC else 1e-5
        torch.testing.assert_close(found[task], expected[task], rtol=0, atol=tolerance)
    if name in STARTS_ABOVE_LOGISTIC:
        with torch.no_grad():
            model.features.table.weight[:, len(known.tasks) :] = 0
            if model.features.numbers is not None:
                model.features.numbers.weight.zero_()
        for task, logit in model(batch).items():
            torch.testing.assert_close(logit, expected[task], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_row_s_gradient_is_about_as_long_as_that_of_logistic(name: str) -> None:
    facts = schema(numeric=4, buckets=(50,) * 8)
    batch = random_batch(facts, ROWS)
    lengths = {}
    for one in (name, "logistic"):
        torch.manual_seed(0)
        case = Case(build(one, facts), lambda m: per_row(m(batch), batch))
        lengths[one] = np.array([norm_of(gradient) for gradient in unit_gradients(case, torch.arange(ROWS))])
    seen = lengths["logistic"] > 0  # rows with an observed label
    ratio = lengths[name][seen] / lengths["logistic"][seen]
    least = 0.5 if name == "esmm" else 0.8  # its conversions start at 1/4, and with a flatter logit
    assert least < np.median(ratio) < 1.25
    assert ratio.max() < 2


@pytest.mark.parametrize("name", MODELS)
def test_each_task_learns_its_own_label(name: str) -> None:
    facts = schema()
    batch = random_batch(facts, 40)
    every = {task: torch.ones(40, dtype=torch.bool) for task in facts.tasks}
    labels = {"click": batch.labels["click"], "buy": 1 - batch.labels["click"]}
    if name == "esmm":  # a conversion is a click too
        labels["buy"] = batch.labels["click"] * batch.labels["buy"]
    batch = replace(batch, labels=labels, observed=every)
    torch.manual_seed(0)
    model = build(name, facts)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        per_row(model(batch), batch).sum().backward()
        optimizer.step()
    outputs = model(batch)
    if name != "esmm":
        assert np.corrcoef(outputs["click"].detach(), outputs["buy"].detach())[0, 1] < -0.9
    for task, label in labels.items():
        logit = outputs[task].detach()
        assert logit[label == 1].mean() > logit[label == 0].mean() + 0.5


@pytest.mark.parametrize(("name", "facts"), BOTH)
@pytest.mark.parametrize("order", ["ragged", "interleaved"])
def test_clipped_sums_equal_those_of_a_loop_over_units(name: str, facts: str, order: str) -> None:
    known = SCHEMAS[facts]
    owners = OWNERS if order == "ragged" else OWNERS[torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))]
    batch = random_batch(known, ROWS, longest=3)
    settings = LARGER[name] if order == "ragged" and facts != "one task" else {}
    case = Case(randomized(name, known, settings), lambda m: per_row(m(batch), batch))
    lengths = sorted(norm_of(gradient) for gradient in unit_gradients(case, owners))
    for clip_norm in (0.01, lengths[2], 10 * lengths[-1]):
        # a norm grants what rounding may have lost, here up to 7e-5 of it, where a unit's rows nearly cancel
        assert same(ours(case, clip_norm, owners), oracle(case, clip_norm, owners), tolerance=2e-4)


@pytest.mark.parametrize(("name", "facts"), BOTH)
def test_the_probe_takes_every_model(name: str, facts: str) -> None:
    """A fixed bug: without categories the empty table's output was refused."""
    known = SCHEMAS[facts]
    model = build(name, known)
    gradients = UnitGradients(model)
    probe(model, None, known, gradients)
    gradients.cleanup()


def test_a_gate_over_the_batch_turns_the_probe_red(monkeypatch: pytest.MonkeyPatch) -> None:
    facts, softmax = schema(), torch.softmax
    monkeypatch.setattr(layers.torch, "softmax", lambda scores, dim: softmax(scores, dim=0))  # the fault
    for name in ("mmoe", "ple"):
        model = build(name, facts)
        gradients = UnitGradients(model)
        with pytest.raises(UnsupportedModel, match="depends on rows of other units"):
            probe(model, None, facts, gradients)
        gradients.cleanup()


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_takes_part(name: str) -> None:
    facts = schema()
    model, batch = randomized(name, facts, LARGER[name]), random_batch(facts, 64)
    per_row(model(batch), batch).sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.any(), parameter_name


@pytest.mark.parametrize("name", MODELS)
def test_settings_rebuild_the_model(name: str) -> None:
    facts = schema()
    for settings in ({}, LARGER[name]):
        model = build(name, facts, settings)
        assert settings.items() <= model.settings.items()
        again = build(name, facts, model.settings)
        assert [p.shape for p in again.parameters()] == [p.shape for p in model.parameters()]
        known = inspect.signature(MODELS[name]).parameters
        assert set(model.settings) == {key for key in known if key != "schema"}
        assert all(one.default is not inspect.Parameter.empty for key, one in known.items() if key != "schema")


SIZES = [(name, key) for name, settings in LARGER.items() for key, one in settings.items() if not isinstance(one, str)]


@pytest.mark.parametrize(("name", "key"), SIZES)
def test_sizes_that_make_no_model_are_refused(name: str, key: str) -> None:
    value = [3, 0] if isinstance(LARGER[name][key], list) else -1
    with pytest.raises(ValueError, match=rf"needs positive (sizes|widths), got .*{key} "):
        build(name, schema(), {key: value})


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_a_short_file_whose_docstring_names_formula_and_paper(name: str) -> None:
    assert len(Path(inspect.getfile(MODELS[name])).read_text(encoding="utf-8").splitlines()) < 80
    doc = MODELS[name].__doc__ or ""
    assert "``" in doc
    assert "Shapes: " in doc
    if name != "logistic":
        assert re.search(r"\(\w+( et al\.)? (19|20)\d\d, (arXiv|ICDM|KDD|RecSys|Machine Learning)", doc)
