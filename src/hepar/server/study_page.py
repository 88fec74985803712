"""What people and scripts are told of the studies: a page, and the same as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hepar.render.template import environment
from hepar.render.viewer import NAME as VIEWER
from hepar.render.viewer import SCRIPTS, viewer_shell
from hepar.server.desk import Case
from hepar.study import Findings

VIEWER_SCRIPTS = {path.name: path for path in SCRIPTS}
SCRIPT = "studies.js"
STYLE = "studies.css.j2"
_MAX_SHOWN = 200


def document(case: Case) -> dict[str, Any]:
    """A study as plain data; nothing in it says who the patient is."""
    here = f"/studies/{case.id}"
    links: dict[str, Any] = {"self": here}
    if case.state == "done":
        named = {name: f"{here}/files/{quote(name)}" for name in case.files}
        if "report.html" in named:
            links["report"] = named["report.html"]
        if VIEWER in named:
            links["viewer"] = f"{here}/viewer"
        links["files"] = named
    return {
        "id": case.id,
        "door": case.door,
        "state": case.state,
        "changed": datetime.fromtimestamp(int(case.changed), UTC).isoformat(),
        "code": case.code,
        "message": case.message,
        "remedy": case.remedy,
        "lesions": case.lesions,
        "tumor_burden": case.burden,
        "seconds": case.seconds,
        "delivered": case.delivered,
        "delivery": case.delivery,
        "links": links,
    }


def studies_page(cases: Sequence[Case], who: str, max_upload_mb: int) -> str:
    """The list of studies as HTML.

    Args:
        cases: the newest first.
        who: looks at it; may remove what is theirs.
        max_upload_mb: largest upload, MB.
    """
    shown = [{**document(case), "mine": case.owner == who} for case in cases[:_MAX_SHOWN]]
    template = environment().get_template("studies.html.j2")
    return template.render(studies=shown, more=len(cases) - len(shown), max_upload_mb=max_upload_mb)


def viewer(case: Case, place: Path) -> str:
    """The viewer of a result as HTML: it takes the images out of the result's own page.

    Args:
        case: done, with a viewer among its files.
        place: the folder of its results.
    """
    findings = Findings.model_validate_json((place / "findings.json").read_bytes())
    named = document(case)["links"]["files"]
    urls = [f"/{name}" for name in VIEWER_SCRIPTS]
    return viewer_shell(findings, named[VIEWER], urls, named["report.html"])


@cache
def script() -> bytes:
    """What makes the page refresh itself, and upload."""
    return files("hepar.render").joinpath(SCRIPT).read_bytes()


@cache
def style() -> str:
    """The style of the pages of the server: that of the reports, in the dark too."""
    return environment().get_template(STYLE).render()
