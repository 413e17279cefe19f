"""Metrics, defined once: `evaluation_space` is where volumes are compared; docs/evaluation.md explains them all."""

from trispade.metrics.coherence import MaskedIncoherence, second_differences, world_axes
from trispade.metrics.distribution import (
    PatchDistance,
    cross_half_distances,
    frechet_distance,
    kernel_distance,
    patch_features,
)
from trispade.metrics.evaluation_space import FITS, REGIONS, EvaluationSpace, compare_in_evaluation_space
from trispade.metrics.label_mean import class_means, label_mean_image
from trispade.metrics.multiscale import MaskedMSSSIM, MultiscaleSimilarityTo
from trispade.metrics.regression import MaskedMSE, MaskedPSNR, MaskedSharpness, MaskedSSIM, sharpness
from trispade.metrics.spectrum import MaskedSpectrumRatio, RadialBands, spectrum_curve
from trispade.metrics.ssim import SimilarityTo, ssim_map
from trispade.metrics.statistics import Person, best_method, compare_pairs, compare_with_bounds
from trispade.metrics.structures import StructureError, StructureStatistics, structure_rows, structure_statistics
from trispade.metrics.table import (
    by_age,
    evaluate_methods,
    markdown_table,
    summarise,
    write_csv,
    write_json,
    write_text,
)
