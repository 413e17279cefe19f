#!/usr/bin/env bash
# monai_deploy.py in an environment that has CUDA's runtime from the package index, which Holoscan links without a GPU as well.
#   tests/clients/monai_deploy.sh ENVIRONMENT BUNDLE LABELS.nii.gz WORK_FOLDER
set -euo pipefail
environment=$1
shift
libraries=$(printf '%s:' "$PWD/$environment"/lib/python3*/site-packages/nvidia/*/lib)
LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:-} exec "$environment/bin/python" tests/clients/monai_deploy.py "$@"
