"""Who a patient is stays inside the DICOM objects: nothing else that is written or said names them.

Two kinds of text could. What people call files and folders: of these only words that name nobody
are shown (`public_name`). And free text of the headers, as a SeriesDescription: what the headers
themselves say of people (names, ids, dates of birth, accession numbers) is taken out of it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pydicom

from hepar.errors import HeparError
from hepar.io.phase_words import known_words

HIDDEN = "*"
_PEOPLE = (
    *("PatientName", "PatientID", "OtherPatientIDs", "OtherPatientNames", "PatientBirthDate"),
    *("PatientBirthName", "PatientMotherBirthName", "PatientAddress", "PatientTelephoneNumbers"),
    *("AccessionNumber", "ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName"),
    *("RequestingPhysician", "PhysiciansOfRecord", "NameOfPhysiciansReadingStudy"),
    *("InstitutionName", "InstitutionAddress", "StationName", "IssuerOfPatientID"),
)
_FREE_TEXT = (
    *("SeriesDescription", "ProtocolName", "ImageComments", "StudyDescription"),
    *("ContrastBolusAgent", "BodyPartExamined", "Manufacturer", "ConvolutionKernel"),
    *("FileName", "FolderName"),
)
# Words of file and folder names that say what is in them and not whose it is.
_PLAIN = """
abdomen abdominal anon axial body bone bodies case cases chest contrast coronal data dcm demo dicom
dicoms dicomdir export file files first followup folder hcc head hu image images imaging img input
inputs json kernel label labels left lesion lesions liver localizer lung mask masks mdct nifti nii
normal number original out output outputs part patient patients pelvis phantom phase phases plan
recon report result results right run sag sagittal scan scans scout seg segmentation ser series set
slice slices soft std studies study tar test thick thin thorax tissue tmp topogram train truth tumor
upper val vol volume volumes xml yaml zip tgz xz gz bz segment inspect true false auto cpu cuda mps
"""
_MAX_DIGITS = 6
_PLAIN_WORDS = frozenset(_PLAIN.split())
_RUN = re.compile(r"[^\W\d_]+|\d+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WORD = re.compile(r"[\w.\-^+=#@~]+")
_QUOTED_FOLDERS = re.compile(r"""(?<=['"])(?:[A-Za-z]:)?[/\\][^'"\n]*[/\\](?=[^'"/\\\n]+['"])""")
_FOLDERS = re.compile(r"""(?<![\w.*/])/(?:[^/\s'"]+/)+(?=[^/\s'"]+)""")
_MIN_PART = 2


def public_name(name: str) -> str:
    """A file or folder name with every word hidden that might name a person.

    Kept are words that say what is in a file, words of one or two letters, and numbers of at most
    six digits: more may be a date of birth.
    """
    return _RUN.sub(lambda match: _public_run(match[0]), name)


def _public_run(run: str) -> str:
    if run.isdigit():
        return run if len(run) <= _MAX_DIGITS else HIDDEN
    return "".join(w if _is_plain(w) else HIDDEN for w in _CAMEL.split(run))


def _is_plain(word: str) -> bool:
    plain = unicodedata.normalize("NFKD", word.replace("ß", "ss"))
    plain = "".join(c for c in plain if not unicodedata.combining(c)).lower()
    short = len(plain) <= 2 and plain.isascii()
    return short or plain in _PLAIN_WORDS or plain in known_words()


def public_command(arguments: Sequence[str]) -> tuple[str, ...]:
    """The arguments of a command: flags as they are, of every path its name made public."""
    shown = []
    for number, argument in enumerate(arguments):
        head, equals, tail = argument.rpartition("=")
        name = Path(tail.replace("\\", "/")).name or tail
        plain = number == 0 or (name.startswith("-") and not equals)
        shown.append(head + equals + (name if plain else public_name(name)))
    return tuple(shown)


def scrub(text: str, arguments: Sequence[str]) -> str:
    """A message or traceback without folders, and without names in the arguments of a command."""
    text = _QUOTED_FOLDERS.sub("", text)
    text = _FOLDERS.sub("", text)
    paths = [Path(a.rpartition("=")[2].replace("\\", "/")) for a in arguments if a[:1] != "-"]
    return Mask(names_in(Path(part) for path in paths for part in path.parts))(text)


@dataclass
class Mask:
    """Takes out of a text what names people; it learns while a study is read.

    Attributes:
        names: file and folder names that are not public, and what to show of each.
        people: matches what headers say of people.
    """

    names: dict[str, str] = field(default_factory=dict)
    people: re.Pattern[str] | None = None

    def __call__(self, text: str) -> str:
        """The text without them."""
        for name in sorted((n for n in self.names if not _WORD.fullmatch(n)), key=len)[::-1]:
            text = text.replace(name, self.names[name])
        text = _WORD.sub(lambda match: self._word(match[0]), text)
        return text if self.people is None else self.people.sub(HIDDEN, text)

    def _word(self, word: str) -> str:
        bare = word.rstrip(".")
        return self.names[bare] + word[len(bare) :] if bare in self.names else word

    def on_tags(self, tags: Mapping[str, str]) -> dict[str, str]:
        """Header values by keyword, free text masked."""
        return {key: self(text) if key in _FREE_TEXT else text for key, text in tags.items()}

    def on_error(self, error: HeparError) -> HeparError:
        """The error with its message masked."""
        error.message = self(error.message)
        error.args = (error.message,)
        return error


def names_in(paths: Iterable[Path], root: Path | None = None) -> dict[str, str]:
    """Names on paths that are not public, and what to show of each.

    Args:
        paths: files, in order of name: one whose name is hidden is told by its number.
        root: count names below this folder alone; else the last name of each path.
    """
    found: dict[str, str] = {}
    for number, path in enumerate(paths, start=1):
        parts = path.parts[-1:]
        if root is not None and path.is_relative_to(root):
            parts = path.relative_to(root).parts
        for name in parts:
            shown = public_name(name)
            if shown != name and name not in found:
                told = f" (file {number} by name)" if root is not None and name == path.name else ""
                found[name] = shown + told
    return found


def people_in(files: Iterable[Path], more: Iterable[str] = ()) -> re.Pattern[str] | None:
    """What matches everything that these DICOM files say of people.

    Args:
        files: one of each series.
        more: further names, ids and dates.
    """
    said = {text for text in more if text}
    for path in files:
        try:
            data = pydicom.dcmread(
                path, force=True, stop_before_pixels=True, specific_tags=list(_PEOPLE)
            )
            for element in data:
                values = element.value if element.VM > 1 else [element.value]
                said.update(text for v in values if (text := str(v).strip()))
        except Exception:  # as in `read_header`; a damaged header is refused elsewhere
            continue
    forms = {form for text in said for form in _forms(text)}
    if not forms:
        return None
    listed = "|".join(re.escape(form) for form in sorted(forms, key=lambda f: (-len(f), f)))
    return re.compile(rf"(?<![^\W_])(?:{listed})(?![^\W_])", re.IGNORECASE)


def _forms(text: str) -> set[str]:
    """Ways of writing a name, id or date: whole, in parts, joined, with a date's parts turned."""
    if re.fullmatch(r"\d{8}", text):
        year, month, day = text[:4], text[4:6], text[6:]
        orders = ((year, month, day), (day, month, year), (month, day, year))
        return {sep.join(order) for order in orders for sep in ("", "-", ".", "/", "_")}
    parts = [part for part in re.split(r"[\W_]+", text) if part]
    forms = {p for p in parts if (len(p) >= _MIN_PART and not _is_plain(p)) or len(p) == len(text)}
    forms |= {text, " ".join(parts), "".join(parts), "".join(reversed(parts))}
    return {form for form in forms if len(form) >= _MIN_PART and not _all_plain(form)}


def _all_plain(form: str) -> bool:
    return all(_is_plain(word) for word in re.split(r"[\W_]+", form) if word)
