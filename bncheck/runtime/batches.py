"""The user's data: any iterable of batches, or a file of inputs, as (inputs, labels) on a device."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bncheck.core.errors import BadData, BncheckError, Interrupted
from bncheck.runtime.out_of_memory import is_out_of_memory, telling_out_of_memory
from bncheck.runtime.user_code import FAILURES, call, failure, load_callable

_ARRAY_FILES = (".pt", ".npz", ".npy", ".safetensors")


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs of one forward pass.

    Attributes:
        inputs: what the model is called with: positional arguments, or one mapping of keywords.
        labels: class indices of shape (N,), where the data gives any.
        size: N.
    """

    inputs: tuple[object, ...] | Mapping[str, object]
    labels: Tensor | None
    size: int


_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class DataOptions:
    """How to take batches apart.

    Attributes:
        samples: stop after so many samples.
        batch_size: for files of inputs, which have no batches.
        input_key, label_key: keys of mappings; None takes the usual ones.
        device: where inputs go.
        dtype: floating inputs are cast to it.
    """

    samples: int = 2048
    batch_size: int = 64
    input_key: str | None = None
    label_key: str | None = None
    device: torch.device = _CPU
    dtype: torch.dtype = torch.float32


def open_data(spec: str, batch_size: int) -> Iterable[object]:
    """The iterable a data SPEC names: what a callable returns, or batches of a file of inputs.

    Raises:
        BadSpec, BadData, UserCodeFailed: there is none.
    """
    if spec.endswith(_ARRAY_FILES):
        inputs = _read_inputs(spec)
        return [inputs[start : start + batch_size] for start in range(0, len(inputs), batch_size)]
    made = call(f"{spec}()", load_callable(spec))
    if not isinstance(made, Iterable):
        raise BadData(f"{spec} returned a {type(made).__name__}; an iterable of batches is expected")
    return made


def batches(data: Iterable[object], options: DataOptions) -> Iterator[Batch]:
    """Take so many samples from the data, batch by batch; the last one is cut to the budget.

    Raises:
        BadData: it is empty, or a batch is none.
        UserCodeFailed: iterating it raised.
        OutOfMemory: a batch does not fit on the device.
    """
    left = options.samples
    for index, item in enumerate(_iterate(data)):
        with telling_out_of_memory(f"batch {index} of the data on {options.device}"):
            batch = _split(item, index, options)
        if batch.size > left:
            batch = _cut(batch, left)
        left -= batch.size
        yield batch
        if left <= 0:
            return
    if left == options.samples:
        raise BadData("the data is empty: it yields no batch")


def _iterate(data: Iterable[object]) -> Iterator[object]:
    try:
        yield from data
    except (BncheckError, Interrupted):
        raise
    except FAILURES as error:
        raise failure("reading the data", error) from error


# Keys under which data sets and tokenisers keep inputs and labels.
_INPUT_KEYS = ("pixel_values", "input", "inputs", "image", "images", "img", "x", "data")
_LABEL_KEYS = ("label", "labels", "target", "targets", "y", "class")


def _split(item: object, index: int, options: DataOptions) -> Batch:
    """Inputs and labels of whatever a loader yields: a tensor, (inputs, labels), or a mapping of names."""
    labels: object = None
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        item = {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    inputs: object = item
    if isinstance(item, Mapping):
        inputs, labels = _from_mapping(item, index, options)
    elif isinstance(item, Sequence) and not isinstance(item, (str, bytes)):
        if not item:
            raise BadData(f"batch {index} is an empty {type(item).__name__}")
        inputs, labels = item[0], item[1] if len(item) > 1 else None
    moved = _moved(inputs, options)
    size = _size(moved)
    if size is None or size == 0:
        raise BadData(f"batch {index} holds no tensor of samples: it is a {type(inputs).__name__}")
    if not _finite(moved):
        raise BadData(f"batch {index} holds values that are not finite (NaN or infinite)")
    arguments = moved if isinstance(moved, Mapping) else (moved,)
    return Batch(arguments, _labels(labels, size, options), size)


def _from_mapping(item: Mapping[object, object], index: int, options: DataOptions) -> tuple[object, object]:
    label_key = options.label_key or next((key for key in _LABEL_KEYS if key in item), None)
    if options.label_key is not None and options.label_key not in item:
        raise BadData(f"batch {index} has no {options.label_key!r}; it has {_listed(item)}")
    labels = item[label_key] if label_key is not None else None
    key = options.input_key or next((key for key in _INPUT_KEYS if key in item), None)
    if key is None:
        rest = {name: value for name, value in item.items() if name != label_key and isinstance(value, Tensor)}
        return rest, labels
    if key not in item:
        raise BadData(f"batch {index} has no {key!r}; it has {_listed(item)}")
    return item[key], labels


def _listed(item: Mapping[object, object]) -> str:
    return ", ".join(repr(key) for key in list(item)[:8])


def _moved(value: object, options: DataOptions) -> object:
    match value:
        case Tensor():
            dtype = options.dtype if value.is_floating_point() else value.dtype
            return value.to(device=options.device, dtype=dtype, non_blocking=True)
        case np.ndarray():
            return _moved(_tensor_of(value), options)
        case Mapping():
            return {str(key): _moved(item, options) for key, item in value.items()}
        case list() | tuple():
            return type(value)(_moved(item, options) for item in value) if type(value) in (list, tuple) else value
    return value


def _tensor_of(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Tensor:
    if array.dtype.hasobject:
        raise BadData("the data holds Python objects instead of numbers")
    return torch.from_numpy(np.ascontiguousarray(array))


def _size(value: object) -> int | None:
    """Samples along the first dimension of the first tensor."""
    match value:
        case Tensor():
            return len(value) if value.ndim else None
        case Mapping():
            return next((size for item in value.values() if (size := _size(item)) is not None), None)
        case list() | tuple():
            return next((size for item in value if (size := _size(item)) is not None), None)
    return None


def _finite(value: object) -> bool:
    match value:
        case Tensor():
            return not value.is_floating_point() or bool(torch.isfinite(value).all())
        case Mapping():
            return all(_finite(item) for item in value.values())
        case list() | tuple():
            return all(_finite(item) for item in value)
    return True


def _labels(value: object, size: int, options: DataOptions) -> Tensor | None:
    if isinstance(value, np.ndarray):
        value = _tensor_of(value)
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, int) for item in value):
        value = torch.tensor(value)
    if not isinstance(value, Tensor) or value.shape != (size,) or value.is_floating_point():
        return None
    return value.to(device=options.device, dtype=torch.int64)


def _cut(batch: Batch, size: int) -> Batch:
    return _picked(batch, size, lambda tensor: tensor[:size])


def select(batch: Batch, indices: Sequence[int]) -> Batch:
    """The batch of some of its samples, in the order given; a sample may come several times."""
    index = torch.tensor(list(indices))
    return _picked(batch, len(index), lambda tensor: tensor[index.to(tensor.device)])


def _picked(batch: Batch, size: int, pick: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with ``pick`` applied to every tensor that has one entry for each of its samples."""

    def picked(value: object) -> object:
        match value:
            case Tensor() if value.ndim and len(value) == batch.size:
                return pick(value)
            case Mapping():
                return {key: picked(item) for key, item in value.items()}
            case list() | tuple() if type(value) in (list, tuple):
                return type(value)(picked(item) for item in value)
        return value

    inputs = picked(batch.inputs)
    if not isinstance(inputs, (tuple, Mapping)):
        raise TypeError("a batch's inputs stay a tuple or a mapping")
    return Batch(inputs, None if batch.labels is None else pick(batch.labels), size)


def _read_inputs(path: str) -> Tensor:
    """The only tensor of a file of inputs, of shape (N, …)."""
    if not os.path.isfile(path):
        raise BadData(f"{path}: there is no such file")
    try:
        found = _load(path)
    except BncheckError:
        raise
    except Exception as error:
        # Each library has its own ways to refuse a file, unpickling errors among them.
        raise BadData(f"{path} cannot be read as a file of inputs: {str(error).partition(chr(10))[0]}") from None
    if not isinstance(found, Tensor) or not found.ndim or not len(found):
        raise BadData(f"{path} holds no tensor of samples")
    return found


def _load(path: str) -> object:
    if path.endswith((".npy", ".npz")):
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return _tensor_of(loaded)
        return _only({name: _tensor_of(loaded[name]) for name in loaded.files}, path)
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file  # noqa: PLC0415 - an optional package, wanted for such files alone

        return _only(load_file(path), path)
    loaded = torch.load(path, weights_only=True, map_location="cpu")
    return _only(loaded, path) if isinstance(loaded, dict) else loaded


def _only(found: Mapping[str, Tensor], path: str) -> Tensor:
    named = next((name for name in _INPUT_KEYS if name in found), None)
    if named is None and len(found) != 1:
        raise BadData(f"{path} holds {len(found)} arrays; call the inputs one of {', '.join(_INPUT_KEYS)}")
    return found[named or next(iter(found))]


Forward = Callable[[torch.nn.Module, Batch], object]
"""Calls a model on a batch; raises ``UserCodeFailed`` where the model does."""


def forward(model: torch.nn.Module, batch: Batch) -> object:
    """Call the model with a batch's inputs.

    Raises:
        UserCodeFailed: the model raised.
        OutOfMemory: the batch is too large for it.
    """
    with telling_out_of_memory(f"a batch of {batch.size} samples"):
        try:
            return model(**batch.inputs) if isinstance(batch.inputs, Mapping) else model(*batch.inputs)
        except FAILURES as error:
            if is_out_of_memory(error) or isinstance(error, Interrupted):
                raise
            raise failure("the model, called with a batch of the data,", error) from error


def forward_by(name: str, function: Callable[..., object]) -> Forward:
    """What calls the user's own way to predict.

    Args:
        name: what to call it in messages.
        function: takes the model and a batch's inputs.
    """

    def predict(model: torch.nn.Module, batch: Batch) -> object:
        inputs = batch.inputs if isinstance(batch.inputs, Mapping) else batch.inputs[0]
        with telling_out_of_memory(f"a batch of {batch.size} samples"):
            try:
                return function(model, inputs)
            except FAILURES as error:
                if is_out_of_memory(error) or isinstance(error, Interrupted):
                    raise
                raise failure(name, error) from error

    return predict


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """A batch of two samples or more in two parts."""
    middle = batch.size // 2
    return (
        _picked(batch, middle, lambda tensor: tensor[:middle]),
        _picked(batch, batch.size - middle, lambda tensor: tensor[middle:]),
    )
