"""Convolutions by the oneDNN library that is installed with Paddle, called through its C interface.

Paddle uses oneDNN only for exported graphs. Its own convolution first copies the input to a matrix (im2col), which for
few channels takes as long as the matrix product. A `Primitive` computes on contiguous tensors. If oneDNN uses another
memory layout, such as blocks of channels, the data is reordered to it and back, which costs little; the buffers for
this are allocated by Paddle and freed after each call.
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

MAJOR_VERSION = 3  # of the C interface; a library of another version is not used
MAX_PRIMITIVES = 256  # cached per function; oneDNN caches the code of 1024, so creating one again takes 0.1 ms

_CPU, _IN_ORDER, _FLOAT32, _ANY_LAYOUT, _DIRECT, _TRAINING, _USER_SCRATCHPAD = 1, 1, 3, 1, 1, 64, 1
_SRC, _DST, _WEIGHTS, _BIAS, _SCRATCHPAD = 1, 17, 33, 41, 80  # numbers of a primitive's arguments
_GRADIENT_OF = 128  # added to the number of an argument for the argument's gradient
_SRC_LAYOUT, _WEIGHTS_LAYOUT, _DST_LAYOUT = 129, 131, 133  # queries of an argument's layout; + 1 for its gradient
_SCRATCHPAD_LAYOUT = 136
_Sizes = c_int64 * 12
_lock = threading.Lock()  # held from setting a primitive's arguments until it has run


class Convolution(NamedTuple):
    """Shapes and parameters of a convolution; stride, padding and dilation are equal in y and x."""

    x: tuple[int, ...]  # [N, C, H, W]
    weight: tuple[int, ...]  # [O, C/groups, kh, kw]
    stride: int
    padding: int
    dilation: int
    groups: int
    has_bias: bool

    @property
    def out(self) -> tuple[int, ...]:
        """Shape of the output, [N, O, H', W']."""
        extent = [self.dilation * (kernel - 1) + 1 - 2 * self.padding for kernel in self.weight[2:]]
        size = [(length - e) // self.stride + 1 for length, e in zip(self.x[2:], extent, strict=True)]
        return self.x[0], self.weight[0], *size

    @property
    def is_matrix_product(self) -> bool:
        """Whether the convolution is a product of the kernel and the unchanged input, as matrices."""
        return self.weight[2:] == (1, 1) and (self.stride, self.padding) == (1, 0)

    @property
    def has_valid_shapes(self) -> bool:
        """Whether the shapes are consistent and no tensor is empty."""
        outputs, inputs = self.weight[:2]
        valid_channels = outputs % self.groups == 0 and self.x[1] == inputs * self.groups
        return valid_channels and min(self.x + self.weight + self.out) > 0


class Primitive:
    """An operation on float32 tensors of fixed shapes; called with its tensors in the order of `arguments`."""

    def __init__(self, descriptor: "_Object", arguments: Sequence["_Argument"]) -> None:
        self._arguments = arguments
        self._execution = _Execution(descriptor, {argument.number: argument.memory for argument in arguments})

    def __call__(self, *tensors: Tensor) -> None:
        """Run the operation and write the output tensors. All tensors must be contiguous and have the fixed shapes."""
        with _lock:
            buffers = [argument.bind(tensor) for argument, tensor in zip(self._arguments, tensors, strict=True)]
            self._execution.run()
            for argument in self._arguments:
                argument.copy_back()
            del buffers


@functools.lru_cache(MAX_PRIMITIVES)
def forward(convolution: Convolution) -> Primitive:
    """Return the primitive of the forward pass, called as (x, weight[, bias], out)."""
    descriptor = _describe_forward(convolution)
    x = _Argument(_SRC, convolution.x, descriptor, _SRC_LAYOUT)
    arguments = [x, _weight_argument(_WEIGHTS, convolution, descriptor)]
    if convolution.has_bias:
        arguments.append(_Argument(_BIAS, convolution.weight[:1], descriptor, _WEIGHTS_LAYOUT, 1))
    arguments.append(_Argument(_DST, convolution.out, descriptor, _DST_LAYOUT, is_output=True))
    return Primitive(descriptor, arguments)


@functools.lru_cache(MAX_PRIMITIVES)
def input_gradient(convolution: Convolution) -> Primitive:
    """Return the primitive of the gradient of x, called as (gradient of out, weight, gradient of x)."""
    hint, (x, weight, _, out) = _describe_forward(convolution), _any_layouts(convolution)
    options = (_engine()[0], _DIRECT, x, weight, out, *_geometry(convolution), hint, _attributes())
    descriptor = _Object("primitive_desc", "convolution_backward_data", *options)
    gradient = _Argument(_GRADIENT_OF + _SRC, convolution.x, descriptor, _SRC_LAYOUT + 1, is_output=True)
    out_gradient = _Argument(_GRADIENT_OF + _DST, convolution.out, descriptor, _DST_LAYOUT + 1)
    return Primitive(descriptor, [out_gradient, _weight_argument(_WEIGHTS, convolution, descriptor), gradient])


@functools.lru_cache(MAX_PRIMITIVES)
def weight_gradient(convolution: Convolution) -> Primitive:
    """Return the primitive of the other gradients, called as (x, gradient of out, of weight[, of bias])."""
    hint, layouts = _describe_forward(convolution), _any_layouts(convolution)
    options = (_engine()[0], _DIRECT, *layouts, *_geometry(convolution), hint, _attributes())
    descriptor = _Object("primitive_desc", "convolution_backward_weights", *options)
    arguments = [
        _Argument(_SRC, convolution.x, descriptor, _SRC_LAYOUT),
        _Argument(_GRADIENT_OF + _DST, convolution.out, descriptor, _DST_LAYOUT + 1),
        _weight_argument(_GRADIENT_OF + _WEIGHTS, convolution, descriptor, is_output=True),
    ]
    if convolution.has_bias:
        bias = convolution.weight[:1]
        arguments.append(_Argument(_GRADIENT_OF + _BIAS, bias, descriptor, _WEIGHTS_LAYOUT + 1, 1, is_output=True))
    return Primitive(descriptor, arguments)


def library() -> ctypes.CDLL | None:
    """Return Paddle's oneDNN library, or None if it is not used."""
    return _load()[0]


def description() -> str:
    """Return a log line: which library computes convolutions on a CPU and, if it is not oneDNN, why not."""
    return f"convolutions on a CPU: {_load()[1]}"


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:  # the library, and the text for the log
    if not runtime.is_enabled("onednn"):
        return None, f"Paddle's own ({runtime.SWITCH} is without onednn)"
    paths = sorted((Path(paddle.__file__).parent / "libs").glob("libdnnl.so*"))
    if not paths:
        return None, "Paddle's own (Paddle is installed without libdnnl.so)"
    dnnl = ctypes.CDLL(str(paths[0]))
    dnnl.dnnl_version.restype = ctypes.POINTER(c_int)  # a structure whose first fields are major, minor, patch
    version = dnnl.dnnl_version()[:3]
    if version[0] != MAJOR_VERSION:
        return None, f"Paddle's own (its oneDNN is version {version[0]}, not {MAJOR_VERSION})"
    dnnl.dnnl_primitive_desc_query_md.restype = c_void_p
    dnnl.dnnl_memory_desc_get_size.restype = c_size_t
    return dnnl, "oneDNN " + ".".join(map(str, version))


class _CArgument(ctypes.Structure):  # dnnl_exec_arg_t
    _fields_ = (("number", c_int), ("memory", c_void_p))


class _Object:
    """Owns an object of the library, created by `dnnl_{kind}_{create}` or `dnnl_{create}_{kind}_create`."""

    def __init__(self, kind: str, create: str, *arguments: Any) -> None:
        self.handle = c_void_p()
        self._destroy = getattr(library(), f"dnnl_{kind}_destroy")
        values = [argument.handle if isinstance(argument, _Object) else argument for argument in arguments]
        function = f"{kind}_{create}" if create.startswith("create") else f"{create}_{kind}_create"
        _check(function, byref(self.handle), *values)

    def __del__(self) -> None:
        self._destroy(self.handle)


class _Execution:
    """Runs a primitive with its arguments, given by number. Paddle allocates the scratchpad anew for each run.

    A scratchpad allocated by oneDNN would belong to the thread that created the primitive: if another thread runs or
    destroys the primitive, both threads corrupt each other's memory.
    """

    def __init__(self, descriptor: _Object, arguments: dict[int, _Object]) -> None:
        layout = c_void_p(library().dnnl_primitive_desc_query_md(descriptor.handle, _SCRATCHPAD_LAYOUT, 0))
        self._size = math.ceil(library().dnnl_memory_desc_get_size(layout) / 4)
        self._scratchpad = _Object("memory", "create", layout, _engine()[0], None) if self._size else None
        self._memories = arguments | ({_SCRATCHPAD: self._scratchpad} if self._scratchpad else {})
        arguments = [_CArgument(number, memory.handle) for number, memory in self._memories.items()]
        self._arguments = (_CArgument * len(arguments))(*arguments)
        self._primitive = _Object("primitive", "create", descriptor)

    def run(self) -> None:
        """Run the primitive and wait until it has finished."""
        stream = _engine()[1].handle
        if self._scratchpad:
            scratchpad = paddle.empty([self._size], "float32")
            _check("memory_set_data_handle", self._scratchpad.handle, c_void_p(scratchpad.data_ptr()))
        _check("primitive_execute", self._primitive.handle, stream, len(self._arguments), self._arguments)
        _check("stream_wait", stream)


class _Argument:
    """An argument of a primitive: a tensor's memory, and a reordered copy if the primitive requires another layout.

    number: one of _SRC, ...; query, index: those of the layout that the primitive's descriptor requires.
    """

    def __init__(
        self,
        number: int,
        shape: tuple[int, ...],
        descriptor: _Object,
        query: int,
        index: int = 0,
        is_output: bool = False,
    ) -> None:
        self.number, self.is_output = number, is_output
        contiguous = _contiguous_layout(shape)
        required = c_void_p(library().dnnl_primitive_desc_query_md(descriptor.handle, c_int(query), c_int(index)))
        engine = _engine()[0]
        self.user_memory = self.memory = _Object("memory", "create", contiguous, engine, None)
        self._reorder = None
        if not library().dnnl_memory_desc_equal(contiguous.handle, required):
            self._size = library().dnnl_memory_desc_get_size(required) // 4
            self.memory = _Object("memory", "create", required, engine, None)
            layouts = (required, contiguous) if is_output else (contiguous, required)
            source, target = (self.memory, self.user_memory) if is_output else (self.user_memory, self.memory)
            reorder = _Object("primitive_desc", "reorder", layouts[0], engine, layouts[1], engine, _attributes())
            self._reorder = _Execution(reorder, {_SRC: source, _DST: target})

    def bind(self, tensor: Tensor) -> Tensor | None:
        """Use a tensor's memory; reorder an input if required.

        Returns the reordered copy, which must stay alive until the primitive has run and `copy_back` was called.
        """
        _check("memory_set_data_handle", self.user_memory.handle, c_void_p(tensor.data_ptr()))
        if self._reorder is None:
            return None
        copy = paddle.empty([self._size], "float32")
        _check("memory_set_data_handle", self.memory.handle, c_void_p(copy.data_ptr()))
        if not self.is_output:
            self._reorder.run()
        return copy

    def copy_back(self) -> None:
        """Reorder an output of the primitive to the tensor's contiguous layout, if required."""
        if self.is_output and self._reorder is not None:
            self._reorder.run()


@functools.cache
def _engine() -> tuple[_Object, _Object]:
    """Return the CPU engine and the stream in which primitives run."""
    engine = _Object("engine", "create", _CPU, c_size_t(0))
    return engine, _Object("stream", "create", engine, _IN_ORDER)


@functools.cache
def _attributes() -> _Object:
    """Return the attributes of all primitives: the caller provides the scratchpad."""
    attributes = _Object("primitive_attr", "create")
    _check("primitive_attr_set_scratchpad_mode", attributes.handle, _USER_SCRATCHPAD)
    return attributes


def _describe_forward(convolution: Convolution) -> _Object:
    arguments = (_engine()[0], _TRAINING, _DIRECT, *_any_layouts(convolution), *_geometry(convolution), _attributes())
    return _Object("primitive_desc", "convolution_forward", *arguments)


def _any_layouts(convolution: Convolution) -> tuple[_Object, _Object, _Object | None, _Object]:
    """Return descriptors of x, weight, bias and out that let the primitive choose the layout of all but bias."""
    x, weight, out = (
        _Object("memory_desc", "create_with_tag", len(shape), _Sizes(*shape), _FLOAT32, _ANY_LAYOUT)
        for shape in (convolution.x, _grouped_weight_shape(convolution), convolution.out)
    )
    return x, weight, _contiguous_layout(convolution.weight[:1]) if convolution.has_bias else None, out


def _grouped_weight_shape(convolution: Convolution) -> tuple[int, ...]:
    """Return the kernel's shape in oneDNN's convention: [groups, O/groups, C/groups, kh, kw] if groups > 1."""
    o, *rest = convolution.weight
    return convolution.weight if convolution.groups == 1 else (convolution.groups, o // convolution.groups, *rest)


def _weight_argument(number: int, convolution: Convolution, descriptor: _Object, is_output: bool = False) -> _Argument:
    shape, query = _grouped_weight_shape(convolution), _WEIGHTS_LAYOUT + is_output
    return _Argument(number, shape, descriptor, query, is_output=is_output)


def _geometry(convolution: Convolution) -> tuple[Any, ...]:
    """Return strides, dilations (0 means dense, as in oneDNN) and the padding before and after."""
    padding = _Sizes(convolution.padding, convolution.padding)
    stride, dilation = convolution.stride, convolution.dilation - 1
    return _Sizes(stride, stride), _Sizes(dilation, dilation), padding, padding


def _contiguous_layout(shape: tuple[int, ...]) -> _Object:
    """Return the memory descriptor of a contiguous tensor."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return _Object("memory_desc", "create_with_strides", len(shape), _Sizes(*shape), _FLOAT32, _Sizes(*strides))


def _check(function: str, *arguments: Any) -> None:
    """Call a function of the library; raise RuntimeError if it fails."""
    if status := getattr(library(), f"dnnl_{function}")(*arguments):
        raise RuntimeError(f"oneDNN: dnnl_{function} returned status {status}")
