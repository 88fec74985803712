"""The images of one series, split into stacks by geometry and then by time.

Where images do not form one stack the series is split into passes when that is certain, and refused
otherwise: no slice is dropped, moved or invented.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hepar.errors import InputRefused
from hepar.io.dicom_headers import Header
from hepar.io.dicom_stack import (
    MIN_SLICES,
    SAME_POSITION_MM,
    Note,
    Stack,
    depth_mm,
    lacks_geometry,
    positions,
    stack,
)
from hepar.io.refusal import refuse

_SAME_DIRECTION = 1e-3
_MIN_SHARED_RANGE = 0.5
# Of `Header.times`, those that count passes; the others are clocks.
_NUMBERS = ("AcquisitionNumber", "StackID", "TemporalPositionIdentifier")
# What tells acquisitions apart even where no two images share a position. ContentTime would not: it
# is when an image was computed.
_ACQUISITIONS = (*_NUMBERS, "AcquisitionTime")

Digest = Callable[[Header], str]


@dataclass(frozen=True)
class Rejected:
    """Images that form no stack; `error` is None when they are of no use rather than unsafe."""

    headers: tuple[Header, ...]
    reason: str
    code: str | None
    error: InputRefused | None = None


@dataclass(frozen=True)
class Rules:
    """What splitting needs beside the headers.

    Attributes:
        digest: hash of an image's stored pixels; called only for images at one position.
        interpolate_gaps: whether single lost slices may be made up from their neighbors.
    """

    digest: Digest
    interpolate_gaps: bool = False


def stacks_of(headers: Sequence[Header], rules: Rules) -> list[Stack | Rejected]:
    """Split the images of one series into stacks.

    Args:
        headers: CT images of one series, in any order.
        rules: of the splitting.

    Returns:
        Every image in exactly one stack or rejection, except for copies that were left out.
    """
    bad = [h for h in headers if lacks_geometry(h)]
    if bad:
        return [_rejected(headers, refuse("E_NO_GEOMETRY", f"{lacks_geometry(bad[0])}."))]
    clusters = sorted(_by_orientation(headers), key=len, reverse=True)
    results: list[Stack | Rejected] = []
    for cluster in clusters:
        if len(positions(cluster)) >= MIN_SLICES:
            results.extend(_one_orientation(cluster, rules))
        elif len(clusters) > 1 and len(positions(clusters[0])) >= MIN_SLICES:
            reason = f"{len(cluster)} image(s) of another orientation in the series"
            results.append(Rejected(tuple(cluster), reason, "W_DROPPED_SLICES"))
        else:
            reason = f"{len(cluster)} image(s) at {len(positions(cluster))} position(s)"
            results.append(Rejected(tuple(cluster), reason, "E_TOO_FEW_SLICES"))
    return results


def _rejected(headers: Sequence[Header], error: InputRefused) -> Rejected:
    return Rejected(tuple(headers), error.message, error.code, error)


def _by_orientation(headers: Sequence[Header]) -> list[list[Header]]:
    """Images of one orientation, which all get that of the first: depths share one normal."""
    clusters: list[list[Header]] = []
    for header in headers:
        axes = np.asarray(header.orientation)
        for members in clusters:
            first = members[0].orientation
            if np.abs(np.asarray(first) - axes).max() <= _SAME_DIRECTION:
                members.append(replace(header, orientation=first))
                break
        else:
            clusters.append([header])
    return clusters


def _one_orientation(headers: list[Header], rules: Rules) -> list[Stack | Rejected]:
    """Split by matrix and pixel size, allowed only where each part is a stack of its own."""
    groups: dict[Any, list[Header]] = {}
    for h in headers:
        sizes = tuple(round(s, 4) for s in h.pixel_spacing_mm or ())
        groups.setdefault((h.rows, h.columns, sizes), []).append(h)
    if len(groups) == 1:
        return _passes(headers, rules)
    parts = [result for group in groups.values() for result in _passes(group, rules)]
    if all(isinstance(part, Stack) for part in parts):
        return parts
    mixed = ", ".join(f"{r} x {c} at {s} mm" for r, c, s in sorted(groups))
    return [_rejected(headers, refuse("E_MIXED_MATRIX", f"the images mix {mixed}."))]


def _passes(headers: list[Header], rules: Rules) -> list[Stack | Rejected]:
    """Split by time where several passes share positions or interleave; else one stack."""
    try:
        kept, copies = _without_same_instance(headers, rules.digest)
    except InputRefused as error:
        return [_rejected(headers, error)]
    notes = _copies(copies)
    alone = len(positions(kept)) == len(kept)
    for parts, sign in _by_keys(kept, _ACQUISITIONS if alone else tuple(kept[0].times)):
        if len(parts) > 1 and all(_is_pass(part) for part in parts) and _share_range(parts):
            return [_checked(part, rules, [*notes, *sign]) for part in parts]
    if alone:
        return [_checked(kept, rules, notes)]
    for parts, sign in _by_order(kept):
        if len(parts) > 1 and all(_is_pass(part) for part in parts) and _share_range(parts):
            return [_checked(part, rules, [*notes, *sign]) for part in parts]
    kept, more = _without_equal_pixels(kept, rules.digest)
    distinct = len(positions(kept))
    if len(kept) - distinct > distinct / 2:
        reason = f"{len(kept)} images at {distinct} positions cannot be told apart into passes."
        return [_rejected(headers, refuse("E_AMBIGUOUS_STACK", reason))]
    return [_checked(kept, rules, _copies(copies + more))]


def _copies(count: int) -> list[Note]:
    return [("W_DUP_INSTANCE", f"{count} identical image(s) left out")] if count else []


def _checked(headers: Sequence[Header], rules: Rules, notes: Sequence[Note]) -> Stack | Rejected:
    try:
        result = stack(headers, interpolate_gaps=rules.interpolate_gaps)
    except InputRefused as error:
        return _rejected(headers, error)
    repaired = result.repaired or any(code == "W_DUP_INSTANCE" for code, _ in notes)
    return replace(result, notes=(*notes, *result.notes), repaired=repaired)


def _is_pass(headers: Sequence[Header]) -> bool:
    return len(headers) >= MIN_SLICES and len(positions(headers)) == len(headers)


def _by_key(headers: Sequence[Header], key: str) -> list[list[Header]]:
    groups: dict[str, list[Header]] = {}
    for header in headers:
        groups.setdefault(header.times[key], []).append(header)
    return sorted(groups.values(), key=lambda g: min(_order(h) for h in g))


def _order(header: Header) -> tuple[str, str, int]:
    return header.times["AcquisitionTime"], header.times["ContentTime"], header.instance


def _by_keys(
    headers: list[Header], keys: Sequence[str]
) -> Iterator[tuple[list[list[Header]], list[Note]]]:
    """Ways to tell passes apart by a tag, the surest first, each with what has to be said of it.

    Acquisitions that lie between one another's slices are passes too, even where together they
    happen to look like one finer stack; those side by side (step and shoot) share no range.
    """
    for key in keys:
        sign = [("W_PHASE_BY_TIME", f"passes of one series were told apart by {key}")]
        yield _by_key(headers, key), [] if key in _NUMBERS else sign


def _by_order(headers: list[Header]) -> Iterator[tuple[list[list[Header]], list[Note]]]:
    """Ways to tell passes that share positions apart by the order of their images."""
    sign = [("W_PHASE_BY_ORDER", "passes of one series were told apart by the order of images")]
    # Order tells passes apart only where no two images tie; else file names would decide.
    if len({_order(h) for h in headers}) == len(headers):
        yield _runs(sorted(headers, key=_order)), sign
    if len({h.instance for h in headers}) == len(headers):
        yield _runs(sorted(headers, key=lambda h: h.instance)), sign


def _runs(ordered: list[Header]) -> list[list[Header]]:
    """Cut a sequence wherever the table stops or turns back."""
    runs: list[list[Header]] = []
    heading = 0.0
    previous = 0.0
    for header in ordered:
        here = depth_mm(header)
        step = here - previous
        if not runs or abs(step) < SAME_POSITION_MM or step * heading < 0:
            runs.append([])
            heading = 0.0
        elif heading == 0.0:
            heading = step
        runs[-1].append(header)
        previous = here
    return runs


def _extent(headers: Sequence[Header]) -> tuple[float, float]:
    depths = [depth_mm(h) for h in headers]
    return min(depths), max(depths)


def _share_range(parts: Sequence[Sequence[Header]]) -> bool:
    """Whether each pass covers at least half of what the next shorter one covers."""
    ranges = [_extent(part) for part in parts]
    for k, (a0, a1) in enumerate(ranges):
        for b0, b1 in ranges[k + 1 :]:
            shorter = min(a1 - a0, b1 - b0)
            if min(a1, b1) - max(a0, b0) < _MIN_SHARED_RANGE * shorter:
                return False
    return True


def _place(header: Header) -> int:
    return round(depth_mm(header) / SAME_POSITION_MM)


def _without_same_instance(headers: list[Header], digest: Digest) -> tuple[list[Header], int]:
    """Leave out second files of one SOPInstanceUID.

    Equal pixels alone do not make a copy here: two passes through air may have them.

    Raises:
        InputRefused: `E_UID_CONFLICT` when one SOPInstanceUID names different images.
    """
    counts = Counter(h.sop_uid for h in headers)
    first: dict[str, Header] = {}
    kept = []
    for header in sorted(headers, key=lambda h: h.path):
        if not header.sop_uid or counts[header.sop_uid] == 1:
            kept.append(header)
            continue
        other = first.setdefault(header.sop_uid, header)
        if other is header:
            kept.append(header)
        elif _place(other) != _place(header) or digest(other) != digest(header):
            names = f"{other.path.name} and {header.path.name}"
            raise refuse("E_UID_CONFLICT", f"{names} share a SOPInstanceUID and differ.")
    return kept, len(headers) - len(kept)


def _without_equal_pixels(headers: list[Header], digest: Digest) -> tuple[list[Header], int]:
    """Leave out images that equal another one at the same position, pixel by pixel."""
    counts = Counter(_place(h) for h in headers)
    seen: set[tuple[int, str]] = set()
    kept = []
    for header in sorted(headers, key=lambda h: h.path):
        if counts[_place(header)] > 1:
            mark = (_place(header), digest(header))
            if mark in seen:
                continue
            seen.add(mark)
        kept.append(header)
    return kept, len(headers) - len(kept)
