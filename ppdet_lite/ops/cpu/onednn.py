"""Convolutions and matrix products by the oneDNN library that is installed with Paddle, called through its C interface.

Paddle uses oneDNN only for exported graphs. Its own convolution first copies the input to a matrix (im2col), which for
few channels takes as long as the matrix product. A `Primitive` computes on contiguous tensors. If oneDNN uses another
memory layout, such as blocks of channels, the data is reordered to it and back, which costs little; the buffers for
this are allocated by Paddle and freed after each call. All of them are in CPU memory, whatever Paddle's current device.
Names and numbers are those of oneDNN 3's dnnl.h and dnnl_types.h (https://uxlfoundation.github.io/oneDNN).
Every failure is a `OneDnnError`.
"""

import functools
import math
import threading
from collections.abc import Sequence
from ctypes import byref, c_int64, c_void_p
from typing import Any, NamedTuple

import paddle
from paddle import Tensor

from ppdet_lite.ops.cpu.onednn_library import CArgument, Object, OneDnnError, check, load_library

MAX_PRIMITIVES = 256  # cached per function; oneDNN caches the code of 1024, so creating one again takes 0.1 ms

_CPU, _IN_ORDER, _FLOAT32, _ANY_LAYOUT, _DIRECT, _TRAINING, _USER_SCRATCHPAD = 1, 1, 3, 1, 1, 64, 1
_MULTIPLY_BFLOAT16 = 1  # the floating-point math mode in which float32 may be rounded to bfloat16 for products
_SRC, _DST, _WEIGHTS, _BIAS, _SCRATCHPAD = 1, 17, 33, 41, 80  # numbers of a primitive's arguments
_GRADIENT_OF = 128  # added to the number of an argument for the argument's gradient
_SRC_LAYOUT, _WEIGHTS_LAYOUT, _DST_LAYOUT = 129, 131, 133  # queries of an argument's layout; + 1 for its gradient
_SCRATCHPAD_LAYOUT = 136
_CPU_MEMORY = paddle.CPUPlace()
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
    bfloat16: bool = False  # multiply in bfloat16, on a processor that can

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
    def options(self) -> tuple[int, int, int, int]:
        """Stride, padding, dilation and groups, the last arguments of `F.conv2d`."""
        return self.stride, self.padding, self.dilation, self.groups

    @property
    def is_valid(self) -> bool:
        """Whether the parameters are in range, the shapes consistent, and no tensor empty."""
        if min(self.stride, self.padding + 1, self.dilation, self.groups) < 1:
            return False
        outputs, inputs = self.weight[:2]
        valid_channels = outputs % self.groups == 0 and self.x[1] == inputs * self.groups
        return valid_channels and min(self.x + self.weight + self.out) > 0


class MatrixProduct(NamedTuple):
    """Shapes of a product of two matrices, [rows, inner] times [inner, columns]."""

    rows: int
    inner: int
    columns: int
    transposed: tuple[bool, bool] = (False, False)  # the tensor of this factor contains the transposed matrix
    bfloat16: bool = False  # see `Convolution`


class Primitive:
    """An operation on float32 tensors of fixed shapes; called with its tensors in the order of `arguments`."""

    def __init__(self, descriptor: "Object", arguments: Sequence["_Argument"]) -> None:
        self._arguments = arguments
        self._execution = _Execution(descriptor, {argument.number: argument.memory for argument in arguments})

    def __call__(self, *tensors: Tensor, copies: "Copies | None" = None) -> None:
        """Run the operation and write the output tensors. All tensors must be float32 of the fixed shapes.

        copies: reordered inputs of earlier calls, used instead of reordering the same input again; this call adds its
            own. Pass one dictionary only to primitives that are called with the same inputs.
        Raises OneDnnError if a tensor is not contiguous in CPU memory.
        """
        copies = {} if copies is None else copies
        with _lock:
            bound = zip(self._arguments, tensors, strict=True)
            buffers = [argument.bind(tensor, copies) for argument, tensor in bound]
            self._execution.run()
            for argument in self._arguments:
                argument.copy_back()
            del buffers


@functools.lru_cache(MAX_PRIMITIVES)
def forward(convolution: Convolution) -> Primitive:
    """Return the primitive of the forward pass, called as (x, weight[, bias], out)."""
    descriptor = _describe_forward(convolution)
    x = _argument(_SRC, convolution.x, descriptor, _SRC_LAYOUT)
    arguments = [x, _weight_argument(_WEIGHTS, convolution, descriptor)]
    if convolution.has_bias:
        arguments.append(_argument(_BIAS, convolution.weight[:1], descriptor, _WEIGHTS_LAYOUT, 1))
    arguments.append(_argument(_DST, convolution.out, descriptor, _DST_LAYOUT, is_output=True))
    return Primitive(descriptor, arguments)


@functools.lru_cache(MAX_PRIMITIVES)
def input_gradient(convolution: Convolution) -> Primitive:
    """Return the primitive of the gradient of x, called as (gradient of out, weight, gradient of x)."""
    hint, (x, weight, _, out) = _describe_forward(convolution), _any_layouts(convolution)
    attributes = _attributes(convolution.bfloat16)
    options = (_engine()[0], _DIRECT, x, weight, out, *_geometry(convolution), hint, attributes)
    descriptor = Object("primitive_desc", "convolution_backward_data", *options)
    gradient = _argument(_GRADIENT_OF + _SRC, convolution.x, descriptor, _SRC_LAYOUT + 1, is_output=True)
    out_gradient = _argument(_GRADIENT_OF + _DST, convolution.out, descriptor, _DST_LAYOUT + 1)
    return Primitive(descriptor, [out_gradient, _weight_argument(_WEIGHTS, convolution, descriptor), gradient])


@functools.lru_cache(MAX_PRIMITIVES)
def weight_gradient(convolution: Convolution) -> Primitive:
    """Return the primitive of the other gradients, called as (x, gradient of out, of weight[, of bias])."""
    hint, layouts = _describe_forward(convolution), _any_layouts(convolution)
    options = (_engine()[0], _DIRECT, *layouts, *_geometry(convolution), hint, _attributes(convolution.bfloat16))
    descriptor = Object("primitive_desc", "convolution_backward_weights", *options)
    arguments = [
        _argument(_SRC, convolution.x, descriptor, _SRC_LAYOUT),
        _argument(_GRADIENT_OF + _DST, convolution.out, descriptor, _DST_LAYOUT + 1),
        _weight_argument(_GRADIENT_OF + _WEIGHTS, convolution, descriptor, is_output=True),
    ]
    if convolution.has_bias:
        bias = convolution.weight[:1]
        arguments.append(_argument(_GRADIENT_OF + _BIAS, bias, descriptor, _WEIGHTS_LAYOUT + 1, 1, is_output=True))
    return Primitive(descriptor, arguments)


@functools.lru_cache(MAX_PRIMITIVES)
def matrix_product(product: MatrixProduct) -> Primitive:
    """Return the primitive of a matrix product, called as (a, b, out)."""
    shapes = (product.rows, product.inner), (product.inner, product.columns)
    a, b = map(_matrix_layout, shapes, product.transposed)
    out = _matrix_layout((product.rows, product.columns), False)
    attributes = _attributes(product.bfloat16)
    descriptor = Object("primitive_desc", "matmul", _engine()[0], a, b, None, out, attributes)
    layouts = ((_SRC, a), (_WEIGHTS, b), (_DST, out))
    return Primitive(descriptor, [_Argument(number, layout, layout.handle) for number, layout in layouts])


class _Execution:
    """Runs a primitive with its arguments, given by number. Paddle allocates the scratchpad anew for each run.

    A scratchpad allocated by oneDNN would belong to the thread that created the primitive: if another thread runs or
    destroys the primitive, both threads corrupt each other's memory.
    """

    def __init__(self, descriptor: Object, arguments: dict[int, Object]) -> None:
        layout = _query_layout(descriptor, _SCRATCHPAD_LAYOUT)
        self._size = math.ceil(load_library().dnnl_memory_desc_get_size(layout) / 4)
        self._scratchpad = Object("memory", "create", layout, _engine()[0], None) if self._size else None
        self._memories = arguments | ({_SCRATCHPAD: self._scratchpad} if self._scratchpad else {})
        arguments = [CArgument(number, memory.handle) for number, memory in self._memories.items()]
        self._arguments = (CArgument * len(arguments))(*arguments)
        self._primitive = Object("primitive", "create", descriptor)

    def run(self) -> None:
        """Run the primitive and wait until it has finished."""
        stream = _engine()[1].handle
        if self._scratchpad:
            scratchpad = empty([self._size])
            _set_data(self._scratchpad, scratchpad)
        check("primitive_execute", self._primitive.handle, stream, len(self._arguments), self._arguments)
        check("stream_wait", stream)


class _Argument:
    """An argument of a primitive: a tensor's memory, and a reordered copy if the primitive requires another layout.

    number: one of _SRC, ...; layout: of the tensor; required: the layout that the primitive requires.
    """

    def __init__(self, number: int, layout: Object, required: c_void_p, is_output: bool = False) -> None:
        self.number, self.is_output = number, is_output
        engine = _engine()[0]
        self.user_memory = self.memory = Object("memory", "create", layout, engine, None)
        self._layout, self._reorder = c_void_p(), None
        check("memory_get_memory_desc", self.memory.handle, byref(self._layout))
        if not load_library().dnnl_memory_desc_equal(layout.handle, required):
            self._size = load_library().dnnl_memory_desc_get_size(required) // 4
            self.memory = Object("memory", "create", required, engine, None)
            layouts = (required, layout) if is_output else (layout, required)
            source, target = (self.memory, self.user_memory) if is_output else (self.user_memory, self.memory)
            reorder = Object("primitive_desc", "reorder", layouts[0], engine, layouts[1], engine, _attributes())
            self._reorder = _Execution(reorder, {_SRC: source, _DST: target})
            check("memory_get_memory_desc", self.memory.handle, byref(self._layout))

    def bind(self, tensor: Tensor, copies: "Copies") -> Tensor | None:
        """Use a tensor's memory; reorder an input if required, unless `copies` has it in the required layout.

        Returns the reordered copy, which must stay alive until the primitive has run and `copy_back` was called.
        Raises OneDnnError for a tensor whose memory oneDNN cannot read.
        """
        if not (tensor.place.is_cpu_place() and tensor.is_contiguous()):
            raise OneDnnError(f"oneDNN: a tensor in {tensor.place} is not contiguous in CPU memory")
        _set_data(self.user_memory, tensor)
        if self._reorder is None:
            return None
        layout, copy = copies.get(self.number, (None, None))  # never of an output
        if copy is not None and load_library().dnnl_memory_desc_equal(layout, self._layout):
            _set_data(self.memory, copy)
            return copy
        copy = empty([self._size])
        _set_data(self.memory, copy)
        if not self.is_output:
            self._reorder.run()
            copies[self.number] = self._layout, copy
        return copy

    def copy_back(self) -> None:
        """Reorder an output of the primitive to the tensor's contiguous layout, if required."""
        if self.is_output and self._reorder is not None:
            self._reorder.run()


Copies = dict[int, tuple[c_void_p, Tensor]]  # layout and reordered copy of an input, by the argument's number


@functools.cache
def _engine() -> tuple[Object, Object]:
    """Return the CPU engine and the stream in which primitives run."""
    engine = Object("engine", "create", _CPU, 0)
    return engine, Object("stream", "create", engine, _IN_ORDER)


@functools.cache
def _attributes(bfloat16: bool = False) -> Object:
    """Return the attributes of all primitives: the caller provides the scratchpad, and the precision of products."""
    attributes = Object("primitive_attr", "create")
    check("primitive_attr_set_scratchpad_mode", attributes.handle, _USER_SCRATCHPAD)
    if bfloat16:
        check("primitive_attr_set_fpmath_mode", attributes.handle, _MULTIPLY_BFLOAT16)
    return attributes


def _describe_forward(convolution: Convolution) -> Object:
    options = (*_any_layouts(convolution), *_geometry(convolution), _attributes(convolution.bfloat16))
    return Object("primitive_desc", "convolution_forward", _engine()[0], _TRAINING, _DIRECT, *options)


def _any_layouts(convolution: Convolution) -> tuple[Object, Object, Object | None, Object]:
    """Return descriptors of x, weight, bias and out that let the primitive choose the layout of all but bias."""
    x, weight, out = (
        Object("memory_desc", "create_with_tag", len(shape), _Sizes(*shape), _FLOAT32, _ANY_LAYOUT)
        for shape in (convolution.x, _grouped_weight_shape(convolution), convolution.out)
    )
    return x, weight, _contiguous_layout(convolution.weight[:1]) if convolution.has_bias else None, out


def _grouped_weight_shape(convolution: Convolution) -> tuple[int, ...]:
    """Return the kernel's shape in oneDNN's convention: [groups, O/groups, C/groups, kh, kw] if groups > 1."""
    o, *rest = convolution.weight
    return convolution.weight if convolution.groups == 1 else (convolution.groups, o // convolution.groups, *rest)


def _argument(
    number: int, shape: tuple[int, ...], descriptor: Object, query: int, index: int = 0, is_output: bool = False
) -> _Argument:
    """Return the argument for a contiguous tensor; query, index: those of the layout that the descriptor requires."""
    return _Argument(number, _contiguous_layout(shape), _query_layout(descriptor, query, index), is_output)


def _weight_argument(number: int, convolution: Convolution, descriptor: Object, is_output: bool = False) -> _Argument:
    shape, query = _grouped_weight_shape(convolution), _WEIGHTS_LAYOUT + is_output
    return _argument(number, shape, descriptor, query, is_output=is_output)


def _geometry(convolution: Convolution) -> tuple[Any, ...]:
    """Return strides, dilations (0 means dense, as in oneDNN) and the padding before and after."""
    padding = _Sizes(convolution.padding, convolution.padding)
    stride, dilation = convolution.stride, convolution.dilation - 1
    return _Sizes(stride, stride), _Sizes(dilation, dilation), padding, padding


def _contiguous_layout(shape: tuple[int, ...]) -> Object:
    """Return the memory descriptor of a contiguous tensor."""
    return _strided_layout(shape, [math.prod(shape[axis + 1 :]) for axis in range(len(shape))])


def _matrix_layout(shape: tuple[int, int], transposed: bool) -> Object:
    """Return the memory descriptor of a matrix, or of one that a contiguous tensor contains transposed."""
    return _strided_layout(shape, (1, shape[0]) if transposed else (shape[1], 1))


def _strided_layout(shape: Sequence[int], strides: Sequence[int]) -> Object:
    return Object("memory_desc", "create_with_strides", len(shape), _Sizes(*shape), _FLOAT32, _Sizes(*strides))


def empty(shape: Sequence[int], dtype: paddle.dtype = paddle.float32) -> Tensor:
    """Return an uninitialized tensor in CPU memory.

    `paddle.empty` would use the current device unless given one; calling its operator takes 2 us instead of 6.
    """
    return paddle._C_ops.empty(shape, dtype, _CPU_MEMORY)


def _set_data(memory: Object, tensor: Tensor) -> None:
    """Let a memory object use a tensor's data. The tensor must stay alive while a primitive reads or writes it."""
    check("memory_set_data_handle", memory.handle, tensor.data_ptr())


def _query_layout(descriptor: Object, query: int, index: int = 0) -> c_void_p:
    """Return the memory layout of an argument, owned by the primitive descriptor."""
    layout = load_library().dnnl_primitive_desc_query_md(descriptor.handle, query, index)
    if layout is None:
        raise OneDnnError(f"oneDNN: dnnl_primitive_desc_query_md has no layout {query}")
    return c_void_p(layout)
