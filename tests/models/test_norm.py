"""Ghost batch norm against a loop over groups, torch's batch norm, and its definition in Python floats."""

import io
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from smallbatch.errors import ConfigError
from smallbatch.models.alexnet import AlexNet
from smallbatch.models.norm import GhostBatchNorm, Normalization

SHAPES = [(5,), (5, 3, 2), (3, 1, 4)]  # behind m: units, channels × height × width
FLOAT64 = {"rtol": 1e-11, "atol": 1e-13}
CHOICE = Normalization(kind="batch", bn_batch_size=4)


def layer(features: int, bn_batch_size: int, memory: int = 1280, as_on_gpu: bool = False) -> GhostBatchNorm:
    """In float64, with γ and β that are not 1 and 0."""
    norm = GhostBatchNorm(features, bn_batch_size, memory=memory).double()
    if as_on_gpu:
        norm._one_by_one = norm._at_once
    torch.manual_seed(1)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def batch(m: int, shape: tuple[int, ...], seed: int = 0, channels_last: bool = False) -> torch.Tensor:
    x = torch.randn(m, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3 + 2
    return x.to(memory_format=torch.channels_last) if channels_last else x


def gradients(norm: nn.Module, forward, x: torch.Tensor) -> list[torch.Tensor]:
    """Output, and gradients for input, γ and β of a loss that weighs every output differently."""
    x = x.clone().requires_grad_()
    y = forward(x)
    return [y.detach(), *torch.autograd.grad((y * batch(*split(y), seed=9)).sum(), [x, norm.weight, norm.bias])]


def split(y: torch.Tensor) -> tuple[int, tuple[int, ...]]:
    return y.shape[0], tuple(y.shape[1:])


def loop_over_groups(norm: GhostBatchNorm, x: torch.Tensor) -> torch.Tensor:
    """The definition: y = γ (x − μ_g) / √(σ²_g + ε) + β, one group after the other."""
    shape = (1, -1, *[1] * (x.dim() - 2))
    dims = [d for d in range(x.dim()) if d != 1]
    parts = []
    for group in x.split(norm.bn_batch_size):
        mean = group.mean(dims, keepdim=True)
        var = ((group - mean) ** 2).mean(dims, keepdim=True)
        parts.append(norm.weight.view(shape) * (group - mean) / (var + norm.eps).sqrt() + norm.bias.view(shape))
    return torch.cat(parts)


@given(st.integers(2, 6), st.integers(1, 5), st.sampled_from(SHAPES), st.booleans(), st.booleans(), st.integers(0, 99))
def test_outputs_and_gradients_equal_a_loop_over_groups(b, groups, shape, channels_last, as_on_gpu, seed):
    norm = layer(shape[0], b, as_on_gpu=as_on_gpu)
    x = batch(b * groups, shape, seed, channels_last and len(shape) == 3)
    for ours, expected in zip(
        gradients(norm, norm, x), gradients(norm, lambda x: loop_over_groups(norm, x), x), strict=True
    ):
        torch.testing.assert_close(ours, expected, **FLOAT64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("b", [2, 4, 8, 16])
@pytest.mark.parametrize("as_on_gpu", [False, True])
def test_running_statistics_are_the_corrected_moving_average_written_in_floats(shape, b, as_on_gpu):
    """Per group r ← (1 − α) r + α s from zero; divided by 1 − exp(−images seen / memory), as Adam corrects."""
    memory, m, steps, channel = 40, 16, 3, shape[0] - 1
    norm = layer(shape[0], b, memory, as_on_gpu)
    alpha, seen = 1 - math.exp(-b / memory), 0
    mean = var = 0.0
    for step in range(steps):
        x = batch(m, shape, seed=step)
        norm(x)
        for start in range(0, m, b):
            values = x[start : start + b, channel].flatten().tolist()
            mu = math.fsum(values) / len(values)
            unbiased = math.fsum((v - mu) ** 2 for v in values) / (len(values) - 1)
            mean, var = (1 - alpha) * mean + alpha * mu, (1 - alpha) * var + alpha * unbiased
            seen += b
        correction = 1 - math.exp(-seen / memory)
        assert norm.running_mean[channel].item() == pytest.approx(mean / correction, rel=1e-12)
        assert norm.running_var[channel].item() == pytest.approx(var / correction, rel=1e-12)
    assert norm.num_batches_tracked == steps * m / b
    x = batch(3, shape, seed=99)
    gamma, beta = norm.weight[channel].item(), norm.bias[channel].item()
    expected = gamma * (x[:, channel] - mean / correction) / math.sqrt(var / correction + norm.eps) + beta
    torch.testing.assert_close(norm.eval()(x)[:, channel].detach(), expected, **FLOAT64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("m", [2, 7])
def test_one_group_equals_torch_batch_norm_bit_for_bit(shape, m):
    """Outputs and gradients; running statistics where torch's momentum is the newest group's weight."""
    ours = layer(shape[0], m)
    theirs = (nn.BatchNorm1d if len(shape) == 1 else nn.BatchNorm2d)(shape[0], eps=1e-5).double()
    theirs.load_state_dict(ours.state_dict())
    for step in range(3):
        x = batch(m, shape, seed=step)
        theirs.momentum = math.expm1(-m / 1280) / math.expm1(-(step + 1) * m / 1280)
        for a, b in zip(gradients(ours, ours, x), gradients(theirs, theirs, x), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
        for name, value in ours.named_buffers():
            torch.testing.assert_close(value, theirs.get_buffer(name), rtol=1e-15, atol=1e-15)
    for one in (ours, theirs):
        one.eval()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("b", [1, 2, 4, 8, 16])
def test_images_weigh_and_fade_the_same_whatever_the_bn_batch(b):
    """16 images of mean 1, then n of mean 0: remembered is (1 − exp(−16/memory)) exp(−n/memory) of what there was."""
    memory, channels = 100, 2
    norm = GhostBatchNorm(channels, b, memory=memory).double()
    norm(torch.ones(16, channels, 2, 2, dtype=torch.float64))
    for n in range(16, 81, 16):
        norm(torch.zeros(16, channels, 2, 2, dtype=torch.float64))
        expected = (1 - math.exp(-16 / memory)) * math.exp(-n / memory) / (1 - math.exp(-(16 + n) / memory))
        assert norm.running_mean.tolist() == pytest.approx([expected] * channels, rel=1e-12)


@given(st.sampled_from([1, 2, 4, 8, 16]), st.integers(1, 4))
def test_the_correction_makes_constant_statistics_exact_from_the_first_step(b, steps):
    norm = GhostBatchNorm(1, b).double()
    x = torch.tensor([1.0, 5.0], dtype=torch.float64).expand(16, 1, 1, 2)  # every group: mean 3, values ± 2
    for _ in range(steps):
        norm(x)
    unbiased = 4 * 2 * b / (2 * b - 1)
    probe = torch.tensor([[[[3.0, 4.0]]]], dtype=torch.float64)
    expected = torch.tensor([[[[0.0, 1 / math.sqrt(unbiased + norm.eps)]]]], dtype=torch.float64)
    torch.testing.assert_close(norm.eval()(probe).detach(), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("m", "b"), [(8, 3), (3, 8), (2, 4), (1, 2)])
def test_a_batch_that_groups_do_not_divide_is_refused(m, b):
    norm = layer(5, b)
    with pytest.raises(ConfigError, match=f"batch of {m} .* bn_batch_size={b}"):
        norm(batch(m, (5,)))
    assert norm.num_batches_tracked == 0


@pytest.mark.parametrize("shape", [(5,), (5, 1, 1)])
@pytest.mark.parametrize("m", [1, 4])
def test_one_value_per_channel_is_refused(shape, m):
    norm = layer(5, 1)
    for kind in (ConfigError, ValueError):
        with pytest.raises(kind, match="more than 1 value per channel when training, got input size"):
            norm(batch(m, shape))
    assert norm.num_batches_tracked == 0


def trained(shape: tuple[int, ...], b: int = 4) -> GhostBatchNorm:
    norm = layer(shape[0], b)
    norm(batch(8, shape))
    return norm.eval()


@pytest.mark.parametrize("shape", SHAPES)
def test_evaluation_of_an_image_depends_on_no_other_image(shape):
    norm, x = trained(shape), batch(7, shape, seed=1)
    order = torch.randperm(7)
    together = norm(x)
    torch.testing.assert_close(norm(x[order]), together[order], rtol=1e-15, atol=1e-15)
    torch.testing.assert_close(torch.cat([norm(one[None]) for one in x]), together, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("shape", SHAPES)
def test_evaluation_does_not_depend_on_bn_batch_size_and_changes_no_state(shape):
    norm, x = trained(shape), batch(7, shape, seed=1)
    before = {name: value.clone() for name, value in norm.named_buffers()}
    expected = norm(x)
    for b in (1, 2, 3, 64):
        norm.bn_batch_size = b
        torch.testing.assert_close(norm(x), expected, rtol=0, atol=0)
    assert norm.num_batches_tracked == 2
    assert all(torch.equal(value, before[name]) for name, value in norm.named_buffers())


def test_untrained_evaluation_is_the_affine_map_of_the_parameters():
    norm, x = layer(5, 2).eval(), batch(3, (5,))
    torch.testing.assert_close(norm(x), norm.weight * x / math.sqrt(1 + norm.eps) + norm.bias, **FLOAT64)


def test_a_saved_state_continues_as_if_never_saved():
    """Through torch.save and load with weights_only=True."""
    norm, copy = trained((5, 3, 2)).train(), layer(5, 4)
    file = io.BytesIO()
    torch.save(norm.state_dict(), file)
    file.seek(0)
    copy.load_state_dict(torch.load(file, weights_only=True))
    assert copy.num_batches_tracked == norm.num_batches_tracked == 2
    for one in (norm, copy):
        one(batch(8, (5, 3, 2), seed=5))
        one.eval()
    x = batch(3, (5, 3, 2), seed=6)
    torch.testing.assert_close(copy(x), norm(x), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(16,), (16, 3, 2)])
def test_group_norm_normalises_groups_of_channels_of_each_image(shape):
    norm = replace(CHOICE, kind="group", groups=4)(16).double()
    x = batch(3, shape)
    grouped = x.reshape(3, 4, -1)
    var = ((grouped - grouped.mean(2, keepdim=True)) ** 2).mean(2, keepdim=True)
    expected = ((grouped - grouped.mean(2, keepdim=True)) / (var + 1e-5).sqrt()).reshape(x.shape)
    torch.testing.assert_close(norm(x).detach(), expected, **FLOAT64)


@pytest.mark.parametrize("groups", [3, 0])
def test_groups_that_do_not_divide_the_channels_are_refused(groups):
    with pytest.raises(ConfigError, match=f"norm.groups={groups}"):
        replace(CHOICE, kind="group", groups=groups)(16)


def test_settings_reach_the_layer():
    norm = replace(CHOICE, eps=0.5, memory=64)(16)
    assert isinstance(norm, GhostBatchNorm)
    assert (norm.bn_batch_size, norm.eps, norm.memory) == (4, 0.5, 64)


@pytest.mark.parametrize(
    ("kind", "layers", "kinds"),
    [
        ("none", "all", [nn.Identity] * 7),
        ("batch", "all", [GhostBatchNorm] * 7),
        ("batch", "conv", [GhostBatchNorm] * 5 + [nn.Identity] * 2),
        ("group", "all", [nn.GroupNorm] * 7),
        ("group", "conv", [nn.GroupNorm] * 5 + [nn.Identity] * 2),
    ],
)
def test_alexnet_is_normalised_where_chosen_and_biased_elsewhere(kind, layers, kinds):
    """5 convolutions, then 2 hidden layers; a bias only where no norm follows, and at the end."""
    network = AlexNet(10, 3, replace(CHOICE, kind=kind, layers=layers))
    modules = [*network.features, *network.classifier]
    places = [i for i, module in enumerate(modules) if isinstance(module, nn.Conv2d | nn.Linear)]
    assert [type(modules[i + 1]) for i in places[:-1]] == kinds
    assert [modules[i].bias is None for i in places] == [k is not nn.Identity for k in kinds] + [False]
    assert [m.weight.numel() for m in modules if isinstance(m, GhostBatchNorm)] == [
        c for c, k in zip([16, 48, 96, 64, 64, 256, 256], kinds, strict=True) if k is GhostBatchNorm
    ]
