"""Real shapes as many patients: pure in the seed, one liver, lesions inside it, any spacing."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from scipy import ndimage

from hepar.phantom.anatomy import anatomy
from hepar.phantom.labelmap import Template, template_of
from hepar.phantom.population import POPULATIONS, Population
from hepar.phantom.scanner import paint
from hepar.phantom.tissue import Tissue
from hepar.phantom.warped import warped_anatomy

SPACING = (5.0, 4.0, 4.0)
SICK = Population(primary=(0, 0, 1, 0, 0, 0, 0, 0), tumor_free=0.0)


@pytest.fixture(scope="module")
def template() -> Template:
    """A phantom stands in for a real label map, which is no part of the repository."""
    body = anatomy(11, spacing_mm=(4.0, 4.0, 4.0), shape=(64, 72, 88))
    return template_of(body)


def test_property_a_pure_function_of_the_seed(template: Template) -> None:
    first, again = (warped_anatomy(template, 5, spacing_mm=SPACING) for _ in range(2))
    for field in fields(first):
        np.testing.assert_equal(getattr(first, field.name), getattr(again, field.name))
    other = warped_anatomy(template, 6, spacing_mm=SPACING)
    assert other.tissue.shape != first.tissue.shape or (other.liver != first.liver).any()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_property_one_liver_with_lesions_inside_and_a_margin(template: Template, seed: int) -> None:
    body = warped_anatomy(template, seed, spacing_mm=SPACING, population=SICK)
    assert ndimage.label(body.liver, np.ones((3, 3, 3)))[1] == 1
    assert 500 < body.liver.sum() * np.prod(SPACING) / 1000 < 4500
    assert body.lesions
    assert body.liver[body.instances > 0].all()
    assert sorted(np.unique(body.instances)) == list(range(len(body.lesions) + 1))
    for axis in range(3):
        rim = np.moveaxis(body.liver, axis, 0)
        assert not rim[0].any()
        assert not rim[-1].any()
    outside = body.tissue[~body.liver]
    assert not np.isin(outside, [Tissue.LIVER, Tissue.PERFUSION]).any()


def test_property_the_same_patient_at_another_spacing(template: Template) -> None:
    coarse = warped_anatomy(template, 4, spacing_mm=SPACING)
    fine = warped_anatomy(template, 4, spacing_mm=(2.5, 2.0, 2.0))
    volumes = [a.liver.sum() * np.prod(a.spacing_mm) / 1000 for a in (coarse, fine)]
    assert volumes[0] == pytest.approx(volumes[1], rel=0.03)
    assert {s.type for s in coarse.lesions} <= {s.type for s in fine.lesions}


def test_closed_form_painted_liver_has_the_phase_of_its_time(template: Template) -> None:
    free = Population(primary=POPULATIONS["general"].primary, tumor_free=1.0, steatosis=0.0)
    body = warped_anatomy(template, 7, spacing_mm=SPACING, population=free)
    scan = paint(body, 1)
    inner = ndimage.binary_erosion(body.liver, iterations=2)
    native, portal = (float(np.median(scan.hu[phase][inner])) for phase in ("NC", "PV"))
    assert 40 < native < 75
    assert portal > native + 25
    assert not scan.instances.any()


def test_a_template_without_liver_is_refused(template: Template) -> None:
    bare = Template(template.tissue, np.zeros_like(template.liver), None, template.spacing_mm)
    with pytest.raises(ValueError, match="no liver"):
        warped_anatomy(bare, 1, spacing_mm=SPACING)
