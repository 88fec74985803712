"""`serve.yaml`: where a server listens, whom it talks to, and when a study is complete."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hepar import strict_yaml
from hepar.errors import UsageError

FILE = "serve.yaml"
Port = Annotated[int, Field(ge=0, le=65535)]
# PS3.5, value representation AE: no backslash or control character, blanks around it do not count.
Title = Annotated[str, Field(pattern=r"^[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?$")]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Web(_Strict):
    """The web door.

    Attributes:
        host: address to listen at; only this machine by default.
        port: 0 for any free one.
        names: by which browsers may call it, as `hepar.example.org`; its addresses always do.
        max_upload_mb: largest study that may be uploaded, MB.
        max_waiting: uploads that may arrive or wait at a time; more are asked to come again.
    """

    host: str = "127.0.0.1"
    port: Port = 8765
    names: tuple[str, ...] = ()
    max_upload_mb: Annotated[int, Field(gt=0)] = 4000
    max_waiting: Annotated[int, Field(gt=0)] = 16


class Peer(_Strict):
    """A DICOM node that may send to this one, and be sent to.

    Attributes:
        ae_title: as it calls itself.
        host: the only address that it may call from.
        port: where it listens; None for one that is never called.
    """

    ae_title: Title
    host: str
    port: Port | None = None


class Node(_Strict):
    """The DICOM door (DIMSE).

    Attributes:
        ae_title: as which this node is called.
        host: address to listen at; only this machine by default.
        port: 0 for any free one.
        peers: who may call; nobody else may.
        max_associations: open at a time; each host of a peer has an equal share of them.
    """

    ae_title: Title = "HEPAR"
    host: str = "127.0.0.1"
    port: Port = 11112
    peers: Annotated[tuple[Peer, ...], Field(min_length=1)]
    max_associations: Annotated[int, Field(gt=0)] = 32


class Pacs(_Strict):
    """An archive that is asked for new studies over DICOMweb, or gets results, or both.

    Attributes:
        url: of its DICOMweb root.
        user: for basic authentication; with `password_file`.
        password_file: holds the password in its first line; relative to `serve.yaml`.
        fetch: whether its new CT studies are fetched.
        days: studies are fetched whose date is today or so many days before it.
        poll_s: seconds between questions.
    """

    url: Annotated[str, Field(pattern=r"^https?://[^\s?#]+$")]
    user: str | None = None
    password_file: Path | None = None
    fetch: bool = True
    days: Annotated[int, Field(ge=0)] = 1
    poll_s: Annotated[float, Field(gt=0)] = 10.0

    @model_validator(mode="after")
    def _both(self) -> Pacs:
        if (self.user is None) != (self.password_file is None):
            raise ValueError("user and password_file go together")
        return self


class Settings(_Strict):
    """The whole of `serve.yaml`; every key may be left out.

    Attributes:
        web: the web door.
        node: the DICOM door; closed where it is left out.
        pacs: an archive; none where it is left out.
        results_to: where SEG and SR of studies go that came from the node or the archive: `pacs`,
            the `ae_title` of a peer, or nowhere.
        quiet_s: a study is complete when nothing of it came for so long, seconds.
        workers: studies at a time, each in a process of its own.
        timeout_s: a study that takes longer is stopped, seconds.
        keep_days: studies and results are removed after so many days; None to keep them. More than
            a day longer than studies of `pacs.days` are fetched.
        captures, probabilities, interpolate_gaps: as the flags of `hepar segment`.
    """

    web: Web = Web()
    node: Node | None = None
    pacs: Pacs | None = None
    results_to: str | None = None
    quiet_s: Annotated[float, Field(gt=0)] = 60.0
    workers: Annotated[int, Field(gt=0)] = 1
    timeout_s: Annotated[float, Field(gt=0)] = 3600.0
    keep_days: Annotated[float, Field(gt=0)] | None = 30.0
    captures: bool = False
    probabilities: bool = False
    interpolate_gaps: bool = False

    @model_validator(mode="after")
    def _kept(self) -> Settings:
        days = self.pacs.days if self.pacs is not None and self.pacs.fetch else None
        if days is not None and self.keep_days is not None and self.keep_days <= days + 1:
            raise ValueError(
                f"keep_days has to be more than {days + 1}: pacs.days would fetch again"
            )
        return self

    @model_validator(mode="after")
    def _receiver(self) -> Settings:
        if self.results_to is None:
            return self
        if self.results_to == "pacs":
            if self.pacs is None:
                raise ValueError("results_to is pacs, and there is no pacs")
            return self
        peers = self.node.peers if self.node else ()
        if not any(p.ae_title == self.results_to and p.port is not None for p in peers):
            raise ValueError(f"results_to: no peer of the node is {self.results_to} with a port")
        return self


def read_settings(folder: Path) -> Settings:
    """The settings of a server's folder; all defaults where it has no `serve.yaml`.

    Raises:
        UsageError: `E_SERVE_SETTINGS`, the file cannot be used; `E_YAML`, it is made to do harm.
    """
    path = folder / FILE
    if not path.exists():
        return Settings()
    try:
        tree = strict_yaml.read(path)
        try:
            return Settings.model_validate(tree)
        except ValidationError as error:
            raise ValueError(strict_yaml.explain(error, Settings, tree)) from None
    except ValueError as error:
        raise UsageError(
            "E_SERVE_SETTINGS",
            "serve",
            f"{FILE}: {error}",
            "Correct the file; docs/serve.md lists its keys.",
        ) from None
