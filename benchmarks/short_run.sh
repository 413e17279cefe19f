#!/usr/bin/env bash
# The short run of docs/first_run.md: every stage on MALC 2012 with the compact widths at 2 mm, about two hours of two cores.
#   benchmarks/short_run.sh "$MALC2012"
# After a stop, the same command goes on.
set -euo pipefail
dataset_dir=${1:?usage: benchmarks/short_run.sh MALC2012_FOLDER}
work_dir=${WORK_DIR:-runs/short}
model=$work_dir/model.pt
python=${PYTHON:-.venv/bin/python}

stage() {
    local name=$1
    shift
    "$python" -m monai.bundle run \
        --config_file "['bundle/configs/$name.yaml','bundle/configs/presets/compact.yaml']" \
        --meta_file bundle/configs/metadata.json --logging_file bundle/configs/logging.conf \
        --bundle_root bundle --dataset_dir "$dataset_dir" --work_dir "$work_dir" --spacing_mm 2.0 "$@"
}
box=(--box "[96,96,96]")

stage prepare "${box[@]}"
# One thread each: three networks side by side waste less than two threads a network.
jobs=()
for plane in axial coronal sagittal; do
    OMP_NUM_THREADS=1 stage train_spade "${box[@]}" --plane "$plane" \
        --max_epochs 18 --slice_batch_size 4 --generator_rate 4.0e-4 --val_interval 6 &
    jobs+=($!)
done
for job in "${jobs[@]}"; do wait "$job"; done
stage synthesize_planes "${box[@]}"
stage train_fusion "${box[@]}" --fusion_label_channels 0 --max_gradient_norm 1.0e9 --model_file "$model" --max_epochs "${FUSION_EPOCHS:-24}" --patch_batch_size "${FUSION_BATCH:-10}"
stage train_direct "${box[@]}" --max_epochs 8 --patches_per_scan 8 --max_gradient_norm 1.0e9
stage evaluate "${box[@]}" --fusion_label_channels 0 --model_file "$model"
cat "$work_dir/evaluation/summary.md"
