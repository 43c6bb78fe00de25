"""Files that fuzzing found, cut down to what matters; each once went wrong."""

from __future__ import annotations

import collections
import contextlib
import io
import json
import struct
from pathlib import Path

import pytest
import torch
from torch import nn

from bncheck.catalogue import RULES
from bncheck.core.errors import BncheckError
from bncheck.core.limits import DEFAULT_LIMITS
from bncheck.engine import examine
from bncheck.readers import read
from tests.fuzzing.archives import entries_of
from tests.readers.hostile import PROTO2, STOP, Entry, pack, storage, tensor, text, value
from tests.readers.torch_files import filled, saved


def broken_network() -> nn.Sequential:
    """Two norms in eval mode, the second with a variance that every audit calls an error."""
    network = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    filled(network)
    network[1].running_var.fill_(-1.0)
    return network.eval()


def fired(path: Path) -> set[str]:
    """Rules with a finding."""
    subject = examine(read(str(path)), RULES, DEFAULT_LIMITS)
    assert not [outcome for outcome in subject.not_checked if outcome.crashed]
    return {finding.rule for finding in subject.findings}


def refusal(path: Path) -> str:
    """What is said of a file that is not read."""
    with pytest.raises(BncheckError) as caught:
        read(str(path))
    return str(caught.value)


def archive(pickle: bytes, *members: tuple[str, bytes]) -> bytes:
    """A file of ``torch.save`` with this pickle."""
    named = (("version", b"3\n"), ("byteorder", b"little"), *members)
    return pack([Entry("a/data.pkl", pickle), *(Entry(f"a/{name}", data) for name, data in named)])


# --- layers that torch has and bncheck did not see ---------------------------------------------------------


def test_a_submodule_without_a_table_of_submodules_is_seen(tmp_path: Path) -> None:
    """In eval mode torch calls it all the same: its forward needs buffers and parameters alone."""
    network = broken_network()
    del network[1].__dict__["_modules"]
    assert network(torch.ones(2, 4, 3, 3)).isnan().all()
    assert "BN402" in fired(saved(network, tmp_path / "model.pt"))


def test_a_submodule_under_a_key_that_is_no_name_is_seen(tmp_path: Path) -> None:
    network = broken_network()
    network._modules[1] = network._modules.pop("1")  # type: ignore[index]
    assert network.eval()(torch.ones(2, 4, 3, 3)).isnan().all()
    assert "BN402" in fired(saved(network, tmp_path / "model.pt"))


@pytest.mark.parametrize("gone", ["running_mean", "running_var"])
def test_a_batch_norm_that_lost_one_of_its_buffers_is_seen(gone: str, tmp_path: Path) -> None:
    network = broken_network()
    for norm in network:
        del norm._buffers[gone]
    assert "BN203" in fired(saved(network, tmp_path / "model.pt"))


def test_the_attributes_of_a_dict_without_items_are_looked_into(tmp_path: Path) -> None:
    network = nn.Sequential()
    network.holder = collections.OrderedDict()
    network.holder.network = broken_network()  # type: ignore[attr-defined]
    assert "BN402" in fired(saved(network, tmp_path / "model.pt"))


# --- rules that failed on what was read --------------------------------------------------------------------


def test_a_variance_without_channels_fails_no_rule(tmp_path: Path) -> None:
    header = json.dumps({"bn.running_var": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    assert fired(path) == {"BN203"}


# --- messages ----------------------------------------------------------------------------------------------


def test_a_message_quotes_no_control_characters(tmp_path: Path) -> None:
    """A tensor's name reached the message of a storage that is too small."""
    path = tmp_path / "model.pt"
    pickle = PROTO2 + b"}" + text("bn\x1b[31m.running_var") + tensor(of=storage()) + b"s" + STOP
    path.write_bytes(archive(pickle, ("data/0", bytes(4))))
    assert "bn\\x1b[31m.running_var" in refusal(path)


def test_a_message_is_short(tmp_path: Path) -> None:
    """A float in text that is none."""
    path = tmp_path / "model.pt"
    path.write_bytes(archive(PROTO2 + b"F" + b"x" * 5000 + b"\n" + STOP))
    assert len(refusal(path)) < 1000


def test_a_reason_is_short(tmp_path: Path) -> None:
    """A number format without statistics, in a layer with a long name."""
    kind = b"ctorch\nQInt8Storage\n"
    entries = text(f"{'x' * 4000}.running_var") + tensor(of=storage(kind=value(kind)))
    path = tmp_path / "model.pt"
    path.write_bytes(archive(PROTO2 + b"}" + entries + b"s" + STOP, ("data/0", bytes(4))))
    [unread] = read(str(path)).unread
    assert len(unread.reason) < 1000


def test_safetensors_offsets_of_thousands_of_digits(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, int("16" * 1000)]}
    header = json.dumps({"bn.bias": entry}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    assert len(refusal(path)) < 1000


def test_a_shard_with_a_name_that_cannot_be_printed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": {"bn.bias": "part\x7f.bin"}}))
    assert "part\\x7f.bin" in refusal(path)


# --- graphs ------------------------------------------------------------------------------------------------


def test_exported_weights_are_little_endian_whatever_the_archive_says(tmp_path: Path) -> None:
    """torch.export.load does not look at the member: what it takes for healthy must not be read as something else."""
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(broken_network(), (torch.ones(2, 4, 3, 3),)), buffer)
    path = tmp_path / "model.pt2"
    path.write_bytes(buffer.getvalue())
    entries = entries_of(buffer.getvalue())
    next(entry for entry in entries if str(entry.name).endswith("byteorder")).data = b"big"
    path.write_bytes(pack(entries))
    loaded = torch.export.load(str(path)).state_dict
    assert torch.equal(loaded["1.running_var"], torch.full((4,), -1.0))
    with contextlib.suppress(BncheckError):  # to refuse it is as good
        [_, second] = read(str(path)).layers
        assert second.running_var is not None
        assert second.running_var.tolist() == [-1.0] * 4


@pytest.mark.parametrize(
    ("stored", "passed"),
    [
        (b"running_var = self.running_var", b"running_var = torch.neg(self.running_var)"),
        (b"running_mean, running_var, False", b"running_mean, argument_1, False"),
    ],
    ids=["negated", "input"],
)
def test_moments_that_code_computes_are_not_taken_for_the_stored_ones(
    stored: bytes, passed: bytes, tmp_path: Path
) -> None:
    network = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4)).eval()
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(network, torch.ones(4, 4, 1, 1)), buffer)
    entries = entries_of(buffer.getvalue())
    for entry in entries:
        if b"torch.batch_norm(" in entry.data:
            entry.data = entry.data.replace(stored, passed)
    path = tmp_path / "model.pt"
    path.write_bytes(pack(entries))
    if passed.endswith(b"neg(self.running_var)"):
        assert torch.jit.load(str(path))(torch.ones(4, 4, 1, 1)).isnan().all()
    with contextlib.suppress(BncheckError):  # to refuse it is as good
        assert read(str(path)).unread


def test_a_missing_function_with_a_name_of_thousands_of_characters(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Sequential(nn.BatchNorm2d(4)).eval(), torch.ones(4, 4, 1, 1)), buffer)
    entries = entries_of(buffer.getvalue())
    for entry in entries:
        entry.data = entry.data.replace(b"torch.batch_norm(", b"__torch__." + b"x" * 5000 + b".batch_norm(")
    path = tmp_path / "model.pt"
    path.write_bytes(pack(entries))
    assert len(refusal(path)) < 1000


# --- an object whose state is changed behind its back ------------------------------------------------------


def test_state_changed_after_the_object_was_given_it_is_refused(tmp_path: Path) -> None:
    """Python copies the state at once: torch would load a layer in training mode, and the dict says eval."""
    given = b"}q\x01(" + text("training") + b"\x88u"
    later = b"h\x01" + text("training") + b"\x89s0"
    layer = b"ctorch.nn.modules.linear\nIdentity\n)\x81" + given + b"b"
    whole = archive(PROTO2 + layer + later + STOP)
    loaded = torch.load(io.BytesIO(whole), weights_only=False)
    assert loaded.training is True
    (tmp_path / "model.pt").write_bytes(whole)
    assert "changed after" in refusal(tmp_path / "model.pt")
