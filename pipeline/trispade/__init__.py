"""Trispade: anatomical label map in, realistic 3D T1w brain MRI out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trispade.on_the_fly import SynthesizeT1wd
    from trispade.synthesizer import Synthesizer

__version__ = "0.1.0"
__all__ = ["SynthesizeT1wd", "Synthesizer", "__version__"]

_HOMES = {"SynthesizeT1wd": "trispade.on_the_fly", "Synthesizer": "trispade.synthesizer"}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: torch and MONAI take seconds, which `import trispade` does not."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
