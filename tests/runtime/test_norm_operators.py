"""Every operator of torch that normalises with moments is watched, and what is not watched is no such operator."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from bncheck.runtime.batch_moments import BatchMoments
from bncheck.runtime.norm_operators import OPERATORS
from bncheck.runtime.norm_watch import NormCall, NormWatch, running_means

_NO_FORWARD = {
    "aten::batch_norm_update_stats": "takes moments, and normalises nothing",
    "aten::batch_norm_elemt": "normalises with moments that batch_norm_stats has taken",
    "quantized::instance_norm": "keeps no running moments",
    "aten::batch_norm_backward_elemt": "a gradient",
    "aten::batch_norm_backward_reduce": "a gradient",
    "aten::batch_norm_backward": "a gradient",
    "aten::_batch_norm_impl_index_backward": "a gradient",
    "aten::native_batch_norm_backward": "a gradient",
    "aten::cudnn_batch_norm_backward": "a gradient",
    "aten::miopen_batch_norm_backward": "a gradient",
}


def test_no_operator_is_unknown() -> None:
    """A new version of torch may bring one: it belongs into the table, or into the list above with its reason."""
    named = {name for name in torch._C._dispatch_get_all_op_names() if "batch_norm" in name or "instance_norm" in name}
    known = OPERATORS.keys() | {f"{name}{out}" for name in _NO_FORWARD for out in ("", ".out")}
    assert named - known == set()
    assert len(named) > 30


def _schema(name: str) -> torch._C.FunctionSchema:
    space, _, rest = name.partition("::")
    base, _, overload = rest.partition(".")
    return torch._C._get_schema(f"{space}::{base}", overload)


@pytest.mark.parametrize("name", sorted(OPERATORS.keys() & set(torch._C._dispatch_get_all_op_names())))
def test_arguments_are_found_by_name(name: str) -> None:
    names = [argument.name for argument in _schema(name).arguments]
    assert names[0] in ("input", "qx")
    assert len({"eps", "epsilon"} & set(names)) == 1
    no_moments = "no_stats" in name or name.partition(".")[0] == "aten::batch_norm_stats"
    assert no_moments or {"running_mean", "mean"} & set(names)
    if OPERATORS[name].name == "TOLD":
        assert "training" in names


MEAN, VAR = torch.linspace(-1, 1, 3), torch.linspace(0.5, 2, 3)
VALUES = torch.randn(9, 3, 5, 5, generator=torch.Generator().manual_seed(0)) + 2
aten = torch.ops.aten

_CALLS: dict[str, tuple[Callable[..., object], bool]] = {
    "batch_norm eval": (lambda m, v: aten.batch_norm(VALUES, None, None, m, v, False, 0.1, 1e-3, True), False),
    "batch_norm train": (lambda m, v: aten.batch_norm(VALUES, None, None, m, v, True, 0.1, 1e-3, True), True),
    "impl index": (lambda m, v: aten._batch_norm_impl_index(VALUES, None, None, m, v, False, 0.1, 1e-3, True), False),
    "native": (lambda m, v: aten.native_batch_norm(VALUES, None, None, m, v, False, 0.1, 1e-3), False),
    "by keyword": (
        lambda m, v: aten.native_batch_norm(
            VALUES, None, None, running_mean=m, running_var=v, training=True, momentum=0.1, eps=1e-3
        ),
        True,
    ),
    "native out": (
        lambda m, v: aten.native_batch_norm.out(
            VALUES, None, None, m, v, False, 0.1, 1e-3,
            out=torch.empty(0), save_mean=torch.empty(0), save_invstd=torch.empty(0),
        ),
        False,
    ),
    "legit": (lambda m, v: aten._native_batch_norm_legit(VALUES, None, None, m, v, False, 0.1, 1e-3), False),
    "functional": (
        lambda m, v: aten._native_batch_norm_legit_functional(VALUES, None, None, m, v, True, 0.1, 1e-3), True
    ),
    "no training": (
        lambda m, v: aten._native_batch_norm_legit_no_training(VALUES, None, None, m, v, 0.1, 1e-3), False
    ),
    "with update": (lambda m, v: aten._batch_norm_with_update(VALUES, None, None, m, v, 0.1, 1e-3), True),
    "no update": (lambda m, v: aten._batch_norm_no_update(VALUES, None, None, m, v, 0.1, 1e-3), False),
}  # fmt: skip


@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("name", _CALLS)
def test_each_is_seen_with_its_layer_mode_and_eps(name: str, grad: Callable[[], object]) -> None:
    run, uses_batch_moments = _CALLS[name]
    mean, var = MEAN.clone(), VAR.clone()
    seen: list[NormCall] = []
    with grad(), NormWatch({"bn": mean}, seen.append):  # type: ignore[attr-defined]
        run(mean, var)
    (call,) = seen
    assert (call.layer, call.uses_batch_moments, call.eps) == ("bn", uses_batch_moments, 1e-3)
    assert call.input is VALUES


@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("name", _CALLS)
def test_each_can_be_given_the_batchs_moments(name: str, grad: Callable[[], object]) -> None:
    run, _ = _CALLS[name]
    mean, var = MEAN.clone(), VAR.clone()
    kinds = [type(part) for part in _parts(run(mean.clone(), var.clone()))]
    with grad(), BatchMoments([mean]):  # type: ignore[attr-defined]
        found = _parts(run(mean, var))
    expected = (VALUES - VALUES.mean((0, 2, 3), keepdim=True)) / (
        VALUES.var((0, 2, 3), keepdim=True, correction=0) + 1e-3
    ).sqrt()
    torch.testing.assert_close(found[0], expected)
    assert [type(part) for part in found] == kinds
    assert torch.equal(mean, MEAN)
    assert torch.equal(var, VAR)


def _parts(result: object) -> list[object]:
    return list(result) if isinstance(result, (tuple, list)) else [result]


def test_inference_mode_inside_a_prediction_hides_nothing() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True)).eval()
    seen: list[NormCall] = []
    with torch.no_grad(), NormWatch(running_means(model), seen.append, model), torch.inference_mode():
        model(VALUES)
    assert [(call.layer, call.per_sample) for call in seen] == [("0", False), ("1", True)]


def test_quantised_layers_are_seen() -> None:
    from torch.ao.nn.quantized import BatchNorm2d

    layer = BatchNorm2d(3).eval()
    seen: list[NormCall] = []
    quantised = torch.quantize_per_tensor(VALUES, 0.1, 0, torch.qint8)
    with torch.no_grad(), NormWatch(running_means(layer), seen.append, layer):
        layer(quantised)
    (call,) = seen
    assert call.layer == ""
    assert not call.uses_batch_moments
    torch.testing.assert_close(call.input, quantised.dequantize())


@pytest.mark.filterwarnings("ignore")
def test_a_decomposed_program_in_training_mode_runs_with_the_batchs_moments() -> None:
    """It writes the moments that its operators return back into its buffers."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    program = torch.export.export(net, (VALUES,)).run_decompositions().module()
    before = {name: buffer.clone() for name, buffer in program.named_buffers()}
    with torch.no_grad(), BatchMoments(running_means(program).values()):
        program(VALUES)
    changed = [name for name, buffer in program.named_buffers() if not torch.equal(buffer, before[name])]
    assert all(name.endswith("num_batches_tracked") for name in changed)
