"""The house's own rules: what may import what, and that nothing is written that nobody asked for."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("accounting", "privads", "federation")
FORBIDDEN = {
    "accounting": {"privads", "federation", "torch", "opacus", "flwr"},
    "privads": {"federation", "flwr"},
}
FRONT_DOOR = {"privads/__init__.py", "privads/cli.py"}
SOURCES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


def tops(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    relative = path.relative_to(ROOT)
    if str(relative) in FRONT_DOOR:
        return
    assert not tops(path) & FORBIDDEN.get(relative.parts[0], set())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_opacus_is_imported_in_the_training_room_only(path: Path) -> None:
    if "opacus" in tops(path):
        assert path.relative_to(ROOT).parts[:2] == ("privads", "training")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_flower_is_imported_in_one_file(path: Path) -> None:
    if "flwr" in tops(path):
        assert path.relative_to(ROOT) == Path("federation/flower.py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_has_one_idea_and_says_which(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "no module docstring"
    assert len(text.splitlines()) <= 430


def test_accounting_needs_no_torch() -> None:
    code = (
        "import sys, pkgutil, importlib, accounting;"
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(accounting.__path__, 'accounting.')];"
        "assert 'torch' not in sys.modules and 'privads' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys, privads.cli; assert not {'torch', 'opacus', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("package", ["privads", "federation"])
def test_every_public_name_resolves(package: str) -> None:
    found = importlib.import_module(package)
    for name in found.__all__:
        assert getattr(found, name) is not None
    assert set(found.__all__) <= set(dir(found))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        found.nonsense  # noqa: B018


def test_federation_is_imported_without_torch() -> None:
    code = "import sys, federation; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("name", ["accounting", "federation"])
def test_another_package_of_one_of_our_names_is_named_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import privads"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert str(tmp_path / name) in last
    assert "shadows" in last


def test_examples_are_short() -> None:
    for path in (ROOT / "examples").iterdir():
        if path.is_file():
            assert len(path.read_text(encoding="utf-8").splitlines()) < 100, path
