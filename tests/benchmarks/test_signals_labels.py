"""The benchmark of randomized labels says what it measured, and its careless learner is careless in one thing only."""

import math

import numpy as np
import pytest
import torch

from benchmarks.signals import labels
from privads.signals.channel import Channel
from privads.signals.randomized_labels import RandomizedHead


def test_every_way_of_learning_is_measured_and_forward_has_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "PENALTIES", (30.0,))
    figures = {one.name: one for one in labels.clicks(seeds=2, users=150)}
    for epsilon in ("1", "3"):
        for way in ("ignored", "ignored_then_rescaled", "forward", "backward"):
            assert math.isfinite(figures[f"{way}_epsilon_{epsilon}"].value)
        assert figures[f"forward_beyond_ignored_epsilon_{epsilon}"].target == ">= 0"
        assert figures[f"backward_beyond_ignored_epsilon_{epsilon}"].target is None
    assert figures["clean"].unit == "normalized log-likelihood, mean of 2 seeds"


def test_late_answers_are_none_to_the_careless_learner() -> None:
    head = RandomizedHead(channel=Channel(np.full((3, 3), 0.1) + 0.7 * np.eye(3)), ends_hours=(24.0, 72.0))
    careless = labels._LateIsNone(head)
    outputs, answers = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 1.0, 2.0])
    closed, open_ = torch.full((3, 2), 72.0), torch.full((3, 2), 30.0)
    assert careless.loss(outputs, answers, closed).tolist() == pytest.approx(
        head.loss(outputs, answers, closed).tolist()
    )
    seen = torch.tensor([0.0, 1.0, 0.0])  # the second window has not closed
    assert careless.loss(outputs, answers, open_).tolist() == pytest.approx(head.loss(outputs, seen, closed).tolist())
