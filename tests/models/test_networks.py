"""The paper's networks: sizes, initial weights, and what those depend on."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models as torchvision_models

from smallbatch.config import Norm, Schedule
from smallbatch.errors import ConfigError
from smallbatch.models import build
from smallbatch.models.norm import GhostBatchNorm, Normalization
from smallbatch.models.resnet import Block, ResNet
from smallbatch.run import Run

ALEXNET = {"_target_": "smallbatch.models.alexnet.AlexNet", "name": "alexnet"}
NO_NORM = Normalization(bn_batch_size=2)


def resnet(depth: int) -> dict:
    return {"_target_": "smallbatch.models.resnet.ResNet", "name": f"resnet{depth}", "depth": depth}


def torchvision(network: str) -> dict:
    return {"_target_": "smallbatch.models.torchvision.network", "name": network, "network": network}


def run(model: dict, kind: str = "none", **changes) -> Run:
    fields = {
        "model": model, "norm": Norm(kind), "data": {}, "optimizer": {}, "schedule": Schedule(), "batch_size": 4,
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
    block = Block(inputs, outputs, stride, NO_NORM).double()
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
        ResNet(depth, 10, 3, NO_NORM)


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


# torchvision's


@pytest.fixture(scope="module")
def resnet50():
    return build(run(torchvision("resnet50"), "batch"), 3, 10).double()


@pytest.mark.trains
def test_resnet50_with_batch_norm_is_torchvision_s_in_outputs_and_gradients(resnet50):
    """Training mode, float64, one BN batch; the names of the parameters are the same too."""
    theirs = torchvision_models.resnet50(weights=None, num_classes=10).double()
    parameters = dict(resnet50.named_parameters())
    assert theirs.load_state_dict(parameters, strict=False).unexpected_keys == []
    assert [name for name, _ in theirs.named_parameters()] == list(parameters)
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([1, 3, 5, 7])
    logits = [network(x) for network in (resnet50, theirs)]
    torch.testing.assert_close(*logits, rtol=1e-9, atol=1e-9)
    for out in logits:
        F.cross_entropy(out, y).backward()
    for (name, ours), their in zip(parameters.items(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, their.grad, rtol=1e-7, atol=1e-9, msg=name)


def test_a_bn_batch_makes_every_batch_norm_of_torchvision_s_a_ghost(resnet50):
    network = build(run(torchvision("resnet18"), "batch", bn_batch_size=2), 3, 10).double()
    norms = [m for m in network.modules() if isinstance(m, GhostBatchNorm)]
    assert ([m.bn_batch_size for m in norms], len(norms)) == ([2] * 20, 20)
    assert not any(isinstance(m, nn.BatchNorm2d) for net in (network, resnet50) for m in net.modules())
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(x), torch.cat([network(x[:2]), network(x[2:])]))


@pytest.mark.parametrize(("kind", "layer"), [("batch", GhostBatchNorm), ("group", nn.GroupNorm)])
@pytest.mark.parametrize("network", ["resnet18", "densenet121", "mobilenet_v2"])
def test_every_batch_norm_becomes_the_norm_that_is_asked_for(network, kind, layer):
    with torch.device("meta"):
        count = sum(isinstance(m, nn.BatchNorm2d) for m in getattr(torchvision_models, network)().modules())
    built = build(run(torchvision(network), kind, norm=Norm(kind, groups=4)), 3, 10)
    assert sum(isinstance(m, layer) for m in built.modules()) == count
    assert not any(isinstance(m, nn.BatchNorm2d) for m in built.modules())


def test_without_batch_norm_its_convolutions_get_a_bias_and_nothing_else_changes():
    network = build(run(torchvision("resnet18")), 3, 10)
    assert not any(isinstance(m, nn.BatchNorm2d | GhostBatchNorm) for m in network.modules())
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert all(not m.bias.any() and m.bias.requires_grad for m in convolutions)
    with_norm = build(run(torchvision("resnet18"), "batch"), 3, 10)
    size, size_with = (sum(p.numel() for p in net.parameters()) for net in (network, with_norm))
    assert size_with - size == sum(m.out_channels for m in convolutions)  # γ and β against a bias
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_torchvision_s_networks_start_as_ours():
    for layer in build(run(torchvision("resnet18"), "batch"), 3, 10).modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            w = layer.weight.detach().double()
            assert abs(w.std().item() / math.sqrt(2 / w[0].numel()) - 1) < 5 / math.sqrt(2 * w.numel()), layer
            assert layer.bias is None or not layer.bias.any()


@pytest.mark.parametrize("network", ["googlenet", "squeezenet1_1"])
def test_a_network_gives_one_row_of_logits_an_image_in_training(network):
    kind = "batch" if network == "googlenet" else "none"
    assert build(run(torchvision(network), kind), 3, 7)(torch.zeros(2, 3, 64, 64)[[0, 1, 0, 1]]).shape == (4, 7)


@pytest.mark.parametrize(
    ("network", "kind", "channels", "message"),
    [
        ("resnet51", "batch", 3, r"model.network=resnet51: torchvision has no such network; it has .*resnet5\d"),
        ("quantized_resnet50", "none", 3, "has no such network"),
        ("zzz", "none", 3, "it has alexnet, "),
        ("resnet18", "batch", 1, "model.network=resnet18: takes images of 3 channels, not 1"),
        ("squeezenet1_1", "batch", 3, "norm=batch: squeezenet1_1 has no batch norm to replace; use norm=none"),
        ("squeezenet1_1", "group", 3, "norm=group: squeezenet1_1"),
    ],
)
def test_what_torchvision_s_networks_do_not_do_is_refused_in_one_line(network, kind, channels, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build(run(torchvision(network), kind), channels, 10)
    assert "\n" not in str(caught.value)
