"""The words that name a contrast phase in file names and DICOM text.

Text is split at everything that is not a letter (and inside CamelCase), accents are dropped, and
phrases are matched before single words, so that "late arterial" is arterial and "portal" is never
read out of "postop". A text that names two phases names none.
"""

from __future__ import annotations

import re
import unicodedata

from hepar.study import Phase

# What a phase may be called where it must be named: ours, then TotalSegmentator's.
NAMED = {
    "nc": Phase.NC,
    "art": Phase.ART,
    "pv": Phase.PV,
    "dl": Phase.DL,
    "native": Phase.NC,
    "arterial_early": Phase.ART,
    "arterial_late": Phase.ART,
    "portal_venous": Phase.PV,
    "delayed": Phase.DL,
}

# None: the phrase is about contrast but names no phase; it is taken out before words are read.
_PHRASES: tuple[tuple[Phase | None, str], ...] = (
    (
        None,
        "with and without|without and with|with without|w wo|wo w|w w o|w o w|w and wo|w and w o|"
        "w o and w|wo and w|pre and post|mit und ohne|avec et sans",
    ),
    (
        Phase.NC,
        "non contrast|non enhanced|non enhancing|non injecte|non con|no contrast|no iv|"
        "pre contrast|pre con|pre iv|pre km|pre injection|without contrast|without iv|without|"
        "w o contrast|w o|wo contrast|wo|ohne kontrastmittel|ohne kontrast|ohne km|ohne|"
        "sans injection|sans contraste|sans iv|sans|sin contraste|senza mdc|true non contrast",
    ),
    (
        Phase.ART,
        "late arterial|late art|late hap|late artery|early arterial|early art|"
        "late hepatic arterial|early hepatic arterial|hepatic arterial|delayed arterial|"
        "arterial early|art early|"
        "spat arteriell|spaet arteriell|arteriel tardif|arterielle tardive|arterial late|art late",
    ),
    (
        Phase.PV,
        "portal venous|porto venous|portal vein|portal ven|porta venosa|late portal|early portal|"
        "hepatic venous|portal venos|portal venoes|late portal venous|early portal venous",
    ),
    (Phase.DL, "late phase|delayed phase|delay phase|late delayed|early delayed"),
)
_WORDS: tuple[tuple[Phase, str], ...] = (
    (
        Phase.NC,
        "nc native nativ nativphase plain unenhanced nonenhanced noncontrast noncon precontrast "
        "precon ncct nect ncect unenh spontane basale tnc",
    ),
    (
        Phase.ART,
        "art arterial arteriell arterielle arteriel arteriosa arteriose arterious hap "
        "artery spatarteriell spaetarteriell fruharteriell fruehart artphase arterialphase",
    ),
    (
        Phase.PV,
        "pv pvp pvph portal portale portalvenous portovenous portvenous venous ven venosa venos "
        "venose venoes venoese veneux veineux veineuse portalvenos portalvenoes portalvenose "
        "portovenos portovenoes portalphase portalvein",
    ),
    (
        Phase.DL,
        "dl delay delayed dly late equilibrium excretory excretion urographic equilibre "
        "aquilibrium aequilibrium spat spaet spatphase spaetphase verzogert verzoegert tardif "
        "tardive tardiva tardia delayphase delayedphase",
    ),
)
# Also short for "deep learning" and for the scan delay itself: they count when nothing else does.
_WEAK = frozenset({"dl", "delay"})

_TABLE: dict[tuple[str, ...], Phase | None] = {
    **{tuple(p.split()): phase for phase, phrases in _PHRASES for p in phrases.split("|")},
    **{(word,): phase for phase, words in _WORDS for word in words.split()},
}
_KNOWN = frozenset(word for key in _TABLE for word in key)
_LONGEST = max(len(key) for key in _TABLE)
_SECONDS = r"(\d{1,4})\s*(?:s|sec|secs|seconds|sek)"
_DELAY = re.compile(
    rf"\bdelay(?:ed)?\s*(?:of|=|:)?\s*{_SECONDS}\b|\b{_SECONDS}\.?\s*delay(?:ed)?\b|\b{_SECONDS}\b",
    re.IGNORECASE,
)


def phase_of_path(path: str) -> tuple[Phase, str] | None:
    """The phase in a relative path: the file's own name first, then its folders upwards.

    Args:
        path: file or folder name, `/` or `\\` between parts.

    Returns:
        The phase and the words that gave it, or None.
    """
    for part in reversed(re.split(r"[/\\]", path)):
        if (hit := phase_of_text(part)) is not None:
            return hit
    return None


def phase_of_text(text: str) -> tuple[Phase, str] | None:
    """The one phase a text names, and the words that name it; None for none or several."""
    tokens = _tokens(_DELAY.sub(" ", text))
    hits: list[tuple[Phase, str]] = []
    at = 0
    while at < len(tokens):
        for length in range(min(_LONGEST, len(tokens) - at), 0, -1):
            key = tuple(tokens[at : at + length])
            if key in _TABLE:
                phase = _TABLE[key]
                if phase is not None:
                    hits.append((phase, " ".join(key)))
                at += length
                break
        else:
            at += 1
    strong = [hit for hit in hits if hit[1] not in _WEAK]
    hits = strong or hits
    return hits[0] if len({phase for phase, _ in hits}) == 1 else None


def seconds_in_text(text: str) -> float | None:
    """A single delay in seconds written in a text ("PV 70s"), or None."""
    found = {next(g for g in match.groups() if g) for match in _DELAY.finditer(text)}
    return float(found.pop()) if len(found) == 1 else None


def _tokens(text: str) -> list[str]:
    """Lower-case words without accents; CamelCase counts as two words."""
    plain = unicodedata.normalize("NFKD", text.replace("ß", "ss"))
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    plain = re.sub(r"([a-z])([A-Z])", r"\1 \2", plain)
    return [word.lower() for word in re.findall(r"[A-Za-z]+", plain)]


def known_words() -> frozenset[str]:
    """Every single word that takes part in naming a phase."""
    return _KNOWN
