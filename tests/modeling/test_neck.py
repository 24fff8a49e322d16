"""Necks without a pyramid: the features for RPN and RoIs."""

import numpy as np
import paddle
import pytest

from ppdet_lite.core.errors import IncompatibleArguments
from ppdet_lite.modeling.neck import NoNeck, Reduction
from tests import tiny


def maps() -> list[paddle.Tensor]:
    rng = np.random.default_rng(0)
    return [tiny.float32(rng.standard_normal((1, channels, 2, 3))) for channels in (4, 6)]


def test_without_a_neck_rpn_and_rois_use_the_map() -> None:
    neck, features = NoNeck([4], [16]), maps()[:1]
    assert neck(features)[0] is features[0] and neck.rpn_features(features, neck(features))[0] is features[0]
    assert (neck.out_channels, neck.out_strides, neck.size_divisor) == (4, [16], 1)
    assert (neck.rpn_channels, neck.rpn_strides) == (4, [16])


def test_without_a_neck_several_maps_are_rejected() -> None:
    with pytest.raises(IncompatibleArguments, match=r"backbone\.out_stages: has 4 stages"):
        NoNeck([1, 2, 3, 4], [4, 8, 16, 32])


def test_rois_use_the_reduced_map_and_the_rpn_the_first() -> None:
    neck, features = Reduction([4, 6], [16, 16], out_channels=2), maps()
    neck.reduce.conv.weight.set_value(tiny.float32(np.arange(12).reshape(2, 6, 1, 1) - 6))
    neck.reduce.conv.bias.set_value(tiny.float32([0.5, -0.5]))
    expected = np.einsum("oc,nchw->nohw", np.arange(12).reshape(2, 6) - 6.0, features[1].numpy())
    expected = np.maximum(expected + np.array([0.5, -0.5]).reshape(1, 2, 1, 1), 0)
    (reduced,) = neck(features)
    np.testing.assert_allclose(reduced.numpy(), expected, rtol=1e-5, atol=1e-5)
    (read,) = neck.rpn_features(features, [reduced])
    assert read is features[0]
    assert (neck.out_channels, neck.out_strides, neck.size_divisor) == (2, [16], 1)
    assert (neck.rpn_channels, neck.rpn_strides) == (4, [16])


def test_the_reduction_can_have_a_norm() -> None:
    neck = Reduction([4, 6], [16, 16], out_channels=32, norm="gn")
    assert neck.reduce.conv.bias is None and neck(maps())[0].shape == [1, 32, 2, 3]
