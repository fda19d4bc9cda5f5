import math

import numpy as np
import pytest
import scipy.stats
import torch

from privads.models import heads


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_count_loss_is_the_poisson_likelihood() -> None:
    logit, label = tensor(-1.0, 0.0, 1.5), tensor(0.0, 3.0, 7.0)
    expected = -scipy.stats.poisson.logpmf(label.numpy(), np.exp(logit.numpy()))
    assert heads.count_loss(logit, label, most=20).numpy() == pytest.approx(expected)
    assert heads.count_mean(tensor(500.0), most=20).item() == pytest.approx(20)


def test_log_normal_loss_and_mean_are_those_of_scipy() -> None:
    outputs, label = tensor(0.3, 1.0, -0.5, -0.2, 0.4, 0.7).reshape(2, 3), tensor(4.0, 0.0)
    sigma = math.log1p(math.exp(-0.5)) + heads.LEAST_SIGMA
    p = 1 / (1 + math.exp(-0.3))
    density = scipy.stats.lognorm.logpdf(4.0, sigma, scale=math.e)
    expected = [-math.log(p) - density, -math.log(1 - 1 / (1 + math.exp(0.2)))]
    assert heads.log_normal_loss(outputs, label).numpy() == pytest.approx(expected)
    mean = p * scipy.stats.lognorm.mean(sigma, scale=math.e)
    assert heads.log_normal_mean(outputs)[0].item() == pytest.approx(mean)


def test_delay_loss_is_the_likelihood_of_an_exponential_delay() -> None:
    p, hazard = 0.3, 0.2
    logit, log_hazard = tensor(*2 * [math.log(p / (1 - p))]), tensor(*2 * [math.log(hazard)])
    loss = heads.delay_loss(logit, log_hazard, torch.tensor([True, False]), tensor(5.0, 7.0))
    delay = scipy.stats.expon(scale=1 / hazard)
    assert loss.numpy() == pytest.approx([-math.log(p) - delay.logpdf(5.0), -math.log(1 - p * delay.cdf(7.0))])


def test_gradients_are_finite_at_extreme_outputs() -> None:
    for size in (-1e4, 0.0, 1e4):
        outputs = torch.full((2, 3), size, requires_grad=True)
        label = torch.tensor([0.0, 20.0])
        losses = (
            heads.count_loss(outputs[:, 0], label, most=20),
            heads.log_normal_loss(outputs, label),
            heads.delay_loss(outputs[:, 0], outputs[:, 1], label > 0, torch.tensor([24.0, 0.0])),
            heads.waiting_loss(outputs[:, 0], label > 0, torch.tensor([1.0, 0.0])),
            heads.ordinal_loss(outputs, torch.tensor([1.0, 4.0])),
        )
        for loss in losses:
            (gradient,) = torch.autograd.grad(loss.sum(), outputs, retain_graph=True)
            assert torch.isfinite(loss).all()
            assert torch.isfinite(gradient).all()


def test_ordinal_probabilities_are_differences_of_sigmoids_and_sum_to_one() -> None:
    outputs = tensor(0.4, -1.0, 0.3)
    thresholds = [0.4]
    for z in (-1.0, 0.3):
        thresholds.append(thresholds[-1] - math.log1p(math.exp(z)) - heads.LEAST_GAP)
    above = np.array([1.0, *scipy.stats.logistic.cdf(thresholds), 0.0])
    probability = torch.exp(-heads.ordinal_loss(outputs.repeat(4, 1), tensor(1, 2, 3, 4))).numpy()
    assert probability == pytest.approx(above[:-1] - above[1:])
    assert heads.ordinal_mean(outputs[None]).item() == pytest.approx(probability @ [1, 2, 3, 4])


def test_weights_for_waiting_put_the_optimum_at_the_true_rate() -> None:
    p, share = 0.3, 0.4  # expected gradient over what is seen: a share of the conversions, and everything else
    logit = tensor(*2 * [math.log(p / (1 - p))]).requires_grad_()
    loss = heads.waiting_loss(logit, torch.tensor([True, False]), tensor(share, share))
    (gradient,) = torch.autograd.grad((loss * tensor(p * share, 1 - p * share)).sum(), logit)
    assert gradient.sum().item() == pytest.approx(0, abs=1e-9)
