"""The bundle as one file to send, and the check that its receiver makes before trusting it."""

from trispade.sharing.package import package_bundle
from trispade.sharing.verify_bundle import verify
