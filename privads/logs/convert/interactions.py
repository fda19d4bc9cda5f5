"""Lists of what users chose, `user item item ...` a line, into rows of what they did and did not choose."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from privads.logs.convert.source import Converted, batches_of_rows, buckets_for, lines
from privads.logs.reader import LogError

Row = tuple[str, str, int]


def interactions(source: Path, *, seed: int = 0) -> Converted:
    """Returns a row (user, item, 1) for each item of a user, and as many (user, item, 0) of items that are not theirs.

    source: the file, one line a user. Those others are drawn without replacement from all items of the file, which
    are public, by a generator seeded with ``seed`` and the user's name: no user's rows depend on another's line.
    """
    items = np.array(sorted({item for _, line in lines(source) for item in line.split()[1:]}), dtype=object)
    users: set[str] = set()
    columns = pa.schema([("user", pa.string()), ("item", pa.string()), ("engaged", pa.int8())])
    facts = {
        "dataset": f"{source.name.partition('.')[0]}-interactions",
        "unit": ["user"],
        "labels": {"engaged": "engaged"},
        "categorical": {"item": {"buckets": buckets_for(len(items))}},
    }
    rows = _rows(source, items, users, seed)
    return Converted(columns=columns, batches=batches_of_rows(rows, columns), facts=facts, units=lambda: len(users))


def _rows(file: Path, items: np.ndarray, users: set[str], seed: int) -> Iterator[Row]:
    place = {item: number for number, item in enumerate(items)}
    for number, line in lines(file):
        user, *chosen = line.split()
        if user in users:
            raise LogError(f"{file}, line {number}: this user has a line already; one line is one user")
        if not chosen:
            continue
        users.add(user)
        chosen = list(dict.fromkeys(chosen))
        yield from ((user, item, 1) for item in chosen)
        others = np.ones(len(items), dtype=np.bool_)
        others[[place[item] for item in chosen]] = False
        candidates = np.flatnonzero(others)
        digest = hashlib.sha256(f"{seed}:{user}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(digest[:16], "big"))
        drawn = generator.choice(candidates, min(len(chosen), len(candidates)), replace=False, shuffle=False)
        yield from ((user, str(items[one]), 0) for one in drawn)
