"""TorchScript archives, scripted and traced: attributes from the pickle, the use of each layer from the code text.

Layout: https://github.com/pytorch/pytorch/blob/v2.13.0/torch/csrc/jit/docs/serialization.md
How PyTorch itself puts pickle and code together:
https://github.com/pytorch/pytorch/blob/v2.13.0/torch/csrc/jit/serialization/import.cpp
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from bncheck.core.checkpoint import (
    Checkpoint,
    FileFormat,
    Packaging,
    Stage,
    StoredMoments,
    Unread,
    Unwritable,
)
from bncheck.core.errors import NoModel, UnreadableFile, UnsafeFile
from bncheck.core.limits import Limits
from bncheck.core.module_facts import ModuleFacts
from bncheck.readers.assemble import GraphCall, Statement, assemble
from bncheck.readers.pickle_calls import torchscript_trust
from bncheck.readers.pickle_records import GlobalRef, Inert, PickledTensor
from bncheck.readers.torch_archive import TorchArchive
from bncheck.readers.torchscript_calls import Followed, Mode, NormCall, ScriptModule, follow
from bncheck.readers.torchscript_code import ClassCode, CodeFile, Expression, Function, Index, Name, dotted, parse_code
from bncheck.readers.torchscript_operators import mentions_norm
from bncheck.readers.torchscript_values import (
    NONE,
    UNKNOWN,
    Constant,
    ForeignObject,
    ModeFlag,
    Modules,
    PlainObject,
    TensorAt,
    Unknown,
    Value,
)
from bncheck.readers.zip_directory import ZipDirectory

_MEAN, _VARIANCE = "running_mean", "running_var"
_CONSTANTS = "CONSTANTS."
_CONSTANT = re.compile(r"\bCONSTANTS\.c\d+")
_Tensor = TypeVar("_Tensor")


def read_torchscript(archive: ZipDirectory, prefix: str, path: str, limits: Limits) -> Checkpoint:
    """Read a file written by ``torch.jit.save``.

    Args:
        archive: the file.
        prefix: the archive's folder, with its slash.
        path: as the user gave it, for the report.
        limits: bounds.

    Raises:
        UnreadableFile: the file is damaged, its code is no TorchScript, or code and data disagree.
        UnsafeFile: its pickles name what TorchScript has not.
        NoModel: it holds no module.
    """
    if any(name.lower() == f"{prefix}model.json".lower() for name in archive.members):
        raise UnsafeFile("it holds a second model, in model.json, which PyTorch would load instead of this one")
    contents = TorchArchive(archive, prefix, limits)
    code = _Code(archive, f"{prefix}code/", limits)
    tree = _Tree(_unpickled(contents, "data.pkl", limits), code, limits)
    table = _Constants(_unpickled(contents, "constants.pkl", limits), code)
    followed = follow(tree.modules, table.values, code, limits)
    layers = _Layers(tree, code, followed)
    data, fixed = contents.reference_in("data"), contents.reference_in("constants")
    tensors = {name: data(name, tensor) for name, tensor in tree.tensors.items()}
    if not tree.names.isdisjoint(table.tensors):
        raise UnreadableFile("a module of it is called as the table of constants is")
    tensors.update((name, fixed(name, tensor)) for name, tensor in table.tensors.items())
    opaque = {**tree.opaque, **table.opaque}
    statement = Statement(
        "model",
        {**tensors, **_renamed(layers.aliases, tensors)},
        {**opaque, **_renamed(layers.aliases, opaque)},
        layers.facts,
        calls=layers.calls,
    )
    assembled = assemble(statement, contents.arrays)
    return Checkpoint(
        path=path,
        format=FileFormat.TORCHSCRIPT,
        packaging=Packaging.TORCHSCRIPT,
        stage=Stage.RELEASE,
        layers=assembled.layers,
        tensors=tensors,
        moments={name: _of_one_use(moments, code) for name, moments in assembled.moments.items()},
        unread=(*assembled.unread, *layers.unread),
        remarks=archive.remarks(),
    )


def _of_one_use(moments: StoredMoments | Unwritable, code: _Code) -> StoredMoments | Unwritable:
    """Moments that code alone names are written only where nothing else uses them.

    The writer of an archive makes one of all constants that are equal, so that a variance may be another layer's, too,
    or its scale: ``PythonPrintImpl::getOrAddConstant`` in
    https://github.com/pytorch/pytorch/blob/v2.13.0/torch/csrc/jit/serialization/python_print.cpp
    """
    if isinstance(moments, Unwritable):
        return moments
    for leaf, tensor in moments.tensors.items():
        if tensor.name.startswith(_CONSTANTS):
            try:
                uses = code.uses_of(tensor.name)
            except UnreadableFile as error:
                return Unwritable(f"its code cannot be searched for other uses of the {leaf}: {error}")
            if uses > 1:
                return Unwritable(
                    f"the {leaf} is a constant that its code uses in {uses} places, as after torch.jit.freeze; write"
                    " to the model it was made from, and freeze that again"
                )
    return moments


def _renamed(aliases: Mapping[str, str], tensors: Mapping[str, _Tensor]) -> dict[str, _Tensor]:
    return {alias: tensors[name] for alias, name in aliases.items() if name in tensors}


def _unpickled(contents: TorchArchive, name: str, limits: Limits) -> object:
    trust = torchscript_trust(limits)
    states = _States(trust.check_state)
    root = contents.unpickle(name, replace(trust, check_state=states.note))
    states.check_unchanged()
    return root


class _States:
    """What objects were made of. PyTorch copies an object's state; no pickler changes or shares it afterwards."""

    def __init__(self, check: Callable[[GlobalRef, object], None]) -> None:
        self._check = check
        self._seen: dict[int, tuple[dict[object, object], tuple[object, ...]]] = {}

    def note(self, maker: GlobalRef, state: object) -> None:
        """Remember the state that an object is being given."""
        self._check(maker, state)
        if isinstance(state, dict):
            if id(state) in self._seen:
                raise UnsafeFile("two of its objects share their state, which PyTorch never writes")
            self._seen[id(state)] = (state, tuple(state.values()))

    def check_unchanged(self) -> None:
        """Refuse a file that went on changing it.

        Raises:
            UnsafeFile: it did.
        """
        for state, values in self._seen.values():
            if len(state) != len(values) or any(map(operator.is_not, state.values(), values)):
                raise UnsafeFile("it changes the state of an object after making it, which PyTorch would not notice")


class _Code:
    """The archive's code, each file parsed when it is first asked for."""

    def __init__(self, archive: ZipDirectory, folder: str, limits: Limits) -> None:
        self._archive = archive
        self._folder = folder
        self._limits = limits
        self._left = limits.code_bytes
        self._files: dict[str, CodeFile | None] = {}
        self._mentions_norms = False
        self._constants: Counter[str] = Counter()

    def class_at(self, path: str) -> ClassCode | None:
        """A class by its qualified name; None where the archive has none."""
        module, _, name = path.rpartition(".")
        file = self._file(module)
        return None if file is None else file.classes.get(name)

    def function_at(self, path: str) -> Function | None:
        """A function by its qualified name; None where the archive has none."""
        module, _, name = path.rpartition(".")
        file = self._file(module)
        return None if file is None else file.functions.get(name)

    def classes(self) -> Iterable[tuple[str, ClassCode]]:
        """Every class by its qualified name."""
        for module in self._modules():
            file = self._file(module)
            if file is not None:
                yield from ((f"{module}.{name}", code) for name, code in file.classes.items())

    @property
    def mentions_norms(self) -> bool:
        """Whether any of the code may call an operator that normalises over a batch."""
        for module in self._modules():
            self._file(module)
        return self._mentions_norms

    def uses_of(self, constant: str) -> int:
        """In how many places all of the code names a constant.

        Raises:
            UnreadableFile: some of it cannot be read.
        """
        for module in self._modules():
            self._file(module)
        return self._constants[constant]

    def _modules(self) -> Iterator[str]:
        for name in self._archive.members:
            if name.startswith(self._folder) and name.endswith(".py"):
                yield name.removeprefix(self._folder).removesuffix(".py").replace("/", ".")

    def _file(self, module: str) -> CodeFile | None:
        if module not in self._files:
            self._files[module] = self._parse(f"{self._folder}{module.replace('.', '/')}.py")
        return self._files[module]

    def _parse(self, name: str) -> CodeFile | None:
        member = self._archive.members.get(name)
        if member is None:
            return None
        self._left -= member.size
        if self._left < 0:
            raise UnreadableFile(f"its code has more than {self._limits.code_bytes} bytes")
        try:
            text = self._archive.read(name).decode()
            self._mentions_norms = self._mentions_norms or mentions_norm(text)
            self._constants.update(_CONSTANT.findall(text))
            return parse_code(text, self._limits.code_nesting)
        except UnicodeDecodeError:
            raise UnreadableFile(f"{name} is not UTF-8") from None
        except UnreadableFile as error:
            raise UnreadableFile(f"{name}, {error}") from None


class _Tree:
    """The modules of the archive by path, each once, under the name that ``named_modules()`` gives it.

    As PyTorch does, it takes of the pickle what the class declares, and nothing else.

    Attributes:
        modules: by path.
        tensors: by dotted name; those of the attributes of modules.
        opaque: likewise, tensors whose numbers cannot be read: name → what would rebuild them.
        training: each module's flag in the file; None where it has none.
    """

    def __init__(self, root: object, code: _Code, limits: Limits) -> None:
        self._code = code
        self._limits = limits
        self.modules: dict[str, ScriptModule] = {}
        self.tensors: dict[str, PickledTensor] = {}
        self.opaque: dict[str, str] = {}
        self.training: dict[str, bool | None] = {}
        self.names: set[str] = set()
        if not (isinstance(root, Inert) and self._is_module(root)):
            raise NoModel("holds no model: its root is no module")
        self._paths = self._walk(root)
        for module, path in self._paths.items():
            self._describe(module, path)

    def _is_module(self, value: Inert) -> bool:
        """Whether an object is one of the archive's modules; other script classes are no layers."""
        if value.maker.module.partition(".")[0] != "__torch__" or _is_foreign(value):
            return False
        code = self._class(value)
        return code.base == "Module" and (isinstance(value.state, dict) or _makes_own_state(code))

    def _class(self, value: Inert) -> ClassCode:
        code = self._code.class_at(value.maker.path)
        if code is None:
            raise UnreadableFile(f"the code of its class {value.maker.path[:200]} is not in the archive")
        return code

    def _walk(self, root: Inert) -> dict[Inert, str]:
        limits = self._limits
        paths: dict[Inert, str] = {}
        characters = 0
        waiting: list[tuple[str, int, Inert]] = [("", 0, root)]
        while waiting:
            path, depth, module = waiting.pop()
            if module in paths:
                continue
            paths[module] = path
            characters += len(path)
            if (
                depth > limits.nesting
                or len(path) > limits.name_length
                or characters > limits.name_characters
                or len(paths) > limits.containers
            ):
                raise UnreadableFile("its modules are nested deeper, have longer names or are more than any network's")
            children = [
                (_join(path, name), depth + 1, value)
                for name, _, value in self._attributes(module)
                if isinstance(value, Inert) and value not in paths and self._is_module(value)
            ]
            characters += sum(len(name) for name, _, _ in children)
            waiting += reversed(children)
        return paths

    def _attributes(self, module: Inert) -> Iterator[tuple[str, Expression, object]]:
        """Name, declared type and value; nothing where the class has code that sets them as it likes."""
        code, state = self._class(module), module.attributes
        if not _makes_own_state(code):
            yield from ((name, kind, state[name]) for name, kind in code.attributes.items() if name in state)

    def _describe(self, module: Inert, path: str) -> None:
        code = self._class(module)
        attributes = {name: self._value(path, name, kind, value) for name, kind, value in self._attributes(module)}
        if _makes_own_state(code) and "training" in code.attributes:
            attributes["training"] = ModeFlag(None)
        flag = attributes.get("training")
        self.modules[path] = ScriptModule(module.maker.path, attributes)
        self.training[path] = flag.saved if isinstance(flag, ModeFlag) else None

    def _value(self, path: str, name: str, kind: Expression, value: object) -> Value:
        match value:
            case PickledTensor():
                self._claim(path, name)
                self.tensors[_join(path, name)] = value
                return TensorAt(_join(path, name), path, name, may_be_none=not _is_tensor_type(kind))
            case Inert() if value in self._paths:
                self._claim(path, name)
                self._check_class(_join(path, name), kind, value.maker.path)
                return Modules((self._paths[value],))
            case Inert(maker=maker) if maker.module == "torch._utils":
                self._claim(path, name)
                self.opaque[_join(path, name)] = maker.path
                return TensorAt(_join(path, name), path, name, may_be_none=not _is_tensor_type(kind))
            case bool() if name == "training" and _fits(kind, value):
                return ModeFlag(value)
            case bool() | int() | float() | str() | None if _fits(kind, value):
                return Constant(value)
        return _object(value, self._code)

    def _claim(self, path: str, name: str) -> None:
        """Names of modules and tensors hold no dots in PyTorch, so that no two have one path."""
        if not name or "." in name:
            raise UnreadableFile(f"an attribute of it is called {name[:80]!r}")
        self.names.add(_join(path, name))
        if len(self.tensors) + len(self.opaque) > self._limits.tensors:
            raise UnreadableFile("it has more named tensors than any model")

    def _check_class(self, name: str, kind: Expression, path: str) -> None:
        """PyTorch calls the methods of the declared class, whatever class the object has.

        It never declares a module optional: train() and eval() would pass such a one by.
        """
        declared = dotted(kind) or ""
        code = self._code.class_at(declared)
        if declared != path and (code is None or code.base != "ModuleInterface"):
            raise UnreadableFile(f"{name[:80]!r} is of one class in its data and of another in its code")


class _Constants:
    """The table that code names ``CONSTANTS.c0`` and so on.

    Attributes:
        values: by position.
        tensors, opaque: those that are tensors, by name.
    """

    def __init__(self, pickled: object, code: _Code) -> None:
        if not isinstance(pickled, tuple):
            raise UnreadableFile("its constants.pkl holds no tuple")
        self.tensors: dict[str, PickledTensor] = {}
        self.opaque: dict[str, str] = {}
        self.values = tuple(self._value(f"c{index}", entry, code) for index, entry in enumerate(pickled))

    def _value(self, name: str, entry: object, code: _Code) -> Value:
        full_name = f"{_CONSTANTS}{name}"
        match entry:
            case PickledTensor():
                self.tensors[full_name] = entry
                return TensorAt(full_name, None, name)
            case Inert(maker=maker) if maker.module == "torch._utils":
                self.opaque[full_name] = maker.path
                return TensorAt(full_name, None, name)
            case bool() | int() | float() | str() | None:
                return Constant(entry)
        return _object(entry, code)


def _object(value: object, code: _Code) -> Value:
    """What is known of a value that is neither tensor nor scalar, nor one of the modules that were walked."""
    match value:
        case Inert() if _is_foreign(value):
            return ForeignObject()
        case Inert(maker=maker) if maker.module.partition(".")[0] == "__torch__":
            described = code.class_at(maker.path)
            if described is None or described.base == "Module":
                return Unknown(may_run_code=True)
            return PlainObject(maker.path) if described.base is None else UNKNOWN
    return UNKNOWN


def _is_foreign(value: Inert) -> bool:
    """Whether an object's class is written in C++; PyTorch takes no code of the archive for such."""
    return f"{value.maker.module}.".startswith("__torch__.torch.classes.")


def _makes_own_state(code: ClassCode) -> bool:
    """Whether loading runs code of the class, which may set any attribute to anything."""
    return "__getstate__" in code.methods or "__setstate__" in code.methods


def _unwrapped(kind: Expression) -> Expression:
    """``T`` of ``Optional[T]``."""
    match kind:
        case Index(value=Name(name="Optional"), key=inner):
            return inner
    return kind


def _is_tensor_type(kind: Expression) -> bool:
    return isinstance(kind, Name) and kind.name == "Tensor"


def _fits(kind: Expression, value: bool | int | float | str | None) -> bool:
    """Whether a value is what its declaration says; PyTorch does not check, and would take its bits for the type."""
    inner = _unwrapped(kind)
    if value is None:
        return inner is not kind or inner == Name("NoneType")
    return isinstance(inner, Name) and inner.name == type(value).__name__


@dataclass(slots=True)
class _Use:
    """All calls of one layer, by mode; the order is that of the first among all calls."""

    order: int
    calls: dict[Mode, list[NormCall]] = field(default_factory=lambda: {mode: [] for mode in Mode})

    def every(self) -> list[NormCall]:
        """The calls of all modes, those of training first: only there does momentum matter."""
        return [call for mode in (Mode.TRAINING, Mode.SAVED, Mode.EVAL) for call in self.calls[mode]]


class _Layers:
    """What the calls say of each layer, beside what its module says.

    Attributes:
        facts: every module by path, and layers without a module of their own under a made-up name.
        calls: how each layer is called.
        aliases: ``layer.running_mean`` … → the tensor that is passed, where its own name is another.
        unread: what of the calls could not be told.
    """

    def __init__(self, tree: _Tree, code: _Code, followed: Followed) -> None:
        self._tree = tree
        self._code = code
        self.unread: list[Unread] = []
        self.aliases: dict[str, str] = {}
        self.calls: dict[str, GraphCall] = {}
        self.facts: dict[str, ModuleFacts] = {
            path: ModuleFacts(_demangled(module.class_path), self._attributes(path), self._leaves(path))
            for path, module in tree.modules.items()
        }
        # Where nothing can normalise there is nothing to lose sight of.
        if followed.lost and (code.mentions_norms or any(_MEAN in facts.tensors for facts in self.facts.values())):
            self.unread += [Unread("code", reason) for reason in followed.lost]
        self._made_up: dict[object, str] = {}
        self._taken = set(tree.modules)
        uses: dict[str, _Use] = {}
        for mode in Mode:
            with_moments = {_module_of_moments(call) for call in followed.calls[mode]}
            for call in followed.calls[mode]:
                name = self._name(call, with_moments)
                uses.setdefault(name, _Use(len(uses))).calls[mode].append(call)
        for name, use in uses.items():
            self._describe(name, use)

    def _attributes(self, path: str) -> dict[object, object]:
        """Plain attributes and ``Final`` constants of a module."""
        module = self._tree.modules[path]
        described = self._code.class_at(module.class_path)
        plain: dict[object, object] = {}
        if described is not None:
            plain.update((name, value.value) for name, value in described.constants.items() if value is not None)
        plain.update((name, value.value) for name, value in module.attributes.items() if isinstance(value, Constant))
        if self._tree.training[path] is not None:
            plain["training"] = self._tree.training[path]
        return plain

    def _leaves(self, path: str) -> dict[object, object]:
        attributes = self._tree.modules[path].attributes
        return {
            name: value if isinstance(value, TensorAt) else None
            for name, value in attributes.items()
            if isinstance(value, TensorAt) or (value == NONE and name in (_MEAN, _VARIANCE))
        }

    def _name(self, call: NormCall, with_moments: set[str | None]) -> str:
        """The module whose moments are passed; else a name after the moments, or the operator, in that module.

        Args:
            call: the call.
            with_moments: modules whose moments are passed in the same mode, by this call or another.
        """
        mean = call.running_mean
        if isinstance(mean, TensorAt) and mean.module is not None:
            return mean.module if mean.name == _MEAN else self._unused(mean.full_name, mean.full_name)
        module = self._tree.modules[call.module]
        has_own = _MEAN in module.attributes or (
            isinstance(call.weight, TensorAt) and call.weight.module == call.module
        )
        is_layer = (has_own or _is_norm_class(module.class_path)) and call.module not in with_moments
        if not isinstance(mean, TensorAt) and is_layer:
            return call.module
        key = mean.full_name if isinstance(mean, TensorAt) else (call.module, call.site)
        return self._unused(_join(call.module, "instance_norm" if call.instance else "batch_norm"), key)

    def _unused(self, base: str, key: object) -> str:
        """A name that neither a module has nor another layer; the same for the same key."""
        if key not in self._made_up:
            numbered = (base if not number else f"{base}_{number}" for number in range(len(self._taken) + 1))
            name = next(name for name in numbered if name not in self._taken)
            self._made_up[key] = name
            self._taken.add(name)
        return self._made_up[key]

    def _describe(self, name: str, use: _Use) -> None:
        calls = use.every()
        known = self.facts.get(name)
        attributes: dict[object, object] = {} if known is None else dict(known.attributes)
        leaves: dict[object, object] = {} if known is None else dict(known.tensors)
        for leaf in (_MEAN, _VARIANCE, "weight", "bias"):
            passed = next((value for call in calls if isinstance(value := _argument(call, leaf), TensorAt)), None)
            if passed is None:
                leaves.setdefault(leaf, None)
            else:
                leaves[leaf] = passed
                if passed.full_name != _join(name, leaf):
                    self.aliases[_join(name, leaf)] = passed.full_name
        self._note_computed(name, calls)
        for number in ("eps", "momentum"):
            told = next((value for call in calls if isinstance(value := _argument(call, number), Constant)), None)
            if told is not None and number not in attributes:
                attributes[number] = told.value
        attributes.setdefault("track_running_stats", isinstance(leaves[_MEAN], TensorAt))
        follows_flag, baked = self._baked(name, use)
        if follows_flag and use.calls[Mode.SAVED]:
            attributes["training"] = self._works_on_batch(name, use.calls[Mode.SAVED])
        operator = "torch.instance_norm" if calls[0].instance else "torch.batch_norm"
        self.facts[name] = ModuleFacts(operator if known is None else known.class_path, attributes, leaves)
        self.calls[name] = GraphCall(use.order, baked)

    def _note_computed(self, name: str, calls: Sequence[NormCall]) -> None:
        """Note a layer that is given other tensors than those stored: what the file holds then says nothing of it."""
        for leaf in (_MEAN, _VARIANCE, "weight", "bias"):
            passed = [value for call in calls if (value := _argument(call, leaf)) != NONE]
            stored = [value.full_name for value in passed if isinstance(value, TensorAt)]
            if len(set(stored)) > 1 or len(stored) < len(passed):
                reason = f"its code computes the {leaf} it passes, or passes several, in a way bncheck cannot follow"
                self.unread.append(Unread(name or "(root)", reason))

    def _baked(self, name: str, use: _Use) -> tuple[bool, bool | None]:
        """Whether the mode follows flags, and else the mode: training where the batch's moments are used after eval().

        A layer of which that cannot be told is noted as unread.
        """
        modes = {mode: self._works_on_batch(name, calls) for mode, calls in use.calls.items() if calls}
        if None in modes.values():
            reason = "its code computes whether it uses the batch's moments, in a way bncheck cannot follow"
            self.unread.append(Unread(name or "(root)", reason))
            return False, None
        if modes.get(Mode.EVAL):
            return False, True
        follows_flag = any(modes.values())
        return follows_flag, None if follows_flag else False

    def _works_on_batch(self, name: str, calls: list[NormCall]) -> bool | None:
        """Whether any call of a layer uses the batch's moments; None where that depends on a condition nobody knows."""
        if any(call.training is None for call in calls):
            return None
        working = [call for call in calls if call.training]
        depends = len(working) < len(calls) and not any(call.certain for call in working)
        return None if working and depends else bool(working)


def _module_of_moments(call: NormCall) -> str | None:
    mean = call.running_mean
    return mean.module if isinstance(mean, TensorAt) and mean.name == _MEAN else None


def _argument(call: NormCall, role: str) -> Value:
    match role:
        case "running_mean":
            return call.running_mean
        case "running_var":
            return call.running_var
        case "weight":
            return call.weight
        case "bias":
            return call.bias
        case "eps":
            return call.eps
    return call.momentum


def _is_norm_class(class_path: str) -> bool:
    return _demangled(class_path).startswith(("torch.nn.modules.batchnorm.", "torch.nn.modules.instancenorm."))


_MANGLED = re.compile(r"\.___torch_mangle_\d+")


def _demangled(class_path: str) -> str:
    """``__torch__.torch.nn.modules.batchnorm.___torch_mangle_5.BatchNorm2d`` → the class it was made from."""
    return _MANGLED.sub("", class_path).removeprefix("__torch__.")


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
