"""Files and names made to do harm, one test or more a case of `docs/hazards.md`."""

from __future__ import annotations

import ast
import io
import json
import lzma
import struct
import tarfile
import time
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from canary_study import SCRIPT, SHELL, canary_run, run, write_study
from safetensors.torch import save

from hepar.cli import main
from hepar.errors import HeparError, InputRefused, ModelIntegrityError, UsageError
from hepar.infer.weights import parse_tensors
from hepar.io.archive import Caps, unpack
from hepar.recipe import load_recipe
from hepar.strict_yaml import load
from hepar.train.published import start_trunk

from nifti_phantom import saved  # isort: skip

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "hepar"
MIB = 2**20
SMALL = Caps(free_bytes=4 * MIB)


def refused(archive: Path, code: str, caps: Caps | None = None) -> InputRefused:
    """How an archive is refused; nothing lies outside the folder it was to be unpacked to."""
    place = archive.parent / "inner" / "out"
    before = {p for p in archive.parent.rglob("*") if place not in (p, *p.parents)}
    with pytest.raises(InputRefused) as caught:
        unpack(archive, place, caps=caps)
    assert caught.value.code == code
    after = {p for p in archive.parent.rglob("*") if place not in (p, *p.parents)}
    assert after - before <= {place.parent}
    return caught.value


def tarred(path: Path, *members: tarfile.TarInfo, data: bytes = b"") -> Path:
    with tarfile.open(path, "w") as packed:
        for member in members:
            member.size = len(data) if member.isreg() else 0
            packed.addfile(member, io.BytesIO(data))
    return path


def special(kind: bytes, name: str, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    "member",
    [
        tarfile.TarInfo("../evil"),
        tarfile.TarInfo("/tmp/hepar-evil"),
        tarfile.TarInfo("a/../../evil"),
        special(tarfile.SYMTYPE, "link", "/etc"),
        special(tarfile.SYMTYPE, "link", "../.."),
        special(tarfile.LNKTYPE, "hard", "/etc/passwd"),
        special(tarfile.CHRTYPE, "null"),
        special(tarfile.BLKTYPE, "disk"),
        special(tarfile.FIFOTYPE, "pipe"),
    ],
    ids=lambda m: f"{m.type.decode()}-{m.name}".replace("/", "_"),
)
def test_property_SE02_no_member_of_a_tar_escapes(tmp_path, member):
    refused(tarred(tmp_path / "a.tar", member, data=b"x"), "E_ARCHIVE")
    assert not Path("/tmp/hepar-evil").exists()


def test_property_SE02_a_link_is_no_way_out_for_the_file_after_it(tmp_path):
    through = tarfile.TarInfo("link/evil")
    refused(
        tarred(tmp_path / "a.tar", special(tarfile.SYMTYPE, "link", ".."), through), "E_ARCHIVE"
    )


def zipped(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in members:
            packed.writestr(name, data)
    return path


@pytest.mark.parametrize(
    "names",
    [
        ("../../evil",),
        ("/evil",),
        ("..\\evil",),
        ("C:evil",),
        ("a/IM1", "a/im1"),
        ("STRASSE", "straße"),
        ("a/./b", "a/b"),
    ],
)
def test_property_SE03_names_that_leave_or_collide_are_refused(tmp_path, names):
    refused(zipped(tmp_path / "a.zip", *((n, b"x") for n in names)), "E_ARCHIVE")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_property_SE03_duplicates_nul_and_links_are_refused(tmp_path):
    refused(zipped(tmp_path / "a.zip", ("same", b"1"), ("same", b"2")), "E_ARCHIVE")
    raw = zipped(tmp_path / "b.zip", ("abc#def", b"x")).read_bytes()
    (tmp_path / "b.zip").write_bytes(raw.replace(b"abc#def", b"abc\0def"))
    refused(tmp_path / "b.zip", "E_ARCHIVE")
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    refused(zipped(tmp_path / "c.zip", (link, b"/etc/passwd")), "E_ARCHIVE")


def test_property_SE03_a_flood_of_entries_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for n in range(20_001):
            packed.writestr(zipfile.ZipInfo(f"{n}/"), b"")
    start = time.process_time()
    refused(tmp_path / "a.zip", "E_ARCHIVE")
    assert time.process_time() - start < 5


def zeros(path: Path, mebibytes: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
        packed.open("IM1", "w") as stream,
    ):
        for _ in range(mebibytes):
            stream.write(bytes(MIB))
    return path


def on_disk(tmp_path: Path) -> int:
    return sum(p.stat().st_size for p in (tmp_path / "inner").rglob("*") if p.is_file())


def test_property_SE04_a_zip_bomb_is_stopped_while_it_inflates(tmp_path):
    refused(zeros(tmp_path / "a.zip", 80), "E_BOMB")
    assert on_disk(tmp_path) <= 65 * MIB
    refused(zeros(tmp_path / "total" / "b.zip", 8), "E_BOMB", Caps(total_bytes=4 * MIB))


@pytest.mark.parametrize("declared", [10, 2**31])
def test_property_SE04_forged_sizes_are_not_trusted(tmp_path, declared):
    path = zeros(tmp_path / "a.zip", 16)
    data = bytearray(path.read_bytes())
    entry = data.rfind(b"PK\x01\x02")
    struct.pack_into("<I", data, entry + 24, declared)
    path.write_bytes(data)
    refused(path, "E_BOMB", SMALL)
    assert on_disk(tmp_path) <= 5 * MIB


def test_property_SE04_members_that_share_bytes_are_refused(tmp_path):
    path = zipped(tmp_path / "a.zip", ("one", b"x" * 99), ("two", b"y" * 99))
    data = bytearray(path.read_bytes())
    second = data.rfind(b"PK\x01\x02")
    struct.pack_into("<I", data, second + 42, 0)  # where the first member begins
    path.write_bytes(data)
    refused(path, "E_BOMB")


def test_property_SE04_a_packed_tar_is_no_way_around_it(tmp_path):
    path = tmp_path / "a.tar.xz"
    with lzma.open(path, "wb", preset=1) as packed, tarfile.open(fileobj=packed, mode="w|") as made:
        member = tarfile.TarInfo("IM1")
        member.size = 16 * MIB
        made.addfile(member, io.BytesIO(bytes(member.size)))
    refused(path, "E_BOMB", SMALL)
    assert on_disk(tmp_path) <= 5 * MIB


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k + 1}: &a{k + 1} [{', '.join([f'*a{k}'] * 10)}]\n" for k in range(30)
)
MERGED = "a0: &a0 {k: 1}\n" + "".join(
    f"a{k + 1}: &a{k + 1} {{<<: [{', '.join([f'*a{k}'] * 10)}]}}\n" for k in range(30)
)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch HACKED']",
        "name: !!python/name:os.system",
        "name: !custom 1",
        BOMB,
        MERGED,
        "a: &a [*a]",
        "a: " + "[" * 3_000,
        "a: " + "x" * (MIB + 1),
    ],
    ids=["call", "name", "tag", "bomb", "merge", "circle", "deep", "long"],
)
def test_property_SE05_hostile_yaml_is_refused(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "r.yaml"
    path.write_text(text)
    start = time.process_time()
    with pytest.raises(UsageError) as caught:
        load_recipe(path)
    assert caught.value.code == "E_YAML"
    assert time.process_time() - start < 5
    assert not (tmp_path / "HACKED").exists()
    with pytest.raises(UsageError):
        load(text, "r.yaml")


def test_oracle_SE05_what_is_harmless_is_read_as_pyyaml_reads_it():
    text = "a: &x {b: [1, 2.5, yes]}\nc: *x\nd: {<<: *x, e: null}\n"
    assert load(text, "r.yaml") == yaml.safe_load(text)
    assert load("", "r.yaml") is None
    with pytest.raises(yaml.YAMLError):
        load("a: [", "r.yaml")


def tensors(header: object, body: bytes = bytes(16)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


def entry(*offsets: int) -> dict:
    return {"dtype": "F32", "shape": [2], "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Q", 2**40) + b"{}",
        struct.pack("<Q", 17 << 20) + b" " * (18 << 20),
        tensors({"a": entry(0, 8), "b": entry(4, 12)}),
        tensors({"a": entry(0, 8), "b": entry(0, 8)}),
        tensors({"a": entry(8, 2**60)}),
        tensors({"a": entry(12, 20)}),
        tensors({"a": entry(8, 0)}),
        tensors({"a": entry(-8, 0)}),
        tensors({str(n): EMPTY for n in range(100_001)}),
        tensors(b"[" * 100_000),
        tensors(b'{"a": 1}'),
        b"",
    ],
    ids=["length", "header", "overlap", "same", "far", "beyond", "turned", "negative", "many",
         "nested", "shape", "empty"],
)  # fmt: skip
def test_property_SE07_made_up_safetensors_are_refused_quickly(tmp_path, data):
    start = time.process_time()
    with pytest.raises(ModelIntegrityError) as caught:
        parse_tensors(data, "weights.safetensors")
    assert caught.value.code == "E_SAFETENSORS"
    assert caught.value.exit_code == 13

    class Trunk(torch.nn.Module):
        def load_trunk(self, found: object) -> None:
            raise AssertionError("nothing may be loaded")

    path = tmp_path / "trunk.safetensors"
    path.write_bytes(data)
    with pytest.raises(ModelIntegrityError):
        start_trunk(Trunk(), path)
    assert time.process_time() - start < 2.5


def test_oracle_SE07_what_the_library_writes_is_read():
    made = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(0), "c": torch.ones(2)}
    found = parse_tensors(save(made), "weights.safetensors")
    assert all(torch.equal(found[name], value) for name, value in made.items())


def test_property_SE08_names_reach_no_shell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = tmp_path / SHELL
    write_study(study)
    found = run(tmp_path / "out", "segment", study, "-o", tmp_path / f"o {SHELL}")
    assert found.code == 0, found.said
    assert not list(tmp_path.rglob("HACKED"))
    assert (tmp_path / f"o {SHELL}" / "findings.json").exists()


CALLS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {
    *("system", "popen", "extractall", "load_module", "yaml.load", "unsafe_load", "full_load"),
    *("urlopen", "urlretrieve", "create_connection", "Unpickler", "pickle.load", "pickle.loads"),
}
MODULES = {
    *("subprocess", "shelve", "marshal", "joblib", "dill", "cloudpickle", "urllib", "http"),
    *("requests", "httpx", "aiohttp", "ftplib", "smtplib", "telnetlib", "xmlrpc"),
}
# Native decoders run in a process of their own: this interpreter, a module of hepar, no shell.
STARTERS = {"dicom_decoding.py": {"subprocess"}}


def test_property_SE08_nothing_in_the_package_calls_a_shell_or_runs_data():
    """Also SE09: no module that speaks to a network is imported."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = (
                    [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
                )
                # urllib.parse only takes addresses apart.
                modules = {str(n).split(".")[0] for n in names if n != "urllib.parse"} & MODULES
                found += [f"{path.name}: {n}" for n in modules - STARTERS.get(path.name, set())]
            if isinstance(node, ast.Call):
                text = ast.unparse(node.func)
                bad = text in CALLS or text in ATTRIBUTES or text.split(".")[-1] in ATTRIBUTES
                found += [f"{path.name}: {text}"] * (bad and text != "re.compile")
                found += [
                    f"{path.name}: {keyword.arg}"
                    for keyword in node.keywords
                    if (keyword.arg, ast.unparse(keyword.value))
                    in {("shell", "True"), ("allow_pickle", "True"), ("weights_only", "False")}
                ]
    assert found == []


def test_property_SE09_a_run_reaches_for_no_network(tmp_path):
    found = canary_run()
    assert found.code == 0
    assert found.connections == []


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.handlers: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        self.text += data


def test_property_SE10_text_of_headers_stays_text():
    page = _Page((canary_run().out / "report.html").read_text())
    assert SCRIPT in page.text
    assert "script" not in page.tags
    assert page.handlers == []


# --- Mutants ---------------------------------------------------------------------------------


def sound_archive(path: Path) -> bytes:
    """A small study as zip or tar."""
    scan = saved(path.parent / "scan.nii.gz").read_bytes()
    if path.suffix == ".zip":
        return zipped(path, ("study/scan.nii.gz", scan), ("notes", b"n" * 500)).read_bytes()
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as packed:
        for name, data in (("study/scan.nii.gz", scan), ("notes", b"n" * 500)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            packed.addfile(member, io.BytesIO(data))
    return path.read_bytes()


@pytest.mark.parametrize(("seed", "count"), [(1, 50), pytest.param(2, 200, marks=pytest.mark.full)])
def test_property_SE00_mutants_of_archives_are_unpacked_or_refused_by_code(tmp_path, seed, count):
    rng = np.random.default_rng(seed)
    whole = {suffix: sound_archive(tmp_path / f"w{suffix}") for suffix in (".zip", ".tar", ".tgz")}
    outcomes: dict[str, int] = {}
    for number in range(count):
        suffix = (".zip", ".tar", ".tgz")[number % 3]
        data = bytearray(whole[suffix])
        if rng.random() < 0.2:
            data = data[: rng.integers(0, len(data))]
        else:
            heads = [k for k in range(len(data)) if data[k : k + 2] == b"PK"] or [0, 512]
            for _ in range(rng.integers(1, 6)):
                near = int(rng.choice(heads)) if rng.random() < 0.7 else 0
                span = 60 if near or suffix != ".zip" else len(data)
                data[min(near + int(rng.integers(span)), len(data) - 1)] = rng.integers(256)
        path = tmp_path / f"m{suffix}"
        path.write_bytes(data)
        out = tmp_path / f"out{number}"
        start = time.process_time()
        try:
            unpack(path, out)
            outcome = "read"
        except HeparError as error:
            outcome = error.code
        assert time.process_time() - start < 5, number
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert {"read", "E_CORRUPT"} <= set(outcomes), outcomes
    assert set(outcomes) <= {"read", "E_CORRUPT", "E_ARCHIVE", "E_BOMB"}, outcomes
    assert {p.name[:3] for p in tmp_path.iterdir()} <= {"out", "w.z", "w.t", "m.z", "m.t", "sca"}


def test_property_SE04_a_bomb_as_a_study_leaves_nothing(tmp_path, monkeypatch, capsys):
    private = tmp_path / "tmp"
    private.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(private))
    with pytest.raises(SystemExit) as left:
        main(["segment", str(zeros(tmp_path / "a.zip", 80)), "-o", str(tmp_path / "out"), "-q"])
    assert left.value.code == 10
    assert "E_BOMB" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert list(private.iterdir()) == []
