"""The paper's networks: sizes, initial weights, and what those depend on."""

import math
from dataclasses import replace

import pytest
import torch

from smallbatch.config import ConfigError, Run
from smallbatch.models import build
from smallbatch.models.normalization import Normalization
from smallbatch.models.resnet import Block, ResNet

ALEXNET = {"_target_": "smallbatch.models.alexnet.AlexNet", "name": "alexnet"}
NORM = {"kind": "none", "layers": "all", "eps": 1e-5, "memory": 1280, "groups": 8}


def resnet(depth: int) -> dict:
    return {"_target_": "smallbatch.models.resnet.ResNet", "name": f"resnet{depth}", "depth": depth}


def run(model: dict, kind: str = "none", **changes) -> Run:
    fields = {
        "model": model, "norm": NORM | {"kind": kind}, "data": {}, "optimizer": {}, "schedule": {}, "batch_size": 4,
        "base_lr": 0.1, "bn_batch_size": None, "epochs": 1, "weight_decay": 0.0, "seed": 0, "precision": "32-true",
    }  # fmt: skip
    return Run(**fields | changes)


def count(model: dict, kind: str, channels: int = 3, classes: int = 10) -> int:
    return sum(p.numel() for p in build(run(model, kind), channels, classes).parameters())


@pytest.mark.parametrize(
    ("model", "kind", "parameters"),
    [(ALEXNET, "none", 472_794), (resnet(8), "batch", 75_290), (resnet(20), "batch", 269_722),
     (resnet(32), "batch", 464_154)],
)  # fmt: skip
def test_parameters_are_as_many_as_the_paper_notes_say(model, kind, parameters):
    assert count(model, kind) == parameters


def test_each_norm_layer_trades_a_bias_for_gamma_and_beta():
    """AlexNet: 16 + 48 + 96 + 64 + 64 channels and twice 256 units."""
    assert count(ALEXNET, "batch") == count(ALEXNET, "group") == 472_794 + 16 + 48 + 96 + 64 + 64 + 512


def test_channels_and_classes_change_only_the_ends():
    assert count(ALEXNET, "none", channels=1) == 472_794 - 2 * 16 * 5 * 5
    assert count(ALEXNET, "none", classes=100) == 472_794 + 90 * 257
    assert count(resnet(8), "batch", channels=1, classes=100) == 75_290 - 2 * 16 * 3 * 3 + 90 * 65


@pytest.mark.parametrize("kind", ["none", "batch", "group"])
@pytest.mark.parametrize("model", [ALEXNET, resnet(8), resnet(20)], ids=lambda m: m["name"])
def test_logits_are_one_row_an_image(model, kind):
    assert build(run(model, kind), 3, 7)(torch.zeros(4, 3, 32, 32)).shape == (4, 7)


@pytest.mark.parametrize("model", [ALEXNET, resnet(32)], ids=lambda m: m["name"])
def test_weights_are_he_normal_by_fan_in_and_biases_zero(model):
    """Standard deviation √(2 / fan-in) and mean 0 within 5 standard errors, and a normal's share within 1 σ."""
    z_all, layers = [], [m for m in build(run(model), 3, 10).modules() if hasattr(m, "weight")]
    for layer in layers:
        w = layer.weight.detach().double()
        z = w.flatten() / math.sqrt(2 / w[0].numel())
        assert abs(z.std().item() - 1) < 5 / math.sqrt(2 * len(z)), layer
        assert abs(z.mean().item()) < 5 / math.sqrt(len(z)), layer
        assert not layer.bias.any()
        z_all.append(z)
    z, inside = torch.cat(z_all), math.erf(1 / math.sqrt(2))
    assert abs((z.abs() < 1).double().mean().item() - inside) < 5 * math.sqrt(inside * (1 - inside) / len(z))


def test_norm_layers_start_as_the_identity():
    for name, value in build(run(ALEXNET, "batch"), 3, 10).named_parameters():
        if value.dim() == 1:
            assert (value == float(name.endswith("weight"))).all(), name


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(16, 16, 1), (16, 32, 2), (32, 64, 2), (3, 6, 2)])
def test_shortcut_is_every_stride_th_pixel_between_channels_of_zeros(inputs, outputs, stride):
    """With the convolutions at zero a block is ReLU of its shortcut, here written pixel by pixel."""
    block = Block(inputs, outputs, stride, Normalization(**NORM, bn_batch_size=2)).double()
    for parameter in block.parameters():
        parameter.detach().zero_()
    x = torch.randn(2, inputs, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(2, outputs, 6 // stride, 6 // stride, dtype=torch.float64)
    first = (outputs - inputs) // 2
    for channel in range(inputs):
        for i in range(6 // stride):
            for j in range(6 // stride):
                expected[:, first + channel, i, j] = x[:, channel, stride * i, stride * j].clamp(min=0)
    torch.testing.assert_close(block(x), expected, rtol=0, atol=0)


def test_resnet_has_its_depth_in_layers_and_halves_the_image_twice():
    network = build(run(resnet(20)), 3, 10)
    weights = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(weights) == 20
    assert [b.conv1.out_channels for b in network.blocks] == [16] * 3 + [32] * 3 + [64] * 3
    assert network.blocks(torch.zeros(1, 16, 32, 32)).shape == (1, 64, 8, 8)


@pytest.mark.parametrize("depth", [2, 7, 18, 0, -4])
def test_a_depth_that_is_not_6n_plus_2_is_refused(depth):
    with pytest.raises(ConfigError, match=f"depth={depth}"):
        ResNet(depth, 10, 3, Normalization(**NORM, bn_batch_size=2))


CHANGES = [{"batch_size": 64}, {"base_lr": 2.0**-4}, {"bn_batch_size": 2}, {"epochs": 9}, {"weight_decay": 0.5}]


@pytest.mark.parametrize("model", [ALEXNET, resnet(8)], ids=lambda m: m["name"])
def test_initial_weights_depend_on_the_seed_alone(model):
    first = build(run(model, "batch", seed=3), 3, 10).state_dict()
    for changes in CHANGES:
        torch.manual_seed(len(changes))  # whatever was drawn before
        other = build(replace(run(model, "batch", seed=3), **changes), 3, 10).state_dict()
        assert first.keys() == other.keys()
        assert all(torch.equal(v, other[k]) for k, v in first.items() if isinstance(v, torch.Tensor)), changes
    other = build(run(model, "batch", seed=0), 3, 10).state_dict()
    assert all(not torch.equal(v, other[k]) for k, v in first.items() if k.endswith("weight") and v.dim() > 1)


def test_building_draws_nothing_from_the_global_generator():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build(run(resnet(8)), 3, 10)
    assert torch.equal(torch.rand(3), expected)


def test_a_network_without_norm_argument_is_refused_only_where_a_norm_is_asked_for():
    linear = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3, "name": "linear"}
    assert build(run(linear), 3, 10).out_features == 3
    with pytest.raises(ConfigError, match=r"norm=batch.*norm=none"):
        build(run(linear, "batch"), 3, 10)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"_target_": "no.such.Network"}, "model._target_=no.such.Network"),
        ({"_target_": "smallbatch.models.resnet.Missing"}, "Missing"),
        ({**ALEXNET, "depth": 8}, "depth"),
        ({"_target_": "smallbatch.models.resnet.ResNet"}, "depth"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused_naming_why(model, message):
    with pytest.raises(ConfigError, match=message):
        build(run(model), 3, 10)
