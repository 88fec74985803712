"""The container's recipe against the tree: what it copies exists, and its wheel holds the model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def stages() -> list[list[list[str]]]:
    """Instructions of each stage as words; a line that goes on counts as one."""
    text = (ROOT / "Containerfile").read_text().replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if line and line[0] != "#"]
    starts = [n for n, words in enumerate(lines) if words[0] == "FROM"]
    return [lines[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """The wheel that the first stage makes, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    build += ["--no-index", "--disable-pip-version-check", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (path,) = folder.glob("hepar-*.whl")
    return ZipFile(path)


def test_closed_form_what_is_copied_exists(stages):
    copied = [words[1:-1] for words in stages[0] if words[0] == "COPY"]
    sources = {source for group in copied for source in group}
    assert {"src", "models", "pyproject.toml", "constraints.txt"} <= sources
    assert not [source for source in sources if not (ROOT / source).exists()]
    # What pyproject.toml puts into the wheel, or reads while making it, is among them.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {project["project"]["readme"], *project["project"]["license-files"]}
    needed |= {path.split("/")[0] for path in (*wheel["packages"], *wheel["force-include"])}
    assert needed <= sources


def test_closed_form_it_runs_the_command_as_nobody_in_particular(stages):
    last = {words[0]: words[1:] for words in stages[-1]}
    user, _, group = last["USER"][0].partition(":")
    assert int(user) > 0 < int(group)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (command,) = json.loads(" ".join(last["ENTRYPOINT"]))
    assert command in project["scripts"]
    for stage in stages:
        version = re.fullmatch(r"python:3\.(\d+)-slim", stage[0][1])
        assert version is not None
        assert int(version[1]) >= int(project["requires-python"].rpartition(".")[2])


def test_closed_form_only_the_first_stage_installs_and_no_index_is_named(stages):
    assert not re.search(r"://|index-url", (ROOT / "Containerfile").read_text())
    assert not [words for words in stages[-1] if "pip" in " ".join(words)]
    settings = " ".join(word for words in stages[0] if words[0] == "ENV" for word in words)
    assert "PIP_CONSTRAINT=/source/constraints.txt" in settings


def test_oracle_the_wheel_holds_the_package_and_the_shipped_model(wheel):
    packed = {name for name in wheel.namelist() if name.startswith("hepar/")}
    inside = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src" / "hepar").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    models = {
        f"hepar/{path.relative_to(ROOT).as_posix()}": path
        for path in (ROOT / "models").rglob("*")
        if path.is_file()
    }
    assert packed == inside | models.keys()
    for name, path in models.items():
        assert wheel.read(name) == path.read_bytes()
