"""Metrics, defined once: see `evaluation_space` for where two volumes are compared."""

from trispade.metrics.evaluation_space import FITS, REGIONS, compare_in_evaluation_space
from trispade.metrics.label_mean import class_means, label_mean_image
from trispade.metrics.regression import MaskedMSE, MaskedPSNR, MaskedSSIM, sharpness
from trispade.metrics.ssim import ssim_map
from trispade.metrics.table import evaluate_methods, markdown_table, summarise, write_csv, write_json, write_text
