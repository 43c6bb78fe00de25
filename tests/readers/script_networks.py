"""Networks that TorchScript can compile, with batch norms called in every way the language has.

They live here, not in the test, because ``torch.jit.script`` reads the source of what it compiles.
"""

import enum
from typing import Dict, List, NamedTuple, Tuple  # noqa: UP035 - the compiler knows no other

import torch
import torch.nn.functional as F  # noqa: N812 - its name in every network
from torch import nn

from tests.readers.torch_files import FEATURES


class Conv(nn.Module):
    """A convolution, its norm and an activation."""

    def __init__(self, features: int = FEATURES, **settings: object) -> None:
        super().__init__()
        self.conv = nn.Conv2d(features, features, 1)
        self.norm = nn.BatchNorm2d(features, **settings)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)))


class Nested(nn.Module):
    """Sequential, ModuleList and ModuleDict inside one another, and layers that are no batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(FEATURES, FEATURES, 1), nn.BatchNorm2d(FEATURES), nn.ReLU())
        self.stages = nn.ModuleList([nn.Sequential(Conv(), Conv(eps=1e-3, momentum=0.02)) for _ in range(2)])
        self.heads = nn.ModuleDict({"last": Conv(), "first": nn.BatchNorm2d(FEATURES, affine=False)})
        self.group = nn.GroupNorm(2, FEATURES)
        self.instance = nn.InstanceNorm2d(FEATURES, affine=True, track_running_stats=True)
        self.bare = nn.InstanceNorm2d(FEATURES)

    def forward(self, x):
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        x = self.heads["first"](x)
        return self.bare(self.instance(self.group(self.heads["last"](x))))


class Kinds(nn.Module):
    """Batch norms with every setting, one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.BatchNorm2d(FEATURES)
        self.without_affine = nn.BatchNorm2d(FEATURES, affine=False)
        self.untracked = nn.BatchNorm2d(FEATURES, track_running_stats=False)
        self.cumulative = nn.BatchNorm2d(FEATURES, momentum=None)
        self.odd_numbers = nn.BatchNorm2d(FEATURES, eps=0.1, momentum=0.25)
        self.own = OwnNorm(FEATURES)

    def forward(self, x):
        x = self.odd_numbers(self.cumulative(self.untracked(self.without_affine(self.plain(x)))))
        return self.own(x)


class Synchronised(nn.Module):
    """Norms across processes: scripting refuses them, and only eval mode runs on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.SyncBatchNorm(FEATURES)
        self.second = nn.BatchNorm2d(FEATURES)

    def forward(self, x):
        return self.second(self.first(x))


class OwnNorm(nn.BatchNorm2d):
    """A subclass that changes nothing."""


class BatchNormPicker(nn.Module):
    """Called like a batch norm, and none."""

    def forward(self, x):
        return x * 2


class NoNorm(nn.Module):
    """Nothing to audit but a name."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_norm = BatchNormPicker()
        self.conv = nn.Conv2d(FEATURES, FEATURES, 1)

    def forward(self, x):
        return self.batch_norm(self.conv(x))


class ByHand(nn.Module):
    """The function, on plain buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rm", torch.zeros(FEATURES))
        self.register_buffer("rv", torch.ones(FEATURES))
        self.scale = nn.Parameter(torch.ones(FEATURES))
        self.m = 0.05

    def forward(self, x):
        return F.batch_norm(x, self.rm, self.rv, self.scale, None, self.training, self.m, 1e-4)


class InBranches(nn.Module):
    """Each mode a constant, in a branch on the flag."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(FEATURES))
        self.register_buffer("running_var", torch.ones(FEATURES))

    def forward(self, x):
        if self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, None, None, True, 0.2, 1e-4)
        return F.batch_norm(x, self.running_mean, self.running_var, None, None, False, 0.2, 1e-4)


class InverseBranches(nn.Module):
    """The wrong way round: eval mode is where the batch's moments are used."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(FEATURES))
        self.register_buffer("running_var", torch.ones(FEATURES))

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, None, None, not self.training, 0.2, 1e-4)


class AlwaysTraining(nn.Module):
    """A constant in the author's own code: eval() does not help."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(FEATURES)

    def forward(self, x):
        return F.batch_norm(x, self.bn.running_mean, self.bn.running_var, self.bn.weight, self.bn.bias, training=True)


class AlwaysFrozen(nn.Module):
    """The same, for good: what a frozen batch norm does."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(FEATURES)

    def forward(self, x):
        return F.batch_norm(x, self.bn.running_mean, self.bn.running_var, self.bn.weight, self.bn.bias, training=False)


class Twice(nn.Module):
    """One layer, called by its flag and once more with a constant."""

    def __init__(self, mode: bool) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(FEATURES)
        self.mode = mode

    def forward(self, x):
        x = self.bn(x)
        return F.batch_norm(x, self.bn.running_mean, self.bn.running_var, training=self.mode)


class Shared(nn.Module):
    """One norm under two names, called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(FEATURES)
        self.block = nn.Sequential(self.first, nn.BatchNorm2d(FEATURES))
        self.again = self.first

    def forward(self, x):
        return self.again(self.block(self.first(x)))


class ByParent(nn.Module):
    """Its own flag decides for a norm that has another."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(FEATURES)

    def forward(self, x):
        return F.batch_norm(x, self.bn.running_mean, self.bn.running_var, training=self.training)


class Auxiliary(nn.Module):
    """A head that only training asks for, and one that nobody does."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(FEATURES)
        self.auxiliary = Conv()
        self.unused = Conv()

    def forward(self, x):
        x = self.bn(x)
        if self.training:
            x = x + self.auxiliary(x)
        return x


class Residual(nn.Module):
    """Optional parts, as ResNet has them."""

    def __init__(self, downsample: nn.Module | None) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(FEATURES)
        self.downsample = downsample

    def forward(self, x):
        y = self.bn(x)
        if self.downsample is not None:
            x = self.downsample(x)
        return x + y


class Exports(nn.Module):
    """More methods than forward."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(FEATURES)
        self.other = nn.BatchNorm2d(FEATURES)

    def forward(self, x):
        return self.helper(x)

    def helper(self, x):
        return self.bn(x)

    @torch.jit.export
    def features(self, x):
        return self.other(x)


class TwoMethods(nn.Module):
    """Methods for the tracer."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(FEATURES)
        self.other = nn.BatchNorm2d(FEATURES)

    def forward(self, x):
        return self.bn(x)

    def features(self, x):
        return self.other(x)


class Shade(enum.Enum):
    """For an attribute."""

    DARK = 1
    LIGHT = 2


class Pair(NamedTuple):
    """For a value handed around."""

    left: torch.Tensor
    right: int


@torch.jit.script
class Scaler:
    """A script class that is no module."""

    def __init__(self, factor: int) -> None:
        self.factor = factor
        self.training = True

    def scale(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


@torch.jit.interface
class Layer(nn.Module):
    """Anything with a forward."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - the parameter's name is the interface
        pass


def apply_norm(x, mean, var, training: bool = False, momentum: float = 0.1):
    """A function between the module and the operator."""
    if training:
        x = x * 1
    return F.batch_norm(x, mean, var, None, None, training, momentum, 1e-3)


class Language(nn.Module):
    """A bit of everything the language has."""

    chosen: Layer

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.BatchNorm2d(FEATURES) for _ in range(2)])
        self.chosen = nn.BatchNorm2d(FEATURES)
        self.named = nn.ModuleDict({"a": nn.BatchNorm2d(FEATURES)})
        self.last = nn.BatchNorm2d(FEATURES)
        self.forked = nn.BatchNorm2d(FEATURES)
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("var", torch.ones(FEATURES))
        self.shade = Shade.DARK
        self.scaler = Scaler(2)
        self.calls = 0
        self.offset: torch.Tensor | None = None

    def forward(self, x):
        self.calls += 1
        for index in range(2):
            layer: Layer = self.layers[index]
            x = layer.forward(x)
            if index > 5:
                break
        x = self.chosen.forward(x)
        named: Layer = self.named["a"]
        x = named.forward(x)
        with torch.no_grad():
            x = x + 0
        pair = Pair(x, self.calls)
        x = self.scaler.scale(pair.left)
        x = Scaler(3).scale(x)
        if self.shade == Shade.DARK:
            x = x + 1
        if self.offset is not None:
            x = x + self.offset
        count = 0
        while count < 2:
            count += 1
        assert count == 2, "it counted wrongly"
        x = apply_norm(x, self.mean, self.var, training=self.training)
        future = torch.jit.fork(self.forked, x)
        x = torch.jit.wait(future)
        if x.size(0) < 1:
            return x
        return self.last(x)


class Hooked(nn.Module):
    """A norm that only a hook calls."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(FEATURES)
        self.extra = nn.BatchNorm2d(FEATURES)

    def forward(self, x):
        return self.bn(x)


def hook_of_hooked(self, input: Tuple[torch.Tensor], output: torch.Tensor):  # noqa: A002, UP006 - as torch wants it
    """A forward hook that normalises."""
    return self.extra(output)


class Around(nn.Module):
    """A network with a part of it compiled already, another way."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.before = nn.BatchNorm2d(FEATURES)
        self.inner = inner
        self.behind = nn.BatchNorm2d(FEATURES)

    def forward(self, x):
        return self.behind(self.inner(self.before(x)))


class Statistic(nn.Module):
    """Of standardised weights: the operator without running moments, on a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(FEATURES, FEATURES, 1, 1))
        self.norm = nn.BatchNorm2d(FEATURES)

    def forward(self, x):
        flat = self.weight.reshape(1, self.weight.size(0), -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return self.norm(F.conv2d(x, weight))


@torch.jit.script
class Images:
    """What detectors hand from part to part."""

    def __init__(self, tensors: torch.Tensor, sizes: List[int]) -> None:  # noqa: UP006 - the compiler knows no other
        self.tensors = tensors
        self.sizes = sizes

    def count(self) -> int:
        return len(self.sizes)


class Preparation(nn.Module):
    """Makes one."""

    def forward(self, x: torch.Tensor) -> Tuple[Images, int]:  # noqa: UP006
        return Images(x, [1, 2]), 1


class Proposals(nn.Module):
    """Takes one, through lists and dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.head = Conv()

    def forward(self, images: Images, features: Dict[str, torch.Tensor]) -> torch.Tensor:  # noqa: UP006
        found: List[torch.Tensor] = []  # noqa: UP006
        for feature in list(features.values()):
            found.append(self.head(feature))
        kept = [images]
        return found[0] * kept[0].count() + images.count()


class Detector(nn.Module):
    """Objects that are no modules, in tuples and lists: whatever they do, they do not normalise."""

    def __init__(self) -> None:
        super().__init__()
        self.preparation = Preparation()
        self.body = Conv()
        self.proposals = Proposals()

    def forward(self, x):
        images, _ = self.preparation(x)
        features: Dict[str, torch.Tensor] = {"0": self.body(images.tensors)}  # noqa: UP006
        return self.proposals(images, features)


class Stateful(nn.Module):
    """Packed by a method of its own, and in training mode when it is unpacked."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(FEATURES))
        self.register_buffer("running_var", torch.ones(FEATURES))
        self.mode = False

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, None, None, self.mode, 0.1, 1e-5)

    @torch.jit.export
    def __getstate__(self):
        return self.running_mean, self.running_var

    @torch.jit.export
    def __setstate__(self, state: Tuple[torch.Tensor, torch.Tensor]):  # noqa: UP006 - as the compiler wants it
        self.running_mean = state[0]
        self.running_var = state[1]
        self.mode = True
        self.training = False


class Plain(nn.Module):
    """What the hand-edited archives begin as: a norm, moments of its own and flags of several types."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(FEATURES)
        self.register_buffer("running_mean", torch.zeros(FEATURES))
        self.register_buffer("running_var", torch.ones(FEATURES))
        self.off = False
        self.on = True
        self.zero = 0
        self.one = 1
        self.half = 0.5
        self.word = "train"
        self.maybe: bool | None = None
        self.several = nn.ModuleList([nn.BatchNorm2d(FEATURES)])

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, None, None, self.off, 0.1, 1e-5)
