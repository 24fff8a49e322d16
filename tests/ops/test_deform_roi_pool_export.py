"""Deformable RoI pooling in an exported graph, with oneDNN and without."""

from pathlib import Path

import numpy as np
import paddle
from paddle import inference
from paddle.static import InputSpec

from ppdet_lite.ops import deform_roi_pool
from tests.ops.test_deform_roi_pool import COUNTS, SCALE, H, N, W, make_boxes


class Pooling(paddle.nn.Layer):
    """Both semantics, adaptive and fixed sampling, one level and two, with offsets that depend on the RoI."""

    def forward(self, x: paddle.Tensor, boxes: paddle.Tensor, counts: paddle.Tensor) -> list[paddle.Tensor]:
        x = paddle.nn.functional.relu(x)
        plain = deform_roi_pool(x, boxes, counts, 3, SCALE)
        answer = plain.flatten(1) * 2
        offset, mask = answer[:, :18].reshape([-1, 2, 3, 3]), answer[:, 18:27].reshape([-1, 1, 3, 3])
        both = {"offset": offset, "mask": mask}
        pyramid = {"level": (boxes[:, 2] > 50).astype("int64")}
        maps, scales = [x, x[:, :, ::2, ::2]], [SCALE, SCALE / 2]
        classes = answer[:, :36].reshape([-1, 4, 3, 3])
        legacy = {"semantics": "legacy", "sample_per_part": 2}
        return [
            plain,
            deform_roi_pool(x, boxes, counts, 3, SCALE, **both),
            deform_roi_pool(x, boxes, counts, 3, SCALE, 2, **both),
            deform_roi_pool(maps, boxes, counts, 3, scales, **pyramid),
            deform_roi_pool(maps, boxes, counts, 3, scales, **both, **pyramid),
            deform_roi_pool(x, boxes, counts, 3, SCALE, offset=classes, group_size=2, **legacy),
            deform_roi_pool(maps, boxes, counts, 3, scales, **both, **pyramid, **legacy),
        ]


def test_export(tmp_path: Path) -> None:
    net = Pooling()
    net.eval()
    spec = [
        InputSpec([None, 8, None, None], "float32", "x"),
        InputSpec([None, 4], "float32", "boxes"),
        InputSpec([None], "int32", "counts"),
    ]
    paddle.jit.save(net, str(tmp_path / "net"), input_spec=spec)
    for onednn in (False, True):
        config = inference.Config(str(tmp_path / "net.json"), str(tmp_path / "net.pdiparams"))
        config.disable_glog_info()
        (config.enable_mkldnn if onednn else config.disable_mkldnn)()
        predictor = inference.create_predictor(config)
        for shape, numbers in (((N, 8, H, W), COUNTS), ((1, 8, 9, 13), [9]), ((1, 8, 9, 13), [1])):
            rng = np.random.default_rng(7)
            x = rng.normal(size=shape).astype(np.float32)
            boxes = make_boxes(rng)[: sum(numbers)].astype(np.float32)
            given = {"x": x, "boxes": boxes, "counts": np.array(numbers, np.int32)}
            for name, array in given.items():
                handle = predictor.get_input_handle(name)
                handle.reshape(array.shape)
                handle.copy_from_cpu(array)
            predictor.run()
            found = [predictor.get_output_handle(name).copy_to_cpu() for name in predictor.get_output_names()]
            expected = [out.numpy() for out in net(*map(paddle.to_tensor, given.values()))]
            for i, (a, b) in enumerate(zip(found, expected, strict=True)):
                np.testing.assert_allclose(a, b, atol=5e-4, err_msg=f"output {i}, onednn {onednn}, counts {numbers}")
