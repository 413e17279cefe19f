"""Trispade: anatomical label map in, realistic 3D T1w brain MRI out."""

__version__ = "0.1.0"
