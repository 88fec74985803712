"""The house stays as drawn: the tree in ARCHITECTURE.md, frozen verbs and flags, light imports.

Run as a script to rewrite the tree after files were added or moved.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "hepar"
BEGIN, END = "<!-- tree -->\n", "<!-- /tree -->"

FLAGS = {
    "segment": {
        *("--out", "--phase", "--interpolate-gaps", "--model", "--probabilities", "--device"),
        *("--liver", "--tumor", "--dicom", "--captures", "--viewer", "--quiet", "--json"),
    },
    "measure": {
        *("--out", "--liver", "--phase", "--interpolate-gaps", "--model", "--device"),
        *("--dicom", "--captures", "--viewer", "--quiet", "--json"),
    },
    "inspect": {"--out", "--phase", "--interpolate-gaps", "--quiet", "--json"},
    "batch": {
        *("--out", "--workers", "--num-parts", "--part-id", "--timeout", "--interpolate-gaps"),
        *("--model", "--probabilities", "--dicom", "--captures", "--viewer", "--device"),
        *("--quiet", "--json"),
    },
    "serve": {"--model", "--device", "--quiet"},
    "phantom": {
        *("--out", "--patients", "--seed", "--cohort", "--formats", "--check", "--quiet"),
    },
    "prepare": {
        *("--out", "--format", "--align", "--folds", "--validation", "--seed", "--exclude"),
        *("--quiet", "--json"),
    },
    "train": {"--out", "--set", "--cache", "--device", "--quiet", "--json"},
    "evaluate": {"--out", "--lesions", "--types", "--tolerance-mm", "--quiet", "--json"},
    "reproduce": {
        "--cohort",
        "--out",
        "--scale",
        "--fold",
        "--holdout",
        "--seeds",
        "--rows",
        "--set",
        "--device",
        "--quiet",
    },
    "info": {"--preset", "--plan", "--fold", "--out", "--quiet", "--json"},
    "demo": {"--out", "--seed", "--device", "--quiet"},
}


def tree() -> str:
    """The package's files, a line each: the first line of each docstring."""
    lines = ["```\n", "src/hepar/\n"]
    seen: set[Path] = set()
    files = [p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py"]
    for path in sorted(files, key=lambda p: (len(p.relative_to(PACKAGE).parts) > 1, p)):
        relative = path.relative_to(PACKAGE)
        for depth in range(1, len(relative.parts)):
            folder = Path(*relative.parts[:depth])
            if folder not in seen:
                seen.add(folder)
                lines.append("  " * depth + f"{folder.name}/\n")
        indent = "  " * len(relative.parts)
        summary = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]
        lines.append(f"{indent}{relative.name:<{34 - len(indent)}} {summary}\n")
    return "".join([*lines, "```\n"])


def test_regression_architecture_lists_every_file():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    listed = text.split(BEGIN)[1].split(END)[0]
    assert listed == tree(), "run `python tests/test_house.py` and read the result"


def test_closed_form_every_file_says_what_it_is_and_is_short():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        if path.name == "__init__.py":
            assert not text, f"{path} must be empty, so that importing a part pulls in nothing"
        else:
            assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
            assert text.count("\n") <= 400, f"{path} is longer than 400 lines"


def run_python(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return result.stdout


@pytest.mark.parametrize(
    "module",
    [
        "hepar.cli",
        "hepar.recipe",
        "hepar.systems.sam_urim.settings",
        "hepar.study",
        "hepar.geometry",
        "hepar.io.atomic",
        "hepar.batch.job",
    ],
)
def test_closed_form_light_modules_do_not_import_torch(module):
    code = f"import sys, json, {module}; print(json.dumps([m for m in sys.modules]))"
    loaded = set(json.loads(run_python(code)))
    assert "torch" not in loaded
    assert not loaded & {"nibabel", "pydicom", "SimpleITK", "convexAdam"}


def test_property_training_imports_in_an_environment_of_numerical_packages_only():
    """What a bare GPU machine has; everything else is made impossible to import."""
    code = """
import sys
class Absent:
    names = {"nibabel", "pydicom", "SimpleITK", "cc3d", "edt", "PIL", "jinja2", "rich", "tyro",
             "convexAdam", "openvino", "matplotlib", "beartype", "blosc2"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import hepar.train.loop, hepar.data.sampling, hepar.data.augment, hepar.infer.tiling
import hepar.infer.bundle, hepar.evaluate.voxel, hepar.phantom.anatomy, hepar.phantom.scanner
import hepar.losses, hepar.preprocess, hepar.recipe, hepar.data.phantom_cases
import hepar.data.organ_source
from hepar.systems.table import SYSTEMS, build
for name, entry in SYSTEMS.items():
    __import__(entry.module)
print("ok")
"""
    assert run_python(code).strip() == "ok"


@pytest.mark.parametrize("verb", list(FLAGS))
def test_regression_verbs_and_flags_are_frozen(verb):
    result = subprocess.run(
        [sys.executable, "-m", "hepar.cli", verb, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "200", "PATH": "/usr/bin", "PYTHONPATH": str(ROOT / "src")},
    )
    words = {word.strip(",│[]") for word in result.stdout.split()}
    flags = {word for word in words if word.startswith("--")} - {"--help"}
    assert flags == FLAGS[verb]


def test_regression_help_names_every_verb():
    result = subprocess.run(
        [sys.executable, "-m", "hepar.cli", "--help"], capture_output=True, text=True, check=True
    )
    assert all(verb in result.stdout for verb in FLAGS)


if __name__ == "__main__":
    document = ROOT / "ARCHITECTURE.md"
    before, rest = document.read_text().split(BEGIN)
    document.write_text(before + BEGIN + tree() + END + rest.split(END)[1])
