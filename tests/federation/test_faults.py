"""Faults that would break the promise of a federated run, each planted in the code and each seen by a check of a run.

Every check runs through `federate` as a user would; it passes as the code is, and fails with the fault. Five of the
faults are those of Flower 1.41's wrappers.
"""

from pathlib import Path

import pytest

from benchmarks.faults.federated import FAULTS
from benchmarks.faults.made import made_log
from benchmarks.faults.planting import Check, Fault, name_of, seen
from privads.logs.logs import Logs


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Logs:
    return made_log(Path(tmp_path_factory.mktemp("log")))


@pytest.mark.parametrize("check", list(dict.fromkeys(one.check for one in FAULTS)), ids=name_of)
def test_the_promise_holds(check: Check, log: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(log, monkeypatch)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda one: one.name)
def test_the_fault_is_seen(fault: Fault, log: Logs) -> None:
    assert seen(fault.check, log, fault.plant) == "fails"
