"""Who is who in another log: a keyed hash of a unit's key, equal for equal keys and telling nothing else."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def hashed_keys(keys: Sequence[NDArray[np.object_]], *, key: bytes) -> NDArray[np.uint64]:
    """Returns (units, 2) BLAKE2b under ``key`` of each unit's texts, one of each of ``keys``, as 128 bits.

    Each text goes in after its length, and a missing one as none, so that no two units' bytes are the same.
    """
    made = np.empty((len(keys[0]), 2), dtype=np.uint64)
    for unit, texts in enumerate(zip(*keys, strict=True)):
        total = hashlib.blake2b(key=key, digest_size=16)
        for text in texts:
            data = b"" if text is None else str(text).encode("utf-8", "surrogatepass")
            total.update((-1 if text is None else len(data)).to_bytes(8, "little", signed=True) + data)
        made[unit] = np.frombuffer(total.digest(), dtype="<u8")
    return made
