"""What a server is told in `serve.yaml`, and that it is alone with its folder."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from batch_engine import engine
from hepar.console import Steps
from hepar.errors import UsageError
from hepar.server.extra import needed
from hepar.server.serve import _alone, run_server
from hepar.server.settings import read_settings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("quiet: 3", "did you mean 'quiet_s'"),
        ("quiet_s: 0", "quiet_s"),
        ("node: {peers: []}", "peers"),
        ("node: {peers: [{ae_title: 'much too long a title', host: h}]}", "ae_title"),
        ("results_to: pacs", "there is no pacs"),
        ("results_to: ORTHANC", "ORTHANC"),
        ("pacs: {url: 'http://h/dicom-web', user: me}", "password_file"),
        ("pacs: {url: 'file:///etc/passwd'}", "url"),
        ("{pacs: {url: 'http://h/dicom-web', days: 30}, keep_days: 31}", "more than 31"),
    ],
)
def test_closed_form_settings_that_cannot_be_used_are_named(tmp_path, text, said):
    (tmp_path / "serve.yaml").write_text(text)
    with pytest.raises(UsageError, match=said) as refusal:
        read_settings(tmp_path)
    assert refusal.value.code == "E_SERVE_SETTINGS"


def test_closed_form_a_package_that_is_missing_is_named_with_its_remedy():
    with pytest.raises(UsageError, match="no_such_package") as refusal:
        needed("no_such_package.part")
    assert refusal.value.remedy == 'pip install "hepar[serve]"'


def test_closed_form_two_servers_do_not_share_a_folder(tmp_path):
    with _alone(tmp_path), pytest.raises(UsageError, match="Another hepar serve"):
        run_server(tmp_path, engine(tmp_path / "notes"))


def test_closed_form_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "hepar.server.web", None)
    with pytest.raises(UsageError, match="not installed") as refusal:
        run_server(tmp_path / "server", engine(tmp_path / "notes"))
    assert refusal.value.code == "E_SERVE_PACKAGES"
    assert "hepar[serve]" in refusal.value.remedy
    assert not (tmp_path / "server").exists()


def test_closed_form_a_long_address_is_told_in_one_piece():
    said = io.StringIO()
    address = f"http://127.0.0.1:8765/?token={'a' * 128}"
    Steps(Console(file=said, width=80)).tell(f"Open {address}")
    assert address in said.getvalue()
