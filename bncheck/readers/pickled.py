"""A pickled object, whichever container it lay in → Checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from bncheck.core.checkpoint import (
    Checkpoint,
    FileFormat,
    Packaging,
    Stage,
    TensorRef,
    TrainingFacts,
    Unread,
)
from bncheck.core.errors import NoModel, UnreadableFile
from bncheck.core.layers import NormLayer
from bncheck.core.limits import Limits
from bncheck.readers.assemble import Statement, assemble, group_of, wrapper_prefix
from bncheck.readers.networks import Network, Path, search
from bncheck.readers.pickle_records import PickledTensor
from bncheck.readers.tensors import ArrayReader

_T = TypeVar("_T")


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


class _PickledCheckpoint:
    def __init__(self, container: PickledContainer, limits: Limits) -> None:
        self._container = container
        self._limits = limits

    def read(self, root: object) -> Checkpoint:
        found = search(root, self._limits)
        if not found.networks and not found.optimizers:
            raise NoModel(f"holds no model: it is {_describe(root)}")
        layers: list[NormLayer] = []
        unread: list[Unread] = []
        tensors: dict[str, TensorRef] = {}
        groups: set[str] = set()
        for network in found.networks:
            references = {name: self._reference(network.path, name, tensor) for name, tensor in network.tensors.items()}
            tensors.update((reference.name, reference) for reference in references.values())
            statement = _statement(network, references, groups)
            assembled = assemble(statement, self._container.arrays.load)
            if assembled.layers:
                groups.add(statement.group)
            layers.extend(assembled.layers)
            unread.extend(assembled.unread)
        training = self._training(found.optimizers)
        return Checkpoint(
            path=self._container.path,
            format=self._container.format,
            packaging=_packaging(found.networks, training),
            stage=Stage.RELEASE if training.optimizer is None else Stage.TRAINING,
            layers=tuple(layers),
            tensors=tensors,
            training=training,
            unread=tuple(unread),
        )

    def _reference(self, path: Path, name: str, tensor: PickledTensor) -> TensorRef:
        return self._container.reference(".".join((*path, name)), tensor)

    def _training(self, optimizers: list[tuple[Path, object]]) -> TrainingFacts:
        if not optimizers:
            return TrainingFacts()
        steps = [step for path, state in optimizers for step in self._steps(path, state)]
        path = optimizers[0][0]
        return TrainingFacts(".".join(path) or "(top)", max(steps, default=None))

    def _steps(self, path: Path, state: object) -> Iterator[int]:
        """Each parameter's own counter, as torch's optimizers keep it: ``state[i]["step"]``, a number or a tensor."""
        if not isinstance(state, dict):
            return
        for entry in list(state.values())[: self._limits.optimizer_steps_read]:
            step = entry.get("step") if isinstance(entry, dict) else None
            if isinstance(step, PickledTensor) and step.shape in ((), (1,)):
                try:
                    yield int(self._container.arrays.load(self._reference(path, "step", step)).reshape(-1)[0])
                except (UnreadableFile, ValueError, OverflowError):
                    continue  # a step count no rule can do without
            elif isinstance(step, int):
                yield step


def _statement(network: Network, references: dict[str, TensorRef], groups: set[str]) -> Statement:
    group = group_of(network.path)
    if group in groups:
        group = ".".join(network.path) or "model"
    prefix = wrapper_prefix([*references, *network.opaque])
    return Statement(
        group,
        _without(prefix, references),
        _without(prefix, network.opaque),
        None if network.modules is None else _without(prefix, network.modules),
        None if network.versions is None else _without(prefix, network.versions),
    )


def _without(prefix: str, named: Mapping[str, _T]) -> dict[str, _T]:
    """Names as they are below a wrapper called ``module``; the wrapper itself goes."""
    if not prefix:
        return dict(named)
    wrapper = prefix.removesuffix(".")
    return {
        "" if name == wrapper else name.removeprefix(prefix): value
        for name, value in named.items()
        if name == wrapper or name.startswith(prefix)
    }


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
