"""Software bill of materials of a packaged bundle, CycloneDX 1.6: what it holds, and what it was tested with."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

LICENSES = {
    "fire": "Apache-2.0",
    "itk": "Apache-2.0",
    "monai": "Apache-2.0",
    "nibabel": "MIT",
    "numpy": "BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0",
    "pynrrd": "MIT",
    "pytorch-ignite": "BSD-3-Clause",
    "scipy": "BSD-3-Clause",
    "tensorboard": "Apache-2.0",
    "torch": "Apache-2.0 AND Apache-2.0 WITH LLVM-exception AND BSD-2-Clause AND BSD-3-Clause AND BSL-1.0 AND MIT",
    "tqdm": "MPL-2.0 AND MIT",
}
"""SPDX expressions of the licences of what the bundle needs, as their makers declare them."""

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "trispade")


def bill_of_materials(version: str, packages: Mapping[str, str], weights: Mapping[str, str]) -> bytes:
    """Write the bill of materials, the same bytes for the same arguments.

    Args:
        version: of the bundle.
        packages: versions of the packages that it needs and does not carry, by their name in the package index.
        weights: SHA-256 of each file of weights, by its path in the bundle.

    Returns:
        CycloneDX 1.6 as JSON, ASCII.
    """
    terms = [LicenseExpression("Apache-2.0")]
    own = Component(
        name="trispade", version=version, type=ComponentType.APPLICATION, bom_ref="trispade", licenses=terms
    )
    parts = [_package(*each) for each in packages.items()] + [_weights(*each) for each in weights.items()]
    bom = Bom(components=parts, metadata=BomMetaData(component=own))
    bom.register_dependency(own, parts)
    record = json.loads(JsonV1Dot6(bom).output_as_string())
    # The library gives each bill a time and a random number; ours is named after its content instead.
    del record["metadata"]["timestamp"], record["serialNumber"]
    record["serialNumber"] = uuid.uuid5(NAMESPACE, json.dumps(record, sort_keys=True)).urn
    return f"{json.dumps(record, indent=2, sort_keys=True)}\n".encode("ascii")


def _package(name: str, version: str) -> Component:
    purl = PackageURL("pypi", None, name, version)
    terms = [LicenseExpression(LICENSES[name])] if name in LICENSES else []
    kind = ComponentType.LIBRARY
    return Component(name=name, version=version, type=kind, purl=purl, bom_ref=str(purl), licenses=terms)


def _weights(name: str, sha256: str) -> Component:
    digest = HashType(alg=HashAlgorithm.SHA_256, content=sha256)
    terms = [DisjunctiveLicense(name="docs/data_license.txt")]
    kind = ComponentType.MACHINE_LEARNING_MODEL
    return Component(name=name, type=kind, bom_ref=name, hashes=[digest], licenses=terms)
