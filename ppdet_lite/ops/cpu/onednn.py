"""Convolutions by the oneDNN library that comes with Paddle, through its C interface.

Paddle uses oneDNN for exported graphs only; its own convolutions unfold the input into a matrix first, which for few
channels takes as long as the product. A `Primitive` computes on plain contiguous tensors. What oneDNN wants in blocks
of channels is reordered there and back, which costs little, in memory of Paddle's that is free afterwards.
Names and numbers are those of oneDNN 3's dnnl.h and dnnl_types.h (https://uxlfoundation.github.io/oneDNN).
"""

import ctypes
import functools
import math
import threading
from collections.abc import Sequence
from ctypes import byref, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any, NamedTuple

import paddle
from paddle import Tensor

from ppdet_lite.core import runtime

MAJOR = 3  # of the interface; a library of another is not used
KEPT = 256  # primitives; oneDNN itself keeps the code of 1024, so that one of these is made again within 0.1 ms

_CPU, _IN_ORDER, _FLOAT32, _ANY_LAYOUT, _DIRECT, _TRAINING, _OURS = 1, 1, 3, 1, 1, 64, 1
_SRC, _DST, _WEIGHTS, _BIAS, _SCRATCH = 1, 17, 33, 41, 80  # numbers of a primitive's arguments
_GRADIENT_OF = 128  # added to them
_SRC_LAYOUT, _WEIGHTS_LAYOUT, _DST_LAYOUT = 129, 131, 133  # what a primitive is asked for; the gradients' are one above
_SCRATCH_LAYOUT = 136
_Sizes = c_int64 * 12
_lock = threading.Lock()  # a primitive's arguments are set before it runs


class Convolution(NamedTuple):
    """Shapes and steps of a convolution; stride, padding and dilation are alike in y and x."""

    x: tuple[int, ...]  # [N, C, H, W]
    weight: tuple[int, ...]  # [O, C/groups, kh, kw]
    stride: int
    padding: int
    dilation: int
    groups: int
    biased: bool

    @property
    def out(self) -> tuple[int, ...]:
        """[N, O, H', W']."""
        reach = [self.dilation * (kernel - 1) + 1 - 2 * self.padding for kernel in self.weight[2:]]
        size = [(length - r) // self.stride + 1 for length, r in zip(self.x[2:], reach, strict=True)]
        return self.x[0], self.weight[0], *size

    @property
    def is_product(self) -> bool:
        """Whether it is one matrix product, of the kernel and the pixels as they lie."""
        return self.weight[2:] == (1, 1) and (self.stride, self.padding) == (1, 0)

    @property
    def fits(self) -> bool:
        """Whether the shapes go together and something comes out."""
        outputs, inputs = self.weight[:2]
        channels_fit = outputs % self.groups == 0 and self.x[1] == inputs * self.groups
        return channels_fit and min(self.x + self.weight + self.out) > 0


class Primitive:
    """A computation on float32 tensors of given shapes, called with its inputs and outputs in the order of `sides`."""

    def __init__(self, description: "_Object", sides: Sequence["_Side"]) -> None:
        self._sides = sides
        self._step = _Step(description, {side.number: side.inner for side in sides})

    def __call__(self, *tensors: Tensor) -> None:
        """Inputs are read, outputs written; all are contiguous and of the shapes that it was made for."""
        with _lock:
            held = [side.bind(tensor) for side, tensor in zip(self._sides, tensors, strict=True)]
            self._step.run()
            for side in self._sides:
                side.give_back()
            del held


@functools.lru_cache(KEPT)
def forward(convolution: Convolution) -> Primitive:
    """The primitive (x, weight[, bias], out)."""
    description = _describe_forward(convolution)
    sides = [_Side(_SRC, convolution.x, description, _SRC_LAYOUT), _weights(_WEIGHTS, convolution, description)]
    if convolution.biased:
        sides.append(_Side(_BIAS, convolution.weight[:1], description, _WEIGHTS_LAYOUT, 1))
    return Primitive(description, [*sides, _Side(_DST, convolution.out, description, _DST_LAYOUT, written=True)])


@functools.lru_cache(KEPT)
def input_gradient(convolution: Convolution) -> Primitive:
    """The primitive (gradient of out, weight, gradient of x)."""
    hint, (x, weight, _, out) = _describe_forward(convolution), _any_layouts(convolution)
    creation = (_engine()[0], _DIRECT, x, weight, out, *_steps(convolution), hint, _attributes())
    description = _Object("primitive_desc", "convolution_backward_data", *creation)
    gradient = _Side(_GRADIENT_OF + _SRC, convolution.x, description, _SRC_LAYOUT + 1, written=True)
    out_gradient = _Side(_GRADIENT_OF + _DST, convolution.out, description, _DST_LAYOUT + 1)
    return Primitive(description, [out_gradient, _weights(_WEIGHTS, convolution, description), gradient])


@functools.lru_cache(KEPT)
def weight_gradient(convolution: Convolution) -> Primitive:
    """The primitive (x, gradient of out, gradient of weight[, gradient of bias])."""
    hint, layouts = _describe_forward(convolution), _any_layouts(convolution)
    creation = (_engine()[0], _DIRECT, *layouts, *_steps(convolution), hint, _attributes())
    description = _Object("primitive_desc", "convolution_backward_weights", *creation)
    sides = [
        _Side(_SRC, convolution.x, description, _SRC_LAYOUT),
        _Side(_GRADIENT_OF + _DST, convolution.out, description, _DST_LAYOUT + 1),
        _weights(_GRADIENT_OF + _WEIGHTS, convolution, description, written=True),
    ]
    if convolution.biased:
        bias = convolution.weight[:1]
        sides.append(_Side(_GRADIENT_OF + _BIAS, bias, description, _WEIGHTS_LAYOUT + 1, 1, written=True))
    return Primitive(description, sides)


def loaded() -> ctypes.CDLL | None:
    """Paddle's oneDNN; None where it is not used."""
    return _find()[0]


def description() -> str:
    """What convolutions on a CPU are computed by and, where it is not oneDNN, why not."""
    return f"convolutions on a CPU: {_find()[1]}"


@functools.cache
def _find() -> tuple[ctypes.CDLL | None, str]:
    if not runtime.chosen("onednn"):
        return None, f"Paddle's own ({runtime.SWITCH} is without onednn)"
    found = sorted((Path(paddle.__file__).parent / "libs").glob("libdnnl.so*"))
    if not found:
        return None, "Paddle's own (no libdnnl.so beside it)"
    dnnl = ctypes.CDLL(str(found[0]))
    dnnl.dnnl_version.restype = ctypes.POINTER(c_int)  # a structure that begins with major, minor, patch
    version = dnnl.dnnl_version()[:3]
    if version[0] != MAJOR:
        return None, f"Paddle's own (its oneDNN is version {version[0]}, not {MAJOR})"
    dnnl.dnnl_primitive_desc_query_md.restype = c_void_p
    dnnl.dnnl_memory_desc_get_size.restype = c_size_t
    return dnnl, "oneDNN " + ".".join(map(str, version))


class _Argument(ctypes.Structure):
    _fields_ = (("number", c_int), ("memory", c_void_p))


class _Object:
    """An object of the library, destroyed with this one."""

    def __init__(self, kind: str, create: str, *arguments: Any) -> None:
        self.handle = c_void_p()
        self._destroy = getattr(loaded(), f"dnnl_{kind}_destroy")
        plain = [argument.handle if isinstance(argument, _Object) else argument for argument in arguments]
        function = f"{kind}_{create}" if create.startswith("create") else f"{create}_{kind}_create"
        _check(function, byref(self.handle), *plain)

    def __del__(self) -> None:
        self._destroy(self.handle)


class _Step:
    """A primitive and its arguments, by number; the memory that it works in is Paddle's, and free when it has run.

    oneDNN's own belongs to the thread that made the primitive: where another runs or drops it, both write elsewhere.
    """

    def __init__(self, description: _Object, arguments: dict[int, _Object]) -> None:
        layout = c_void_p(loaded().dnnl_primitive_desc_query_md(description.handle, _SCRATCH_LAYOUT, 0))
        self._size = math.ceil(loaded().dnnl_memory_desc_get_size(layout) / 4)
        self._scratch = _Object("memory", "create", layout, _engine()[0], None) if self._size else None
        self._held = arguments | ({_SCRATCH: self._scratch} if self._scratch else {})
        self._arguments = (_Argument * len(self._held))(*[_Argument(n, o.handle) for n, o in self._held.items()])
        self._primitive = _Object("primitive", "create", description)

    def run(self) -> None:
        """Compute, and return when it is done."""
        stream = _engine()[1].handle
        if self._scratch:
            scratch = paddle.empty([self._size], "float32")
            _check("memory_set_data_handle", self._scratch.handle, c_void_p(scratch.data_ptr()))
        _check("primitive_execute", self._primitive.handle, stream, len(self._arguments), self._arguments)
        _check("stream_wait", stream)


class _Side:
    """An argument of a primitive: a tensor's memory, and a reordered copy where the primitive's layout differs."""

    def __init__(
        self,
        number: int,
        shape: tuple[int, ...],
        description: _Object,
        query: int,
        index: int = 0,
        written: bool = False,
    ) -> None:
        self.number, self.written = number, written
        plain = _layout(shape)
        wanted = c_void_p(loaded().dnnl_primitive_desc_query_md(description.handle, c_int(query), c_int(index)))
        engine = _engine()[0]
        self.outer = self.inner = _Object("memory", "create", plain, engine, None)
        self._reorder = None
        if not loaded().dnnl_memory_desc_equal(plain.handle, wanted):
            self._size = loaded().dnnl_memory_desc_get_size(wanted) // 4
            self.inner = _Object("memory", "create", wanted, engine, None)
            ends = (wanted, engine, plain, engine) if written else (plain, engine, wanted, engine)
            source, target = (self.inner, self.outer) if written else (self.outer, self.inner)
            reorder = _Object("primitive_desc", "reorder", *ends, _attributes())
            self._reorder = _Step(reorder, {_SRC: source, _DST: target})

    def bind(self, tensor: Tensor) -> Tensor | None:
        """Take a tensor's memory, reordered if need be; the copy returned must live until the primitive has run."""
        _check("memory_set_data_handle", self.outer.handle, c_void_p(tensor.data_ptr()))
        if self._reorder is None:
            return None
        copy = paddle.empty([self._size], "float32")
        _check("memory_set_data_handle", self.inner.handle, c_void_p(copy.data_ptr()))
        if not self.written:
            self._reorder.run()
        return copy

    def give_back(self) -> None:
        """Bring what the primitive wrote into the tensor's order."""
        if self.written and self._reorder is not None:
            self._reorder.run()


@functools.cache
def _engine() -> tuple[_Object, _Object]:
    """The processor, and the queue of what it computes."""
    engine = _Object("engine", "create", _CPU, c_size_t(0))
    return engine, _Object("stream", "create", engine, _IN_ORDER)


@functools.cache
def _attributes() -> _Object:
    """Of every primitive: the memory that it works in is ours."""
    attributes = _Object("primitive_attr", "create")
    _check("primitive_attr_set_scratchpad_mode", attributes.handle, _OURS)
    return attributes


def _describe_forward(convolution: Convolution) -> _Object:
    creation = (_engine()[0], _TRAINING, _DIRECT, *_any_layouts(convolution), *_steps(convolution), _attributes())
    return _Object("primitive_desc", "convolution_forward", *creation)


def _any_layouts(convolution: Convolution) -> tuple[_Object, _Object, _Object | None, _Object]:
    """Layouts of x, weight, bias and out, for the primitive to choose."""
    x, weight, out = (
        _Object("memory_desc", "create_with_tag", len(shape), _Sizes(*shape), _FLOAT32, _ANY_LAYOUT)
        for shape in (convolution.x, _grouped(convolution), convolution.out)
    )
    return x, weight, _layout(convolution.weight[:1]) if convolution.biased else None, out


def _grouped(convolution: Convolution) -> tuple[int, ...]:
    """The kernel's shape as oneDNN has it: [groups, O/groups, C/groups, kh, kw] if there are several."""
    o, *rest = convolution.weight
    return convolution.weight if convolution.groups == 1 else (convolution.groups, o // convolution.groups, *rest)


def _weights(number: int, convolution: Convolution, description: _Object, written: bool = False) -> _Side:
    return _Side(number, _grouped(convolution), description, _WEIGHTS_LAYOUT + written, written=written)


def _steps(convolution: Convolution) -> tuple[Any, ...]:
    """Strides, dilations (0 is none) and padding before and after."""
    padding = _Sizes(convolution.padding, convolution.padding)
    stride, dilation = convolution.stride, convolution.dilation - 1
    return _Sizes(stride, stride), _Sizes(dilation, dilation), padding, padding


def _layout(shape: tuple[int, ...]) -> _Object:
    """Of a contiguous tensor."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return _Object("memory_desc", "create_with_strides", len(shape), _Sizes(*shape), _FLOAT32, _Sizes(*strides))


def _check(function: str, *arguments: Any) -> None:
    if status := getattr(loaded(), f"dnnl_{function}")(*arguments):
        raise RuntimeError(f"oneDNN: dnnl_{function} returned status {status}")
