"""What the command line shows: progress on stderr, results as text."""

from __future__ import annotations

import logging
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from hepar.errors import HeparError
from hepar.study import PHASE_ORDER, Phase

if TYPE_CHECKING:
    from hepar.io.ingest import Files, Finding, Ingest, IngestSeries
    from hepar.study import Findings

_NARROWEST = 40
# Of series refused alike, more than these are only named: a folder of masks has a hundred.
_MAX_ALIKE = 3


class Steps:
    """What happens now. Calling it begins a step; a finished one is printed with its seconds.

    Args:
        console: rich console on stderr; None is silent.
        status: the live line of a terminal.
    """

    def __init__(self, console: Console | None = None, status: Status | None = None) -> None:
        self._console, self._status = console, status
        self._begun = self._since = time.perf_counter()
        self._message = ""

    def __call__(self, message: str) -> None:
        """Finish the step before and begin another."""
        self.finish()
        self._message, self._since = message, time.perf_counter()
        self.note("")

    def note(self, detail: str) -> None:
        """Show how far the step is, on the live line alone."""
        if self._status is not None:
            total = time.perf_counter() - self._begun
            text = escape(f"{self._message} {detail}".rstrip())
            self._status.update(f"{text} [dim]({total:.0f} s so far)[/dim]")

    def tell(self, line: str) -> None:
        """Print a line at once, beside the steps; it is not broken, as it may be an address."""
        if self._console is not None:
            self._console.print(escape(line), soft_wrap=True)

    def finish(self) -> None:
        """Print the step that ends."""
        if self._console is not None and self._message:
            seconds = time.perf_counter() - self._since
            self._console.print(f"[dim]{seconds:7.1f} s[/dim]  {escape(self._message)}")
        self._message = ""


@contextmanager
def progress(quiet: bool) -> Iterator[Steps]:
    """Show progress on stderr while the body runs."""
    if quiet:
        yield Steps()
        return
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with console.status("starting") as status:
        steps = Steps(console, status)
        yield steps
        steps.finish()


@contextmanager
def unlogged() -> Iterator[None]:
    """Keep warnings out of stderr while the body runs: for what shows them all in its result."""
    logger = logging.getLogger("hepar")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def format_number(value: Any) -> str:
    """Thousands separated; anything else as it is."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def format_inspection(document: Ingest, width: int | None = None) -> str:
    """What was found in a study, as text.

    Args:
        document: of the study.
        width: columns to wrap at; those of the terminal by default, 100 where there is none.
    """
    if width is None:
        width = shutil.get_terminal_size((100, 24)).columns
    width = max(width, _NARROWEST)
    lines: list[str] = []
    refused: dict[str | None, list[IngestSeries]] = {}
    for row in document.series:
        alike = refused.setdefault(row.code, []) if row.status == "refused" else []
        alike.append(row)
        if len(alike) <= _MAX_ALIKE:
            lines += _series_lines(row, document.findings, width)
    for code, alike in refused.items():
        if more := alike[_MAX_ALIKE:]:
            names = ", ".join(f"{row.id} ({row.description or row.source})" for row in more[:12])
            rest = f" and {len(more) - 12} more" if len(more) > 12 else ""
            lines += _wrapped(f"{len(more)} more refused, {code}: {names}{rest}", "", width)
    for phase in PHASE_ORDER:
        for row in document.series:
            if row.phase == str(phase):
                mark = " (reference: results lie on its voxels)" if row.reference else ""
                lines += _wrapped(f"{phase.long_name}: {row.id}{mark}", "", width)
    known = {row.id for row in document.series}
    about_all = [finding for finding in document.findings if finding.series not in known]
    for finding in about_all[1:] if document.error else about_all:  # stderr has the refusal
        lines += _finding_lines(finding, "", width)
    return "".join(f"{line}\n" for line in (*lines, *_file_lines(document.files, width)))


def _file_lines(files: Files, width: int) -> list[str]:
    """How many files are not used; those of a series were spoken of with it."""
    if not files.n_dropped:
        return []
    lines = [f"{files.n_used} of {files.n_used + files.n_dropped} files used"]
    for one in files.dropped:
        if one.series is None:
            lines += _wrapped(f"{one.n_files}: {one.reason}", "  ", width)
    return lines


def _series_lines(row: IngestSeries, findings: Sequence[Finding], width: int) -> list[str]:
    """One series: what it is, where it lies, what speaks for its phase, and every code."""
    named = f" ({row.description or row.source})" if row.description or row.source else ""
    doubt = ", uncertain" if row.phase_uncertain else ""
    phase = f"{Phase(row.phase).long_name} ({row.confidence:.2f}{doubt})" if row.phase else ""
    lines = _wrapped(", ".join(filter(None, (f"{row.id}{named}: {row.status}", phase))), "", width)
    if row.geometry:
        shape = " x ".join(map(str, row.geometry.shape_zyx))
        spacing = " x ".join(f"{s:.4g}" for s in row.geometry.spacing_mm_zyx)
        size = f"{shape} voxels of {spacing} mm, {row.geometry.lies}; {row.n_files} file(s)"
        lines += _wrapped(size, "  ", width)
    if row.evidence:
        lines += _wrapped(row.evidence, "  ", width)
    if not row.code and not row.geometry:
        lines += _wrapped(f"{row.reason}; {row.n_files} file(s)", "  ", width)
    for finding in findings:
        if finding.series == row.id:
            lines += _finding_lines(finding, "  ", width)
    return lines


def _finding_lines(finding: Finding, indent: str, width: int) -> list[str]:
    place = "" if finding.file_index is None else f" (file {finding.file_index})"
    lines = _wrapped(f"{finding.code}{place}: {finding.message}", indent, width)
    if finding.remedy and finding.level != "HANDLE":
        lines += _wrapped(f"remedy: {finding.remedy}", f"{indent}  ", width)
    return lines


def _wrapped(text: str, indent: str, width: int) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_on_hyphens=False,
    )


def format_prepared(document: dict[str, Any], out: Path) -> str:
    """What was used and what was not, and why."""
    lines = [f"{out / 'cohort.csv'}: {document['used']} cases, {document['refused']} refused"]
    for case in document["cases"]:
        name = case["case_id"]
        if case["status"] == "refused":
            lines.append(f"  {name}: refused: {case['code']}: {case['reason']}")
            continue
        phases = ", ".join(case["phases"])
        volumes = f"liver {case['liver_ml']:.1f} ml, tumor {case['tumor_ml']:.1f} ml"
        lines.append(f"  {name}: {phases}; {volumes}")
        lines += [f"    {warning}" for warning in case["warnings"]]
    return "\n".join(lines) + "\n"


def format_batch(document: dict[str, Any], out: Path) -> str:
    """How many studies came to which end, and every one that is not done with its remedy."""
    lines = list(document["notes"])
    for study in document["studies"]:
        if study["state"] != "done":
            said = f": {study['code']}: {study['message']}" if study["code"] else ""
            lines.append(f"{study['study']}: {study['state']}{said}")
            lines += [f"  remedy: {study['remedy']}"] if study["remedy"] else []
    counts = ", ".join(f"{count} {state}" for state, count in document["counts"].items())
    lines.append(f"{counts}: {_place(out / document['table'])}")
    return "\n".join(lines) + "\n"


def format_findings(findings: Findings, out: Path) -> str:
    """The lesion table, what the patient probably has, and where the report lies."""
    present = [p.phase for p in findings.phases]
    lines = [
        f"phases {', '.join(present)} (reference {findings.reference})",
        f"liver {findings.liver_ml:.0f} ml, tumor {findings.tumor_ml:.1f} ml"
        f" ({100 * findings.tumor_burden:.1f} % of the liver)",
    ]
    if findings.lesions:
        heads = "".join(f"{p + ' HU':>8}" for p in present)
        lines.append(f"{'id':>3}{'ml':>9}{'long mm':>9}{'short mm':>9}{heads}  probably")
    names = {d.lesion_id: d for d in findings.diagnosis.lesions}
    for lesion in findings.lesions:
        hu = "".join(f"{lesion.hu[p]:8.0f}" if p in lesion.hu else f"{'-':>8}" for p in present)
        diagnosis = names.get(lesion.id)
        text = ""
        if diagnosis:
            top = max(diagnosis.probabilities.values(), default=0.0)
            text = diagnosis.label if diagnosis.abstained else f"{diagnosis.label} {top:.2f}"
        size = f"{lesion.volume_ml:9.2f}{lesion.long_axis_mm:9.1f}{lesion.short_axis_mm:9.1f}"
        lines.append(f"{lesion.id:>3}{size}{hu}  {text}")
    if not findings.lesions:
        lines.append(f"no lesion {'given' if 'tumor' in findings.given else 'found'}")
    lines += [f"{name} given: {words}" for name, words in findings.given.items()]
    lines += list(findings.warnings)
    lines.append(f"report: {_place(out / 'report.html')}")
    return "\n".join(lines) + "\n"


def _place(path: Path) -> str:
    """A path as it was given; where others may read it, only if it names nobody."""
    from hepar.io.privacy import public_name

    if sys.stdout.isatty() or public_name(path.as_posix()) == path.as_posix():
        return str(path)
    return f"{path.name} in the folder that was named"


def format_scores(document: dict[str, Any]) -> str:
    """Means with their intervals and denominators, then lesions and patients where compared."""
    lines = [f"{document['n_cases']} case(s) of {document['n_patients']} patient(s)"]
    header = f"{'mean':>9}{'std':>9}  {'95 % interval':<20}{'n':>5}{'missed':>8}{'undefined':>11}"
    for name, structure in document["structures"].items():
        lines.append(f"{name:<16}{header}{'detected':>10}")
        for measure, policies in structure["measures"].items():
            lines.append(f"  {measure:<14}{_mean_line(policies[document['policy']])}")
        lines.append(f"  {'dice_global':<14}{_value(structure['dice_global'])}")
    burden = document["tumor_burden"]
    lines.append(f"tumor burden RMSE {_value(burden['rmse']).strip()} over {burden['n']} cases")
    free = document["specificity"]
    if free["tumor_free_patients"]:
        lines.append(
            f"nothing reported in {free['without_finding']} of {free['tumor_free_patients']}"
            " tumor-free patients"
        )
    if document["lesions"]:
        lines += _lesion_lines(document["lesions"])
    if document["types"]:
        lines += _type_lines(document["types"])
    return "\n".join([*lines, *document["warnings"]]) + "\n"


def _mean_line(mean: dict[str, Any]) -> str:
    low, high = mean["interval"] or (None, None)
    interval = "" if low is None else f"{low:.4g} to {high:.4g}"
    return (
        f"{_value(mean['mean'])}{_value(mean['std'])}  {interval:<20}{mean['n']:>5}"
        f"{mean['n_missed']:>8}{mean['n_undefined']:>11}{_value(mean['detected_mean']):>10}"
    )


def _lesion_lines(lesions: dict[str, Any]) -> list[str]:
    lines = [f"{'lesions':<28}{'found':>12}{'recall':>9}{'precision':>11}"]
    for rule in lesions["rules"]:
        found = f"{rule['tp_reference']} of {rule['n_reference']}"
        shares = f"{_value(rule['recall'])}{_value(rule['precision']):>11}"
        lines.append(f"  {rule['name']:<26}{found:>12}{shares}")
    sizes = []
    for size in lesions["by_size"]:
        upper = "" if size["high_ml"] is None else f"{size['high_ml']:g}"
        sizes.append(f"{size['low_ml']:g}-{upper} ml {size['found']} of {size['total']}")
    lines.append("  found by volume: " + ", ".join(sizes))
    lines.append(f"  false per patient {_value(lesions['false_per_patient']).strip()}")
    return lines


def _type_lines(types: dict[str, Any]) -> list[str]:
    means = [f"{key} {_value(types[key]['value']).strip()}" for key in ("auc_8", "auc_2")]
    each = [f"{name} {_value(a['auc']).strip()}" for name, a in types["auc"].items()]
    return [f"patients by {types['score']}: {', '.join(means)}", "  AUC " + ", ".join(each)]


def _value(value: float | None) -> str:
    return f"{'-':>9}" if value is None else f"{value:9.4f}"


def complain(error: HeparError) -> None:
    """A refusal on stderr, with its remedy."""
    sys.stderr.write(f"hepar: {error.code}: {error.message}\n  remedy: {error.remedy}\n")
