"""A DICOM server, Orthanc (Debian: ``orthanc``), on what ``--format dicom`` writes and on a DICOM SEG.

Both are sent to it by C-STORE, fetched by its REST interface, and read again.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, SegmentationStorage
from pynetdicom import AE

from trispade.dicom_writing import write_dicom_series
from trispade.nifti import read_label_map, read_t1w
from trispade.segment_names import segment_labels_of

ORTHANC = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
VOLUME = np.random.default_rng(0).uniform(0, 255, (12, 14, 10)).astype(np.float32)
TURN = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])

pytestmark = [pytest.mark.long, pytest.mark.skipif(ORTHANC is None, reason="Orthanc is not installed")]


@dataclass(frozen=True)
class Server:
    """A running Orthanc."""

    dicom_port: int
    http_port: int

    def store(self, files: list[Path]) -> None:
        """Send files by C-STORE."""
        client = AE()
        for each in (MRImageStorage, SegmentationStorage):
            client.add_requested_context(each, ExplicitVRLittleEndian)
        association = client.associate("127.0.0.1", self.dicom_port)
        assert association.is_established
        try:
            for file in files:
                assert association.send_c_store(pydicom.dcmread(file)).Status == 0x0000
        finally:
            association.release()

    def get(self, path: str) -> bytes:
        """Ask its REST interface."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/{path}", timeout=10) as answer:
            return answer.read()

    def find(self, kind: str) -> list[dict[str, Any]]:
        """List what it has of a kind: patients, series, instances."""
        return json.loads(self.get(f"{kind}?expand"))

    def fetch(self, folder: Path) -> None:
        """Write all that it has into a folder."""
        folder.mkdir()
        for each in self.find("instances"):
            (folder / f"{each['ID']}.dcm").write_bytes(self.get(f"instances/{each['ID']}/file"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """An empty Orthanc that is stopped at the end."""
    found = Server(free_port(), free_port())
    folder = str(tmp_path / "orthanc")
    ports = {"DicomPort": found.dicom_port, "HttpPort": found.http_port, "RemoteAccessAllowed": False}
    settings = {"StorageDirectory": folder, "IndexDirectory": folder, "Plugins": [], **ports}
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    with (tmp_path / "orthanc.log").open("w") as log:
        process = subprocess.Popen([str(ORTHANC), str(tmp_path / "orthanc.json")], stdout=log, stderr=log)
    try:
        for _ in range(100):
            time.sleep(0.1)
            if "Orthanc has started" in (tmp_path / "orthanc.log").read_text():
                break
        assert process.poll() is None, (tmp_path / "orthanc.log").read_text()
        yield found
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.parametrize("volume", [VOLUME, np.rint(VOLUME).astype(np.int16)], ids=["float32", "int16"])
def test_a_series_comes_back_from_a_server_with_its_voxels_and_geometry(tmp_path: Path, server, volume) -> None:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = TURN * (1.0, 1.2, 1.5), (-20, 30, 5)
    write_dicom_series(tmp_path / "series", volume, affine, (0, 255))

    server.store(sorted((tmp_path / "series").iterdir()))

    (patient,), (series,) = server.find("patients"), server.find("series")
    assert patient["MainDicomTags"]["PatientID"].startswith("SYNTHETIC-")
    assert (len(series["Instances"]), series["MainDicomTags"]["Modality"]) == (10, "MR")
    server.fetch(tmp_path / "fetched")
    sent, fetched = read_t1w(tmp_path / "series"), read_t1w(tmp_path / "fetched")
    np.testing.assert_array_equal(fetched[0], sent[0])
    np.testing.assert_array_equal(fetched[1], sent[1])
    for file in (tmp_path / "fetched").iterdir():
        assert pydicom.dcmread(file).SyntheticData == "YES"


def test_a_segmentation_comes_back_from_a_server_as_it_was(tmp_path: Path, server) -> None:
    write_dicom_series(tmp_path / "series", VOLUME, np.eye(4), (0, 255))
    sources = [pydicom.dcmread(file) for file in sorted((tmp_path / "series").iterdir())]
    numbers = np.zeros((10, 14, 12), np.uint8)
    numbers[2:5, 3:9, 2:7], numbers[5:8, 4:9, 4:8] = 1, 2
    manual = hd.seg.SegmentAlgorithmTypeValues.MANUAL
    labels = [hd.seg.SegmentDescription(i, f"{10 * i}", codes.SCT.Tissue, codes.SCT.Tissue, manual) for i in (1, 2)]
    maker = ("maker", "model", "1", "serial")
    seg = hd.seg.Segmentation(sources, numbers, "BINARY", labels, hd.UID(), 1, hd.UID(), 1, *maker, content_label="SEG")
    seg.save_as(tmp_path / "a.seg.dcm")

    server.store([tmp_path / "a.seg.dcm"])

    server.fetch(tmp_path / "fetched")
    (fetched,) = (tmp_path / "fetched").iterdir()
    for one, other in zip(read_label_map(fetched), read_label_map(tmp_path / "a.seg.dcm"), strict=True):
        np.testing.assert_array_equal(one, other)
    assert segment_labels_of(fetched) == {1: "10", 2: "20"}
