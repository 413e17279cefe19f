"""Anatomies of nobody that come with the package: label maps to see it at work without data of one's own."""

from trispade.anatomies.embedded import LABEL_SCHEME, EmbeddedAnatomy, embedded_anatomies
