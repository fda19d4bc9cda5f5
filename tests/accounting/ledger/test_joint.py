"""The joint figure: composed as one, over what is charged, and kept until something it depends on changes."""

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from accounting import accountant
from accounting.accountant import epsilon
from accounting.ledger import Ledger
from accounting.ledger import joint as module
from accounting.mechanisms import (
    composed,
    dp_sgd,
    gaussian,
    parts,
    private_selection,
    randomized_response,
    repeated,
    user_dp_sgd,
)
from tests.accounting.ledger.helpers import ADS, budget, charge_of, refusal, runs, write
from tests.accounting.ledger.test_cost import gaussian_epsilon

LIMIT = budget(100.0, 9e-5)
TEN = gaussian(noise_multiplier=10.0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "privads"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The events that the accountant is asked about from now on."""
    found: list[Any] = []

    def spy(event: Any, **terms: Any) -> Any:
        found.append(event)
        return epsilon(event, **terms)

    monkeypatch.setattr(accountant, "epsilon", spy)
    return found


@pytest.fixture
def ledger(sqlite_url: str) -> Ledger:
    return Ledger.init(sqlite_url, dataset=ADS, budget=LIMIT)


def exactly(noise: float, delta: float = LIMIT.delta) -> Any:
    return pytest.approx(gaussian_epsilon(noise, delta), rel=1e-6)


def test_gaussians_together_are_one_gaussian(ledger: Ledger) -> None:
    """16 of noise 10 and 9 of noise 5: s = (16/100 + 9/25)^(-1/2)."""
    for noise, count in ((10.0, 16), (5.0, 9)):
        for _ in range(count):
            ledger.reserve(ADS, charge_of(gaussian(noise_multiplier=noise)))
    found = ledger.joint(ADS)
    assert found.upper == exactly((16 / 100 + 9 / 25) ** -0.5)
    assert (found.delta, found.neighbors) == (LIMIT.delta, "add-remove")
    assert found.upper < ledger.balance(ADS).spent_epsilon / 2


def test_nothing_charged_is_nothing_lost(ledger: Ledger) -> None:
    assert (ledger.joint(ADS).lower, ledger.joint(ADS).upper) == (0.0, 0.0)
    ledger.abort(ledger.reserve(ADS, charge_of(TEN)))
    assert ledger.joint(ADS).upper == 0.0


def test_every_charge_that_was_not_aborted_counts(ledger: Ledger) -> None:
    ledger.reserve(ADS, charge_of(TEN))
    ledger.open_rows(ledger.reserve(ADS, charge_of(TEN)))
    ledger.commit(ledger.open_rows(ledger.reserve(ADS, charge_of(TEN))))
    ledger.abort(ledger.reserve(ADS, charge_of(TEN)))
    assert ledger.joint(ADS).upper == exactly(10 / math.sqrt(3))


def test_equal_events_are_composed_once_with_a_count(ledger: Ledger, asked: list[Any]) -> None:
    kind = dp_sgd(sampling_rate=0.1, noise_multiplier=9.0, steps=2)
    ledger.commit(ledger.open_rows(ledger.reserve(ADS, charge_of(kind, delta=1e-8))))
    runs(ledger, 99)
    asked.clear()
    ledger.joint(ADS)
    (one,) = asked
    assert [count for _, count in parts(one)] == [200]


def test_each_column_has_its_own_figure(sqlite_url: str) -> None:
    limits = [budget(100.0, 9e-5), budget(100.0, 1e-6, unit="example")]
    ledger = Ledger.init(sqlite_url, dataset=ADS, budget=limits[0], also=limits[1:])
    for _ in range(4):
        ledger.reserve(ADS, charge_of(TEN, unit="example", delta=1e-8, records={"user": 5}))
    assert ledger.joint(ADS).upper == ledger.joint(ADS, unit="user").upper == exactly(1.0)
    assert ledger.joint(ADS, unit="example").upper == exactly(5.0, 1e-6)
    assert "has no limit for visit" in refusal(ledger.joint, ADS, unit="visit")
    assert "has no limit for labels of user" in refusal(ledger.joint, ADS, unit="user", label_only=True)


def test_labels_are_never_added_to_the_rest(sqlite_url: str) -> None:
    also = [budget(100.0, 1e-6, unit="example", neighbors="replace-label")]
    ledger = Ledger.init(sqlite_url, dataset=ADS, budget=LIMIT, also=also)
    coin = randomized_response(randomize_probability=0.5, categories=2)
    for _ in range(3):
        ledger.reserve(ADS, charge_of(coin, unit="example", delta=1e-15, neighbors="replace-label"))
    assert ledger.joint(ADS).upper == 0.0
    found = ledger.joint(ADS, unit="example", label_only=True)
    assert found.upper == pytest.approx(3 * math.log(3), abs=0.01)
    assert found.neighbors == "replace-label"


def test_blocks_cost_the_dearest_of_them(sqlite_url: str, asked: list[Any]) -> None:
    limits = [LIMIT, budget(100.0, 9e-5, unit="user-day")]
    ledger = Ledger.init(sqlite_url, dataset=ADS, budget=limits[0], also=limits[1:], block="day")
    for day, times in (("2026-11-20", 1), ("2026-11-21", 4), ("2026-11-22", 2), ("2026-11-23", 4)):
        for _ in range(times):
            ledger.reserve(ADS, charge_of(TEN, blocks=(day,)))
    ledger.reserve(ADS, charge_of(TEN, unit="user-day", records={"user": 1}))
    assert ledger.joint(ADS).upper == exactly(10 / math.sqrt(12))
    asked.clear()
    assert ledger.joint(ADS, unit="user-day").upper == exactly(10 / math.sqrt(5))
    assert len(asked) == 1  # the other days hold no more than the dearest


def test_what_no_one_composition_holds_is_joined_at_shares_of_delta(sqlite_url: str) -> None:
    """A user's charge is accounted under replace for a user-day (noise 5), a user-day's as it is (noise 10)."""
    limits = [LIMIT, budget(100.0, 1e-6, unit="user-day")]
    ledger = Ledger.init(sqlite_url, dataset=ADS, budget=limits[0], also=limits[1:])
    ledger.reserve(ADS, charge_of(TEN, unit="user-day", delta=1e-8, records={"user": 2}))
    ledger.reserve(ADS, charge_of(TEN, unit="user", delta=1e-8))
    found = ledger.joint(ADS, unit="user-day")
    assert found.upper == pytest.approx(gaussian_epsilon(10.0, 5e-7) + gaussian_epsilon(5.0, 5e-7), rel=1e-6)
    assert (found.lower, found.neighbors, found.delta) == (None, "add-remove", 1e-6)
    assert "joined by basic composition" in found.method


def test_coarser_units_alone_need_no_share(sqlite_url: str) -> None:
    ledger = Ledger.init(sqlite_url, dataset=ADS, budget=LIMIT, also=[budget(100.0, 1e-6, unit="user-day")])
    ledger.reserve(ADS, charge_of(TEN, delta=1e-8))
    found = ledger.joint(ADS, unit="user-day")
    assert found.upper == exactly(5.0, 1e-6)
    assert (found.lower, found.neighbors) == (None, "add-remove")


def test_group_privacy_is_joined_too(sqlite_url: str) -> None:
    """A tuning search has no user-level event: it is one more share, at which group privacy gives its figure."""
    ledger = Ledger.init(sqlite_url, dataset=ADS, budget=budget(100.0, 1e-6))
    search = private_selection(gaussian(noise_multiplier=40.0), mean_trials=2.0, shape=1.0)
    for _ in range(2):
        ledger.reserve(ADS, charge_of(search, unit="example", delta=1e-8, records={"user": 2}))
    ledger.reserve(ADS, charge_of(TEN, unit="example", delta=1e-8, records={"user": 2}))
    found = ledger.joint(ADS)
    from accounting.ledger.cost import group_epsilon

    each = group_epsilon(search, group=2, delta=2.5e-7, neighbors="add-remove")  # two of them share a half of delta
    assert found.upper == pytest.approx(gaussian_epsilon(5.0, 5e-7) + 2 * each, rel=1e-6)
    assert "group privacy" in found.method


def test_an_event_that_the_accountant_knows_only_under_add_and_remove_is_taken_for_a_pair(sqlite_url: str) -> None:
    limit = budget(100.0, 1e-6, neighbors="replace")
    ledger = Ledger.init(sqlite_url, dataset=ADS, budget=limit)
    mixture = user_dp_sgd(sampling_rate=0.1, noise_multiplier=20.0, steps=5, records=2)
    ledger.reserve(ADS, charge_of(mixture, delta=1e-8))
    ledger.reserve(ADS, charge_of(TEN, delta=1e-8))
    assert ledger.joint(ADS).upper >= gaussian_epsilon(5.0, 5e-7) * (1 - 1e-6)


# --- the cache ---------------------------------------------------------------------------------------------


def test_a_figure_is_computed_once(ledger: Ledger, cache: Path, asked: list[Any]) -> None:
    ledger.reserve(ADS, charge_of(TEN))
    first = ledger.joint(ADS)
    asked.clear()
    assert ledger.joint(ADS) == Ledger.open(ledger.url).joint(ADS) == first
    assert asked == []
    assert len(list(cache.iterdir())) == 1
    ledger.reserve(ADS, charge_of(TEN))
    assert ledger.joint(ADS).upper > first.upper


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", "null", '{"upper": 0.0}', "[" * 100_000, "\udcff".encode("utf-8", "surrogateescape")],
)
def test_a_file_that_says_something_else_is_as_good_as_none(ledger: Ledger, cache: Path, content: Any) -> None:
    ledger.reserve(ADS, charge_of(TEN))
    first = ledger.joint(ADS)
    (path,) = cache.iterdir()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert ledger.joint(ADS) == first
    assert json.loads(path.read_text())["upper"] == first.upper  # written anew


def test_a_figure_of_other_terms_is_not_taken(ledger: Ledger, cache: Path) -> None:
    ledger.reserve(ADS, charge_of(TEN))
    first = ledger.joint(ADS)
    (path,) = cache.iterdir()
    for change in ({"delta": 0.1}, {"neighbors": "replace"}, {"upper": "0"}, {"upper": None}, {"upper": math.nan}):
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        assert ledger.joint(ADS) == first


def test_a_cache_that_cannot_be_written_changes_nothing(ledger: Ledger, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file, where the folder should be")
    ledger.reserve(ADS, charge_of(TEN))
    assert ledger.joint(ADS).upper == exactly(10.0)


def test_another_accountant_computes_anew(
    ledger: Ledger, cache: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.reserve(ADS, charge_of(TEN))
    ledger.joint(ADS)
    asked.clear()
    monkeypatch.setattr(module, "_fingerprint", lambda: "another release")
    ledger.joint(ADS)
    assert len(asked) == 1
    assert len(list(cache.iterdir())) == 2


def test_a_corrected_conversion_of_the_ledger_computes_anew_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash of the sources left out this folder, whose `cost` takes part in every joint figure."""
    read, fixed = Path.read_bytes, Path(module.__file__).with_name("cost.py")
    before = module._fingerprint()
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"# mended" * (path == fixed))
    module._fingerprint.cache_clear()
    assert module._fingerprint() != before
    module._fingerprint.cache_clear()


def test_a_cache_on_a_full_disk_is_left_empty(ledger: Ledger, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **named: Any) -> None:
        raise OSError("no space left")

    ledger.reserve(ADS, charge_of(TEN))
    with monkeypatch.context() as context:
        context.setattr(Path, "replace", fail)
        assert ledger.joint(ADS).upper == exactly(10.0)
    assert list(cache.iterdir()) == []


def test_the_cache_knows_no_purpose_and_no_data_set(ledger: Ledger, cache: Path) -> None:
    ledger.reserve(ADS, charge_of(TEN, purpose="a secret launch"))
    ledger.joint(ADS)
    (path,) = cache.iterdir()
    assert "secret" not in path.read_text() + path.name
    assert ADS not in path.read_text() + path.name


@pytest.mark.slow
def test_a_thousand_runs_of_fifty_kinds_take_half_a_minute(sqlite_url: str) -> None:
    ledger = Ledger.init(sqlite_url, dataset=ADS, budget=budget(1e6, 9e-5))
    kinds = [dp_sgd(sampling_rate=0.001 * (1 + i), noise_multiplier=1.0 + 0.02 * i, steps=300) for i in range(50)]
    for kind in kinds:
        ledger.reserve(ADS, charge_of(kind, delta=1e-8))
    write(
        ledger, [replace(row.step, key=f"{row.step.key}-{n}") for n in range(19) for row in ledger._store.rows()[1:51]]
    )
    start = time.process_time()  # on one core, whatever else the machine does
    found = Ledger.open(sqlite_url).joint(ADS)
    cold = time.process_time() - start
    start = time.process_time()
    assert Ledger.open(sqlite_url).joint(ADS) == found
    warm = time.process_time() - start
    assert cold < 30
    assert warm < 1
    whole = composed(*(repeated(kind, 20) for kind in kinds))
    assert found.upper == epsilon(whole, delta=9e-5).upper
