"""The viewer: the patient's slices in every phase, and the lesion table that leads through them.

`viewer_page` is one file that opens from a disk and fetches nothing. `viewer_shell` is the same
page for a web server: it holds no image and no inline script, and takes its volumes out of a
`viewer.html` of the same origin.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from hepar.errors import UsageError
from hepar.render.overlay import COLORS, HEAT
from hepar.render.template import environment, split_warning
from hepar.render.viewer_volumes import HIGHEST_HU, LOWEST_HU, STEP_HU, ViewerVolume
from hepar.study import Findings, Phase

NAME = "viewer.html"
# In the order in which a page needs them: NiiVue, which `make viewer` fetches, and our own.
SCRIPTS = tuple(Path(__file__).with_name(name) for name in ("niivue.umd.js", "viewer.js"))
_LICENSE = Path(__file__).with_name("niivue.license.txt")


def check_viewer() -> None:
    """Find out that no viewer can be made before anything is computed.

    Raises:
        UsageError: `E_VIEWER`, hepar was set up where npm was missing.
    """
    if not SCRIPTS[0].is_file():
        raise UsageError(
            "E_VIEWER",
            "viewer",
            "The viewer's script (NiiVue) was not fetched when hepar was set up.",
            "Run `make viewer` where npm is installed, or leave --viewer out.",
        )


def viewer_page(findings: Findings, volumes: Sequence[ViewerVolume], report: str) -> str:
    """The page with everything it needs inside.

    Args:
        findings: every number shown.
        volumes: from `viewer_volumes`.
        report: link to the report.

    Raises:
        UsageError: `E_VIEWER`.
    """
    check_viewer()
    scripts = [path.read_text(encoding="utf-8") for path in SCRIPTS]
    # The bytes between the tags, as the browser hashes them.
    hashes = [hashlib.sha256(text.encode()).digest() for text in scripts]
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in hashes)
    return _render(
        findings,
        report,
        policy=f"script-src {allowed}",
        blocks=[(v.name, base64.b64encode(v.nifti).decode()) for v in volumes],
        scripts=[Markup(text) for text in scripts],
        license=_LICENSE.read_text(encoding="utf-8"),
    )


def viewer_shell(findings: Findings, page: str, scripts: Sequence[str], report: str) -> str:
    """The page for a web server, under `script-src 'self'; connect-src 'self'`.

    Args:
        findings: from `findings.json` of a result folder.
        page: URL of the `viewer.html` of that folder; the browser sends its cookies along.
        scripts: URLs where the server has the files of `SCRIPTS`, in their order.
        report: link to the report.
    """
    policy = "script-src 'self'; connect-src 'self'"
    return _render(findings, report, policy=policy, page=page, urls=scripts)


def _render(findings: Findings, report: str, **parts: Any) -> str:
    template = environment().get_template("viewer.html.j2")
    whole = {"page": "", "blocks": (), "scripts": (), "urls": (), "license": ""}
    return template.render(
        whole | parts,
        f=findings,
        report=report,
        warnings=[split_warning(w) for w in findings.warnings],
        phases=[p for p in map(str, Phase) if p in {found.phase for found in findings.phases}],
        long_name={str(p): p.long_name for p in Phase},
        diagnoses={d.lesion_id: d for d in findings.diagnosis.lesions},
        hu_range=(LOWEST_HU, HIGHEST_HU, STEP_HU),
        colors={name: "#{:02x}{:02x}{:02x}".format(*rgb) for name, rgb in COLORS.items()},
        heat=" ".join("#{:02x}{:02x}{:02x}".format(*rgb) for _, rgb in HEAT),
    )
