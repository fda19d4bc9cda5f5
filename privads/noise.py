"""Every draw of noise that the library makes.

Noise is made from the operating system's cryptographic generator: no seed exists that could be guessed or logged.
A seeded source exists for tests and for data declared public.
"""

import os

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Randomness:
    """A source of randomness for batches and noise.

    Without ``insecure_seed``: noise comes from `os.urandom`, draw by draw; choices come from a counter-based generator
    (Philox) under a fresh 128-bit key from `os.urandom`. With it: everything repeats, and protects nobody from someone
    who knows the seed.
    """

    def __init__(self, *, insecure_seed: int | None = None) -> None:
        self.insecure_seed = insecure_seed
        if insecure_seed is None:
            self.generator = np.random.Generator(np.random.Philox(key=int.from_bytes(os.urandom(16), "little")))
        else:
            self.generator = np.random.default_rng(insecure_seed)

    @property
    def description(self) -> str:
        """Where the randomness comes from, for the report."""
        if self.insecure_seed is not None:
            return f"repeatable from insecure_seed {self.insecure_seed}"
        return "noise: operating system entropy (os.urandom); batches: Philox keyed with it"

    def normal_like(self, reference: Tensor, *, noise_std: float) -> Tensor:
        """Returns independent N(0, noise_std^2) noise in the shape, type and place of ``reference``.

        Box and Muller (1958): for u1, u2 uniform on (0, 1], sqrt(-2 ln u1) times cos and sin of 2 pi u2 are two
        standard normals; the uniforms have 53 random bits each and the arithmetic is in float64.
        """
        pairs = (reference.numel() + 1) // 2
        uniforms = torch.from_numpy(self._uniforms(2 * pairs)).to(reference.device)
        radius = torch.sqrt(-2.0 * torch.log(uniforms[:pairs])).mul_(noise_std)
        angle = uniforms[pairs:].mul_(2 * torch.pi)
        normal = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])
        return normal[: reference.numel()].view(reference.shape).to(reference.dtype)

    def _uniforms(self, count: int) -> NDArray[np.float64]:
        """Returns numbers on (0, 1]: k / 2^53 for k uniform on 1 .. 2^53."""
        if self.insecure_seed is not None:
            words = self.generator.integers(0, 2**64, size=count, dtype=np.uint64)
        else:
            words = np.frombuffer(os.urandom(8 * count), dtype=np.uint64)
        return ((words >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53
