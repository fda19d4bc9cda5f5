"""Channels and corrected losses: equal to their definitions summed out, unbiased, and right at the optimum."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from privads.signals.channel import (
    YES_OR_NO,
    Channel,
    backward_loss,
    converted,
    corrected_loss,
    first_window,
    forward_loss,
    report_count,
)
from privads.signals.event_reports import EventReports

WINDOWS = EventReports(windows=(3,), most=1)
SKEWED = Channel(np.array([[0.7, 0.2, 0.1], [0.05, 0.8, 0.15], [0.3, 0.1, 0.6]]))  # no row is a column
MIXED = EventReports(windows=(2, 1), most=2, most_of_datum=(2, 1))
ARA = [
    Channel.of_reports(EventReports(windows=(2, 2), most=2), epsilon=1.3),
    Channel.of_reports(MIXED, epsilon=0.7, groups=first_window(MIXED)),
    Channel.of_reports(MIXED, epsilon=0.7, groups=report_count(MIXED)),
    Channel.of_reports(MIXED, epsilon=2.0, groups=converted(MIXED)),
    Channel.of_reports(WINDOWS, epsilon=1.0),
    Channel.binary(epsilon=0.4),
]
CHANNELS = [SKEWED, *ARA]


def uncertain(channel: Channel, rows: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, channel.states, generator=generator, dtype=torch.float64).log_softmax(dim=1)


def masks(channel: Channel, *open_: int) -> Tensor:
    """One row for each answer; these states are open in all."""
    mask = torch.zeros(channel.states, channel.states, dtype=torch.bool)
    mask[:, list(open_)] = True
    return mask


def by_definition(reports: EventReports, epsilon: float) -> np.ndarray:
    """The whole matrix of k-ary randomized response, from the words: kept, or replaced by any of k."""
    k, p = reports.states, reports.states / (reports.states + math.exp(epsilon) - 1)
    return np.array([[(1 - p) * (state == answer) + p / k for answer in range(k)] for state in range(k)])


def test_yes_or_no_is_flipped_with_one_in_one_plus_exp_epsilon() -> None:
    flip = 1 / (1 + math.exp(0.8))
    assert Channel.binary(epsilon=0.8).matrix == pytest.approx(
        np.array([[1 - flip, flip], [flip, 1 - flip]]), rel=1e-14
    )
    assert YES_OR_NO.counts.ravel().tolist() == [0, 1]  # so that a label is its state's number


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 14.0])
def test_a_state_s_row_is_that_of_randomized_response(epsilon: float) -> None:
    channel = Channel.of_reports(EventReports(windows=(2, 2), most=2), epsilon=epsilon)
    assert channel.matrix == pytest.approx(by_definition(EventReports(windows=(2, 2), most=2), epsilon), rel=1e-12)
    assert channel.epsilon == pytest.approx(epsilon, rel=1e-9)


@pytest.mark.parametrize("groups_of", [first_window, report_count, converted])
def test_a_group_s_row_is_that_of_any_of_its_states(groups_of: object) -> None:
    groups = groups_of(MIXED)  # type: ignore[operator]
    whole = by_definition(MIXED, 0.7)
    channel = Channel.of_reports(MIXED, epsilon=0.7, groups=groups)
    for state, group in enumerate(groups):
        summed = [whole[state, groups == other].sum() for other in range(channel.states)]
        assert channel.matrix[group] == pytest.approx(summed, rel=1e-12)
    assert Channel(whole).grouped(groups).matrix == pytest.approx(channel.matrix, rel=1e-12)
    assert channel.epsilon <= 0.7 + 1e-12


def test_what_a_state_is_follows_from_its_reports() -> None:
    for counts, first, count, any_ in zip(
        MIXED.counts.tolist(), first_window(MIXED), report_count(MIXED), converted(MIXED), strict=True
    ):
        one, two, other = counts  # two windows of the first datum, one of the second
        assert first == (1 if one or other else 2 if two else 0)
        assert (count, any_) == (one + two + other, int(bool(one + two + other)))
    assert sorted(first_window(WINDOWS).tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("channel", CHANNELS, ids=lambda one: str(one.states))
def test_forward_is_minus_the_log_of_an_answer_s_probability(channel: Channel) -> None:
    log_p, answers = uncertain(channel, channel.states), torch.arange(channel.states)
    found = forward_loss(log_p, answers, channel)
    for row in range(channel.states):
        p = [math.exp(one) for one in log_p[row].tolist()]
        chance = sum(p[state] * channel.matrix[state, row] for state in range(channel.states))
        assert found[row].item() == pytest.approx(-math.log(chance), rel=1e-12)
    # the answers of one model's row are all there is
    every = forward_loss(log_p[:1].expand(channel.states, -1), answers, channel)
    assert torch.exp(-every).sum().item() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("channel", CHANNELS, ids=lambda one: str(one.states))
def test_backward_is_on_average_the_clean_loss(channel: Channel) -> None:
    log_p = uncertain(channel, 1, seed=1)
    every = backward_loss(log_p.expand(channel.states, -1), torch.arange(channel.states), channel).numpy()
    for state in range(channel.states):
        average = sum(channel.matrix[state, answer] * every[answer] for answer in range(channel.states))
        assert average == pytest.approx(-log_p[0, state].item(), abs=1e-12)


def test_backward_may_be_negative_and_forward_is_not() -> None:
    channel, log_p = Channel.binary(epsilon=0.5), torch.tensor([[0.999, 0.001]], dtype=torch.float64).log()
    assert backward_loss(log_p, torch.tensor([0]), channel).item() < -1
    assert forward_loss(log_p, torch.tensor([0]), channel).item() > 0


def test_backward_of_yes_or_no_is_a_convex_logistic_loss() -> None:
    channel, q = Channel.binary(epsilon=1.0), 1 / (1 + math.e)
    z = torch.linspace(-3, 3, 7, dtype=torch.float64)
    log_p = torch.stack([torch.nn.functional.logsigmoid(-z), torch.nn.functional.logsigmoid(z)], dim=1)
    for answer in (0, 1):
        found = backward_loss(log_p, torch.full((7,), answer), channel)
        expected = torch.nn.functional.softplus(z) - (answer - q) / (1 - 2 * q) * z
        assert found.numpy() == pytest.approx(expected.numpy(), rel=1e-12)


@pytest.mark.parametrize("correction", ["forward", "backward"])
@pytest.mark.parametrize("channel", [SKEWED, ARA[1], ARA[5]], ids=lambda one: str(one.states))
def test_the_clean_conditional_is_the_minimizer(channel: Channel, correction: str) -> None:
    """Over infinitely many rows of one kind: the loss by answer, weighted by how often each comes."""
    clean = torch.arange(1.0, channel.states + 1, dtype=torch.float64)
    clean /= clean.sum()
    seen = clean @ torch.tensor(channel.matrix)
    scores = torch.zeros(channel.states, dtype=torch.float64, requires_grad=True)
    tight = {"tolerance_grad": 1e-12, "tolerance_change": 1e-18, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS([scores], max_iter=200, **tight)  # type: ignore[arg-type]

    def closure() -> Tensor:
        optimizer.zero_grad()
        log_p = scores.log_softmax(dim=0).expand(channel.states, -1)
        loss = corrected_loss(correction, log_p, torch.arange(channel.states), channel) @ seen  # type: ignore[arg-type]
        loss.backward()
        return loss

    optimizer.step(closure)
    assert scores.detach().softmax(dim=0).numpy() == pytest.approx(clean.numpy(), abs=1e-6)


@pytest.mark.parametrize(
    ("channel", "open_"),
    [(ARA[4], (0, 3)), (ARA[4], (0, 2, 3)), (ARA[4], (0, 1, 2, 3)), (SKEWED, (0, 2)), (SKEWED, (1, 2))],
)
def test_an_open_answer_counts_for_all_that_may_still_arrive(channel: Channel, open_: tuple[int, ...]) -> None:
    log_p, mask = uncertain(channel, channel.states, seed=2), masks(channel, *open_)
    found = forward_loss(log_p, torch.arange(channel.states), channel, open_=mask)
    for row in range(channel.states):
        possible = open_ if row in open_ else (row,)
        chance = sum(
            math.exp(log_p[row, state].item()) * channel.matrix[state, answer]
            for state, answer in itertools.product(range(channel.states), possible)
        )
        assert found[row].item() == pytest.approx(-math.log(chance), abs=1e-12)


@pytest.mark.parametrize("open_", [(0, 3), (0, 2, 3), (0, 1, 2, 3)])
def test_backward_is_on_average_what_a_clean_label_would_have_lost_by_now(open_: tuple[int, ...]) -> None:
    channel = Channel(by_definition(WINDOWS, 1.0))
    log_p, mask = uncertain(channel, 1, seed=3), masks(channel, *open_)
    every = backward_loss(log_p.expand(4, -1), torch.arange(4), channel, open_=mask).numpy()
    assert every[list(open_)] == pytest.approx(np.full(len(open_), every[open_[0]]), abs=1e-12)  # cannot be told apart
    for state in range(4):
        possible = open_ if state in open_ else (state,)
        clean = -math.log(sum(math.exp(log_p[0, one].item()) for one in possible))
        assert channel.matrix[state] @ every == pytest.approx(clean, abs=1e-12)


def test_rows_that_wait_longer_than_others_are_each_by_themselves() -> None:
    channel = Channel(by_definition(WINDOWS, 1.0))
    log_p, answers = uncertain(channel, 4, seed=4), torch.tensor([0, 3, 1, 2])
    mask = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 1]], dtype=torch.bool)
    for loss in (forward_loss, backward_loss):
        together = loss(log_p, answers, channel, open_=mask)
        alone = [loss(log_p[i : i + 1], answers[i : i + 1], channel, open_=mask[i : i + 1]) for i in range(4)]
        assert together.numpy() == pytest.approx(torch.cat(alone).numpy(), rel=1e-12)
        assert together[1].item() == pytest.approx(0, abs=1e-12)  # of which nothing is known
        assert together[2].item() == pytest.approx(loss(log_p[2:3], answers[2:3], channel).item(), rel=1e-12)


@pytest.mark.parametrize("correction", ["forward", "backward"])
def test_gradients_are_those_of_differences(correction: str) -> None:
    channel = Channel(by_definition(WINDOWS, 1.0))
    mask = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 1]], dtype=torch.bool)
    scores = torch.randn(4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64, requires_grad=True)

    def loss(scores: Tensor, open_: Tensor | None) -> Tensor:
        answers = torch.tensor([0, 3, 1, 2])
        return corrected_loss(correction, scores.log_softmax(dim=1), answers, channel, open_=open_)  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(lambda x: loss(x, None), scores)
    assert torch.autograd.gradcheck(lambda x: loss(x, mask), scores)


def test_losses_of_sure_models_are_finite() -> None:
    channel = Channel.binary(epsilon=1.0)
    z = torch.tensor([60.0, -60.0], requires_grad=True)
    log_p = torch.stack([torch.nn.functional.logsigmoid(-z), torch.nn.functional.logsigmoid(z)], dim=1)
    for loss in (forward_loss, backward_loss):
        found = loss(log_p, torch.tensor([0, 1]), channel, open_=torch.tensor([[False] * 2, [True] * 2]))
        (gradient,) = torch.autograd.grad(found.sum(), z, retain_graph=True)
        assert torch.isfinite(found).all()
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Channel(np.ones((2, 3)) / 3), "matrix must be square"),
        (lambda: Channel(np.array([[1.2, -0.2], [0.5, 0.5]])), "must hold probabilities"),
        (lambda: Channel(np.array([[0.9, 0.2], [0.1, 0.8]])), "every row of matrix must sum to 1"),
        (lambda: Channel(np.array([[1.0, 0.0], [1.0, 0.0]])), "every answer of matrix must be possible"),
        (lambda: Channel.binary(epsilon=0.0).inverse, "cannot tell the states apart"),
        (lambda: SKEWED.grouped([0, 1, 1]), "states of one group are answered differently"),
        (lambda: SKEWED.grouped([0, 2, 2]), "without gaps"),
        (lambda: SKEWED.grouped([0, 0, 0]), "at least two"),
        (lambda: SKEWED.grouped([0, 1]), "groups must be 3 whole numbers"),
        (lambda: forward_loss(torch.zeros(2, 2), torch.zeros(2).long(), SKEWED), "must have shape \\(2, 3\\)"),
        (lambda: forward_loss(torch.zeros(1, 3), torch.tensor([3]), SKEWED), "answers must be numbers from 0 to 2"),
        (
            lambda: backward_loss(torch.zeros(3, 3), torch.arange(3), SKEWED, open_=masks(SKEWED, 0, 1)),
            "states of one group are answered differently",
        ),
        (
            lambda: forward_loss(torch.zeros(3, 3), torch.arange(3), SKEWED, open_=torch.zeros(3, 3)),
            "open_ must be bool",
        ),
        (
            lambda: corrected_loss("sideways", torch.zeros(3, 3), torch.arange(3), SKEWED),  # type: ignore[arg-type]
            "correction must be",
        ),
    ],
)
def test_bad_input_is_one_clear_line(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
