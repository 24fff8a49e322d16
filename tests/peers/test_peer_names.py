"""Weight names of other projects: every array of their checkpoints has a counterpart here, and vice versa."""

import re
from pathlib import Path

import numpy as np
import paddle
import pytest

from ppdet_lite.assembly.setup import build_model, peer_config, state_shapes
from ppdet_lite.peers.dataset_classes import COCO_IDS, COCO_NAMES, VOC_NAMES
from ppdet_lite.peers.names import PEERS, find_peer
from tests.oracles import manifest

ROOT = Path(__file__).resolve().parents[2]
F, D = "faster_rcnn/faster_rcnn_", "dcn/faster_rcnn_"
V2 = [
    "model.backbone={norm: bn, frozen_stages: 0}",
    "model.neck.norm=bn",
    "model.rpn.convs=2",
    "model.box_head={type: ConvFCHead, convs: 4, norm: bn}",
]
X101 = ["model.backbone={depth: 101, groups: 32, base_width: 8}"]
GN_ALL = "gn/faster_rcnn_r50_fpn_gn_all_2x_coco"
R50, C4, DC5, R101 = (f"{F}{name}_1x_coco" for name in ("r50_fpn", "r50", "r50_dc5", "r101_fpn"))
X101_VD, MDCONV, DCONV = f"{F}x101_vd_64x4d_fpn_1x_coco", f"{D}dcn_r50_fpn_1x_coco", f"{D}dconv_c3-c5_r50_fpn_1x_coco"
GROUP4 = f"{D}mdconv_c3-c5_group4_r50_fpn_1x_coco"
DPOOL, MDPOOL = (f"dpool/faster_rcnn_r50_fpn_{kind}_1x_coco" for kind in ("dpool", "mdpool"))
DEPTH_101, VARIANT_B = ["model.backbone.depth=101"], ["model.backbone.variant=b"]
CASCADE, CASCADE_DCN = "cascade_rcnn/cascade_rcnn_r50_fpn_1x_coco", "dcn/cascade_rcnn_dcn_r50_fpn_1x_coco"
VERSION_1 = ["model.backbone.deformable.version=1"]
TV, MM, D2, COCO = "torchvision", "mmdetection", "detectron2", "COCO-Detection/faster_rcnn"
CASES = [  # manifest, its model, our --from, config and overrides
    (TV, "fasterrcnn_resnet50_fpn", "torchvision", R50, []),
    (TV, "fasterrcnn_resnet50_fpn, names before 0.14", "torchvision", R50, []),
    (TV, "fasterrcnn_resnet50_fpn_v2", "torchvision", R50, V2),
    (MM, "faster_rcnn/faster-rcnn_r50_fpn_1x_coco", "mmdet", R50, []),
    (MM, "faster_rcnn/faster-rcnn_r50-caffe_fpn_1x_coco", "mmdet-caffe", R50, []),
    (MM, "faster_rcnn/faster-rcnn_x101-64x4d_fpn_1x_coco", "mmdet", X101_VD, VARIANT_B),
    (MM, "dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco", "mmdet", DCONV, []),
    (MM, "dcn/faster-rcnn_r50_fpn_dpool_1x_coco", "mmdet", DPOOL, []),
    (MM, "dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco", "mmdet", MDCONV, []),
    (MM, "dcnv2/faster-rcnn_r50-mdconv-group4-c3-c5_fpn_1x_coco", "mmdet", GROUP4, []),
    (MM, "dcnv2/faster-rcnn_r50_fpn_mdpool_1x_coco", "mmdet", MDPOOL, []),
    (MM, "gn/mask-rcnn_r50_fpn_gn-all_2x_coco", "mmdet", GN_ALL, []),
    (MM, "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco", "mmdet", CASCADE, []),
    (MM, "dcn/cascade-rcnn_r50-dconv-c3-c5_fpn_1x_coco", "mmdet", CASCADE_DCN, VERSION_1),
    (D2, f"{COCO}_R_50_C4_1x", "detectron2", C4, []),
    (D2, f"{COCO}_R_50_DC5_1x", "detectron2", DC5, []),
    (D2, f"{COCO}_R_50_FPN_1x", "detectron2", R50, []),
    (D2, f"{COCO}_R_101_C4_3x", "detectron2", f"{F}r101_1x_coco", []),
    (D2, f"{COCO}_R_101_DC5_3x", "detectron2", DC5, DEPTH_101),
    (D2, f"{COCO}_R_101_FPN_3x", "detectron2", R101, []),
    (D2, f"{COCO}_X_101_32x8d_FPN_3x", "detectron2", R101, X101),
    (D2, "PascalVOC-Detection/faster_rcnn_R_50_C4", "detectron2", C4, []),
    (D2, "Misc/mask_rcnn_R_50_FPN_3x_gn", "detectron2", GN_ALL, []),
]


@pytest.mark.parametrize(("project", "model", "peer", "config", "overrides"), CASES, ids=[case[1] for case in CASES])
def test_every_array_is_accounted_for(project: str, model: str, peer: str, config: str, overrides: list[str]) -> None:
    """Both ways: none of theirs is left over, none of ours is missing, and the shapes agree."""
    shapes = manifest.read(project, model)
    arrays = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    assert find_peer(arrays) in (peer, peer.removesuffix("-caffe"))
    naming = PEERS[peer]({})
    names = {80: COCO_NAMES, 20: VOC_NAMES}[naming.class_count(shapes[naming.find_classifier(shapes)][0])]
    with paddle.LazyGuard():
        ours = state_shapes(build_model(peer_config(ROOT / f"configs/{config}.yml", peer, overrides), names, False))
    report = PEERS[peer](ours).to_ours(ours, arrays)
    assert report.is_complete, report.summary()


def filled(project: str, model: str) -> dict[str, np.ndarray]:
    """Arrays in which every number is its own index plus the array's number in thousandths."""
    shapes = {name: shape for name, shape in manifest.read(project, model).items() if np.prod(shape) < 500_000}
    return {
        name: (np.arange(np.prod(shape), dtype=np.float64).reshape(shape) + i / 1000)
        for i, (name, shape) in enumerate(shapes.items())
    }


def one(peer: str, theirs: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Return one of our arrays as converted from theirs."""
    source, layout = PEERS[peer]({"neck.lateral.0.conv.weight": (1,), "backbone.stem.norm._mean": (1,)}).translate(name)
    return layout.to_ours(theirs[source])


def test_torchvisions_classes() -> None:
    """91 outputs, the background first, ten without a class: ours are the 80 and the background last."""
    theirs = filled("torchvision", "fasterrcnn_resnet50_fpn")
    bias, weight = theirs["roi_heads.box_predictor.cls_score.bias"], theirs["roi_heads.box_predictor.cls_score.weight"]
    assert one("torchvision", theirs, "predictor.classify.bias").tolist() == bias[[*COCO_IDS, 0]].tolist()
    found = one("torchvision", theirs, "predictor.classify.weight")
    assert found.shape == (1024, 81) and found[:, 11].tolist() == weight[13].tolist()  # a stop sign has the id 13
    boxes = theirs["roi_heads.box_predictor.bbox_pred.weight"]
    found = one("torchvision", theirs, "predictor.regress.weight")
    assert found.shape == (1024, 320) and found[:, 4 * 11 + 2].tolist() == boxes[4 * 13 + 2].tolist()
    small = {
        "roi_heads.box_predictor.bbox_pred.bias": np.arange(12.0),
        "roi_heads.box_predictor.cls_score.bias": np.arange(3.0),
    }
    assert one("torchvision", small, "predictor.regress.bias").tolist() == list(range(4, 12))
    assert one("torchvision", small, "predictor.classify.bias").tolist() == [1, 2, 0]


def test_mmdetections_layers() -> None:
    theirs = filled("mmdetection", "dcnv2/faster-rcnn_r50_fpn_mdpool_1x_coco")
    found = one("mmdet", theirs, "roi_pool.branches.2.mask.2.weight")
    assert found.tolist() == theirs["roi_head.bbox_roi_extractor.roi_layers.2.mask_fc.2.weight"].T.tolist()
    found = one("mmdet", theirs, "roi_pool.branches.3.offset.4.bias")
    assert found.tolist() == theirs["roi_head.bbox_roi_extractor.roi_layers.3.offset_fc.4.bias"].tolist()
    found = one("mmdet", theirs, "backbone.res4.5.conv2.norm._variance")
    assert found.tolist() == theirs["backbone.layer3.5.bn2.running_var"].tolist()
    older = {"backbone.layer2.0.conv2_offset.weight": np.zeros(3)}
    report = PEERS["mmdet"]({}).to_ours({"backbone.res3.0.conv2.conv.offset.weight": (3,)}, older)
    assert report.is_complete


def test_layers_of_a_cascades_stages() -> None:
    """In PaddleDetection and mmdetection, stages are counted from 0; our last one has the names of a Faster R-CNN."""
    earlier = {f"earlier.{k}.box_head.fc1.weight": (1,) for k in range(2)}
    expected = {
        "box_head.fc1.weight": ("bbox_head.head.2.fc6.weight", "roi_head.bbox_head.2.shared_fcs.0.weight"),
        "earlier.0.box_head.fc2.bias": ("bbox_head.head.0.fc7.bias", "roi_head.bbox_head.0.shared_fcs.1.bias"),
        "earlier.1.predictor.regress.bias": ("bbox_head.bbox_delta_stage1.bias", "roi_head.bbox_head.1.fc_reg.bias"),
        "predictor.classify.bias": ("bbox_head.bbox_score_stage2.bias", "roi_head.bbox_head.2.fc_cls.bias"),
        "earlier.1.box_head.convs.3.conv.weight": (
            "bbox_head.head.1.stage1_bbox_head_conv3.conv.weight",
            "roi_head.bbox_head.1.shared_convs.3.conv.weight",
        ),
    }
    for ours, theirs in expected.items():
        assert tuple(PEERS[peer](earlier).translate(ours)[0] for peer in ("ppdet", "mmdet")) == theirs
    found = PEERS["mmdet"](earlier).translate("earlier.0.roi_pool.branches.2.mask.2.weight")[0]
    assert found == "roi_head.bbox_roi_extractor.0.roi_layers.2.mask_fc.2.weight"
    assert PEERS["ppdet"]({}).translate("predictor.classify.bias")[0] == "bbox_head.bbox_score.bias"
    for peer, name in (("detectron2", "earlier.0.box_head.fc1.weight"), ("ppdet", "earlier.0.neck.reduce.conv.weight")):
        with pytest.raises(KeyError):
            PEERS[peer](earlier).translate(name)


def test_detectron2s_layers() -> None:
    theirs = filled("detectron2", "COCO-Detection/faster_rcnn_R_50_FPN_1x")
    found = one("detectron2", theirs, "predictor.regress.weight")
    assert found.tolist() == theirs["roi_heads.box_predictor.bbox_pred.weight"].T.tolist()
    found = one("detectron2", theirs, "neck.output.3.conv.bias")
    assert found.tolist() == theirs["backbone.fpn_output5.bias"].tolist()
    found = one("detectron2", theirs, "backbone.res2.0.shortcut.norm._mean")
    assert found.tolist() == theirs["backbone.bottom_up.res2.0.shortcut.norm.running_mean"].tolist()


def test_projects_are_not_confused() -> None:
    """Each file is recognized as its own project's; ours, a classifier's and an empty one are no project's."""
    assert find_peer([]) is None
    assert find_peer(manifest.read("torchvision", "resnet50")) is None
    assert find_peer(["backbone.stem.conv.weight", "predictor.classify.bias"]) is None
    for project, model, peer, *_ in CASES:
        assert re.sub("-caffe", "", peer) == find_peer(manifest.read(project, model))
