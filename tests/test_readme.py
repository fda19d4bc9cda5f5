"""The README's blocks run as they stand, from the checkout and from the wheel alone."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
USERS = "2000"  # the README says 40,000: the same job on fewer users takes seconds


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    return [text for kind, text in found if kind == language]


def shell_lines() -> list[str]:
    return [line for line in "".join(blocks("")).splitlines() if line.startswith("privads ")]


def run_the_readme(folder: Path, *command: str, environment: dict[str, str] | None = None) -> str:
    """Runs the README's shell lines and then all its Python blocks as one script; returns what was printed."""
    for line in shell_lines():
        words = line.replace("40000", USERS).split()[1:]
        subprocess.run([*command, "-m", "privads.cli", *words], cwd=folder, env=environment, check=True)
    script = "\n".join(blocks("python")).replace("batch=4000", "batch=200")
    done = subprocess.run(
        [*command, "-c", script], cwd=folder, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readmes_python_blocks_run_and_print_what_it_shows(tmp_path: Path) -> None:
    printed = run_the_readme(tmp_path, sys.executable).splitlines()
    shown = next(block for block in blocks("") if block.startswith("AUC")).splitlines()
    without_numbers = [re.sub(r"-?[\d.]+(e-?\d+)?", "#", line) for line in printed]
    assert without_numbers == [re.sub(r"-?[\d.]+(e-?\d+)?", "#", line) for line in shown]
    assert printed[2] == shown[2], "the claim is the same, whatever the data"
    assert (tmp_path / "runs" / "first" / "report.html").is_file()


def test_the_readmes_run_file_is_accepted(tmp_path: Path) -> None:
    from privads.job import prepare
    from privads.run_config import read_config

    for line in shell_lines():
        words = line.replace("40000", USERS).split()[1:]
        subprocess.run([sys.executable, "-m", "privads.cli", *words], cwd=tmp_path, check=True, stdout=subprocess.PIPE)
    (tmp_path / "run.toml").write_text(blocks("toml")[0], encoding="utf-8")
    job = prepare(read_config(tmp_path / "run.toml"))
    assert job.plan.budget is not None
    assert job.plan.budget.unit == "user"


def test_every_file_and_verb_that_the_readme_names_exists() -> None:
    for name in re.findall(r"`(examples/[\w.]+)`|\]\((docs/[\w.]+)\)", README):
        assert (ROOT / (name[0] or name[1])).is_file(), name
    from privads.cli import app

    groups = [(group.name, group.typer_instance) for group in app.registered_groups if group.typer_instance]
    verbs = {command.callback.__name__ for command in app.registered_commands if command.callback}
    verbs |= {name for name, _ in groups if name}
    verbs |= {command.name for _, group in groups for command in group.registered_commands if command.name}
    for verb in re.findall(r"`privads (\w+)", README):
        assert verb in verbs, verb


def test_the_wheel_alone_runs_the_readmes_job(tmp_path: Path) -> None:
    source, wheels, site = tmp_path / "source", tmp_path / "wheels", tmp_path / "site"
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "*.egg-info", "__pycache__", "demo", "runs", ".*_cache")
    shutil.copytree(ROOT, source, ignore=ignored)  # a build in the checkout itself could pick up old files
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    wheel = next(wheels.glob("privads-*.whl"))
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, capture_output=True)
    names = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} - {"bin"}
    assert names == {"accounting", "federation", "privads"}
    assert (site / "privads" / "py.typed").is_file()
    assert (site / "accounting" / "report" / "report.schema.json").is_file()
    work = tmp_path / "work"
    work.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    where = subprocess.run(
        [sys.executable, "-c", "import privads, accounting; print(privads.__file__, accounting.__file__)"],
        env=environment,
        cwd=work,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert all(Path(file).is_relative_to(site) for file in where), where
    assert "epsilon <= 3.00" in run_the_readme(work, sys.executable, environment=environment)


@pytest.mark.parametrize("name", ["LICENSE", "CHANGELOG.md", "constraints.txt", "Makefile", ".ci/run"])
def test_the_repository_has_what_every_good_one_has(name: str) -> None:
    assert (ROOT / name).is_file()
