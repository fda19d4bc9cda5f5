"""Every figure in docs/accounting.md is computed here, by the code that the page is about."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from dp_accounting import NeighboringRelation, dp_event
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from accounting import bin_losses, calibrate, explain, levels, mechanisms, renyi
from accounting.accountant import Bounds, epsilon, without_amplification
from accounting.budget import Budget, Neighbors
from accounting.ledger import Charge, Ledger
from accounting.report.phrase import round_up
from tests.privads.test_cli import privads

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "accounting.md").read_text(encoding="utf-8")
DELTA = 1e-6
INPUTS = {
    "0.01",
    "0.0001",
    "0.3",
    "0.6",
    "0.5",
    "0.001",
    "0.02",
    "0.8",
    "1.75",
    "1.5",
}
TEAM = ("1.70", "0.85", "1.42")
VERSIONS = {"0.6.0"}
TRAINING = {"sampling_rate": 0.01, "noise_multiplier": 1.0, "steps": 10_000}

ROWS = {
    line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
    for line in PAGE.splitlines()
    if line.startswith("|")
}


def last(row: str) -> str:
    return ROWS[row][-1]


@cache
def training() -> dp_event.DpEvent:
    return mechanisms.dp_sgd(**TRAINING)  # type: ignore[arg-type]


def answers() -> dp_event.DpEvent:
    return mechanisms.repeated(mechanisms.randomized_response(randomize_probability=0.5, categories=2), 100)


def upper(event: dp_event.DpEvent, neighbors: Neighbors = "add-remove", delta: float = DELTA) -> float:
    return epsilon(event, delta=delta, neighbors=neighbors).upper


def rows_of_user(records: int) -> float:
    return upper(mechanisms.user_dp_sgd(**TRAINING, records=records))  # type: ignore[arg-type]


def truncated() -> float:
    return upper(mechanisms.truncated_dp_sgd(**TRAINING, population=100_000, largest_batch=1200))  # type: ignore[arg-type]


def binned() -> float:
    return upper(mechanisms.balls_in_bins_dp_sgd(noise_multiplier=1.0, bins=100, epochs=100))


SAMPLERS: dict[str, Callable[[], float]] = {
    "Poisson sampling of units, add/remove": lambda: upper(training()),
    "the same, replace": lambda: upper(training(), "replace"),
    "Poisson sampling with a largest batch of 1,200 of 100,000 units, add/remove": truncated,
    "balls in bins: every unit in one of 100 batches of each of 100 epochs, add/remove": binned,
    **{
        f"Poisson sampling of rows, a user with at most {k} of them, add/remove": lambda k=k: rows_of_user(k)
        for k in (2, 5, 20)
    },
    "every unit in every batch: no trust in the sampler, add/remove": lambda: (
        without_amplification(training(), delta=DELTA).upper
    ),
}


@pytest.mark.parametrize("row", SAMPLERS)
def test_the_sampler_decides(row: str) -> None:
    assert last(row) == round_up(SAMPLERS[row]())


@pytest.mark.parametrize("amount", [1.0, pytest.param(8.0, marks=pytest.mark.slow)])
def test_units_against_rows(amount: float) -> None:
    budget = Budget(epsilon=amount, delta=DELTA, unit="user")
    found = levels.compare(budget, sampling_rate=0.01, steps=1000, records=8, similarity=0.0)
    figures = (found.unit_noise_multiplier, found.row_noise_multiplier, found.crossover)
    assert ROWS[f"epsilon {amount:g}"] == [f"{figure:.3f}" for figure in figures]
    assert f"below {bin_losses.LEAST_NOISE} or above {bin_losses.MOST_NOISE:g}" in PAGE


def phases() -> dp_event.DpEvent:
    return mechanisms.composed(
        *[
            mechanisms.dp_sgd(sampling_rate=0.001 * (i + 1), noise_multiplier=0.8 + 0.05 * i, steps=500)
            for i in range(20)
        ]
    )


def certified(event: dp_event.DpEvent, neighbors: Neighbors = "add-remove") -> Bounds:
    return epsilon(event, delta=DELTA, neighbors=neighbors, certify=True)


@pytest.mark.parametrize(
    ("row", "make"),
    [
        ("sampling rate 0.01, noise 1, 10,000 steps", training),
        (
            "balls in bins: noise 0.6, 2,000 bins, 1 epoch",
            lambda: mechanisms.balls_in_bins_dp_sgd(noise_multiplier=0.6, bins=2000, epochs=1),
        ),
        pytest.param(
            "sampling rate 0.0001, noise 0.6, 1,000,000 steps",
            lambda: mechanisms.dp_sgd(sampling_rate=1e-4, noise_multiplier=0.6, steps=1_000_000),
            marks=pytest.mark.slow,
        ),
        pytest.param("20 phases of 500 steps: rates 0.001 to 0.02, noise 0.8 to 1.75", phases, marks=pytest.mark.slow),
    ],
)
def test_both_ends(row: str, make: Callable[[], dp_event.DpEvent]) -> None:
    bounds = certified(make())
    low, high = map(float, ROWS[row])
    assert bounds.lower is not None
    assert low <= bounds.lower < low + 0.002
    assert high - 0.002 < bounds.upper <= high


def test_both_ends_of_randomized_response() -> None:
    bounds = certified(answers(), "replace-label")
    low, high = map(float, ROWS["randomized response, p = 0.5 of 2, 100 answers, replace-label"])
    assert bounds.lower is not None
    assert low <= bounds.lower < low + 0.01
    assert high - 0.01 < bounds.upper <= high


def test_tuning_has_no_lower_end() -> None:
    row = "random number of the first workload's trials, 10 on average, best one released"
    bounds = certified(mechanisms.private_selection(training(), mean_trials=10, shape=1))
    assert bounds.lower is None
    assert ROWS[row] == ["not stated", round_up(bounds.upper)]


def test_the_librarys_own_figures() -> None:
    replace = NeighboringRelation.REPLACE_ONE
    ignored = PLDAccountant(replace).compose(answers()).get_epsilon(DELTA)
    releases = mechanisms.repeated(mechanisms.gaussian(noise_multiplier=1.0), 100)
    single = RdpAccountant(neighboring_relation=replace).compose(releases).get_epsilon(DELTA)
    doubled = PLDAccountant(replace, value_discretization_interval=1e-3).compose(releases).get_epsilon(DELTA)
    assert f"({ignored:.3f} for the" in PAGE
    assert f"{single:.1f} against {doubled:.1f}" in PAGE
    assert upper(releases, "replace") == pytest.approx(doubled, abs=0.05)


def test_the_explanation() -> None:
    fit = explain.gaussian_dp(training(), neighbors="add-remove")
    assert f"mu = {fit.mu:.2f} with a fit error of {fit.fit_error:.3f}" in PAGE
    low, high = (
        round_up(100 * explain.true_positive_rate(training(), false_positive_rate=rate, neighbors="add-remove"))
        for rate in (0.001, 0.01)
    )
    assert f"at most {low} %, one that wrongly accuses 1 in 100 at most {high} %" in " ".join(PAGE.split())


def test_calibration() -> None:
    def make(noise: float) -> dp_event.DpEvent:
        return mechanisms.dp_sgd(sampling_rate=0.01, noise_multiplier=noise, steps=10_000)

    def budget(amount: float) -> Budget:
        return Budget(epsilon=amount, delta=DELTA, unit="user")

    tables = mechanisms.laplace(noise_multiplier=1.0)
    assert upper(tables) == pytest.approx(1.0, abs=1e-3)
    beside = calibrate.noise_multiplier(make, budget(3.0), beside=tables)
    assert f"{calibrate.noise_multiplier(make, budget(3.0)):.3f}" == last("alone")
    assert f"{beside:.3f}" == last("beside Laplace tables that cost epsilon 1")
    assert f"{calibrate.noise_multiplier(make, budget(2.0)):.3f}" == last(
        "alone, with epsilon 1 subtracted from the budget"
    )
    assert upper(mechanisms.composed(tables, make(beside))) <= 3.0


def test_ninety_days() -> None:
    day = mechanisms.dp_sgd(sampling_rate=0.01, noise_multiplier=1.0, steps=400)
    ninety = mechanisms.repeated(day, 90)
    one = upper(day, delta=DELTA / 90)
    (basic,) = [row for row in ROWS if row.startswith("`basic`:")]
    assert f"one run costs {round_up(one)} at delta {DELTA / 90:.3g}" in basic
    assert ROWS[basic][0] == round_up(90 * one)
    (rdp,) = [row for row in ROWS if row.startswith("`rdp`:")]
    orders = [
        renyi.epsilon_of_renyi(90 * renyi.divergence(day, order=order, neighbors="add-remove"), order, DELTA)
        for order in renyi.ORDERS
    ]
    assert ROWS[rdp][0] == round_up(min(orders))
    (zcdp,) = [row for row in ROWS if row.startswith("`zcdp`:")]
    assert ROWS[zcdp][0] == round_up(renyi.epsilon_of_zcdp(renyi.zcdp_rho(ninety, neighbors="add-remove"), DELTA))
    (joint,) = [row for row in ROWS if row.startswith("the joint PLD")]
    assert ROWS[joint][0] == round_up(upper(ninety))


def test_the_page_names_every_maker() -> None:
    makers = [name for name in mechanisms.__all__ if f"`{name}`" in PAGE]
    made = {
        "dp_sgd",
        "joint_dp_sgd",
        "balls_in_bins_dp_sgd",
        "truncated_dp_sgd",
        "user_dp_sgd",
        "gaussian",
        "laplace",
        "discrete_gaussian",
    }
    made |= {"discrete_laplace", "randomized_response", "approximate_dp", "zcdp", "private_selection"}
    assert made | {"composed", "repeated"} == set(makers)


def test_the_table_of_mechanisms_says_which_accountant_knows_them() -> None:
    neighbors: Neighbors
    examples = {
        "dp_sgd": mechanisms.dp_sgd(sampling_rate=0.1, noise_multiplier=1.0, steps=2),
        "joint_dp_sgd": mechanisms.joint_dp_sgd(sampling_rate=0.1, noise_multipliers=[1.0, 2.0], steps=2),
        "truncated_dp_sgd": mechanisms.truncated_dp_sgd(
            sampling_rate=0.1, noise_multiplier=1.0, steps=2, population=100, largest_batch=20
        ),
        "balls_in_bins_dp_sgd": mechanisms.balls_in_bins_dp_sgd(noise_multiplier=1.0, bins=10, epochs=2),
        "user_dp_sgd": mechanisms.user_dp_sgd(sampling_rate=0.1, noise_multiplier=1.0, steps=2, records=3),
        "gaussian": mechanisms.gaussian(noise_multiplier=1.0),
        "laplace": mechanisms.laplace(noise_multiplier=1.0),
        "discrete_gaussian": mechanisms.discrete_gaussian(noise_std=2.0, sensitivity=1),
        "discrete_laplace": mechanisms.discrete_laplace(scale=2.0, sensitivity=1),
        "randomized_response": mechanisms.randomized_response(randomize_probability=0.5, categories=2),
        "approximate_dp": mechanisms.approximate_dp(epsilon=1.0, delta=1e-7),
        "zcdp": mechanisms.zcdp(rho=0.1),
        "private_selection": mechanisms.private_selection(
            mechanisms.gaussian(noise_multiplier=1.0), mean_trials=3, shape=1
        ),
    }
    for name, event in examples.items():
        neighbors = "replace-label" if name == "randomized_response" else "add-remove"
        _, _, pld, rdp, rho = ROWS[f"`{name}`"]
        found = epsilon(event, delta=DELTA, neighbors=neighbors).method
        assert (pld == "yes") == (found != "RDP"), name
        assert (rdp == "yes") == known(
            lambda event=event, near=neighbors: renyi.divergence(event, order=4, neighbors=near)
        ), name  # type: ignore[misc]
        assert (rho in ("yes", "unamplified")) == known(
            lambda event=event, near=neighbors: renyi.zcdp_rho(event, neighbors=near)  # type: ignore[misc]
        ), name


def known(compute: Callable[[], float]) -> bool:
    try:
        compute()
    except mechanisms.UnknownEvent:
        return False
    return True


def test_no_figure_stands_on_the_page_that_no_test_computes() -> None:
    prose = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    stated = set(re.findall(r"(?<![\w.])\d+\.\d+(?:\.\d+)?", prose)) - INPUTS - VERSIONS
    cells = {cell for row in ROWS.values() for cell in row}
    sentences = {"1.099", "100.7", "294.2", "1.37", "0.030", "3.81", "15.40", "1.99", "1.11"} | set(TEAM)
    assert stated <= cells | sentences, sorted(stated - cells - sentences)


def test_the_teams_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = PAGE.partition("### A team's ledger")[2].partition("\n## ")[0]
    part = part.replace("postgresql+psycopg://ads@db.example/budgets", "sqlite:///budget.db")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lines = [line.split()[1:] for line in part.splitlines() if line.startswith("privads budget")]
    made, *read = lines
    assert privads(tmp_path, *made).returncode == 0
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(part.partition("```python\n")[2].partition("```")[0], found)
    for line in read:
        assert privads(tmp_path, *line).returncode == 0, line
    user, day = found["ledger"].balances("clicks")
    whole = Charge(event=mechanisms.to_json(found["run"]), delta=1e-8, unit="user", purpose="all days")
    (_, dearer) = found["ledger"].reserve("clicks", whole).costs
    assert tuple(round_up(figure) for figure in (user.spent_epsilon, day.spent_epsilon, dearer.loss)) == TEAM
    assert (user.spent_delta, day.spent_delta) == (2e-8, 1e-8)
    assert dearer.loss == pytest.approx(upper(found["run"], "replace", 1e-8), abs=2e-9)
    assert "users have spent epsilon {} at delta 2e-08, and no user's day more than {} at delta".format(*TEAM) in part


def test_under_rdp_a_sampled_run_pays_a_finer_and_a_coarser_column_too(tmp_path: Path) -> None:
    days = Budget(epsilon=3.0, delta=1e-7, unit="user-day")
    users = Budget(epsilon=8.0, delta=1e-6, unit="user")
    url = f"sqlite:///{tmp_path / 'b.db'}"
    ledger = Ledger.init(url, dataset="ads", budget=users, also=[days], rule="rdp", order=8.0)
    run = mechanisms.dp_sgd(sampling_rate=0.01, noise_multiplier=4.0, steps=100)
    coarser = Charge(event=mechanisms.to_json(run), delta=1e-8, unit="user", purpose="train")
    day = ledger.reserve("ads", coarser).costs[1]
    assert day.loss == pytest.approx(renyi.divergence(run, order=8.0, neighbors="replace"), abs=2e-9)
    finer = replace(coarser, unit="user-day", records={"user": 3}, key="second", holder="another")
    user = ledger.reserve("ads", finer).costs[0]
    owner = mechanisms.user_level(run, 3)
    assert user.loss == pytest.approx(renyi.divergence(owner, order=8.0, neighbors="add-remove"), abs=2e-9)
