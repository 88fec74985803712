"""Bundles: written whole, read back exactly, refused when anything differs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from hepar.errors import ModelIntegrityError
from hepar.infer import bundle as bundle_module
from hepar.infer.bundle import default_bundle_path, export_part, load_bundle, write_bundle
from hepar.infer.weights import to_half
from hepar.recipe import Recipe, parse_recipe
from hepar.systems import table
from hepar.systems.baselines.enhancement_classifier import EnhancementClassifier


def _recipe() -> Recipe:
    return parse_recipe(
        {
            "name": "liver-tiny",
            "system": {"name": "context_unet3d", "preset": "tiny"},
            "data": {"kind": "organ"},
            "schedule": {"steps": 1},
        }
    )


@pytest.fixture(scope="module")
def trained() -> torch.nn.Module:
    torch.manual_seed(0)
    return table.build(_recipe().system)


@pytest.fixture
def folder(tmp_path: Path, trained: torch.nn.Module) -> Path:
    part = tmp_path / "part"
    export_part(_recipe(), trained.state_dict(), {"threshold": 0.4}, part)
    write_bundle(tmp_path / "lite", {"liver": part}, name="lite", version="1", card="# Card\n")
    return tmp_path / "lite"


def test_property_round_trip(folder: Path, trained: torch.nn.Module) -> None:
    bundle = load_bundle(folder)
    model = bundle.model("liver")
    assert model is bundle.model("liver")  # built once
    assert not model.system.training
    assert model.calibration == {"threshold": 0.4}
    assert bundle.recipe("liver") == _recipe()
    assert bundle.has("liver")
    assert not bundle.has("tumor")
    for name, value in trained.state_dict().items():
        found = model.system.state_dict()[name]
        assert found.dtype == value.dtype  # float32 again
        torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-6)
    stored = load_file(folder / "liver" / "weights.safetensors")
    assert {v.dtype for v in stored.values() if v.is_floating_point()} == {torch.float16}
    assert (folder / "MODEL_CARD.md").read_text() == "# Card\n"
    assert len(bundle.sha256) == 64


def test_counters_and_large_values_keep_their_type() -> None:
    counter = to_half(torch.tensor(70_001))
    large = to_half(torch.tensor([1.0, 7e4]))
    tiny = to_half(torch.full((8,), 1e-9))
    plain = to_half(torch.tensor([0.25, 0.0]))
    assert counter.dtype == torch.int64
    assert counter.item() == 70_001
    assert large.dtype == tiny.dtype == torch.float32
    assert plain.dtype == torch.float16


@pytest.mark.parametrize(
    "name", ["liver/recipe.yaml", "liver/weights.safetensors", "liver/calibration.json"]
)
def test_tampering_is_refused(folder: Path, name: str) -> None:
    path = folder / name
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ModelIntegrityError) as caught:
        load_bundle(folder)
    assert caught.value.code == "E_MODEL_HASH"
    assert caught.value.exit_code == 13
    assert name in caught.value.message
    assert caught.value.remedy


def test_tampering_after_loading_is_refused(folder: Path) -> None:
    bundle = load_bundle(folder)
    path = folder / "liver" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelIntegrityError, match="SHA-256"):
        bundle.model("liver")


@pytest.mark.parametrize("name", ["bundle.yaml", "liver/weights.safetensors", "MODEL_CARD.md"])
def test_missing_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelIntegrityError) as caught:
        load_bundle(folder)
    assert caught.value.code == "E_MODEL_MISSING"


def test_missing_part_is_refused(folder: Path) -> None:
    with pytest.raises(ModelIntegrityError) as caught:
        load_bundle(folder).model("tumor")
    assert caught.value.code == "E_MODEL_MISSING"


def _rewrite(folder: Path, edit) -> None:
    """Change the manifest, as an attacker with a text editor would."""
    path = folder / "bundle.yaml"
    tree = yaml.safe_load(path.read_text())
    edit(tree)
    path.write_text(yaml.safe_dump(tree))


@pytest.mark.parametrize(
    "edit",
    [
        lambda t: t.update(extra=1),
        lambda t: t.pop("version"),
        lambda t: t["sha256"].update({"../outside": "0" * 64}),
        lambda t: t["sha256"].update({"/etc/hostname": "0" * 64}),
    ],
    ids=["unknown key", "missing key", "parent folder", "absolute path"],
)
def test_manifest_is_strict(folder: Path, edit) -> None:
    _rewrite(folder, edit)
    with pytest.raises(ModelIntegrityError) as caught:
        load_bundle(folder)
    assert caught.value.code == "E_MODEL_MANIFEST"


def test_unlisted_weights_are_never_used(folder: Path) -> None:
    _rewrite(folder, lambda t: t["sha256"].pop("liver/weights.safetensors"))
    with pytest.raises(ModelIntegrityError) as caught:
        load_bundle(folder)
    assert caught.value.code == "E_MODEL_MISSING"


def _replace_weights(folder: Path, data: bytes) -> None:
    path = folder / "liver" / "weights.safetensors"
    path.write_bytes(data)
    digest = bundle_module._digest(path)
    _rewrite(folder, lambda t: t["sha256"].update({"liver/weights.safetensors": digest}))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.pop(next(iter(t))), "missing"),
        (lambda t: t.update(intruder=torch.zeros(1)), "unexpected 'intruder'"),
        (lambda t: t.update({k: v[:1] for k, v in list(t.items())[:1]}), "expected"),
        (lambda t: t.update({k: v * float("nan") for k, v in list(t.items())[:1]}), "not finite"),
    ],
    ids=["missing", "unexpected", "shape", "nan"],
)
def test_weights_that_do_not_fit_are_refused(
    folder: Path, tmp_path: Path, edit, words: str
) -> None:
    tensors = load_file(folder / "liver" / "weights.safetensors")
    edit(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "edited.safetensors")
    _replace_weights(folder, (tmp_path / "edited.safetensors").read_bytes())
    with pytest.raises(ModelIntegrityError, match=words) as caught:
        load_bundle(folder).model("liver")
    assert caught.value.code == "E_MODEL_WEIGHTS"


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00", (1 << 40).to_bytes(8, "little") + b"{}", (100 << 20).to_bytes(8, "little")],
)
def test_header_size_is_limited(folder: Path, data: bytes) -> None:
    _replace_weights(folder, data)
    with pytest.raises(ModelIntegrityError) as caught:
        load_bundle(folder).model("liver")
    assert caught.value.code == "E_SAFETENSORS"


def test_export_refuses_weights_of_another_system(tmp_path: Path) -> None:
    with pytest.raises(ModelIntegrityError):
        export_part(_recipe(), {"a": torch.zeros(1)}, {}, tmp_path / "part")
    assert not (tmp_path / "part").exists()


def test_failed_writing_leaves_nothing(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelIntegrityError):
        write_bundle(tmp_path / "out", {"liver": empty}, name="x", version="1")
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


def test_a_diagnose_part_may_be_plain_files(tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.mkdir()
    (part / "classifier.json").write_text(json.dumps({"a": 1}))
    bundle = write_bundle(tmp_path / "out", {"diagnose": part}, name="x", version="1")
    assert json.loads(bundle.read("diagnose", "classifier.json")) == {"a": 1}


def test_property_classifier_round_trip(tmp_path: Path, folder: Path) -> None:
    assert load_bundle(folder).classifier() is None
    classifier = EnhancementClassifier(
        ("cyst", "hcc"),
        ("PV",),
        np.array([[[5.0, -100.0]], [[80.0, -30.0]]]),
        np.stack([np.eye(2), 2 * np.eye(2)]),
        np.array([0.5, 0.5]),
        threshold=0.7,
    )
    part = tmp_path / "part2"
    part.mkdir()
    save_arrays(dict(classifier.as_arrays()), part / "weights.safetensors")
    found = write_bundle(tmp_path / "out", {"diagnose": part}, name="x", version="1").classifier()
    assert found is not None
    assert found.labels == ("cyst", "hcc")
    assert found.threshold == 0.7
    np.testing.assert_array_equal(found.mean, classifier.mean)
    (part / "weights.safetensors").write_bytes(b"\xff" * 64)
    damaged = write_bundle(tmp_path / "bad", {"diagnose": part}, name="x", version="1")
    with pytest.raises(ModelIntegrityError) as caught:
        damaged.classifier()
    assert caught.value.code == "E_SAFETENSORS"


def test_default_bundle_is_named_when_absent() -> None:
    with pytest.raises(ModelIntegrityError) as caught:
        default_bundle_path("no-such-bundle")
    assert caught.value.code == "E_MODEL_MISSING"


@pytest.mark.parametrize(
    ("part", "stage", "words"),
    [("tumor", 1, "knows background, liver and no tumor"), ("liver", 2, "another has found")],
)
def test_a_stage_in_the_place_of_the_other_is_refused(
    tmp_path: Path, part: str, stage: int, words: str
) -> None:
    small = {"backbone": "resnet10", "base_width": 8, "width": 4, "edge_branch": False}
    recipe = parse_recipe(
        {
            "name": "stage",
            "system": {"name": "e2net", "stage": stage, "dcff": False, **small},
            "data": {"kind": "cohort", "path": "cohort.csv"},
            "schedule": {"steps": 1},
        }
    )
    other = {1: "liver", 2: "tumor"}[stage]
    for name in (part, other):
        export_part(recipe, table.build(recipe.system).state_dict(), {}, tmp_path / name)
    parts = {name: tmp_path / name for name in (part, other)}
    bundle = write_bundle(tmp_path / "both", parts, name="both", version="1")
    assert bundle.model(other).name == other
    with pytest.raises(ModelIntegrityError, match=words) as caught:
        bundle.model(part)
    assert caught.value.code == "E_MODEL_RECIPE"
    assert caught.value.exit_code == 13
