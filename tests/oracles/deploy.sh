#!/usr/bin/env bash
# PaddleDetection's deployment on our exports: tests/oracles/deploy.sh FOLDER [--images DIR] [EXPORT ...]
# FOLDER receives PaddleDetection's repository (develop of October 2024) and a virtual environment for it (1.5 GB).
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
shift
commit=666f597fd00d3157e84dd9fb2dd3f40bf9918ebc

if [ ! -d "$folder/PaddleDetection-develop" ]; then
    git init --quiet "$folder/PaddleDetection-develop"
    git -C "$folder/PaddleDetection-develop" fetch --quiet --depth 1 https://github.com/PaddlePaddle/PaddleDetection "$commit"
    git -C "$folder/PaddleDetection-develop" checkout --quiet FETCH_HEAD
fi
if [ ! -d "$folder/deploy" ]; then
    python3 -m venv "$folder/deploy"
    "$folder/deploy/bin/pip" install --quiet paddlepaddle==3.3.1 "numpy<2" "opencv-python-headless<4.12" pyyaml scipy \
        matplotlib pillow scikit-image imageio shapely six
    "$folder/deploy/bin/pip" install --quiet --no-deps imgaug==0.4.0 # it would bring another OpenCV
fi

root=$(cd "$(dirname "$0")/../.." && pwd)
PYTHONPATH="$root" "$root/.venv/bin/python" -m tests.oracles.paddledetection_deploy \
    "$folder/deploy/bin/python" "$folder/PaddleDetection-develop/deploy/python" "$@"
