#!/usr/bin/env bash
# Make every golden value again, in environments of its own: tests/oracles/remake.sh FOLDER
# FOLDER receives three virtual environments and the repositories of PaddleDetection, detectron2 and mmdetection (8 GB).
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")/../.."

clone() { [ -d "$folder/$2" ] || git clone --quiet --depth 1 --branch "$3" "https://github.com/$1" "$folder/$2"; }
clone PaddlePaddle/PaddleDetection PaddleDetection release/2.6
clone facebookresearch/detectron2 detectron2 main
clone open-mmlab/mmdetection mmdetection v3.3.0

if [ ! -d "$folder/paddle" ]; then
    python3 -m venv "$folder/paddle"
    "$folder/paddle/bin/pip" install --quiet paddlepaddle==3.3.1 "numpy<2" "opencv-python-headless<4.12" pyyaml tqdm scipy \
        pycocotools requests typeguard shapely terminaltables scikit-learn pandas matplotlib six
    "$folder/paddle/bin/pip" install --quiet --no-deps paddledet==2.6.0
fi
if [ ! -d "$folder/torch" ]; then
    python3 -m venv "$folder/torch"
    "$folder/torch/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 fvcore iopath omegaconf hydra-core cloudpickle \
        pycocotools black tabulate termcolor yacs mmcv-lite==2.1.0 mmengine==0.10.7 opencv-python-headless shapely \
        terminaltables
    "$folder/torch/bin/pip" install --quiet --no-deps mmdet==3.3.0
fi
if [ ! -d "$folder/tide" ]; then
    python3 -m venv "$folder/tide"
    "$folder/tide/bin/pip" install --quiet tidecv==1.0.1 numpy
fi

export PYTHONPATH=$PWD:$folder/detectron2
torch="$folder/torch/bin/python"
"$torch" tests/goldens/make_torchvision.py
"$torch" -m tests.oracles.torchvision_backbones
"$torch" -m tests.oracles.torchvision_fasterrcnn
"$torch" -m tests.oracles.detectron2_zoo "$folder/detectron2/configs"
"$torch" -m tests.oracles.make_manifests torchvision
"$torch" -m tests.oracles.make_manifests mmdetection "$folder/mmdetection/configs"
"$torch" -m tests.oracles.make_manifests detectron2 "$folder/detectron2/configs"
"$folder/paddle/bin/python" tests/oracles/paddledetection.py "$folder/PaddleDetection/configs"
photos="../shared/data/coco_tiny/val2017"
[ ! -d "$photos" ] || "$folder/paddle/bin/python" tests/oracles/paddledetection_photos.py "$folder/PaddleDetection/configs" "$photos"
"$folder/tide/bin/python" -m tests.oracles.tide
git status --short tests
