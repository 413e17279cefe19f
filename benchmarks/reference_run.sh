#!/usr/bin/env bash
# The run behind the shipped weights (docs/training_log.md): `compact` on MALC 2012, first at 2 mm, then at 1 mm.
#   benchmarks/reference_run.sh "$MALC2012"
# After a stop, the same command goes on.
set -euo pipefail
dataset_dir=${1:?usage: benchmarks/reference_run.sh MALC2012_FOLDER}
coarse=${COARSE_DIR:-runs/coarse}
work_dir=${WORK_DIR:-runs/reference}
model=${MODEL:-$work_dir/model.pt} # the shipped weights stay as they are
python=${PYTHON:-.venv/bin/python}

stage() {
    local name=$1 overlay=$2
    shift 2
    "$python" -m monai.bundle run \
        --config_file "['bundle/configs/$name.yaml','bundle/configs/presets/compact.yaml'$overlay]" \
        --meta_file bundle/configs/metadata.json --logging_file bundle/configs/logging.conf \
        --bundle_root bundle --dataset_dir "$dataset_dir" "$@"
}
in_three_planes() { # one thread each: three networks side by side waste less than two threads a network
    local jobs=() plane
    for plane in axial coronal sagittal; do
        OMP_NUM_THREADS=1 stage train_spade "" --plane "$plane" --slice_batch_size 4 --generator_rate 4.0e-4 "${@//PLANE/$plane}" &
        jobs+=($!)
    done
    for job in "${jobs[@]}"; do wait "$job"; done
}

# 2 mm: what each class looks like. This is the short run's first half.
two=(--work_dir "$coarse" --spacing_mm 2.0 --box "[96,96,96]")
stage prepare "" "${two[@]}"
in_three_planes "${two[@]}" --max_epochs 18 --val_interval 6

# 1 mm, in a box that holds every head of the data set.
one=(--work_dir "$work_dir" --box "[160,192,160]")
stage prepare "" "${one[@]}"
in_three_planes "${one[@]}" --max_epochs 6 --val_interval 6 --average_half_life 300 --reconstruction_weight 10.0 \
    --start_checkpoint "$coarse/spade_PLANE/last.pt"
stage synthesize_planes "" "${one[@]}"
stage train_fusion "" "${one[@]}" --model_file "$model" --max_epochs 8 --patch_batch_size 10
stage train_fusion ",'bundle/configs/overlays/realism.yaml'" "${one[@]}" --model_file "$model" --patch_batch_size 10
stage train_direct "" "${one[@]}"
stage evaluate "" "${one[@]}" --model_file "$model"
