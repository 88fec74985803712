"""The LiTS rule: the server's faults worked by hand, and both modes against voxel loops."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from hepar.evaluate.lesion import DetectionCounts, lesion_overlaps
from hepar.evaluate.lits_detection import lits_components, lits_detection


def detect(predicted, reference, threshold=0.5):
    """(clean, compat) counts of two masks."""
    table = lesion_overlaps(lits_components(predicted), lits_components(reference), 1.0)
    return lits_detection(table, threshold), lits_detection(table, threshold, "compat")


def empty() -> np.ndarray:
    return np.zeros((3, 12, 30), bool)


def test_closed_form_components_touch_by_faces_and_are_numbered_along_x_first():
    mask = empty()
    mask[0, 0, 9] = mask[0, 1, 8] = mask[2, 11, 0] = True
    labels = lits_components(mask)
    assert (labels[2, 11, 0], labels[0, 1, 8], labels[0, 0, 9]) == (1, 2, 3)


def test_closed_form_the_server_detects_a_prediction_three_times_too_large():
    truth, found = empty(), empty()
    truth[1, 4:8, 12:14] = True
    found[1, 4:8, 12:18] = True  # IoU 8 / 24
    missed = DetectionCounts(1, 1, 0, 0)
    assert detect(found, truth) == (missed, missed), "the numbers agree: no fault"
    found[1, 4, 2] = True  # now the large prediction is number 2, and the lesion number 1
    clean, server = detect(found, truth)
    assert clean == DetectionCounts(1, 2, 0, 0)
    assert server == DetectionCounts(1, 2, 1, 1)


def three_lesions() -> np.ndarray:
    truth = empty()
    truth[:, 2:10, 2:8] = truth[:, 2:10, 10:16] = truth[:, 2:10, 18:24] = True
    return truth


def test_closed_form_the_server_counts_a_prediction_of_three_lesions_once():
    truth = three_lesions()
    found = truth.copy()
    found[1, 5, 2:24] = True
    clean, server = detect(found, truth)
    assert clean == DetectionCounts(3, 1, 3, 1)
    assert server == DetectionCounts(3, 1, 1, 1)
    assert (server.n_predicted - server.tp_predicted, server.n_reference - server.tp_reference) == (
        0,
        2,
    )


def test_closed_form_the_server_takes_a_too_large_prediction_of_three_lesions_off_three_times():
    truth = three_lesions()
    truth[:, 4:10] = False  # a quarter is left: 2 of 8 rows
    clean, server = detect(ndimage.binary_closing(three_lesions(), np.ones((1, 1, 5))), truth)
    assert clean == DetectionCounts(3, 1, 0, 0)
    assert server == DetectionCounts(3, 1, -2, -2)
    assert (server.n_predicted - server.tp_predicted, server.n_reference - server.tp_reference) == (
        3,
        5,
    )


def test_closed_form_half_is_not_more_than_half():
    truth, found = empty(), empty()
    truth[1, 4, 10:14] = True
    found[1, 4, 10:12] = True
    assert detect(found, truth) == (DetectionCounts(1, 1, 0, 0),) * 2
    found[1, 4, 12] = True
    assert detect(found, truth) == (DetectionCounts(1, 1, 1, 1),) * 2
    found[...] = False
    found[1, 4, 13:20] = True
    assert detect(found, truth, 0.0) == (DetectionCounts(1, 1, 1, 1),) * 2


def test_closed_form_nothing_is_detected_without_lesions():
    found = three_lesions()
    assert detect(found, empty()) == (DetectionCounts(0, 3, 0, 0),) * 2
    assert detect(empty(), found) == (DetectionCounts(3, 0, 0, 0),) * 2
    assert detect(empty(), empty()) == (DetectionCounts(0, 0, 0, 0),) * 2


def test_closed_form_predictions_of_one_lesion_count_together():
    truth, found = empty(), empty()
    truth[1, 4:8, 10:20] = True
    found[1, 4:8, 10:14] = found[1, 4:8, 15:20] = True
    clean, server = detect(found, truth)
    assert clean == DetectionCounts(1, 2, 1, 2)
    assert server == DetectionCounts(1, 2, 1, 1)


def flooded(mask) -> dict[int, set]:
    """Components as sets of voxels, found voxel by voxel in the server's order of axes."""
    depth, height, width = mask.shape
    seen, found = set(), {}
    for x in range(width):
        for y in range(height):
            for z in range(depth):
                if not mask[z, y, x] or (z, y, x) in seen:
                    continue
                front, part = [(z, y, x)], {(z, y, x)}
                while front:
                    c, b, a = front.pop()
                    for near in (
                        *((c + s, b, a) for s in (-1, 1)),
                        *((c, b + s, a) for s in (-1, 1)),
                        *((c, b, a + s) for s in (-1, 1)),
                    ):
                        inside = all(0 <= k < n for k, n in zip(near, mask.shape, strict=True))
                        if inside and mask[near] and near not in part:
                            part.add(near)
                            front.append(near)
                seen |= part
                found[len(found) + 1] = part
    return found


def merged_and_assigned(predicted, reference):
    """Reference groups by their first lesion, and the predictions of each, as lists of ids."""
    groups, goes = {}, {}
    touching = [p for p in predicted if any(predicted[p] & r for r in reference.values())]
    for p in touching:
        members = []
        for r in reference:
            sizes = [len(predicted[q] & reference[r]) for q in touching]
            if max(sizes) > 0 and touching[sizes.index(max(sizes))] == p:
                members.append(r)
        if members:
            groups[members[0]] = members
    for p in touching:
        sizes = {
            g: sum(len(predicted[p] & reference[r]) for r in groups[g]) for g in sorted(groups)
        }
        goes[p] = max(sizes, key=lambda g, sizes=sizes: (sizes[g], -g))
    return groups, {g: [p for p in touching if goes[p] == g] for g in groups}


def clean_by_voxels(predicted, reference, threshold):
    groups, members = merged_and_assigned(predicted, reference)
    tp_reference = tp_predicted = 0
    for g, lesions in groups.items():
        if members[g]:
            a = set.union(*(predicted[p] for p in members[g]))
            b = set.union(*(reference[r] for r in lesions))
            if len(a & b) / len(a | b) > threshold:
                tp_reference += len(lesions)
                tp_predicted += len(members[g])
    return DetectionCounts(len(reference), len(predicted), tp_reference, tp_predicted)


def server_by_voxels(predicted, reference, threshold):
    """Two painted maps, as the server keeps them, and its wrong look-up by the old number."""
    groups, members = merged_and_assigned(predicted, reference)
    detected_map, reference_map = {}, {}
    for g, lesions in groups.items():
        reference_map |= {voxel: g for r in lesions for voxel in reference[r]}
        detected_map |= {voxel: g for p in members[g] for voxel in predicted[p]}
    held = [g for g in groups if members[g]]
    detected = len(held)
    for g in sorted(held, key=lambda g: members[g][0]):
        a = set.union(*(predicted[p] for p in members[g]))
        b = {voxel for voxel, label in reference_map.items() if label == g}
        wrong = {voxel for voxel, label in detected_map.items() if label == members[g][0]}
        if len(a & b) / len(wrong | b) <= threshold:
            detected -= len(groups[g])
            detected_map = {voxel: label for voxel, label in detected_map.items() if label != g}
    return DetectionCounts(len(reference), len(predicted), detected, detected)


def random_masks(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(2, 4, 11, 12)), (0, 0.7, 0.8, 0.8))
    noise /= noise.std()
    alike = rng.uniform(0.3, 0.9)
    mixed = alike * noise[0] + (1 - alike) * noise[1]
    return noise[0] > rng.uniform(0.5, 1.2), mixed > rng.uniform(0.2, 1.0) * mixed.std()


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5])
def test_oracle_both_modes_equal_voxel_loops(threshold):
    differ = negative = 0
    for seed in range(60):
        found, truth = random_masks(seed)
        predicted, reference = flooded(found), flooded(truth)
        clean, server = detect(found, truth, threshold)
        assert clean == clean_by_voxels(predicted, reference, threshold)
        assert server == server_by_voxels(predicted, reference, threshold)
        differ += clean != server
        negative += server.tp_reference < 0
    assert differ > 10, "the masks are too plain to tell the modes apart"
    assert negative > 0 or threshold == 0.0
