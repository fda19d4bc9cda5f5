"""Selection: its law is dense thresholding's, rows it leaves are left alone, and any optimizer steps the others."""

import copy
import itertools
import math
import tracemalloc
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from privads.batch import Batch
from privads.logs.logs import Logs
from privads.logs.schema import Schema
from privads.models.layers import FusedTable
from privads.noise import Randomness
from privads.training import selection, uses
from privads.training.clipping import UnsupportedModel
from privads.training.sampling import Owned
from privads.training.selection import (
    SelectedTables,
    check_selectable,
    default_threshold,
    select_anew,
    select_once,
    select_touched,
    selected_rows,
)
from privads.training.tables import SparseSum, named_tables, param_groups
from privads.training.uses import touched_by_all
from tests.privads.training.helpers import logs
from tests.privads.training.test_tables import LargestNew

ALPHA = 1e-6


def counts_of(values: dict[int, float], rows: int) -> SparseSum:
    ids = torch.tensor(sorted(values), dtype=torch.int64)
    return SparseSum(ids, torch.tensor([[values[one]] for one in ids.tolist()]).reshape(-1, 1), rows)


# The law of selection

ROWS = 5
COUNTS = {1: 0.5, 3: 1.5}
NOISE_STD, THRESHOLD = 1.3, 1.0
CALLS = 8_000


def law(noise_std: float = NOISE_STD, *, empty: float | None = None, counts_alone: bool = False) -> np.ndarray:
    """The probability of each of the 2^ROWS sets M, by the definition: rows pass independently.

    empty: another chance for rows without a count. counts_alone: thresholds the counts without noise.
    """
    true = np.array([COUNTS.get(row, 0.0) for row in range(ROWS)])
    passes = (true >= THRESHOLD).astype(float) if counts_alone else stats.norm.sf((THRESHOLD - true) / noise_std)
    if empty is not None:
        passes[[row not in COUNTS for row in range(ROWS)]] = empty
    sets = np.array(list(itertools.product([False, True], repeat=ROWS)))
    return np.where(sets, passes, 1 - passes).prod(axis=1)


def follows_the_law() -> bool:
    """A chi-square test at ALPHA of how often each set is selected."""
    randomness, counts = Randomness(), counts_of(COUNTS, ROWS)
    found = np.zeros(2**ROWS)
    weights = 2 ** np.arange(ROWS - 1, -1, -1)
    for _ in range(CALLS):
        ids = selected_rows(counts, threshold=THRESHOLD, noise_std=NOISE_STD, randomness=randomness)
        found[weights[ids.numpy()].sum()] += 1
    expected = CALLS * law()
    return bool(((found - expected) ** 2 / expected).sum() < stats.chi2.isf(ALPHA, 2**ROWS - 1))


def test_the_selected_set_has_the_law_of_dense_thresholding() -> None:
    assert (law() * CALLS).min() > 5  # enough for the chi-square law
    assert follows_the_law()


@pytest.mark.parametrize(
    "wrong",
    [law(NOISE_STD / 2), law(0.8 * NOISE_STD), law(empty=0.0), law(counts_alone=True), law(empty=0.15)],
    ids=["noise halved", "noise a fifth too small", "empty rows never", "true counts", "empty rows too seldom"],
)
def test_a_wrong_law_would_be_missed_with_probability_below_one_in_a_million(wrong: np.ndarray) -> None:
    right = law()
    noncentral = CALLS * ((wrong - right) ** 2 / right).sum()
    assert stats.ncx2.cdf(stats.chi2.isf(ALPHA, len(right) - 1), len(right) - 1, noncentral) < 1e-6


def forget_the_noise(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Randomness, "normal_like", lambda _, reference, noise_std: torch.zeros_like(reference))


def halve_the_noise(patch: pytest.MonkeyPatch) -> None:
    normal = Randomness.normal_like
    patch.setattr(Randomness, "normal_like", lambda *args, noise_std: normal(*args, noise_std=noise_std / 2))


def never_select_an_empty_row(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(selection, "_successes", lambda *_: np.zeros(0, dtype=np.int64))


@pytest.mark.parametrize(
    "fault", [forget_the_noise, halve_the_noise, never_select_an_empty_row], ids=lambda one: one.__name__
)
def test_each_fault_of_the_selection_turns_its_law_red(
    fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    assert not follows_the_law()


TRIALS, CHANCE, REPEATS = 40, 0.1, 6_000


def successes_are_independent(randomness: Randomness) -> bool:
    """Each place succeeds as often as it should, and so many at once: chi-square tests at ALPHA / 2 each."""
    places, numbers = np.zeros(TRIALS), np.zeros(REPEATS, dtype=int)
    for call in range(REPEATS):
        found = selection._successes(TRIALS, CHANCE, randomness)
        places[found] += 1
        numbers[call] = len(found)
    by_place = ((places - REPEATS * CHANCE) ** 2 / (REPEATS * CHANCE * (1 - CHANCE))).sum()
    most = 9  # and more in one cell: 6 or more of each number are expected
    seen = np.bincount(np.minimum(numbers, most), minlength=most + 1)
    expected = REPEATS * np.append(
        stats.binom.pmf(range(most), TRIALS, CHANCE), stats.binom.sf(most - 1, TRIALS, CHANCE)
    )
    by_number = ((seen - expected) ** 2 / expected).sum()
    return bool(by_place < stats.chi2.isf(ALPHA / 2, TRIALS) and by_number < stats.chi2.isf(ALPHA / 2, most))


def test_rows_without_a_count_pass_by_themselves_wherever_they_are() -> None:
    # a place left out, the first or the last, misses 600 successes: z^2 = 667 where about 110 is the bound
    assert successes_are_independent(Randomness())


def test_gaps_that_skip_a_row_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    successes = selection._successes
    monkeypatch.setattr(selection, "_successes", lambda trials, *args: successes(trials - 1, *args) + 1)
    assert not successes_are_independent(Randomness())


@pytest.mark.parametrize("touched", [[], [0], [9], [0, 1, 2], [7, 8, 9], [1, 3, 4, 8], list(range(10))])
def test_rows_without_a_count_are_found_around_those_with_one(
    touched: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "_successes", lambda trials, *_: np.arange(trials))
    counts = counts_of(dict.fromkeys(touched, -1e9), 10)  # too low to pass
    found = selected_rows(counts, threshold=0.0, noise_std=1.0, randomness=Randomness())
    assert found.tolist() == [row for row in range(10) if row not in touched]


@pytest.mark.parametrize("touched", [[], [0, 4], [0, 1, 2, 3, 4]], ids=["none", "some", "all"])
def test_a_threshold_far_off_selects_all_rows_or_none(touched: list[int]) -> None:
    counts = counts_of(dict.fromkeys(touched, 1.0), 5)
    for threshold, expected in ((-60.0, [0, 1, 2, 3, 4]), (60.0, [])):
        found = selected_rows(counts, threshold=threshold, noise_std=1.0, randomness=Randomness())
        assert found.tolist() == expected


@pytest.mark.parametrize("chance", [5e-324, 1e-300, 1e-18])
def test_a_chance_too_small_to_matter_selects_nothing(chance: float) -> None:
    with np.errstate(all="raise", under="ignore"):
        assert len(selection._successes(2**31, chance, Randomness())) == 0


@pytest.mark.parametrize("chance", [1 - 2**-53, 1.0])
def test_a_chance_of_almost_one_selects_all(chance: float) -> None:
    assert selection._successes(1000, chance, Randomness()).tolist() == list(range(1000))


def test_a_long_selection_is_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "_DRAWN", 3)
    assert successes_are_independent(Randomness())


def test_selection_from_a_hundred_million_rows_costs_what_it_selects() -> None:
    # Peak memory of all arrays, and the random numbers drawn: no time is measured.
    randomness, drawn = Randomness(), []
    uniforms = randomness.uniforms
    randomness.uniforms = lambda count: drawn.append(count) or uniforms(count)  # type: ignore[method-assign,func-returns-value]
    rows, batch = 100_000_000, 4096
    ids = torch.arange(0, rows, rows // 1000)
    counts = SparseSum(ids, torch.full((len(ids), 1), 100.0), rows)
    threshold = default_threshold(rows=rows, batch=batch, noise_std=1.0)
    with LargestNew([]) as torch_made:
        selected_rows(counts, threshold=threshold, noise_std=1.0, randomness=randomness)
    drawn.clear()
    tracemalloc.start()
    found = selected_rows(counts, threshold=threshold, noise_std=1.0, randomness=randomness)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert abs(len(found) - batch - 1000) < stats.norm.isf(ALPHA / 2) * math.sqrt(batch)
    assert sum(drawn) < 1.2 * batch
    assert torch_made.largest < 100_000
    assert peak < 1_000_000
    assert bool((found.diff() > 0).all())


def test_selection_draws_from_the_keystream_alone() -> None:
    randomness = Randomness()
    del randomness.generator  # the one that is not cryptographic
    assert len(selected_rows(counts_of({3: 9.0}, 1000), threshold=0.0, noise_std=1.0, randomness=randomness)) > 300


def test_public_uniforms_are_a_copy() -> None:
    randomness = Randomness()
    one = randomness.uniforms(1000)
    kept = one.copy()
    two = randomness.uniforms(1000)
    assert (one == kept).all()
    assert not (one == two).any()
    assert stats.kstest(one, "uniform").pvalue > ALPHA


@pytest.mark.parametrize(("noise_std", "threshold"), [(0.0, 1.0), (-1.0, 1.0), (math.inf, 1.0), (1.0, math.nan)])
def test_selection_without_noise_is_refused(noise_std: float, threshold: float) -> None:
    with pytest.raises(ValueError, match="positive noise_std and a finite threshold"):
        selected_rows(counts_of({}, 5), threshold=threshold, noise_std=noise_std, randomness=Randomness())


@pytest.mark.parametrize("rows", [1, 4096, 8192, 10_000, 10**7, 10**9])
def test_by_default_a_step_selects_at_most_a_batch_of_empty_rows(rows: int) -> None:
    threshold = default_threshold(rows=rows, batch=4096, noise_std=2.5)
    assert rows * stats.norm.sf(threshold / 2.5) == pytest.approx(min(4096, rows / 2))


def test_a_default_threshold_of_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0 and 4"):
        default_threshold(rows=0, batch=4, noise_std=1.0)


def test_fest_selects_once_and_adafest_anew() -> None:
    table, counts = nn.Embedding(1000, 1).weight, counts_of({}, 1000)
    settings = {"threshold": 0.0, "noise_std": 1.0}
    fixed, anew = select_once({table: counts}, Randomness(), **settings), select_anew(Randomness(), **settings)
    assert torch.equal(fixed(table, counts), fixed(table, counts_of({5: 1e9}, 1000)))
    assert not torch.equal(anew(table, counts), anew(table, counts))
    assert select_touched(table, counts_of({5: 0.1}, 1000)).tolist() == [5]


# The noise of the selected rows

NOISED = 10_600
"""Two halves of 5,300: a chi-square test at ALPHA catches a 10 % error of the std with miss probability below 1e-6."""


def noise_is_right(fault: Callable[[pytest.MonkeyPatch], None] = lambda _: None, *, batch: int = 7) -> bool:
    """Whether a step of SGD moves rows with a sum, and rows without, by (sum + N(0, 3^2)) / 7."""
    model = nn.Embedding(NOISED, 1)
    nn.init.zeros_(model.weight)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    tables = SelectedTables(named_tables(model), sgd, Randomness(), batch=batch, select=lambda *_: torch.arange(NOISED))
    read = torch.arange(0, NOISED, 2)
    sums = SparseSum(read, torch.full((len(read), 1), 50.0), NOISED)
    with pytest.MonkeyPatch.context() as patch:
        fault(patch)
        with tables.stepping({model.weight: sums}, {}, noise_std=3.0):
            sgd.step()
    noise = -7 * model.weight.detach().double().flatten() - sums.dense().flatten()
    held = []
    for half in (noise[::2], noise[1::2]):
        statistic = float(half.square().sum()) / 3.0**2
        held.append(stats.chi2.ppf(ALPHA / 4, len(half)) < statistic < stats.chi2.isf(ALPHA / 4, len(half)))
    return all(held)


def leave_empty_rows_without_noise(patch: pytest.MonkeyPatch) -> None:
    normal = Randomness.normal_like

    def where_there_is_a_sum(source: Randomness, reference: Tensor, *, noise_std: float) -> Tensor:
        return normal(source, reference, noise_std=noise_std) * (reference != 0)

    patch.setattr(Randomness, "normal_like", where_there_is_a_sum)


def test_every_selected_row_is_noised_whether_a_unit_reads_it_or_not() -> None:
    assert noise_is_right()


@pytest.mark.parametrize(
    "fault", [forget_the_noise, halve_the_noise, leave_empty_rows_without_noise], ids=lambda one: one.__name__
)
def test_each_fault_of_the_noise_is_seen(fault: Callable[[pytest.MonkeyPatch], None]) -> None:
    assert not noise_is_right(fault)


def test_another_divisor_is_seen() -> None:
    assert not noise_is_right(batch=6)


def test_an_empty_batch_selects_and_noises_all_the_same() -> None:
    model = nn.Embedding(200, 2)
    before = model.weight.detach().clone()
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    randomness = Randomness()
    select = select_anew(randomness, threshold=0.0, noise_std=1.0)
    with SelectedTables(named_tables(model), sgd, randomness, batch=1, select=select).stepping({}, {}, noise_std=1.0):
        sgd.step()
    moved = (model.weight != before).all(1)
    assert 20 < int(moved.sum()) < 180  # about 100; beyond with probability below 1e-30
    assert torch.equal(moved, (model.weight != before).any(1))


# Any optimizer on selected rows

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda held: torch.optim.SGD(held, lr=0.1, weight_decay=0.1),
    "momentum": lambda held: torch.optim.SGD(held, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda held: torch.optim.SGD(held, lr=0.1, momentum=0.9, nesterov=True, maximize=True),
    "adagrad": lambda held: torch.optim.Adagrad(held, lr=0.1, lr_decay=0.1, initial_accumulator_value=0.5),
    "adam": lambda held: torch.optim.Adam(held, lr=0.1, weight_decay=0.1),
    "amsgrad": lambda held: torch.optim.Adam(held, lr=0.1, amsgrad=True, foreach=True),
    "adamw": lambda held: torch.optim.AdamW(held, lr=0.1, weight_decay=0.1),
    "fused adam": lambda held: torch.optim.Adam(held, lr=0.1, fused=True),
    "rmsprop": lambda held: torch.optim.RMSprop(held, lr=0.1, momentum=0.9, centered=True, weight_decay=0.1),
}

V, DIM = 7, 3
SELECTED = [[0, 2, 6], [2, 3], [], [0, 1, 2, 3, 4, 5, 6], [5], [2, 6]]
"""Rows of each of the steps."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.table = nn.Embedding(V, DIM)
        self.head = nn.Linear(DIM, 1)


def sums_of(step: int) -> SparseSum:
    """Sums at three rows, of which some are selected and some are not."""
    ids = torch.tensor([step % 3, 3, 6])
    return SparseSum(ids, torch.randn(3, DIM, generator=torch.Generator().manual_seed(step)), V)


def rows_of_state(optimizer: torch.optim.Optimizer, table: Tensor) -> dict[str, Tensor]:
    found = optimizer.state.get(table, {})
    return {name: one for name, one in found.items() if isinstance(one, Tensor) and one.shape == table.shape}


def trained_here(make: Make) -> tuple[Net, torch.optim.Optimizer, list[dict[str, Tensor]]]:
    """Returns model and optimizer after the steps, and after each of them the table and its state."""
    net, history = Net(), []
    optimizer = make(list(net.parameters()))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 / (1 + done))
    steps = iter(SELECTED)
    tables = SelectedTables(
        named_tables(net), optimizer, Randomness(), batch=4, select=lambda *_: torch.tensor(next(steps)).long()
    )
    for step in range(len(SELECTED)):
        for one in net.head.parameters():
            one.grad = torch.full_like(one, 0.1 * step)
        with tables.stepping({net.table.weight: sums_of(step)}, {}, noise_std=0.0):
            optimizer.step()
        state = rows_of_state(optimizer, net.table.weight)
        history.append({"weight": net.table.weight, **state})
        history[-1] = {name: one.detach().clone() for name, one in history[-1].items()}
        schedule.step()
    return net, optimizer, history


def trained_densely(make: Make) -> tuple[Net, torch.optim.Optimizer]:
    """The oracle: torch steps the whole table, then everything in rows that are not selected is put back."""
    net = Net()
    optimizer = make(list(net.parameters()))
    table = net.table.weight
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 / (1 + done))
    for step, selected in enumerate(SELECTED):
        others = [row for row in range(V) if row not in selected]
        before = table.detach().clone(), copy.deepcopy(rows_of_state(optimizer, table))
        for one in net.head.parameters():
            one.grad = torch.full_like(one, 0.1 * step)
        table.grad = sums_of(step).dense() / 4
        optimizer.step()
        with torch.no_grad():
            table[others] = before[0][others]
            for name, one in rows_of_state(optimizer, table).items():
                one[others] = before[1][name][others] if name in before[1] else 0.0
        schedule.step()
    return net, optimizer


def equals_the_dense_one(make: Make) -> bool:
    (net, optimizer, _), (dense, oracle) = trained_here(make), trained_densely(make)
    held = [
        torch.allclose(one, two, rtol=1e-5, atol=1e-7)
        for one, two in zip(net.parameters(), dense.parameters(), strict=True)
    ]
    for one, two in zip(net.parameters(), dense.parameters(), strict=True):
        held.append(optimizer.state[one].keys() == oracle.state[two].keys())
        for name, value in oracle.state[two].items():
            if value is not None:
                found = torch.as_tensor(optimizer.state[one][name])
                held.append(torch.allclose(found, torch.as_tensor(value), rtol=1e-5, atol=1e-7))
    return all(held)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_any_optimizer_steps_selected_rows_as_it_steps_a_whole_table(make: Make) -> None:
    assert equals_the_dense_one(make)


def others_are_unchanged(make: Make) -> bool:
    _, _, history = trained_here(make)
    for (before, after), selected in zip(itertools.pairwise(history), SELECTED[1:], strict=True):
        others = [row for row in range(V) if row not in selected]
        if not all(torch.equal(before[name][others], after[name][others]) for name in before):
            return False
    return True


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_rows_that_are_not_selected_keep_weight_and_state_to_the_bit(make: Make) -> None:
    assert others_are_unchanged(make)


def decay_the_state_of_others(patch: pytest.MonkeyPatch) -> None:
    put_back = selection._put_back

    def decayed(full: Tensor | None, value: Tensor, part: selection._Part) -> Tensor:
        return put_back(full if full is None or full.shape != part.weight.shape else full.mul_(0.9), value, part)

    patch.setattr(selection, "_put_back", decayed)


def start_every_rows_state_anew(patch: pytest.MonkeyPatch) -> None:
    rows_of = selection._rows_of
    patch.setattr(selection, "_rows_of", lambda value, part: rows_of(value, part) * 0)


@pytest.mark.parametrize("name", ["momentum", "adagrad", "adam", "rmsprop"])
def test_each_fault_of_the_state_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for fault in (start_every_rows_state_anew, decay_the_state_of_others):
        with pytest.MonkeyPatch.context() as patch:
            fault(patch)
            assert not equals_the_dense_one(OPTIMIZERS[name])
    decay_the_state_of_others(monkeypatch)
    assert not others_are_unchanged(OPTIMIZERS[name])


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_what_the_optimizer_saves_is_as_of_training_whole_tables(make: Make) -> None:
    (net, optimizer, _), (_, oracle) = trained_here(make), trained_densely(make)
    found, expected = optimizer.state_dict(), oracle.state_dict()
    assert found["param_groups"] == expected["param_groups"]
    assert found["state"].keys() == expected["state"].keys()
    for number, state in expected["state"].items():
        shapes = {name: getattr(one, "shape", None) for name, one in state.items()}
        assert {name: getattr(one, "shape", None) for name, one in found["state"][number].items()} == shapes
    fresh = make(list(net.parameters()))
    fresh.load_state_dict(found)
    SelectedTables(named_tables(net), fresh, Randomness(), batch=1, select=select_touched)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_step_that_raises_leaves_tables_and_optimizer_as_they_were(make: Make) -> None:
    net, optimizer, _ = trained_here(make)
    table = net.table.weight
    kept, saved = table.detach().clone(), copy.deepcopy(optimizer.state[table])
    lists = [group["params"] for group in optimizer.param_groups]
    tables = SelectedTables(named_tables(net), optimizer, Randomness(), batch=1, select=lambda *_: torch.tensor([1, 2]))

    def failing() -> None:
        with tables.stepping({}, {}, noise_std=1.0):
            assert not any(one is table for one in optimizer.param_groups[0]["params"])
            optimizer.step()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        failing()
    assert all(group["params"] is held for group, held in zip(optimizer.param_groups, lists, strict=True))
    assert torch.equal(table, kept)
    assert set(optimizer.state) <= set(net.parameters())
    for name, one in saved.items():
        assert one is None or torch.equal(torch.as_tensor(optimizer.state[table][name]), torch.as_tensor(one))


def test_a_table_is_never_given_a_gradient() -> None:
    net, optimizer, _ = trained_here(OPTIMIZERS["adam"])
    assert net.table.weight.grad is None
    assert net.table.weight in SelectedTables(
        named_tables(net), optimizer, Randomness(), batch=1, select=select_touched
    )
    assert net.head.weight not in SelectedTables(
        named_tables(net), optimizer, Randomness(), batch=1, select=select_touched
    )


def test_a_sum_that_is_dense_is_restricted_too() -> None:
    model = nn.Embedding(4, 1)
    nn.init.zeros_(model.weight)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    tables = SelectedTables(named_tables(model), sgd, Randomness(), batch=2, select=lambda *_: torch.tensor([1, 3]))
    with tables.stepping({model.weight: torch.tensor([[1.0], [2.0], [3.0], [4.0]])}, {}, noise_std=0.0):
        sgd.step()
    assert model.weight.flatten().tolist() == [0.0, -1.0, 0.0, -2.0]


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_after_the_first_step_nothing_of_the_tables_size_is_made(name: str) -> None:
    rows = 200_000
    model = nn.Embedding(rows, 2)
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    randomness = Randomness()
    threshold = default_threshold(rows=rows, batch=100, noise_std=1.0)
    select = select_anew(randomness, threshold=threshold, noise_std=1.0)
    tables = SelectedTables(named_tables(model), optimizer, randomness, batch=100, select=select)
    counts = counts_of({5: 9.0, 7: 1.0}, rows)
    sums = SparseSum(counts.ids, torch.ones(2, 2), rows)

    def step() -> None:
        with tables.stepping({model.weight: sums}, {model.weight: counts}, noise_std=1.0):
            optimizer.step()

    step()
    state = [one for one in optimizer.state[model.weight].values() if isinstance(one, Tensor)]
    with LargestNew([model.weight, *state]) as made:
        step()
    assert made.largest < 10_000  # bytes; a row of all rows has 1.6 million


# Refusals


class Mine(torch.optim.Adam):
    pass


@pytest.mark.parametrize("kind", [torch.optim.Rprop, torch.optim.ASGD, torch.optim.SparseAdam, torch.optim.LBFGS, Mine])
def test_an_optimizer_whose_rows_are_not_their_own_is_refused_by_name(kind: type[torch.optim.Optimizer]) -> None:
    model = nn.Embedding(4, 2)
    with pytest.raises(ValueError, match=f"'weight' with one of SGD, Adagrad, Adam.* not {kind.__name__}"):
        check_selectable(named_tables(model), kind(model.parameters()))  # type: ignore[call-arg]


def test_an_optimizer_of_the_network_alone_is_free() -> None:
    net = Net()
    check_selectable(named_tables(net), torch.optim.Rprop(net.head.parameters()))


def test_dampening_and_groups_of_lazy_tables_are_refused() -> None:
    net = Net()
    with pytest.raises(ValueError, match=r"need dampening 0 on 'table\.weight', got 0\.5"):
        check_selectable(named_tables(net), torch.optim.SGD(net.parameters(), lr=1.0, momentum=0.9, dampening=0.5))
    groups = param_groups(net, table_lr=1.0)
    with pytest.raises(ValueError, match=r"'table\.weight' was made for table_noise 'lazy'.*Adam steps tables"):
        check_selectable(named_tables(net), torch.optim.Adam(groups))
    check_selectable(named_tables(net), torch.optim.SGD(param_groups(net, table_lr=1.0), lr=1.0))


def test_a_group_changed_on_the_way_is_refused_before_the_step() -> None:
    net = Net()
    sgd = torch.optim.SGD(net.parameters(), lr=1.0, momentum=0.9)
    tables = SelectedTables(named_tables(net), sgd, Randomness(), batch=1, select=select_touched)
    sgd.param_groups[0]["dampening"] = 0.5
    with pytest.raises(ValueError, match="dampening"), tables.stepping({}, {}, noise_std=1.0):
        pass


# What all units read


class ManyTables(nn.Module):
    """A fused table, an embedding with padding that is read twice, and a bag."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.fused = FusedTable([field.buckets for field in schema.categorical.values()], 2)
        self.twice = nn.Embedding(24, 2, padding_idx=10)
        self.bag = nn.EmbeddingBag(24, 2, mode="sum")
        self.head = nn.Linear(1, 1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        ids = batch.ids.view(batch.rows, 2)
        self.fused(batch.ids, offsets=batch.offsets)
        self.twice(ids)
        self.twice(ids[:, 1])
        self.bag(batch.ids, batch.offsets[:-1:2])
        return {"click": self.head(batch.dense).squeeze(1)}


class Some:
    """Some rows of a log."""

    def __init__(self, log: Logs, rows: np.ndarray) -> None:
        self._log, self._rows = log, rows
        self.schema = log.schema

    def take(self, row_numbers: np.ndarray) -> Batch:
        return self._log.take(self._rows[row_numbers])


@pytest.fixture
def log(tmp_path: Path) -> Logs:
    return logs(tmp_path)


def read_by_hand(log: Logs, rows: Sequence[int]) -> dict[tuple[str, int], None]:
    """Which rows of which tables the rows of one unit read: by the forward method above."""
    ids = log.take(np.array(rows)).ids.tolist()
    tables = [(name, one) for name in ("fused", "bag") for one in ids] + [("twice", one) for one in ids if one != 10]
    return dict.fromkeys(tables)


def all_touched(model: nn.Module, log: Logs, kept: np.ndarray, rows_per_unit: int) -> dict[str, Tensor]:
    units = log.units[kept]
    generator = np.random.default_rng(0)
    found = touched_by_all(model, Some(log, kept), units, rows_per_unit=rows_per_unit, generator=generator)  # type: ignore[arg-type]
    names = {one: name.removesuffix(".weight") for name, one in model.named_parameters()}
    return {names[weight]: counts.dense().flatten() for weight, counts in found.items()}  # type: ignore[index]


@pytest.mark.parametrize("read_rows", [1, 7, 1 << 15])
@pytest.mark.parametrize("rising", [True, False])
def test_what_all_units_read_is_the_sum_of_what_each_reads(
    log: Logs, read_rows: int, rising: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uses, "_READ_ROWS", read_rows)
    kept = np.arange(60) if rising else np.random.default_rng(1).permutation(60)
    model = ManyTables(log.schema)
    found = all_touched(model, log, kept, rows_per_unit=5)
    expected = {name: torch.zeros(24, dtype=torch.float64) for name in ("fused", "twice", "bag")}
    for unit in set(log.units[kept].tolist()):
        read = read_by_hand(log, [row for row in kept if log.units[row] == unit])
        for name, row in read:
            expected[name][row] += 1 / math.sqrt(len(read))
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        assert torch.allclose(found[name], one, rtol=1e-12)
    assert model.training
    assert not any(one._forward_pre_hooks for one in model.modules())


def largest_change(log: Logs, rows_per_unit: int = 5) -> float:
    """The largest norm by which one of twelve units changes the counts."""
    everyone = np.arange(60)
    model = ManyTables(log.schema)
    all_of_them = all_touched(model, log, everyone, rows_per_unit)
    norms = []
    for unit in np.unique(log.units[everyone])[:12]:
        without = all_touched(model, log, everyone[log.units[everyone] != unit], rows_per_unit)
        norms.append(torch.cat([all_of_them[name] - without[name] for name in without]).norm().item())
    return max(norms)


def test_one_unit_changes_the_counts_of_all_tables_together_by_a_norm_of_one(log: Logs) -> None:
    assert largest_change(log) == pytest.approx(1.0, rel=1e-9)


def count_each_row_in_full(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(uses, "shares", lambda owners: np.ones(len(owners)))


def count_rows_instead_of_units(patch: pytest.MonkeyPatch) -> None:
    rows_of = Owned.rows_of

    def each_for_itself(*args: Any) -> tuple[np.ndarray, np.ndarray]:
        rows, _ = rows_of(*args)
        return rows, np.arange(len(rows))

    patch.setattr(Owned, "rows_of", each_for_itself)


def count_each_table_by_itself(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(uses, "shares", lambda owners: 3**0.5 / np.sqrt(np.bincount(owners))[owners])


@pytest.mark.parametrize(
    "fault",
    [count_each_row_in_full, count_rows_instead_of_units, count_each_table_by_itself],
    ids=lambda one: one.__name__,
)
def test_a_unit_that_adds_more_than_its_norm_is_seen(
    log: Logs, fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    assert largest_change(log) > 1.2


def test_the_norm_of_what_a_unit_reads_is_at_most_one_in_floating_point() -> None:
    for read in [*range(1, 500), 10_007, 2**17 + 1]:
        shares = uses.shares(np.zeros(read, dtype=np.int64))
        assert 1 - 1e-12 < read * Fraction(float(shares[0])) ** 2 <= 1


def test_a_unit_brings_at_most_so_many_of_its_rows(log: Logs) -> None:
    everyone = np.arange(60)
    found = all_touched(ManyTables(log.schema), log, everyone, rows_per_unit=1)
    units = len(np.unique(log.units[everyone]))
    # with one row of two ids a unit reads two rows of the fused table: 2 / sqrt(n), n at most 6
    assert float(found["fused"].sum()) >= units * 2 / math.sqrt(6) * (1 - 1e-9)
    assert float(found["fused"].square().sum()) > 0
    assert float(found["bag"].sum()) == pytest.approx(float(found["fused"].sum()))


def test_a_table_that_is_not_read_by_the_batchs_rows_is_refused(log: Logs) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(24, 1)

        def forward(self, batch: Batch) -> Tensor:
            return self.table(batch.ids)  # type: ignore[no-any-return]

    with pytest.raises(UnsupportedModel, match="called with 120 rows for a batch of 60"):
        all_touched(Flat(), log, np.arange(60), rows_per_unit=50)


def test_a_table_nobody_reads_and_a_log_without_rows_give_no_counts(log: Logs) -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(24, 1)
            self.none = FusedTable([], 1)

        def forward(self, batch: Batch) -> Tensor:
            return self.none(torch.zeros(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)).sum()

    for rows in (0, 60):
        found = all_touched(Idle(), log, np.arange(rows), rows_per_unit=5)
        assert not any(one.any() for one in found.values())
