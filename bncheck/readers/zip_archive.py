"""Zip archives that hold models: which format one is, by the names of its members."""

from __future__ import annotations

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.errors import UnsafeFile, UnsupportedFile
from bncheck.core.limits import Limits
from bncheck.readers.exported import read_exported
from bncheck.readers.exported_archive import is_exported
from bncheck.readers.source import Source
from bncheck.readers.torch_archive import pickle_prefix
from bncheck.readers.torch_zip import read_torch_zip
from bncheck.readers.torchscript import read_torchscript
from bncheck.readers.zip_directory import ZipDirectory


def read_zip(source: Source, path: str, limits: Limits, vouched: frozenset[str]) -> Checkpoint:
    """Read a model kept in a zip archive.

    Args:
        source: the file.
        path: as the user gave it, for the report.
        limits: bounds.
        vouched: callables the user allows whole-module pickles to name.

    Raises:
        UnreadableFile: the file is damaged.
        UnsafeFile: loading it would run code, or its archive contradicts itself.
        UnsupportedFile: it is a zip archive of another kind.
        NoModel: it holds no network.
    """
    archive = ZipDirectory(source, limits)
    archive.verify()
    prefix = pickle_prefix(archive)
    if is_exported(archive):
        if prefix is not None:
            raise UnsafeFile("the archive holds an exported program and a pickle, of which a reader sees one")
        return read_exported(archive, path, limits, vouched)
    if prefix is None:
        raise UnsupportedFile(f"is a zip archive that holds no model bncheck reads{_guess(archive)}")
    if f"{prefix}constants.pkl" in archive.members:
        return read_torchscript(archive, prefix, path, limits)
    if _holds(archive, f"{prefix}constants.pkl"):
        raise UnsafeFile("constants.pkl is written in other letters: TorchScript to some readers, and to others not")
    return read_torch_zip(archive, prefix, path, limits, vouched)


def _holds(archive: ZipDirectory, name: str) -> bool:
    """Whether a member is called so in whatever letters: PyTorch's own archive reader does not tell them apart."""
    return any(member.lower() == name.lower() for member in archive.members)


def _guess(archive: ZipDirectory) -> str:
    names = archive.members
    # ScriptModuleSerializer before https://github.com/pytorch/pytorch/pull/23281: a protobuf as JSON, one folder deep.
    if _holds(archive, f"{next(iter(names), '').partition('/')[0]}/model.json"):
        return (
            ": TorchScript of torch 1.0 to 1.2, which this version does not read (a torch that still does: "
            "torch.jit.load it and save it again)"
        )
    if any(name.endswith(".npy") for name in names):
        return ": a NumPy .npz file"
    if "config.json" in names and "metadata.json" in names:
        return ": a .keras model, which this version does not read"
    return ""
