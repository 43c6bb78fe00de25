"""The archives ``torch.export.save`` has written: where each keeps its graphs and the tensors they read.

Three layouts, by the version that wrote them:

* 2.3 to 2.7: ``serialized_exported_program.json`` beside ``serialized_state_dict.pt`` and
  ``serialized_constants.pt``, which are files of ``torch.save``; written with Python's ``zipfile``.
  https://github.com/pytorch/pytorch/blob/v2.3.1/torch/_export/__init__.py (save),
  https://github.com/pytorch/pytorch/blob/v2.7.1/torch/export/__init__.py (save)
* 2.8: below one folder, ``models/NAME.json`` with ``data/weights/NAME.pt`` and ``data/constants/NAME.pt``, files of
  ``torch.save`` again; written with PyTorch's own writer from here on.
  https://github.com/pytorch/pytorch/blob/v2.8.0/torch/export/pt2_archive/_package.py (_package_exported_programs)
* since 2.9: ``data/weights/NAME_weights_config.json`` and ``data/constants/NAME_constants_config.json`` say which
  member holds which tensor's storage, byte for byte.
  https://github.com/pytorch/pytorch/blob/v2.9.1/torch/export/pt2_archive/_package.py (_package_state_dict),
  https://github.com/pytorch/pytorch/blob/v2.13.0/torch/export/pt2_archive/_package.py

2.1 and 2.2 wrote prototypes of the first, with other schemas; these are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from bncheck.core.checkpoint import TensorRef
from bncheck.core.errors import UnreadableFile, UnsafeFile, UnsupportedFile
from bncheck.core.limits import Limits
from bncheck.core.places import StoragePlace
from bncheck.readers.exported_json import entries, flag, text
from bncheck.readers.exported_tensors import stored_tensor
from bncheck.readers.networks import search
from bncheck.readers.pickle_calls import torch_trust
from bncheck.readers.pickle_records import Inert, PickledTensor
from bncheck.readers.strict_json import JsonObject, json_object
from bncheck.readers.tensors import ArrayReader, StorageRange
from bncheck.readers.torch_archive import TorchArchive, pickle_prefix
from bncheck.readers.zip_directory import ZipDirectory

_FLAT_PROGRAM = "serialized_exported_program.json"
# Names of torch.csrc.export.pt2_archive_constants.h,
# https://github.com/pytorch/pytorch/blob/v2.13.0/torch/csrc/export/pt2_archive_constants.h
_MODELS, _WEIGHTS, _CONSTANTS = "models/", "data/weights/", "data/constants/"
_COMPILED = ("data/aotinductor/", "data/executorch/")
_OBJECTS = ("custom_obj_", "opaque_obj_")

# Major versions of the graph's schema: 5 is that of torch 2.3 and 2.4, 7 of 2.5, 8 of 2.6 to 2.13. The first entry of
# SCHEMA_VERSION in torch/_export/serde/schema.py.
_SCHEMAS = (5, 6, 7, 8)


@dataclass(slots=True)
class ExportedModel:
    """One program of an archive.

    Attributes:
        name: what the archive calls it; ``model`` where nobody chose a name.
        program: the graph and its signature, as JSON.
        tensors: parameters, buffers and constants by dotted name, in the file's order.
        opaque: those whose numbers are not stored as they are: name → what would make them.
    """

    name: str
    program: JsonObject
    tensors: dict[str, TensorRef] = field(default_factory=dict)
    opaque: dict[str, str] = field(default_factory=dict)


def is_exported(archive: ZipDirectory) -> bool:
    """Whether ``torch.export`` or its packager wrote the archive."""
    folder = _folder(archive)
    return (
        _FLAT_PROGRAM in archive.members
        or f"{folder}archive_format" in archive.members
        or any(name.startswith((f"{folder}{_MODELS}", f"{folder}{_COMPILED[0]}")) for name in archive.members)
    )


def _folder(archive: ZipDirectory) -> str:
    """The archive's own folder, with its slash: that of its first member, as PyTorch's reader has it."""
    return next(iter(archive.members), "").partition("/")[0] + "/"


@dataclass(frozen=True, slots=True)
class _Nested:
    """A file of ``torch.save`` inside the archive."""

    member: str
    archive: ZipDirectory
    prefix: str
    contents: TorchArchive


class ExportedArchive:
    """The programs of an archive, and the values of their tensors.

    Args:
        archive: the file.
        limits: bounds.
        vouched: callables the user allows pickles to name.

    Attributes:
        models: the programs, in the file's order.
        compiled: names of the models that are there as machine code.
        arrays: loads tensors.

    Raises:
        UnreadableFile: it is damaged.
        UnsafeFile: its pickles would run code, or it holds two things of which readers see one or the other.
        UnsupportedFile: it holds compiled code alone, or was written in a schema nobody here knows.
    """

    def __init__(self, archive: ZipDirectory, limits: Limits, vouched: frozenset[str]) -> None:
        self._zip = archive
        self._limits = limits
        self._trust = torch_trust(limits, vouched)
        self._folder = _folder(archive)
        self._nested: dict[str, _Nested] = {}
        self._inner: dict[str, tuple[_Nested, str]] = {}
        self._formats: dict[str, str] = {}
        self._tensors = 0
        self._refuse_big_endian()
        self.arrays = ArrayReader(self._read_range, self._place, limits, self._announce)
        self.compiled = self._compiled_models()
        packaged = [name for name in archive.members if name.startswith(f"{self._folder}{_MODELS}")]
        if _FLAT_PROGRAM in archive.members and (packaged or f"{self._folder}archive_format" in archive.members):
            raise UnsafeFile("the archive holds exported programs in two layouts, of which a reader sees one")
        if _FLAT_PROGRAM in archive.members:
            self.models: tuple[ExportedModel, ...] = (self._flat(),)
        elif packaged:
            self._check_format()
            self.models = tuple(self._packaged(name) for name in packaged)
        elif self.compiled:
            raise UnsupportedFile(
                "is a package of compiled code, in which batch norm cannot be seen; audit what torch.export.save writes"
            )
        else:
            raise UnsupportedFile("is a PT2 archive without an exported program")

    def remarks(self) -> tuple[str, ...]:
        """What to say of the members read so far."""
        inner = (f"{name}: {remark}" for name, file in self._nested.items() for remark in file.archive.remarks())
        return (*self._zip.remarks(), *inner)

    # --- layouts ---------------------------------------------------------------------------------

    def _flat(self) -> ExportedModel:
        """The layout of torch 2.3 to 2.7; its loader takes the pickles by either ending."""
        model = self._model("model", _FLAT_PROGRAM)
        for stem in ("serialized_state_dict", "serialized_constants"):
            found = [name for name in (f"{stem}.pt", f"{stem}.json") if name in self._zip.members]
            if len(found) != 1:
                raise UnreadableFile(f"{stem}.pt is missing, or there are two")
            self._add_pickled(model, found[0])
        return model

    def _packaged(self, member: str) -> ExportedModel:
        """The layouts since torch 2.8."""
        name = member.removeprefix(f"{self._folder}{_MODELS}").removesuffix(".json")
        if not name or not member.endswith(".json"):
            raise UnreadableFile(f"{_brief(member)} lies among the programs and is none")
        model = self._model(name, member)
        for folder, kind in ((_WEIGHTS, "weights"), (_CONSTANTS, "constants")):
            pickled, config = (f"{self._folder}{folder}{name}{end}" for end in (".pt", f"_{kind}_config.json"))
            if (pickled in self._zip.members) == (config in self._zip.members):
                raise UnreadableFile(f"{_brief(config)} is missing, or lies beside a pickle of the same")
            if pickled in self._zip.members:
                self._add_pickled(model, pickled)
            else:
                self._add_configured(model, f"{self._folder}{folder}", config)
        return model

    def _model(self, name: str, member: str) -> ExportedModel:
        size = self._zip.members[member].size
        if size > self._limits.exported_json_bytes:
            raise UnreadableFile(f"{_brief(member)} has {size} bytes, more than any exported program's")
        program = json_object(self._zip.read(member), _brief(member), self._limits)
        schema = program.get("schema_version")
        major = schema.get("major") if isinstance(schema, dict) else schema
        if major not in _SCHEMAS or isinstance(major, bool):
            raise UnsupportedFile(
                f"is an exported program of schema {str(major)[:20]}, which this version does not read"
                " (it reads those of torch 2.3 to 2.13); export the model again"
            )
        return ExportedModel(name, program)

    def _check_format(self) -> None:
        for name, expected in (("archive_format", b"pt2"), ("archive_version", b"0")):
            member = self._zip.members.get(f"{self._folder}{name}")
            told = self._zip.read(member.name) if member is not None and member.size < 16 else None
            if told != expected and (told is not None or name == "archive_format"):
                raise UnsupportedFile(f"its {name} is {told!r}, where {expected!r} is expected")

    def _compiled_models(self) -> tuple[str, ...]:
        found = {
            name.removeprefix(prefix).partition("/")[0]: None
            for prefix in (f"{self._folder}{folder}" for folder in _COMPILED)
            for name in self._zip.members
            if name.startswith(prefix)
        }
        return tuple(found)

    def _refuse_big_endian(self) -> None:
        """torch.export.load looks at no byte order: on most machines it would take other numbers than those meant."""
        member = self._zip.members.get(f"{self._folder}byteorder")
        order = b"little" if member is None else self._zip.read(member.name) if member.size < 16 else b"?"
        if order == b"big":
            raise UnsupportedFile(
                "was written on a big-endian machine, whose numbers torch.export.load does not turn round"
            )
        if order != b"little":
            raise UnreadableFile(f"its byte order is given as {order!r}; little or big is expected")

    # --- tensors ---------------------------------------------------------------------------------

    def _add(self, model: ExportedModel, name: str, tensor: TensorRef | str) -> None:
        self._tensors += 1
        if self._tensors > self._limits.tensors or len(name) > self._limits.name_length:
            raise UnreadableFile("it has more named tensors, or longer names, than any model")
        if name in model.tensors or name in model.opaque:
            raise UnreadableFile(f"two tensors are called {name[:200]!r}")
        match tensor:
            case TensorRef():
                model.tensors[name] = tensor
            case str():
                model.opaque[name] = tensor

    def _add_configured(self, model: ExportedModel, folder: str, config: str) -> None:
        """Tensors by a ``PayloadConfig``: name → the member that holds its storage, and how it lies in there."""
        size = self._zip.members[config].size
        if size > self._limits.exported_json_bytes:
            raise UnreadableFile(f"{_brief(config)} has {size} bytes, more than any exported program's")
        payloads = entries(json_object(self._zip.read(config), _brief(config), self._limits), "config")
        for name, payload in payloads.items():
            path = text(payload, "path_name")
            if "/" in path or "\\" in path or path in ("", ".", ".."):
                raise UnsafeFile(f"the bytes of {name[:200]!r} are said to lie in {path[:80]!r}, outside their folder")
            if folder.endswith(_CONSTANTS) and path.startswith(_OBJECTS):
                continue  # an object of the author's own class, which is no tensor
            member = f"{folder}{path}"
            if member not in self._zip.members:
                raise UnreadableFile(f"{_brief(member)}, with the numbers of {name[:200]!r}, is not in the archive")
            if flag(payload, "use_pickle"):
                self._add_object(model, name, member)
            else:
                self._add(model, name, self._raw(name, member, entries(payload, "tensor_meta")))

    def _raw(self, name: str, member: str, meta: JsonObject) -> TensorRef | str:
        size = self._zip.members[member].size
        tensor = stored_tensor(name, member, size, meta, self._limits)
        if isinstance(tensor, TensorRef) and self._formats.setdefault(member, tensor.dtype) != tensor.dtype:
            # The loader takes the first one's for all; the writer parts storages by it.
            raise UnreadableFile(f"two tensors of different number formats lie in {_brief(member)}")
        return tensor

    def _add_pickled(self, model: ExportedModel, member: str) -> None:
        """Tensors of a dict that ``torch.save`` wrote."""
        if not self._zip.members[member].size:
            return  # serialize_torch_artifact writes nothing for None
        file, root = self._unpickle(member)
        if not isinstance(root, dict):
            raise UnreadableFile(f"{_brief(member)} holds no dict of tensors")
        for network in search(root, self._limits).networks:
            if not network.path:  # others lie inside objects of the author's own classes
                for name, tensor in network.tensors.items():
                    self._add(model, name, self._inside(file, name, tensor))
                for name, maker in network.opaque.items():
                    self._add(model, name, maker)

    def _add_object(self, model: ExportedModel, name: str, member: str) -> None:
        """A tensor of a class of its own, which ``torch.save`` wrote."""
        if len(self._nested) >= self._limits.exported_pickles:
            raise UnreadableFile(f"it holds more than {self._limits.exported_pickles} pickled tensors")
        file, root = self._unpickle(member)
        match root:
            case PickledTensor():
                self._add(model, name, self._inside(file, name, root))
            case Inert(maker=maker):
                self._add(model, name, maker.path)
            case _:
                raise UnreadableFile(f"{_brief(member)} holds no tensor")

    def _unpickle(self, member: str) -> tuple[_Nested, object]:
        if member in self._nested:
            raise UnreadableFile(f"{_brief(member)} is to hold two things")
        inner = ZipDirectory(self._zip.member_source(member), self._limits)
        inner.verify()
        if any(entry.method for entry in inner.members.values()):
            raise UnreadableFile(f"{_brief(member)} holds deflated members, which torch never writes")
        prefix = pickle_prefix(inner)
        if prefix is None:
            raise UnreadableFile(f"{_brief(member)} is no file of torch.save")
        file = self._nested[member] = _Nested(member, inner, prefix, TorchArchive(inner, prefix, self._limits))
        return file, file.contents.unpickle("data.pkl", self._trust)

    def _inside(self, file: _Nested, name: str, tensor: PickledTensor) -> TensorRef:
        reference = file.contents.reference_in("data")(name, tensor)
        storage = f"{file.member}/{reference.storage}"
        self._inner[storage] = file, reference.storage
        return replace(reference, storage=storage)

    # --- bytes -----------------------------------------------------------------------------------

    def _member(self, storage: str) -> tuple[ZipDirectory, str]:
        """The archive that holds a storage, and its name there."""
        nested = self._inner.get(storage)
        return (self._zip, storage) if nested is None else (nested[0].archive, f"{nested[0].prefix}{nested[1]}")

    def _place(self, storage: str) -> StoragePlace:
        nested = self._inner.get(storage)
        if nested is None:
            return self._zip.place(storage)
        file, inside = nested
        place = file.contents.place(inside)
        return replace(place, inside=(*place.inside, *self._zip.place(file.member).inside))

    def _read_range(self, storage: str, start: int, length: int) -> bytes:
        archive, member = self._member(storage)
        if member in archive.members and not archive.members[member].size:
            raise UnreadableFile("its numbers are not in the file: the model was exported without them")
        return archive.read_range(member, start, length)

    def _announce(self, ranges: Sequence[StorageRange]) -> None:
        for storage, start, length in ranges:
            archive, member = self._member(storage)
            archive.announce([(member, start, length)])


def _brief(name: str) -> str:
    return repr(name[:200])
