"""Another simulation is asked with the same events, and its users a second stand beside ours."""

from pathlib import Path

import pytest

from benchmarks.federated import compare


def python(folder: Path, line: str) -> Path:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(("name", "least"), [("flower", ">= 30"), ("pfl", ">= 10")])
def test_times_are_ours_over_theirs(name: str, least: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "_own", lambda *_: 700.0)
    pythons = {name: python(tmp_path, """echo noise; test -f "$2" && echo '{"seconds": 0.5}'""")}
    made = {one.name: one for one in compare.figures(compare.QUICK, pythons)}
    assert made[name].value == 20.0  # 10 users in half a second
    assert (made[f"times_{name}"].value, made[f"times_{name}"].target) == (35.0, least)


def test_without_another_python_nothing_is_compared() -> None:
    assert list(compare.figures(compare.QUICK, {})) == []


def test_what_another_simulation_says_when_it_fails_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "_own", lambda *_: 700.0)
    pythons = {"pfl": python(tmp_path, "echo no module named pfl >&2; exit 1")}
    with pytest.raises(RuntimeError, match="no module named pfl"):
        list(compare.figures(compare.QUICK, pythons))
