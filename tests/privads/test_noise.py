"""Noise: its law, and that nothing repeats it."""

import functools
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy import stats

from privads import noise
from privads.noise import _PAIRS, Randomness

SAMPLES = 20_000  # a chi-square test at alpha 1e-6 then catches a 5 % error of the std with miss probability < 1e-6
ALPHA = 1e-6


def std_is(values: np.ndarray, noise_std: float) -> bool:
    statistic = (values**2).sum() / noise_std**2
    return bool(stats.chi2.ppf(ALPHA / 2, len(values)) < statistic < stats.chi2.isf(ALPHA / 2, len(values)))


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_normal_with_the_stated_std(seed: int | None, dtype: torch.dtype) -> None:
    reference = torch.empty(SAMPLES, dtype=dtype)
    values = Randomness(insecure_seed=seed).normal_like(reference, noise_std=2.5).numpy().astype(float)
    assert std_is(values, 2.5)
    assert abs(values.mean()) < 2.5 / SAMPLES**0.5 * stats.norm.isf(ALPHA / 2)
    assert stats.kstest(values / 2.5, "norm").pvalue > ALPHA


@pytest.mark.parametrize("wrong", [0.95, 1.05, 0.5])
def test_a_wrong_std_is_seen(wrong: float) -> None:
    values = Randomness().normal_like(torch.empty(SAMPLES), noise_std=2.5).numpy().astype(float)
    assert not std_is(values, 2.5 * wrong)


def test_every_row_has_the_std_that_is_given_for_it() -> None:
    stds = torch.tensor([[0.1], [3.0]])
    values = Randomness().normal_like(torch.empty(2, SAMPLES), noise_std=stds).numpy().astype(float)
    assert std_is(values[0], 0.1)
    assert std_is(values[1], 3.0)


@pytest.mark.parametrize("apart", [1, 2, _PAIRS, 2 * _PAIRS])  # _PAIRS apart: cosine and sine of one angle
def test_values_apart_are_uncorrelated_and_so_are_their_squares(apart: int) -> None:
    values = Randomness().normal_like(torch.empty(8 * SAMPLES), noise_std=1.0).numpy().astype(float)
    for one in (values, (values**2 - 1) / 2**0.5):
        products = one[apart:] * one[:-apart]
        assert abs(products.mean()) * len(products) ** 0.5 < stats.norm.isf(ALPHA / 2)


def test_uniforms_are_above_zero_and_reach_one() -> None:
    # the ends of 52 random bits: all ones is the least, and its logarithm is finite
    for word, expected in ((2**64 - 1, 2.0**-52), (0, 1.0)):
        assert (noise._uniforms(np.full(4, word, dtype=np.uint64)) == expected).all()


def in_a_fork(source: Randomness) -> tuple[np.ndarray, np.ndarray]:
    """(noise, choices) that a forked child draws next."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        drawn = source.normal_like(torch.empty(8, dtype=torch.float64), noise_std=1.0).numpy().tobytes()
        os.write(write, drawn + source.generator.random(8).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    both = np.frombuffer(os.read(read, 128))
    for end in (read, write):
        os.close(end)
    return both[:8], both[8:]


@pytest.mark.parametrize("renewed", [True, False])
def test_a_forked_process_does_not_repeat_its_parents_noise_or_choices(
    renewed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Randomness()
    if not renewed:  # the fault
        monkeypatch.setattr(noise, "_fresh", [])
    drawn, chosen = in_a_fork(source)
    again = source.normal_like(torch.empty(8, dtype=torch.float64), noise_std=1.0).numpy()
    assert np.array_equal(drawn, again) != renewed
    assert np.array_equal(chosen, source.generator.random(8)) != renewed


# Secure


def test_secure_noise_is_normal_with_the_stated_std_and_says_so() -> None:
    source = Randomness(secure=True)
    values = source.normal_like(torch.empty(SAMPLES), noise_std=2.5).numpy().astype(float)
    assert std_is(values, 2.5)
    assert stats.kstest(values / 2.5, "norm").pvalue > ALPHA
    stds = torch.tensor([[0.1], [3.0]])
    assert std_is(source.normal_like(torch.empty(2, SAMPLES), noise_std=stds).numpy()[1].astype(float), 3.0)
    assert "the sum of four normals" in source.description


def test_each_secure_normal_is_made_of_four_of_the_keystreams(monkeypatch: pytest.MonkeyPatch) -> None:
    source, draws = Randomness(secure=True), []
    standard = source._standard_normal
    monkeypatch.setattr(source, "_standard_normal", lambda *a: draws.append(standard(*a)) or draws[-1].copy())
    found = source.normal_like(torch.empty(5, dtype=torch.float64), noise_std=2.0).numpy()
    assert len(draws) == 4
    assert found == pytest.approx(np.sum(draws, axis=0))  # 2 / sqrt(4)


def test_one_normal_counted_four_times_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Randomness(secure=True)
    one = source._standard_normal(SAMPLES, np.float64)
    monkeypatch.setattr(source, "_standard_normal", lambda *_: one.copy())
    assert not std_is(source.normal_like(torch.empty(SAMPLES), noise_std=2.5).numpy().astype(float), 2.5)


def drawn_by(source: Randomness) -> tuple[int, bool]:
    """(words of the keystream that 10 normals of float64 take, whether numpy's and torch's generators stood still)"""
    words, sizes = source._keystream.words, []
    source._keystream.words = lambda count: sizes.append(count) or words(count)  # type: ignore[func-returns-value,method-assign]
    before = str(source.generator.bit_generator.state), torch.random.get_rng_state().tolist()
    source.normal_like(torch.empty(10, dtype=torch.float64), noise_std=1.0)
    taken = sum(sizes)
    source.uniforms(3)
    source.geometric(3, rate=0.1)
    return taken, before == (str(source.generator.bit_generator.state), torch.random.get_rng_state().tolist())


def test_secure_noise_takes_four_normals_worth_of_the_keystream_and_of_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert drawn_by(Randomness(secure=True)) == (4 * 10, True)  # two words make two normals
    assert drawn_by(Randomness()) == (10, True)
    with monkeypatch.context() as fault:  # one draw, counted four times
        fault.setattr(Randomness, "_standard_normal", functools.cache(Randomness._standard_normal))
        assert drawn_by(Randomness(secure=True)) == (10, True)
    # The fault: the generator of the batches
    monkeypatch.setattr(
        Randomness, "_words", lambda self, count: self.generator.integers(0, 2**64, size=count, dtype=np.uint64)
    )
    assert drawn_by(Randomness(secure=True)) == (0, False)


def test_secure_noise_cannot_be_seeded() -> None:
    with pytest.raises(ValueError, match="leave out insecure_seed, or secure"):
        Randomness(insecure_seed=1, secure=True)


def test_the_tails_of_float32_noise_are_those_of_a_normal() -> None:
    # Beyond 4.5 there are 6.8e-6 of all: of 20 million 136 are expected, and the interval has probability 1 - 1e-6
    values = Randomness().normal_like(torch.empty(20_000_000), noise_std=1.0)
    many, chance = int((values.abs() > 4.5).sum()), 2 * stats.norm.sf(4.5)
    assert stats.binom.ppf(ALPHA / 2, len(values), chance) <= many <= stats.binom.isf(ALPHA / 2, len(values), chance)


def test_the_keystream_is_aes_in_counter_mode_under_fresh_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    # NIST SP 800-38A, F.5.5: CTR-AES256, the keystream of the first two blocks
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    blocks = "0bdf7df1591716335e9a8b15c860c5025a6e699d536119065433863c8f657b94"
    monkeypatch.setattr("os.urandom", lambda size: key if size == 32 else counter)
    words = Randomness()._keystream.words(4)
    assert words.tobytes().hex() == blocks


def test_shape_and_type_follow_the_reference() -> None:
    for shape in ((), (3,), (2, 5), (0, 4)):
        for dtype in (torch.float32, torch.float64):
            drawn = Randomness().normal_like(torch.empty(shape, dtype=dtype), noise_std=1.0)
            assert drawn.shape == shape
            assert drawn.dtype == dtype
            assert torch.isfinite(drawn).all()


def test_two_draws_and_two_sources_differ() -> None:
    source = Randomness()
    one, two = (source.normal_like(torch.empty(8), noise_std=1.0) for _ in range(2))
    three = Randomness().normal_like(torch.empty(8), noise_std=1.0)
    assert not torch.equal(one, two)
    assert not torch.equal(one, three)
    assert Randomness().generator.integers(2**60) != Randomness().generator.integers(2**60)


def test_torch_and_numpy_seeds_do_not_reach_the_noise() -> None:
    draws = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        draws.append(Randomness().normal_like(torch.empty(8), noise_std=1.0))
    assert not torch.equal(*draws)


def test_an_insecure_seed_repeats_and_says_so() -> None:
    one, two = (Randomness(insecure_seed=5).normal_like(torch.empty(8), noise_std=1.0) for _ in range(2))
    assert torch.equal(one, two)
    assert "insecure_seed 5" in Randomness(insecure_seed=5).description
    assert "os.urandom" in Randomness().description


def test_threads_that_share_a_source_draw_noise_of_their_own() -> None:
    # Found in review: they shared one buffer, so noise came twice, or was not a number.
    randomness, like = Randomness(), torch.empty(200_000)
    with ThreadPoolExecutor(4) as threads:
        drawn = list(threads.map(lambda _: randomness.normal_like(like, noise_std=1.0).numpy(), range(20)))
    pairs = np.concatenate(drawn).view(np.uint64)
    assert np.isfinite(np.concatenate(drawn)).all()
    assert len(np.unique(pairs)) > len(pairs) - 100  # by chance about none of 2 million pairs is equal to another


@pytest.mark.parametrize(("planned", "right"), [(0.3, True), (0.33, False), (0.27, False)])
def test_geometric_noise_has_the_documented_law(planned: float, right: bool) -> None:
    # The mean at ALPHA: a rate 10 % off moves it by over 12 standard errors, and is missed with probability below 1e-6
    drawn = Randomness().geometric(SAMPLES, rate=planned)
    law = stats.geom(-np.expm1(-0.3), loc=-1)
    error = abs(drawn.mean() - law.mean()) / (law.std() / SAMPLES**0.5)
    assert (error < stats.norm.isf(ALPHA / 2)) == right
    if right:
        counts = np.bincount(np.minimum(drawn, 20).astype(int), minlength=21)
        assert stats.chisquare(counts, SAMPLES * np.append(law.pmf(np.arange(20)), law.sf(19))).pvalue > ALPHA


def test_geometric_noise_beyond_all_floats_is_infinite_without_a_warning() -> None:
    assert np.isinf(Randomness().geometric(4, rate=1e-320)).all()
