"""MONAI dictionary transforms: the label path, the T1w path, saving, and the fingerprint of a chain."""

from trispade.transforms.fingerprint import fingerprint
from trispade.transforms.label_map import (
    FillBraind,
    FromWorkingGridd,
    LoadLabelMapd,
    MapLabelsd,
    SaveSyntheticd,
    ToWorkingGridd,
)
from trispade.transforms.output_format import output_files
from trispade.transforms.t1w import CorrectBiasd, LoadT1wd, MaskBackgroundd, ScaleIntensityd
