"""The explicit table of systems: name -> settings, and where its network lives.

Imported by infer, train, stages and cli; never by a system. Settings are torch-free; a network is
imported when it is built.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from hepar.errors import UsageError
from hepar.systems.baselines.context_unet3d.settings import ContextUnet3dSettings
from hepar.systems.baselines.mc_fcn.settings import McFcnSettings
from hepar.systems.baselines.multiphase_unet3d.settings import MultiphaseUnet3dSettings
from hepar.systems.baselines.mw_unet.settings import MwUnetSettings
from hepar.systems.baselines.nnunet.settings import NnunetSettings
from hepar.systems.baselines.pa_resseg.settings import PaRessegSettings
from hepar.systems.baselines.plan.settings import PlanSettings
from hepar.systems.dpcnet.settings import DpcnetSettings
from hepar.systems.e2net.settings import E2netSettings
from hepar.systems.lidia.settings import LidiaSettings
from hepar.systems.sam_urim.settings import SamUrimSettings

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Entry:
    """One system.

    Attributes:
        settings: its settings class.
        module: module that holds the network.
        network: class name in `module`, built from settings alone.
    """

    settings: type[BaseModel]
    module: str
    network: str


SYSTEMS: dict[str, Entry] = {
    "sam_urim": Entry(SamUrimSettings, "hepar.systems.sam_urim.system", "SamUrim"),
    "e2net": Entry(E2netSettings, "hepar.systems.e2net.system", "E2net"),
    "dpcnet": Entry(DpcnetSettings, "hepar.systems.dpcnet.system", "Dpcnet"),
    "lidia": Entry(LidiaSettings, "hepar.systems.lidia.system", "Lidia"),
    "context_unet3d": Entry(
        ContextUnet3dSettings, "hepar.systems.baselines.context_unet3d.system", "ContextUnet3d"
    ),
    "multiphase_unet3d": Entry(
        MultiphaseUnet3dSettings,
        "hepar.systems.baselines.multiphase_unet3d.system",
        "MultiphaseUnet3d",
    ),
    "mc_fcn": Entry(McFcnSettings, "hepar.systems.baselines.mc_fcn.system", "McFcn"),
    "mw_unet": Entry(MwUnetSettings, "hepar.systems.baselines.mw_unet.system", "MwUnet"),
    "pa_resseg": Entry(PaRessegSettings, "hepar.systems.baselines.pa_resseg.system", "PaResseg"),
    "nnunet": Entry(NnunetSettings, "hepar.systems.baselines.nnunet.system", "Nnunet"),
    "plan": Entry(PlanSettings, "hepar.systems.baselines.plan.system", "Plan"),
}


def lookup(name: str) -> Entry:
    """The entry of a system.

    Raises:
        UsageError: `E_RECIPE`, no such system.
    """
    if name not in SYSTEMS:
        raise UsageError(
            "E_RECIPE",
            "recipe",
            f"There is no system {name!r}.",
            f"Use one of: {', '.join(SYSTEMS)}.",
        )
    return SYSTEMS[name]


def build(settings: Any) -> nn.Module:
    """The untrained network of some settings; a `System` (see `systems/base.py`)."""
    entry = lookup(settings.name)
    network = getattr(importlib.import_module(entry.module), entry.network)
    return network(settings)
