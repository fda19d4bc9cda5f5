"""Every figure in docs/auditing.md is computed here."""

import math
from pathlib import Path

import numpy as np
import pytest

from accounting import audit, mechanisms
from accounting.accountant import epsilon
from accounting.audit import guesses, laws
from accounting.audit.ideal import epsilon_of_mu
from accounting.audit.record import GROSS
from tests.accounting.audit.games import DELTA, game, mu_of

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "auditing.md").read_text(encoding="utf-8")
CELLS = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("|")]
PLAYED = [cells for cells in CELLS if len(cells) == 7 and cells[0][0].isdigit()]
KNOWN = [cells for cells in CELLS if len(cells) == 5 and cells[1][:1].isdigit()]
METHODS = ("one_run", "one_run_fdp", "many_runs", "gaussian_fit")


def seen(claim: float, canaries: int, name: str) -> list[str]:
    """The row's figures: guesses, power, mean of 100 games, ceiling, detectable."""
    method = getattr(audit, name)
    rng = np.random.default_rng(1)
    found = []
    for _ in range(100):
        scores, included = game(rng, canaries, claim)
        if not name.startswith("one_run"):  # half of them each: scores of as many with and without
            included = np.arange(canaries) < canaries // 2
            scores = rng.normal(size=canaries) + included * mu_of(claim)
        both = (scores, included) if name.startswith("one_run") else (scores[included], scores[~included])
        found.append(method(*both, claimed_epsilon=claim, delta=DELTA))
    public = found[0]
    return [
        f"{public.guesses:,}" if name.startswith("one_run") else "-",
        stated(public.power),
        stated(float(np.mean([each.lower for each in found]))),
        stated(public.ceiling),
        stated(public.detectable),
    ]


def stated(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "none"


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=[pytest.mark.slow] if "5,000" in row[0] else []) for row in PLAYED],
    ids=lambda row: " ".join(row[:2]),
)
def test_what_can_be_seen(row: list[str]) -> None:
    claim, canaries = row[0].split(", ")
    assert seen(float(claim), int(canaries.replace(",", "")), row[1].strip("`")) == row[2:]


def test_every_method_is_in_every_part_of_the_table() -> None:
    assert [row[1].strip("`") for row in PLAYED] == [*METHODS] * (len(PLAYED) // len(METHODS))


LAWS = {
    "answers of one bit, the half of them random": (
        laws.randomized_response(randomize_probability=0.5, categories=2),
        math.log(3),
        0.0,
    ),
    "Laplace noise of scale 1": (laws.laplace(scale=1.0, shift=1.0), 1.0, 0.0),
    "whole Gaussian noise of standard deviation 4": (
        laws.discrete_gaussian(noise_std=4.0, shift=1),
        epsilon(mechanisms.discrete_gaussian(noise_std=4.0, sensitivity=1), delta=DELTA).upper,
        DELTA,
    ),
}


@pytest.mark.parametrize("row", KNOWN, ids=lambda row: " ".join(row[:2]))
def test_what_known_laws_show(row: list[str]) -> None:
    law, claim, delta = LAWS[row[0]]
    any_outputs = 1e9 * (np.arange(int(row[1].replace(",", ""))) % 2) - 5e8
    found = audit.likelihood_ratio(any_outputs, any_outputs, law, claimed_epsilon=claim, delta=delta)
    assert [f"{claim:.2f}", stated(found.power), stated(found.detectable)] == row[2:]


def test_all_known_laws_are_shown() -> None:
    assert {row[0] for row in KNOWN} == set(LAWS)


def test_the_pages_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(PAGE.partition("```python\n")[2].partition("```")[0], {})
    assert capsys.readouterr().out == "violation: epsilon is at least 4.17\n"
    assert f"here a leak of epsilon {epsilon_of_mu(3.0, DELTA):.0f}" in PAGE


def test_the_constants_of_the_page_are_the_codes() -> None:
    assert f"above {GROSS:g} times the claim" in PAGE
    *first, last = [f"{100 * share:g}" for share in guesses.SHARES]
    assert f"of {', '.join(first)} and {last} %" in PAGE
    included = np.arange(1000) % 2 == 0
    most = audit.one_run(1.0 * included, included, claimed_epsilon=8.0, delta=DELTA, guesses=1000)
    assert f"proves no more than {most.lower:.2f}: a claim of 8" in PAGE


def test_the_page_says_what_the_f_dp_form_is_expected_to_show() -> None:
    included = np.arange(1000) % 2 == 0
    found = audit.one_run_fdp(1.0 * included, included, claimed_epsilon=4.38, delta=DELTA)
    assert f"Of a claim of 4.38 and 1,000 canaries the f-DP form is expected to show {found.power:.2f}." in PAGE
    assert f"the {found.guesses} guesses of both kinds that are made here" in PAGE


def test_the_page_names_every_method_and_every_field_that_tells_what_can_be_shown() -> None:
    for name in (*METHODS, "likelihood_ratio", "lower", "power", "ceiling", "detectable", "verdict"):
        assert f"| `{name}` |" in PAGE, name
