"""What names a trial: every fact it was made of, but not the digits that differ from run to run."""

import math

import pytest

from benchmarks import harness
from benchmarks.harness import name_of


@pytest.mark.parametrize("value", [2.532068000411272, 1e-5, 0.1, 1e300])
def test_the_last_digits_of_a_number_make_no_other_trial(value: float) -> None:
    for beside in (math.nextafter(value, 0), math.nextafter(value, math.inf)):
        assert name_of("a", {"noise": value}) == name_of("a", {"noise": beside})
    assert name_of("a", {"noise": value}) != name_of("a", {"noise": value * (1 + 1e-7)})


def test_another_fact_or_version_is_another_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    here = name_of("a", 1)
    assert len({here, name_of("b", 1), name_of("a", 2), name_of("a"), name_of("a", 1, None)}) == 5
    monkeypatch.setattr(harness, "version", lambda _: "9.9.9")
    assert name_of("a", 1) != here
