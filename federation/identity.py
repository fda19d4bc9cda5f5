"""One user in several silos: who they are to each of them, and which silos may use their rows.

A user moves a round's sum by up to clip_norm in each silo that uses their rows, so a plan says in how many that may be.
Silos tell the server each user's identifier, a keyed hash of the values of their unit columns, under a key that all
silos know and the server does not: it can tell who is the same, and not who that is. Of a user of more silos than the
plan's, those come first whose mix of identifier and silo is smallest, so that no silo is favored. What is decided of a
user follows from their own rows alone: no other user's presence changes it.

Identifiers say who has rows where, and so are private: they are made after the charge, seen by the server, and shown to
nobody. A silo that leaves a user out learns that others have them.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Identifiers = NDArray[np.uint64]
"""(users, 2) 128 random-looking bits for each user of a silo, in the order of their numbers."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@runtime_checkable
class Identified(Protocol):
    """Rows that can tell their units' identifiers, as `Logs` can."""

    def identifiers(self, key: bytes) -> Identifiers:
        """Returns (units, 2) a keyed hash of each unit's key, equal for equal keys in any rows. Reads the rows."""
        ...


def key_of(dataset: str) -> bytes:
    """Returns a key for identifiers that stay in one process: it is no secret."""
    return hashlib.sha256(dataset.encode()).digest()


def fingerprint(rows: Any) -> str:
    """Returns a text that is the same only where ``rows`` have the same users under the same numbers; of rows that
    cannot tell who those are "". Reads the rows.
    """
    if not isinstance(rows, Identified):
        return ""
    dataset: str = rows.schema.dataset  # type: ignore[attr-defined]
    return hashlib.sha256(np.ascontiguousarray(rows.identifiers(key_of(dataset))).tobytes()).hexdigest()


def allowed(identifiers: Sequence[Identifiers], *, silos: int) -> list[NDArray[np.bool_]]:
    """Returns for each silo (users,) whether it may use the rows of each: those of the first ``silos`` silos of a user.

    >>> one = np.array([[1, 2], [3, 4]], dtype=np.uint64)
    >>> [kept.sum() for kept in allowed([one, one[:1]], silos=2)]
    [np.int64(2), np.int64(1)]
    """
    sizes = [len(one) for one in identifiers]
    every = np.concatenate([*identifiers, np.zeros((0, 2), dtype=np.uint64)])
    silo = np.repeat(np.arange(len(sizes)), sizes)
    place = pd.util.hash_array(every[:, 0] + silo.astype(np.uint64) * _GOLDEN)  # a fixed mix of 64 bits
    order = np.lexsort((silo, place, every[:, 1], every[:, 0]))
    ordered = every[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    starts = np.flatnonzero(first)
    within = np.arange(len(order)) - starts[np.cumsum(first) - 1]
    kept = np.empty(len(order), dtype=bool)
    kept[order] = within < silos
    return np.split(kept, np.cumsum(sizes)[:-1])
