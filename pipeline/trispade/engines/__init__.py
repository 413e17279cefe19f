"""Training steps and event handlers."""

from trispade.engines.average import AverageWeights
from trispade.engines.batches import AutocastInferer, label_map_and_t1w, planes_and_t1w
from trispade.engines.case_evaluator import (
    CaseDataset,
    CaseEvaluator,
    CaseResult,
    IsolateFailures,
    first_of_batch,
    predict,
)
from trispade.engines.checkpoints import (
    checkpoint_exists,
    hash_tensors,
    load_checkpoint,
    load_newest_checkpoint,
    save_checkpoint,
)
from trispade.engines.data_parallel import ReduceLosses, wrap
from trispade.engines.handlers import (
    ClipGradients,
    Progress,
    RecalibrateBeforeUse,
    ReportValidation,
    StopAfter,
    TensorBoardTraining,
    scalar_outputs,
)
from trispade.engines.interruption import StopOnSignal
from trispade.engines.records import (
    GENERATORS_FORM,
    TRAINING_FORM,
    WEIGHTS_FORM,
    check_record,
    describe_training,
    fusion_architecture,
    read_model_record,
)
from trispade.engines.spade_trainer import SpadeTrainer
from trispade.engines.starting_point import start_from
from trispade.engines.training_state import KeepBest, TrainingState, constant_then_linear, is_finished
from trispade.engines.validation import BrainPSNR
from trispade.engines.watch import StopAtBadNumbers, WatchDiscriminator
