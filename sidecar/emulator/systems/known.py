"""The emulated systems by the preset that each is for; imported when they are asked for."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.emulator.systems.system import System

_CLASSES = {
    "3dexperience": "three_dexperience.ThreeDexperience",
    "aras": "aras.Aras",
    "arena": "arena.Arena",
    "arena-oauth": "arena.ArenaTokens",
    "autodesk": "autodesk.Autodesk",
    "oracle-fusion": "oracle_fusion.OracleFusion",
    "salesforce": "salesforce.Salesforce",
    "sap-odata": "sap_odata.SapOdata",
    "teamcenter": "teamcenter.Teamcenter",
    "veeva-vault": "veeva_vault.VeevaVault",
    "windchill": "windchill.Windchill",
}
NAMES = tuple(_CLASSES)


def system_class(preset: str) -> "type[System]":
    """Return the system that *preset* is tried against; KeyError for one that has none."""
    module, _, name = _CLASSES[preset].partition(".")
    found: type[System] = getattr(import_module(f"sidecar.emulator.systems.{module}"), name)
    return found
