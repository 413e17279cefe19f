"""From a label map to a T1w volume, and the stages that lead there once the networks are trained."""

from trispade.inference.case_list import leave_finished_out, list_label_maps, list_pairs
from trispade.inference.direct import DirectInferer, DirectPainter, export_direct, load_direct, open_direct
from trispade.inference.inferer import PlaneInferer, TriplanarInferer
from trispade.inference.model_files import describe_model, export_model, load_model, read_model_record
from trispade.inference.plane_synthesis import PlaneSynthesis
from trispade.inference.second_fusion import open_realism
from trispade.inference.trained_parts import load_generator
