"""Prepared cases on disk, and the slices and patches that the networks train on."""

from trispade.data.augmentation import slice_augmentation
from trispade.data.cache import PreparedCase, open_cases, plain_settings, prepare_cases
from trispade.data.evaluation import EvaluationCase, EvaluationStore
from trispade.data.label_patches import LabelPatchDataset
from trispade.data.painted import PaintedCase, generators_of, open_painted_cases, store_painted_case
from trispade.data.patches import PatchDataset
from trispade.data.sampler import StreamBatchSampler
from trispade.data.slices import SliceDataset
from trispade.data.volumes import VolumeDataset
