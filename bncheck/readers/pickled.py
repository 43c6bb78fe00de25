"""A pickled object, whichever container it lay in → Checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from bncheck.core.checkpoint import (
    Checkpoint,
    FileFormat,
    Packaging,
    Stage,
    TensorRef,
    TrainingFacts,
)
from bncheck.core.errors import NoModel, UnreadableFile
from bncheck.core.limits import Limits
from bncheck.readers.conventions import steps_key
from bncheck.readers.networks import Network, Path, search
from bncheck.readers.pickle_records import PickledTensor
from bncheck.readers.statements import NamedTensors, layers_of
from bncheck.readers.tensors import ArrayReader


@dataclass(frozen=True, slots=True)
class PickledContainer:
    """What holds the pickle and its tensors' bytes.

    Attributes:
        path: as the user gave it, for the report.
        format: how the bytes are laid out.
        reference: full name and record of a tensor → where its bytes lie; raises ``UnreadableFile`` where the
            container contradicts the record.
        arrays: loads them.
    """

    path: str
    format: FileFormat
    reference: Callable[[str, PickledTensor], TensorRef]
    arrays: ArrayReader


def checkpoint_of(root: object, container: PickledContainer, limits: Limits) -> Checkpoint:
    """Everything a pickled object says of its networks.

    Raises:
        UnreadableFile: the container contradicts the object.
        NoModel: it holds no network.
    """
    return _PickledCheckpoint(container, limits).read(root)


def networks_of(root: object, container: PickledContainer, limits: Limits) -> list[NamedTensors]:
    """The networks in a pickled object, with where their tensors lie; their layers are not read.

    Raises:
        UnreadableFile: the container contradicts the object.
    """
    return _named_tensors(search(root, limits).networks, container)


def _named_tensors(networks: Iterable[Network], container: PickledContainer) -> list[NamedTensors]:
    return [
        NamedTensors(
            network.path,
            {name: _reference(container, network.path, name, tensor) for name, tensor in network.tensors.items()},
            network.opaque,
            network.modules,
            network.versions,
        )
        for network in networks
    ]


def _reference(container: PickledContainer, path: Path, name: str, tensor: PickledTensor) -> TensorRef:
    return container.reference(".".join((*path, name)), tensor)


class _PickledCheckpoint:
    def __init__(self, container: PickledContainer, limits: Limits) -> None:
        self._container = container
        self._limits = limits

    def read(self, root: object) -> Checkpoint:
        found = search(root, self._limits)
        if not found.networks and not found.optimizers:
            raise NoModel(f"holds no model: it is {_describe(root)}")
        keys = frozenset(key for key in root if isinstance(key, str)) if isinstance(root, dict) else frozenset()
        networks = _named_tensors(found.networks, self._container)
        read = layers_of(networks, self._container.arrays, keys)
        training = self._training(found.optimizers, root)
        return Checkpoint(
            path=self._container.path,
            format=self._container.format,
            packaging=_packaging(found.networks, training),
            stage=Stage.RELEASE if training.optimizer is None else Stage.TRAINING,
            layers=read.layers,
            tensors={tensor.name: tensor for network in networks for tensor in network.tensors.values()},
            moments=read.moments,
            networks=read.networks,
            training=training,
            unread=read.unread,
            remarks=read.remarks,
        )

    def _training(self, optimizers: list[tuple[Path, object]], root: object) -> TrainingFacts:
        if not optimizers:
            return TrainingFacts()
        steps = [step for path, state in optimizers for step in self._steps(path, state)]
        if not steps and len(optimizers) == 1 and isinstance(root, dict):
            # Plain SGD counts nothing; some writers do.
            counter = steps_key(frozenset(key for key in root if isinstance(key, str)))
            counted = None if counter is None else root.get(counter)
            steps = [counted] if isinstance(counted, int) and not isinstance(counted, bool) else []
        path = optimizers[0][0]
        return TrainingFacts(".".join(path) or "(top)", max(steps, default=None))

    def _steps(self, path: Path, state: object) -> Iterator[int]:
        """Each parameter's own counter, as torch's optimizers keep it: ``state[i]["step"]``, a number or a tensor."""
        if not isinstance(state, dict):
            return
        entries = list(state.values())[: self._limits.optimizer_steps_read]
        counters: list[TensorRef] = []
        for step in (entry.get("step") for entry in entries if isinstance(entry, dict)):
            if isinstance(step, PickledTensor) and step.shape in ((), (1,)):
                with suppress(UnreadableFile):
                    counters.append(_reference(self._container, path, "step", step))
            elif isinstance(step, int):
                yield step
        self._container.arrays.announce(counters)
        for counter in counters:
            # A step count that cannot be read is one no rule can do without.
            with suppress(UnreadableFile, ValueError, OverflowError):
                yield int(self._container.arrays.load(counter).reshape(-1)[0])


def _packaging(networks: list[Network], training: TrainingFacts) -> Packaging:
    if training.optimizer is not None or not networks or networks[0].path:
        return Packaging.CHECKPOINT
    return Packaging.STATE_DICT if networks[0].modules is None else Packaging.MODULE


def _describe(root: object) -> str:
    match root:
        case PickledTensor():
            return "a single tensor"
        case dict():
            return f"a dict of {len(root)} entries without named tensors"
        case list() | tuple():
            return f"a {type(root).__name__} of {len(root)}"
    return "a value without tensors"
