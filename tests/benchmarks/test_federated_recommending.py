"""Choices become rows by their definition, and a ranking is measured as the textbook says."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.federated.recommending import OTHERS, Choices, Pairs, Preference, popularity, ranking, read


def made_up() -> Choices:
    """Users 0, 1, 2 with four, one and two of seven items."""
    return Choices.of("m", np.array([5, 5, 5, 5, 8, 9, 9]), np.array([0, 2, 3, 6, 2, 1, 4]), 7)


def test_a_row_is_an_item_its_users_other_choices_and_random_items() -> None:
    rows = Pairs(made_up())
    batch = rows.take(np.array([2, 0, 4, 6]))
    bags = [batch.ids[start:end].tolist() for start, end in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)]
    items, histories, others = bags[0::3], bags[1::3], bags[2::3]
    assert items == [[3], [0], [2], [4]]
    assert histories == [[7 + 0, 7 + 2, 7 + 6], [7 + 2, 7 + 3, 7 + 6], [], [7 + 1]]
    assert all(len(one) == OTHERS and set(one) <= set(range(7)) for one in others)


def test_a_preference_is_a_score_less_the_mean_of_others_scores() -> None:
    choices, rows = made_up(), Pairs(made_up())
    torch.manual_seed(0)
    model = Preference(7, dim=3, scale=2.0, bias_scale=0.5)
    torch.nn.init.normal_(model.table.weight)
    batch = rows.take(np.array([5]))  # user 2 chose items 1 and 4: item 1, with 4 as the history
    others = batch.ids[-OTHERS:]
    alone = Choices("m", np.array([0]), np.array([4]), 1, 7)
    (scores,) = model.scores(alone, np.array([0]))
    assert choices.items[5] == 1
    assert float(model(batch)["preferred"].detach()) == pytest.approx(
        float(scores[1] - scores[others].mean()), abs=1e-5
    )
    q = model.table.weight[7 + 4, :3]
    by_hand = 0.5 * model.table.weight[1, 3] + 2.0 * model.table.weight[1, :3] @ q / q.norm()
    assert float(scores[1]) == pytest.approx(float(by_hand.detach()), rel=1e-3)


def test_nothing_is_preferred_at_the_start() -> None:
    assert Preference(7)(Pairs(made_up()).take(np.arange(7)))["preferred"].tolist() == [0.0] * 7


def test_a_ranking_counts_the_held_out_items_among_the_first_twenty() -> None:
    # user 0 is known to have chosen item 0, and 1 and 30 are held out; user 1 only has 29 held out
    kept = Choices("m", np.array([0, 1]), np.array([0, 1]), 2, 40)
    out = Choices("m", np.array([0, 0, 1]), np.array([1, 30, 29]), 2, 40)
    found = ranking(kept, out, -torch.arange(40.0))  # item 0 first, then 1, ...
    assert found.recall == pytest.approx((1 / 2 + 0) / 2)
    assert found.ndcg == pytest.approx((1 / (1 + 1 / np.log2(3)) + 0) / 2)  # item 1 is user 0's first, as 0 is known


def test_a_split_loses_no_choice_and_has_none_twice() -> None:
    rng = np.random.default_rng(0)
    whole = Choices.of("m", rng.integers(0, 50, 2000), rng.integers(0, 90, 2000), 90)
    kept, out = whole.split(3)
    pairs = [set(zip(one.users.tolist(), one.items.tolist(), strict=True)) for one in (kept, out, whole)]
    assert pairs[0] | pairs[1] == pairs[2]
    assert not pairs[0] & pairs[1]
    assert len(pairs[1]) / len(pairs[2]) == pytest.approx(0.2, abs=0.06)  # 5 standard deviations of 1,800 choices: 0.05


def test_public_data_are_read_as_choices_of_items_and_of_categories(tmp_path: Path) -> None:
    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        with gzip.open(tmp_path / path, "wt", encoding="utf-8") as file:
            file.write(text)

    write("pinterest-10core/train.txt.gz", "7 3 1\n9 1\n")
    write("alibaba-ecomm/items.tsv.gz", "i1\t33\tshoes\t0\t1.5\ni2\t33\tbags\t0\t2\ni3\t33\tshoes\t0\t3\n")
    write("alibaba-ecomm/edges.tsv.gz", "4\ti1\t1\t20190610\n4\ti3\t4\t20190611\n6\ti2\t1\t20190610\n")
    pins, shop = read("pinterest", tmp_path), read("alibaba", tmp_path)
    assert (pins.users.tolist(), pins.items.tolist(), pins.population, pins.catalog) == ([0, 0, 1], [1, 3, 1], 2, 4)
    assert (shop.users.tolist(), shop.items.tolist(), shop.population, shop.catalog) == ([0, 1], [1, 0], 2, 2)


def test_popularity_is_the_number_of_users() -> None:
    assert popularity(made_up()).tolist() == [1, 1, 2, 1, 1, 0, 1]
