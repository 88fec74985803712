"""Every code has its words, and `docs/reading.md` lists them all.

Run as a script to rewrite the tables of that page.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from hepar.io.refusal import HARMFUL, REMEDIES, WARNINGS, level_of, remedy_of
from hepar.render.template import split_warning

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "hepar"
PAGE = ROOT / "docs" / "reading.md"
BEGIN, END = "<!-- codes -->\n", "<!-- /codes -->"

# Codes of other work than reading a patient and warning of one; their remedy stands where they are
# raised.
ELSEWHERE = {
    *("E_USAGE", "E_DEVICE", "E_OUTPUT_PATH", "E_OUTPUT_WRITE", "E_STALE", "E_INTERRUPTED"),
    *("E_MODEL_HASH", "E_MODEL_MANIFEST", "E_MODEL_MISSING", "E_MODEL_RECIPE", "E_MODEL_WEIGHTS"),
    *("E_NO_LIVER", "E_NONFINITE_OUTPUT", "E_PHASES_REQUIRED"),
    *("E_RECIPE", "E_PRESET", "E_SUBJECT", "E_RESULT", "E_CONFIG_CHANGED", "E_CKPT_CORRUPT"),
    *("E_NAN_LOSS", "E_WORKER_DIED", "E_BANK", "E_COHORT", "E_NO_CASES", "E_LESION_TABLE"),
    *("E_LABEL_SHAPE", "E_NO_TYPES"),
    *("W_CKPT_PREVIOUS", "W_ROLLED_BACK", "W_CACHE_REBUILT", "W_FEWER_WORKERS"),
    *("W_WORKER_RESTARTED", "W_ALIGNMENT_USES_TRUTH", "W_FEW_PATIENTS", "W_FRONT_BACK"),
    *("W_INSTANCES", "W_LABELS_DROPPED", "W_LABEL_AFFINE", "W_LABEL_TURNED", "W_LIVER_HU"),
    *("W_LIVER_SIDE", "W_MASK_BY_NAME", "W_PATIENT_ABSENT", "W_PHASE_MOVED", "W_SPLIT"),
    *("W_STRATUM_UNKNOWN", "W_STRUCTURE_DOUBTFUL", "W_LIVER_MISSED", "W_NO_LIVER_TRUTH"),
    *("W_NO_PROBABILITIES", "W_NO_TRUTH"),
    *("E_SAFETENSORS", "E_YAML", "E_TIMEOUT", "E_INTERNAL", "E_STUDY_SPLIT"),
    *("W_STUDY_TWICE", "W_NOT_A_STUDY", "W_LEDGER_REBUILT", "E_DICOM_SOURCE", "E_DICOM_READBACK"),
    *("E_SERVE_SETTINGS", "E_SERVE_RUNNING", "E_SERVE_PACKAGE", "E_INSTANCE_DIFFERS"),
}
PLACEHOLDER = "W_CODE"


def codes_in_use() -> dict[str, set[str]]:
    """The files of the package in which each code stands, the table itself left out."""
    found: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix in (".py", ".j2") and path.name != "refusal.py":
            for code in re.findall(r"\b[WE]_[A-Z][A-Z0-9_]*\b", path.read_text()):
                found.setdefault(code, set()).add(path.relative_to(PACKAGE).as_posix())
    found.pop(PLACEHOLDER, None)
    return found


def tables() -> str:
    """The tables of the page, as Markdown."""
    used = codes_in_use()
    reading = {c for c in REMEDIES if any(_reads_a_study(f) for f in used.get(c, ()))}
    given = {c for c in REMEDIES if used.get(c, set()) == {"stages/given.py"}}
    early = ("read", "phases")
    return "\n".join(
        [
            "### Refused when a study is read",
            "",
            *_refusals(reading),
            "",
            "### Refused when a cohort is prepared",
            "",
            *_refusals(REMEDIES.keys() - reading - given),
            "",
            "### Refused when masks are given",
            "",
            *_refusals(given),
            "",
            "### Warned of when a study is read",
            "",
            *_warnings(code for code, n in WARNINGS.items() if n.stage in early),
            "",
            "### Warned of later, when liver and tumors are sought",
            "",
            *_warnings(code for code, n in WARNINGS.items() if n.stage not in early),
            "",
        ]
    )


def _reads_a_study(file: str) -> bool:
    return file.startswith("io/") or file in ("stages/read.py", "stages/phases.py")


def _refusals(codes: Iterable[str]) -> list[str]:
    rows = [f"| `{c}` | {level_of(c)} | {REMEDIES[c]} |" for c in sorted(codes)]
    return ["| code | level | what to do |", "|---|---|---|", *rows]


def _warnings(codes: Iterable[str]) -> list[str]:
    rows = [
        f"| `{c}` | {WARNINGS[c].level} | {WARNINGS[c].meaning} | {WARNINGS[c].remedy} |"
        for c in sorted(codes)
    ]
    return ["| code | level | what it means | what to do |", "|---|---|---|---|", *rows]


def test_closed_form_every_code_has_its_words():
    known = REMEDIES.keys() | WARNINGS.keys() | ELSEWHERE
    unknown = {code: sorted(files) for code, files in codes_in_use().items() if code not in known}
    assert not unknown, "give each an entry in io/refusal.py, or name it in ELSEWHERE"


def test_closed_form_no_table_holds_a_code_that_is_gone():
    known = REMEDIES.keys() | WARNINGS.keys() | ELSEWHERE
    assert not known - codes_in_use().keys()
    assert not ELSEWHERE & (REMEDIES.keys() | WARNINGS.keys())
    assert REMEDIES.keys() >= HARMFUL


@pytest.mark.parametrize("code", sorted(REMEDIES.keys() | WARNINGS.keys()))
def test_closed_form_a_code_says_how_grave_it_is_and_what_to_do(code):
    allowed = {"E": {"ERROR", "REJECT"}, "W": {"HANDLE", "WARN"}}[code[0]]
    assert level_of(code) in allowed
    remedy = remedy_of(code)
    assert remedy
    assert remedy.endswith(".")
    if code in WARNINGS:
        assert WARNINGS[code].meaning.endswith(".")
        assert not WARNINGS[code].title.endswith(".")
        assert split_warning(f"{code}: x").title == WARNINGS[code].title


def test_regression_the_page_lists_every_code():
    listed = PAGE.read_text().split(BEGIN)[1].split(END)[0]
    assert listed == tables(), "run `python tests/test_codes.py` and read the result"


if __name__ == "__main__":
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + BEGIN + tables() + END + rest.split(END)[1])
