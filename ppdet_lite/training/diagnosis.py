"""The search for the first value in a training step that is not finite (NaN or infinite)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import paddle
from paddle import Tensor, nn

from ppdet_lite.assembly.batch_tensors import training_arguments
from ppdet_lite.modeling.amp import AmpDtype, autocast_forward, bfloat16_layers
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.modeling.norm import named_weights
from ppdet_lite.optimization.optimizer import clip_gradients


class StepInput(NamedTuple):
    """Everything a training step depends on, except the weights."""

    batches: Sequence[Mapping[str, Any]]  # from the loader; their gradients are averaged
    iteration: int  # number of steps done before
    seeds: Sequence[int]  # seed of the random sampling in each batch


class Diagnosis(NamedTuple):
    """The results of a step that was repeated by `diagnose`."""

    losses: list[dict[str, float]]  # of each batch
    gradient_norms: dict[str, float]  # of each direct sub-layer of the model that has gradients
    first: str | None  # description of the first value that is not finite, in computing order; None: all are finite

    @property
    def is_finite(self) -> bool:
        """Whether all losses and gradients are finite."""
        numbers = [*self.gradient_norms.values(), *(value for losses in self.losses for value in losses.values())]
        return bool(np.isfinite(numbers).all())


def diagnose(model: FasterRCNN, step: StepInput, amp: AmpDtype | None = None) -> Diagnosis:
    """Repeat the forward and backward pass of a training step, without its update, and check the output of every layer.

    The backward pass runs even from a loss that is not finite, to show which parts it reaches. Earlier gradients are
    cleared. amp: see `modeling.amp`; the loss is not scaled.
    """
    model.clear_gradients(set_to_zero=False)
    watch = _Watch(model)
    watch.found += [f"weight {name}" for name, value in named_weights(model).items() if not _is_finite(value)]
    losses = []
    for number, (batch, seed) in enumerate(zip(step.batches, step.seeds, strict=True), 1):
        watch.found += [f"{name} of batch {number}" for name in _bad_inputs(batch)]
        paddle.seed(seed)
        with bfloat16_layers(model, amp):
            with autocast_forward(amp):
                output = model(*training_arguments(batch), iteration=step.iteration)
            losses.append({name: value.item() for name, value in output.losses.items()})
            watch.found += [f"{name} of batch {number}" for name, value in losses[-1].items() if not np.isfinite(value)]
            (sum(output.losses.values()) / len(step.batches)).backward()
    watch.remove_hooks()
    watch.found += [f"gradient of {name}" for name, value in _gradients(model) if not _is_finite(value)]
    norms = {name: clip_gradients(part, None) for name, part in model.named_children() if any(_gradients(part))}
    watch.found += [f"gradient norm of {name}, too large for float32" for name in norms if not np.isfinite(norms[name])]
    return Diagnosis(losses, norms, next(iter(watch.found), None))


class _Watch:
    """Records outputs of a model's layers, and gradients with respect to them, that are not finite."""

    def __init__(self, model: nn.Layer) -> None:
        self.found: list[str] = []  # descriptions of such values, in computing order
        self._hooks = [
            layer.register_forward_post_hook(self._hook(f"{name} ({type(layer).__name__})"))
            for name, layer in model.named_sublayers()
        ]

    def remove_hooks(self) -> None:
        """Stop recording."""
        for hook in self._hooks:
            hook.remove()

    def _hook(self, name: str) -> Any:
        def check_gradient(gradient: Tensor) -> None:
            if not _is_finite(gradient):
                self.found.append(f"gradient at the output of {name}")

        def check_outputs(_layer: nn.Layer, _inputs: Any, outputs: Any) -> None:
            tensors = list(_tensors(outputs))
            if not all(map(_is_finite, tensors)):
                self.found.append(f"output of {name}")
            for tensor in tensors:
                if not tensor.stop_gradient:
                    tensor.register_hook(check_gradient)

        return check_outputs


def _bad_inputs(batch: Mapping[str, Any]) -> Iterator[str]:
    """Yield the images and boxes of a batch that are not finite."""
    for key in ("images", "original_images"):
        for image_id, image in zip(batch["image_ids"], batch.get(key, ())):
            if not np.isfinite(image).all():
                yield f"image {image_id}"
    for image_id, target in zip(batch["image_ids"], batch["targets"]):
        if not np.isfinite(target["boxes"]).all():
            yield f"box of image {image_id}"


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in nested outputs."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        yield from (tensor for item in value.values() for tensor in _tensors(item))
    elif isinstance(value, list | tuple):
        yield from (tensor for item in value for tensor in _tensors(item))


def _gradients(model: nn.Layer) -> Iterator[tuple[str, Tensor]]:
    return ((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)


def _is_finite(value: Tensor) -> bool:
    return bool(paddle.isfinite(value).all().item())
