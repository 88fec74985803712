"""What the command line shows: progress on stderr, results as text."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.status import Status

if TYPE_CHECKING:
    from hepar.study import Findings


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


def format_number(value: Any) -> str:
    """Thousands separated; anything else as it is."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


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
        lines.append("no lesion found")
    lines += list(findings.warnings)
    lines.append(f"report: {out / 'report.html'}")
    return "\n".join(lines) + "\n"


def format_scores(scores: dict[str, Any]) -> str:
    """Means with their denominators."""
    summary = scores["summary"]
    lines = [f"{summary['n_cases']} cases"]
    for name in ("liver", "tumor"):
        for measure in ("dice_per_case", "voe", "rvd", "assd_mm", "rmsd_mm"):
            mean = summary[name][measure]
            counts = f"n {mean['n']}, missed {mean['n_missed']}, undefined {mean['n_undefined']}"
            lines.append(f"{name:<6} {measure:<14} {_value(mean['mean'])}  ({counts})")
        lines.append(f"{name:<6} {'dice_global':<14} {_value(summary[name]['dice_global'])}")
    found = summary["lesions"]
    lines.append(
        f"lesions found {found['found']} of {found['reference']}, false {found['false']}"
        f" ({found['false_in_tumor_free']} in {found['tumor_free_patients']} tumor-free patients)"
    )
    return "\n".join(lines) + "\n"


def _value(value: float | None) -> str:
    return f"{'undefined':>10}" if value is None else f"{value:10.4f}"
