"""What pickles name that hold a wrapped network: ``torch.compile``, data parallelism, sharded tensors.

Each row was seen in a file that torch 2.13 wrote; a class is listed by its full name, and none runs anything while it
is filled but what its own source says: https://github.com/pytorch/pytorch/tree/v2.13.0/torch
"""

from __future__ import annotations

from collections.abc import Mapping

from bncheck.core.errors import UnsafeFile
from bncheck.readers.pickle_machine import Call
from bncheck.readers.pickle_records import GlobalRef, Inert

_FSDP = "torch.distributed.fsdp._flat_param"
_SPEC = "torch.distributed.tensor._dtensor_spec"
_PLACEMENTS = "torch.distributed.tensor.placement_types"
_WRAPPERS = "torch.distributed.algorithms._checkpoint.checkpoint_wrapper"
_SHARDED = "torch.distributed._shard"
_DYNAMO = "torch._dynamo"

# Classes whose empty instances are filled with state.
WRAPPER_CLASSES: frozenset[str] = frozenset(
    {
        # Activation checkpointing, wherever a layer is wrapped.
        f"{_WRAPPERS}.CheckpointWrapper",
        f"{_WRAPPERS}.OffloadWrapper",
        # A compiled module's compiler. It waits to be called, as the module's own class does.
        "torch._TorchCompileInductorWrapper",
        "torch._TorchCompileWrapper",
        f"{_DYNAMO}.convert_frame.CatchErrorsWrapper",
        f"{_DYNAMO}.convert_frame.ConvertFrame",
        f"{_DYNAMO}.convert_frame.ConvertFrameAssert",
        f"{_DYNAMO}.convert_frame.ConvertFrameBox",
        f"{_DYNAMO}.hooks.Hooks",
        f"{_DYNAMO}.repro.after_dynamo.WrapBackendDebug",
        # Where one process's part of a DTensor or ShardedTensor belongs.
        "torch.distributed.device_mesh.DeviceMesh",
        "torch.distributed._mesh_layout._FlatLayout",
        "torch.distributed._mesh_layout._MeshLayout",
        "torch.distributed.remote_device._remote_device",
        f"{_SPEC}.DTensorSpec",
        f"{_PLACEMENTS}.Replicate",
        f"{_PLACEMENTS}.Shard",
        f"{_SHARDED}.metadata.ShardMetadata",
        f"{_SHARDED}.sharded_tensor.api.ShardedTensor.ProcessGroupState",
        f"{_SHARDED}.sharded_tensor.metadata.ShardedTensorMetadata",
        f"{_SHARDED}.sharded_tensor.metadata.TensorProperties",
        f"{_SHARDED}.sharded_tensor.shard.Shard",
        f"{_SHARDED}.sharding_spec.api.EnumerableShardingSpec",
        f"{_SHARDED}.sharding_spec.chunk_sharding_spec.ChunkShardingSpec",
    }
)

# Named tuples and enumerations: their constructors take values and keep them, or look one up.
_VALUES = (
    f"{_WRAPPERS}.CheckpointImpl",
    f"{_SHARDED}.sharded_tensor.metadata.MEM_FORMAT_ENCODING",
    "torch.distributed.algorithms.join._JoinConfig",
    f"{_FSDP}.ParamInfo",
    f"{_FSDP}._ShardParamInfo",
    f"{_SPEC}.ShardOrderEntry",
    f"{_SPEC}.TensorMeta",
)

_COMPILED = GlobalRef(f"{_DYNAMO}.eval_frame", "OptimizedModule")
_CONTEXT = GlobalRef(f"{_DYNAMO}.eval_frame", "OptimizeContext")
_CONTEXT_STATE = frozenset({"export", "dynamic", "compiler_config"})


def wrapper_calls() -> Mapping[str, Call]:
    """``module.name`` → record maker."""
    return {
        **{path: _record(path) for path in _VALUES},
        _COMPILED.path: _compiled_module,
        _CONTEXT.path: _compile_context,
    }


def check_wrapper_state(maker: GlobalRef, state: object) -> None:
    """Refuse state that would steer what a compile context does when a compiled module is made with it.

    Raises:
        UnsafeFile: it would.
    """
    if maker == _CONTEXT and not (isinstance(state, dict) and state.keys() <= _CONTEXT_STATE):
        raise UnsafeFile(f"it changes how {_CONTEXT.path} works; do not load this file")


def _record(path: str) -> Call:
    module, _, name = path.rpartition(".")
    maker = GlobalRef(module, name)
    return lambda args: Inert(maker, args)


def _compiled_module(args: tuple[object, ...]) -> Inert:
    """``OptimizedModule(module, context)``, as its ``__reduce__`` has it; it calls the context on the module.

    https://github.com/pytorch/pytorch/blob/v2.13.0/torch/_dynamo/eval_frame.py#L569
    """
    match args:
        case (Inert() as module, Inert(maker=maker)) if maker == _CONTEXT:
            state: dict[object, object] = {"_parameters": {}, "_buffers": {}, "_modules": {"_orig_mod": module}}
            return Inert(_COMPILED, state=state)
    raise UnsafeFile(f"loading it would have {_COMPILED.path} call something unknown; do not load this file")


def _compile_context(args: tuple[object, ...]) -> Inert:
    """``OptimizeContext(callback, nullcontext, first)``: keeps the compiler for the first call of the module."""
    match args:
        case (Inert(maker=maker), GlobalRef(module="contextlib", name="nullcontext"), bool()):
            if maker.path in WRAPPER_CLASSES:
                return Inert(_CONTEXT, args)
    raise UnsafeFile(f"loading it would hand {_CONTEXT.path} something unknown to call; do not load this file")
