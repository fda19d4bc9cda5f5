"""Transforms that look at one value and public constants only. They are fitted to nothing, so they cost nothing."""

import hashlib

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def hash_buckets(values: NDArray[np.object_], *, field: str, buckets: int) -> NDArray[np.int32]:
    """Returns the bucket of each text: ``1 + h(value) mod (buckets - 1)``; None gives 0.

    ``h = mix(siphash(value; key))`` in 64 bits: pandas's hash, SipHash-2-4 and then the finalizer of splitmix64, with
    the first 16 digits of SHA-256(field) as the key.

    values: (rows,) of str or None. The key depends on the field's name only, so a category goes to the same bucket in
    every file and on every machine, and equal texts in two fields go to unrelated buckets (Weinberger et al. 2009).

    >>> hash_buckets(np.array(["a", None, "a"], dtype=object), field="site", buckets=8)[[1]]
    array([0], dtype=int32)
    """
    if buckets < 2:
        raise ValueError(f"buckets must be at least 2, got {buckets}")
    key = hashlib.sha256(field.encode()).hexdigest()[:16]
    missing = pd.isna(values)
    hashed = pd.util.hash_array(np.where(missing, "", values), hash_key=key, categorize=False)
    return np.where(missing, 0, 1 + hashed % np.uint64(buckets - 1)).astype(np.int32)


def log_scale(values: NDArray[np.float64], *, low: float, high: float) -> NDArray[np.float32]:
    """Returns ``2 (g(x) - g(low)) / (g(high) - g(low)) - 1``, x clipped to the range; ``g(x) = sign(x) log(1 + |x|)``.

    values: (rows,) float, NaN where missing. The result is in [-1, 1]; a missing value gives 0, the middle.

    >>> log_scale(np.array([0.0, 50.0, 1e9, np.nan]), low=0, high=50)
    array([-1.,  1.,  1.,  0.], dtype=float32)
    """
    if not low < high:
        raise ValueError(f"low must be below high, got {low} and {high}")
    bottom, top = _signed_log(np.array([low, high], dtype=np.float64))
    scaled = 2.0 * (_signed_log(np.clip(values, low, high)) - bottom) / (top - bottom) - 1.0
    return np.asarray(np.nan_to_num(scaled, nan=0.0), dtype=np.float32)


def _signed_log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.sign(values) * np.log1p(np.abs(values)))
