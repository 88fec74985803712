"""The explicit table of importers: the name of a layout -> what finds its cases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from hepar.data.importers import folder, ircad, lits, msd, nnunet
from hepar.data.importers.case import Importer

Layout = Literal["folder", "nnunet", "lits", "msd", "ircad"]

IMPORTERS: Mapping[Layout, Importer] = {
    "folder": folder.find_cases,
    "nnunet": nnunet.find_cases,
    "lits": lits.find_cases,
    "msd": msd.find_cases,
    "ircad": ircad.find_cases,
}
