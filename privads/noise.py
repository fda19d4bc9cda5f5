"""Every draw of noise that the library makes.

Noise is made from a cryptographic keystream under a key of the operating system: no seed exists that could be guessed
or logged. A seeded source exists for tests and for data declared public.
"""

import math
import os
import threading
import weakref
from typing import Any, Literal

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from torch import Tensor

from privads import noise_opendp
from privads.noise_tables import Table, geometric, half_gaussian, is_not_zero, rounded_half_gaussian

Backend = Literal["table", "opendp"]
"""What draws noise on whole numbers."""

_PAIRS = 1 << 14
"""Pairs of normals made at a time: what they are made from then stays in the processor's cache."""

_BLOCK = 16
"""Bytes of a block of AES."""

_SUMMED = 4
"""Normals that make one of a secure source (as many as in Opacus's secure mode)."""


class Randomness:
    """A source of randomness for batches and noise.

    Without ``insecure_seed``: noise comes from AES-256 in counter mode and choices from a counter-based generator
    (Philox), each under a fresh key from `os.urandom`; a forked process gets keys of its own. With it: everything
    repeats, and protects nobody from someone who knows the seed.

    secure: each normal is the sum of four, halved, in float64. A single one has only so many values that floating-point
    numbers can have, and which of them comes out can tell what it was added to (Mironov 2012); the sums of several are
    too many to be told apart (Holohan and Braghin 2021, arXiv 2107.10138). It takes six times as long.

    Why this source: 720,000 normals, what the tables of a batch of 4,096 rows of 26 fields owe, take 2 ms from the
    keystream, 8 ms from numpy's Philox and its own normals, which is not cryptographic, and 30 ms from `os.urandom`
    (one core of a server; the step without noise takes 40 ms). The cryptographic source need not be given up for speed.
    Two threads with a keystream each were measured to be no faster.
    """

    def __init__(self, *, insecure_seed: int | None = None, secure: bool = False) -> None:
        if secure and insecure_seed is not None:
            raise ValueError("secure noise cannot be repeated: leave out insecure_seed, or secure")
        self.insecure_seed, self.secure = insecure_seed, secure
        self._one_at_a_time = threading.Lock()  # a model that owes noise may be read in several threads
        if insecure_seed is None:
            self.generator = np.random.Generator(_philox())
            self._keystream = _Keystream()
            _fresh.add(self)
        else:
            self.generator = np.random.default_rng(insecure_seed)

    @property
    def description(self) -> str:
        """Where the randomness comes from, for the report."""
        if self.insecure_seed is not None:
            return f"repeatable from insecure_seed {self.insecure_seed}"
        noise = "noise: AES-256 in counter mode" + (", the sum of four normals each" if self.secure else "")
        return f"{noise}, batches: Philox; both keyed with operating system entropy (os.urandom)"

    @property
    def floating_point(self) -> str:
        """What is known of the noise's floating-point numbers, for the report."""
        if self.secure:
            return "each normal is the sum of four in float64, against attacks on single ones; the proof is for reals"
        return "idealized: the proof is for real numbers; noise is drawn and added in float32"

    def normal_like(self, reference: Tensor, *, noise_std: float | Tensor) -> Tensor:
        """Returns independent N(0, noise_std^2) noise in the shape, type and place of ``reference``.

        noise_std: one number, or a tensor that broadcasts against ``reference``.

        Box and Muller (1958): for u1, u2 uniform on (0, 1], sqrt(-2 ln u1) times cos and sin of 2 pi u2 are two
        standard normals. u1 has 52 random bits and its logarithm is taken in float64, so that the tails reach 8.5
        standard deviations; u2 has 32 where the result is float32, whose angles are coarser than that, and else 52.
        """
        with self._one_at_a_time:
            if self.secure:
                normal = sum(self._standard_normal(reference.numel(), np.float64) for _ in range(_SUMMED))
                normal *= _SUMMED**-0.5
            else:
                dtype = np.float64 if reference.dtype == torch.float64 else np.float32
                normal = self._standard_normal(reference.numel(), dtype)
        found = torch.from_numpy(normal).view(reference.shape).to(reference.device)
        return (found * noise_std).to(reference.dtype) if self.secure else found.to(reference.dtype).mul_(noise_std)

    def normal(self, count: int, *, noise_std: float) -> NDArray[np.float64]:
        """Returns (count,) independent N(0, noise_std^2) noise in float64, as `normal_like` draws it."""
        return np.asarray(self.normal_like(torch.empty(count, dtype=torch.float64), noise_std=noise_std).numpy())

    def uniforms(self, count: int) -> NDArray[np.float64]:
        """Returns (count,) independent numbers, uniform on (0, 1]: k / 2^52 for k uniform on 1 .. 2^52."""
        with self._one_at_a_time:
            return _uniforms(self._words(count)).copy()  # the keystream's memory is used again by the next draw

    def geometric(self, count: int, *, rate: float) -> NDArray[np.float64]:
        """Returns (count,) independent whole numbers G with ``P[G >= g] = exp(-rate g)``; one beyond all floats is inf.

        The failures before a success of probability ``1 - exp(-rate)``: ``floor(-ln u / rate)`` for u uniform on (0, 1]
        (Devroye 1986, X.2), so probabilities are exact to 2^-52. The difference of two is two-sided geometric noise,
        ``P[Z = z] ~ exp(-rate |z|)``.
        """
        with np.errstate(over="ignore"):
            return np.floor(-np.log(self.uniforms(count)) / rate)

    def discrete_gaussian(self, count: int, *, noise_std: float, backend: Backend = "table") -> NDArray[np.int64]:
        """Returns (count,) independent whole numbers with ``P[z] ~ exp(-z^2 / (2 noise_std^2))``, noise_std positive.

        From the table each is within a total variation distance of `noise_tables.gaussian_distance`, below 2^-100,
        which a release adds to its delta; by OpenDP each is exact (Canonne, Kamath and Steinke 2020, arXiv 2004.00010).
        """
        _check_scale("noise_std", noise_std)
        if backend == "opendp":
            self._check_exact()
            return noise_opendp.discrete_gaussian(count, noise_std=noise_std)
        with self._one_at_a_time:
            size = self._drawn(half_gaussian(noise_std), count)
            return self._signed(size)

    def rounded_gaussian(self, count: int, *, noise_std: float) -> NDArray[np.int64]:
        """Returns (count,) independent whole numbers, each a draw of N(0, noise_std^2) rounded to the nearest.

        Each is within a total variation distance of `noise_tables.rounded_gaussian_distance`, below 2^-100, of that.
        Added to whole numbers they are the Gaussian mechanism, rounded: they leave nothing of floating point to see.
        Their variance is noise_std^2 + 1/12, but for a vanishing part where noise_std is at least 1.
        """
        _check_scale("noise_std", noise_std)
        with self._one_at_a_time:
            size = self._drawn(rounded_half_gaussian(noise_std), count)
            return self._signed(size)

    def discrete_laplace(self, count: int, *, scale: float, backend: Backend = "table") -> NDArray[np.int64]:
        """Returns (count,) independent whole numbers with ``P[z] ~ exp(-|z| / scale)``, scale positive.

        From the tables (zero or not, then 1 plus a geometric number, then a sign) each is within a total variation
        distance of `noise_tables.laplace_distance`, below 2^-100, which a release adds to its delta; by OpenDP exact.
        """
        _check_scale("scale", scale)
        if backend == "opendp":
            self._check_exact()
            return noise_opendp.discrete_laplace(count, scale=scale)
        with self._one_at_a_time:
            size = self._drawn(is_not_zero(1 / scale), count)
            high, low, digits = geometric(1 / scale)
            found = self._drawn(high, count)
            if low is not None:
                found *= digits
                found += self._drawn(low, count)
            found += 1
            size *= found
            return self._signed(size)

    def _check_exact(self) -> None:
        if self.insecure_seed is not None:
            raise ValueError("noise by OpenDP cannot be repeated: leave out insecure_seed, or the backend")

    def drawn(self, table: Table, count: int) -> NDArray[np.int64]:
        """Returns (count,) independent draws of a table's law (`privads.noise_tables`)."""
        with self._one_at_a_time:
            return self._drawn(table, count)

    def below(self, count: int, end: int) -> NDArray[np.int64]:
        """Returns (count,) independent whole numbers, each of 0 .. end - 1 equally likely, exactly; end: to 2^63."""
        if not 1 <= end < 2**63:
            raise ValueError(f"end must be from 1 to 2^63, got {end}")
        whole = np.uint64(2**64 // end * end - 1)  # the words up to here fall on each number equally often
        found = np.empty(0, dtype=np.uint64)
        with self._one_at_a_time:
            while len(found) < count:
                words = self._words(count - len(found) + 16).copy()
                found = np.concatenate([found, words[words <= whole]])
        return (found[:count] % np.uint64(end)).astype(np.int64)

    def _drawn(self, table: Table, count: int) -> NDArray[np.int64]:
        words = self._words(count).copy()  # the keystream's memory is used again by the next draw
        found = np.searchsorted(table.high, words, side="left")
        if len(table.high):
            close = np.flatnonzero(table.high[np.minimum(found, len(table.high) - 1)] == words)
            for place, low in zip(close.tolist(), self._words(len(close)).tolist(), strict=True):
                end = np.searchsorted(table.high, words[place], side="right")
                found[place] += np.count_nonzero(table.low[found[place] : end] <= np.uint64(low))
        return found

    def _signed(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the sizes, each with a random sign."""
        words = self._words((len(sizes) + 63) // 64)
        negative = np.unpackbits(words.view(np.uint8), count=len(sizes)).view(np.int8)
        return np.where(negative, -sizes, sizes)

    def _standard_normal(self, count: int, dtype: Any) -> NDArray[Any]:
        normal = np.empty(count + count % 2, dtype=dtype)
        for start in range(0, len(normal), 2 * _PAIRS):
            part = normal[start : start + 2 * _PAIRS]
            pairs = len(part) // 2
            radius, angle = np.empty(pairs, dtype=dtype), np.empty(pairs, dtype=dtype)
            if dtype == np.float32:
                words = self._words(pairs + (pairs + 1) // 2)
                angle[:] = words[pairs:].view(np.int32)[:pairs]
                angle *= 2 * np.pi * 2.0**-32
            else:
                words = self._words(2 * pairs)
                angle[:] = _uniforms(words[pairs:])
                angle *= 2 * np.pi
            uniforms = _uniforms(words[:pairs])
            radius[:] = np.log(uniforms, out=uniforms)
            radius *= -2.0
            np.sqrt(radius, out=radius)
            np.cos(angle, out=part[:pairs])
            np.sin(angle, out=part[pairs:])
            part[:pairs] *= radius
            part[pairs:] *= radius
        return normal[:count]

    def _words(self, count: int) -> NDArray[np.uint64]:
        """Returns ``count`` words of 64 random bits."""
        if self.insecure_seed is not None:
            return self.generator.integers(0, 2**64, size=count, dtype=np.uint64)
        return self._keystream.words(count)


class _Keystream:
    """AES-256 in counter mode under a key and a start from the operating system: no block comes twice."""

    def __init__(self) -> None:
        self._buffer = np.empty(0, dtype=np.uint8)
        self._stream = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16))).encryptor()

    def words(self, count: int) -> NDArray[np.uint64]:
        """Returns ``count`` words of 64 random bits, in memory that the next call uses again."""
        if len(self._buffer) < 8 * count + _BLOCK:  # the cipher asks for the room of one more block
            self._buffer, self._zeros = np.empty(8 * count + _BLOCK, dtype=np.uint8), bytes(8 * count)
        self._stream.update_into(memoryview(self._zeros)[: 8 * count], self._buffer.data)
        return self._buffer[: 8 * count].view(np.uint64)


def _uniforms(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Returns numbers on (0, 1], k / 2^52 for k uniform on 1 .. 2^52, in the place of ``words``."""
    words >>= np.uint64(12)
    words |= np.uint64(0x3FF << 52)  # 52 random bits behind the exponent of 1: a float64 on [1, 2)
    uniforms = words.view(np.float64)
    return np.subtract(2.0, uniforms, out=uniforms)


def _check_scale(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, got {value}")


def _philox() -> np.random.Philox:
    return np.random.Philox(key=int.from_bytes(os.urandom(16), "little"))


_fresh: weakref.WeakSet[Randomness] = weakref.WeakSet()


def _renew_in_the_child() -> None:
    """Gives a forked child's sources keys of their own: its choices and its noise would be its parent's."""
    for one in _fresh:
        one.generator.bit_generator.state = _philox().state  # in place: samplers hold the same generator
        one._keystream, one._one_at_a_time = _Keystream(), threading.Lock()


os.register_at_fork(after_in_child=_renew_in_the_child)
