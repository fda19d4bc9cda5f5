"""Every kind of label: its loss is a likelihood by scipy, and its prediction that law's mean or probability."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from privads.logs.labels import DelayedLabel, Label, ValueLabel
from privads.models import heads
from privads.models.heads import Amount, Count, Delayed, Levels, Weighted

WAITED = torch.tensor([[5.0, 7.0], [7.0, 7.0], [24.0, 24.0]], dtype=torch.float64)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_a_count_is_fitted_by_the_binomial_s_quasi_likelihood() -> None:
    head = Count(most=20, typical=0.5)
    outputs, label = tensor(-1.0, 0.0, 1.5), tensor(0.0, 3.0, 7.0)
    mean = 20 * scipy.stats.logistic.cdf(outputs.numpy() + scipy.special.logit(0.5 / 20))
    at_label = scipy.stats.binom.logpmf(label.numpy(), 20, label.numpy() / 20)  # of which the label's own entropy is
    deviance = at_label - scipy.stats.binom.logpmf(label.numpy(), 20, mean / 20)  # left after the coefficient is gone
    entropy = 20 * scipy.stats.entropy([label.numpy() / 20, 1 - label.numpy() / 20])
    assert head.loss(outputs, label, None).numpy() == pytest.approx((deviance + entropy) / (4 * 0.5))
    assert head.read(outputs)["mean"].numpy() == pytest.approx(mean)
    assert head.read(tensor(0.0))["mean"].item() == pytest.approx(0.5)  # where a model begins
    assert head.read(tensor(500.0))["mean"].item() == pytest.approx(20)


@pytest.mark.parametrize("kind", ["count", "log-normal"])
@pytest.mark.parametrize("most", [0.25, 1, 1000])
def test_what_is_typical_lies_below_most(kind: str, most: float) -> None:
    label = ValueLabel.model_validate({"value": "v", "kind": kind, "most": most})
    head = heads.head_of(label)
    assert isinstance(head, Count | Amount)
    assert head == heads.head_of(label.model_copy(update={"typical": head.typical}))
    assert 0 < head.typical <= most / 2


def test_a_count_s_loss_is_least_at_the_mean() -> None:
    head, counts = Count(most=6, typical=1), tensor(0, 0, 1, 2, 6)
    found = scipy.optimize.minimize_scalar(lambda z: head.loss(tensor(*5 * [z]), counts, None).sum().item())
    assert head.read(tensor(found.x))["mean"].item() == pytest.approx(9 / 5, rel=1e-4)


def test_an_amount_is_zero_inflated_log_normal() -> None:
    head = Amount(most=1000, typical=2.0)
    outputs, label = tensor(0.3, 1.0, -0.5, -0.2, 0.4, 0.7).reshape(2, 3), tensor(4.0, 0.0)
    least, most = heads.SIGMAS
    sigma = least + (most - least) * scipy.stats.logistic.cdf(-0.5)
    p = 1 / (1 + math.exp(-0.3))
    law = scipy.stats.lognorm(sigma, scale=2 * math.e)
    density = law.logpdf(4.0) + math.log(4) + math.log(2 * math.pi) / 2  # without its constants
    expected = [-math.log(p) - heads.DENSITY_WEIGHT * density, -math.log(1 - 1 / (1 + math.exp(0.2)))]
    assert head.loss(outputs, label, None).numpy() == pytest.approx(expected)
    read = head.read(outputs)
    assert read["probability"][0].item() == pytest.approx(p)
    assert read["mean"][0].item() == pytest.approx(p * law.mean())
    assert list(read) == ["probability", "mean"]  # the last is the prediction
    assert head.read(tensor(50.0, 400.0, 0.0)[None])["mean"].item() == pytest.approx(1000)


@pytest.mark.parametrize("hazard", [0.2, 0.01, 3.0])
def test_a_delayed_event_has_an_exponential_delay_that_ends_with_its_window(hazard: float) -> None:
    p = 0.3
    head, law = Delayed(within_hours=24), scipy.stats.truncexpon(b=24 * hazard, scale=1 / hazard)
    outputs = tensor(math.log(p / (1 - p)), math.log(24 * hazard)).repeat(3, 1)
    expected = [-math.log(p) - law.logpdf(5.0), -math.log(1 - p * law.cdf(7.0)), -math.log(1 - p)]
    found = head.loss(outputs, tensor(1, 0, 0), WAITED).numpy() / heads.WAITING_WEIGHT
    assert found == pytest.approx(expected)
    assert head.read(outputs)["probability"].numpy() == pytest.approx([p] * 3)


@pytest.mark.parametrize(("median", "elapsed"), [(4.0, 7.0), (0.5, 1.0), (11.0, 6.0)])
def test_a_stated_delay_has_its_median_and_weighs_by_what_has_come(median: float, elapsed: float) -> None:
    head = Weighted(within_hours=24, median_hours=median)
    assert head.share(tensor(median)).item() == pytest.approx(0.5)
    assert head.share(tensor(24.0)).item() == pytest.approx(1.0)
    assert head.share(tensor(0.0)).item() == heads.LEAST_SHARE
    hazard = scipy.optimize.brentq(lambda h: scipy.stats.truncexpon(b=24 * h, scale=1 / h).cdf(median) - 0.5, 1e-6, 90)
    share = scipy.stats.truncexpon(b=24 * hazard, scale=1 / hazard).cdf(elapsed)
    logit, p = tensor(-0.4), 1 / (1 + math.exp(0.4))
    for label, expected in ((1, -math.log(p) / share), (0, -math.log(1 - p) * (1 - p) / (1 - p * share))):
        found = head.loss(logit, tensor(label), tensor(3.0, elapsed)[None]).item() / heads.WAITING_WEIGHT
        assert found == pytest.approx(expected, rel=1e-6)


def test_delays_whose_median_is_half_of_the_window_are_uniform() -> None:
    assert Weighted(within_hours=24, median_hours=12).share(tensor(6.0)).item() == pytest.approx(0.25)


def test_weights_for_waiting_put_the_optimum_at_the_true_rate() -> None:
    p, head = 0.3, Weighted(within_hours=24, median_hours=4)
    share = head.share(tensor(6.0)).item()  # what is seen is this share of the events, and everything else
    logit = tensor(*2 * [math.log(p / (1 - p))]).requires_grad_()
    loss = head.loss(logit, tensor(1, 0), tensor(6.0, 6.0).repeat(2, 1))
    (gradient,) = torch.autograd.grad((loss * tensor(p * share, 1 - p * share)).sum(), logit)
    assert gradient.sum().item() == pytest.approx(0, abs=1e-9)


def test_levels_are_differences_of_sigmoids_and_their_probabilities_sum_to_one() -> None:
    head, outputs = Levels(4), tensor(0.4, -1.0, 0.3)
    thresholds = [0.4]
    for z in (-1.0, 0.3):
        thresholds.append(thresholds[-1] - math.log1p(math.exp(z)) - heads.LEAST_GAP)
    above = np.array([1.0, *scipy.stats.logistic.cdf(thresholds), 0.0])
    probability = torch.exp(-head.loss(outputs.repeat(4, 1), tensor(1, 2, 3, 4), None) / heads.LEVEL_WEIGHT).numpy()
    assert probability == pytest.approx(above[:-1] - above[1:])
    assert head.read(outputs[None])["mean"].item() == pytest.approx(probability @ [1, 2, 3, 4])


def test_two_levels_are_the_log_loss() -> None:
    head, logit = Levels(2), tensor(0.4, -2.0)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logit, tensor(1, 0), reduction="none")
    assert head.width == 1
    assert head.loss(logit, tensor(2, 1), None).numpy() == pytest.approx(heads.LEVEL_WEIGHT * expected.numpy())
    assert head.read(logit)["mean"].numpy() == pytest.approx(1 + torch.sigmoid(logit).numpy())


LABELS: dict[str, Label] = {
    "event": "column",
    "count": ValueLabel(value="v", kind="count", most=20),
    "amount": ValueLabel(value="v", kind="log-normal", most=400),
    "levels": ValueLabel(value="v", kind="ordinal", most=4),
    "delayed": DelayedLabel(time="t", within_hours=24, waiting=True),
    "weighted": DelayedLabel(time="t", within_hours=24, waiting=True, median_hours=2),
}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("size", [-1e4, -30.0, 0.0, 30.0, 1e4])
def test_losses_and_gradients_are_finite_at_extreme_outputs(kind: str, size: float) -> None:
    head = heads.head_of(LABELS[kind])
    ends = {"count": (0, 20), "amount": (0, 400), "levels": (1, 4)}.get(kind, (0, 1))
    waited = torch.tensor([[24.0, 24.0], [0.0, 24.0], [0.0, 0.0], [12.0, 12.0], [23.999999, 24.0]])
    for label in ends:
        outputs = torch.full((5, head.width) if head.width > 1 else (5,), size, requires_grad=True)
        loss = head.loss(outputs, torch.full((5,), float(label)), waited)
        (gradient,) = torch.autograd.grad(loss.sum(), outputs)
        assert loss.shape == (5,)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(gradient).all()
        assert all(torch.isfinite(one).all() for one in head.read(outputs.detach().double()).values())


@pytest.mark.parametrize("kind", ["delayed", "weighted"])
def test_a_label_that_waits_needs_how_long(kind: str) -> None:
    head = heads.head_of(LABELS[kind])
    with pytest.raises(ValueError, match=r"needs how long it has waited: Batch\.hours"):
        head.loss(torch.zeros(1, head.width), torch.zeros(1), None)
