"""Every draw of noise that the library makes.

Noise is made from a cryptographic keystream under a key of the operating system: no seed exists that could be guessed
or logged. A seeded source exists for tests and for data declared public.
"""

import os
import threading
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from torch import Tensor

_PAIRS = 1 << 14
"""Pairs of normals made at a time: what they are made from then stays in the processor's cache."""

_BLOCK = 16
"""Bytes of a block of AES."""


class Randomness:
    """A source of randomness for batches and noise.

    Without ``insecure_seed``: noise comes from AES-256 in counter mode and choices from a counter-based generator
    (Philox), each under a fresh key from `os.urandom`. With it: everything repeats, and protects nobody from someone
    who knows the seed.

    Why this source: 720,000 normals, what the tables of a batch of 4,096 rows of 26 fields owe, take 3 ms from the
    keystream, 8 ms from numpy's Philox and its own normals, which is not cryptographic, and 30 ms from `os.urandom`
    (one core of a server; the step without noise takes 80 ms). The cryptographic source need not be given up for speed.
    """

    def __init__(self, *, insecure_seed: int | None = None) -> None:
        self.insecure_seed = insecure_seed
        self._one_at_a_time = threading.Lock()  # a model that owes noise may be read in several threads
        if insecure_seed is None:
            self.generator = np.random.Generator(np.random.Philox(key=int.from_bytes(os.urandom(16), "little")))
            self._keystream = _Keystream()
        else:
            self.generator = np.random.default_rng(insecure_seed)

    @property
    def description(self) -> str:
        """Where the randomness comes from, for the report."""
        if self.insecure_seed is not None:
            return f"repeatable from insecure_seed {self.insecure_seed}"
        return "noise: AES-256 in counter mode, batches: Philox; both keyed with operating system entropy (os.urandom)"

    def normal_like(self, reference: Tensor, *, noise_std: float | Tensor) -> Tensor:
        """Returns independent N(0, noise_std^2) noise in the shape, type and place of ``reference``.

        noise_std: one number, or a tensor that broadcasts against ``reference``.

        Box and Muller (1958): for u1, u2 uniform on (0, 1], sqrt(-2 ln u1) times cos and sin of 2 pi u2 are two
        standard normals. Each uniform has 52 random bits; the radius is computed in float64, the angle and what follows
        in the type of ``reference``, at least float32.
        """
        dtype = np.float64 if reference.dtype == torch.float64 else np.float32
        with self._one_at_a_time:
            normal = torch.from_numpy(self._standard_normal(reference.numel(), dtype))
        return normal.view(reference.shape).to(reference.device, reference.dtype).mul_(noise_std)

    def uniforms(self, count: int) -> NDArray[np.float64]:
        """Returns (count,) independent numbers, uniform on (0, 1]: k / 2^52 for k uniform on 1 .. 2^52."""
        with self._one_at_a_time:
            return self._uniforms(count).copy()  # the keystream's memory is used again by the next draw

    def _standard_normal(self, count: int, dtype: Any) -> NDArray[Any]:
        normal = np.empty(count + count % 2, dtype=dtype)
        for start in range(0, len(normal), 2 * _PAIRS):
            part = normal[start : start + 2 * _PAIRS]
            pairs = len(part) // 2
            uniforms = self._uniforms(2 * pairs)
            radius, angle = uniforms[:pairs], np.empty(pairs, dtype=dtype)
            np.log(radius, out=radius)
            radius *= -2.0
            np.sqrt(radius, out=radius)
            np.multiply(uniforms[pairs:], 2 * np.pi, out=angle, casting="same_kind")
            np.cos(angle, out=part[:pairs])
            np.sin(angle, out=part[pairs:])
            angle[:] = radius
            part[:pairs] *= angle
            part[pairs:] *= angle
        return normal[:count]

    def _uniforms(self, count: int) -> NDArray[np.float64]:
        """Returns numbers on (0, 1]: k / 2^52 for k uniform on 1 .. 2^52."""
        if self.insecure_seed is not None:
            words = self.generator.integers(0, 2**64, size=count, dtype=np.uint64)
        else:
            words = self._keystream.words(count)
        words >>= np.uint64(12)
        words |= np.uint64(0x3FF << 52)  # 52 random bits behind the exponent of 1: a float64 on [1, 2)
        uniforms = words.view(np.float64)
        return np.subtract(2.0, uniforms, out=uniforms)


class _Keystream:
    """AES-256 in counter mode under a key and a start from the operating system: no block comes twice."""

    def __init__(self) -> None:
        self._renew()

    def _renew(self) -> None:
        self._process, self._buffer = os.getpid(), np.empty(0, dtype=np.uint8)
        self._stream = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16))).encryptor()

    def words(self, count: int) -> NDArray[np.uint64]:
        """Returns ``count`` words of 64 random bits, in memory that the next call uses again."""
        if self._process != os.getpid():
            self._renew()  # a forked process holds the same key and counter: its noise would be its parent's
        if len(self._buffer) < 8 * count + _BLOCK:  # the cipher asks for the room of one more block
            self._buffer, self._zeros = np.empty(8 * count + _BLOCK, dtype=np.uint8), bytes(8 * count)
        self._stream.update_into(memoryview(self._zeros)[: 8 * count], self._buffer.data)
        return self._buffer[: 8 * count].view(np.uint64)
