"""Zip archives that hold models: which format one is, by the names of its members."""

from __future__ import annotations

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.errors import UnsupportedFile
from bncheck.core.limits import Limits
from bncheck.readers.source import Source
from bncheck.readers.torch_archive import pickle_prefix
from bncheck.readers.torch_zip import read_torch_zip
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
    if prefix is None:
        raise UnsupportedFile(f"is a zip archive that holds no model bncheck reads{_guess(archive)}")
    if f"{prefix}constants.pkl" in archive.members:
        raise UnsupportedFile("is a TorchScript archive, which this version does not read; save the eager model")
    return read_torch_zip(archive, prefix, path, limits, vouched)


def _guess(archive: ZipDirectory) -> str:
    names = archive.members
    if any(name.endswith(("serialized_exported_program.json", "models/model.json")) for name in names):
        return ": a torch.export program, which this version does not read"
    if any(name.endswith(".npy") for name in names):
        return ": a NumPy .npz file"
    if "config.json" in names and "metadata.json" in names:
        return ": a .keras model, which this version does not read"
    return ""
