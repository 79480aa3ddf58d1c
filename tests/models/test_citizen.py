"""Ghost batch norm where people take torch's batch norm: what torch's own tools make of it."""

import copy

import pytest
import torch
from torch import fx, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from smallbatch import GhostBatchNorm, GhostBatchNorm1d, GhostBatchNorm2d

CLOSE = {"rtol": 1e-11, "atol": 1e-12}


def images(m: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(m, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def network(b: int = 2, seed: int = 0, steps: int = 3) -> nn.Sequential:
    """A small one that has seen `steps` batches of 8; in training mode."""
    torch.manual_seed(seed)
    first = [nn.Conv2d(3, 5, 3), GhostBatchNorm2d(5, b), nn.ReLU(), nn.Flatten()]
    made = nn.Sequential(*first, nn.Linear(20, 6), GhostBatchNorm1d(6, b), nn.Linear(6, 4)).double()
    for step in range(steps):
        made(images(8, seed=step))
    return made


def torchs(net: nn.Sequential) -> nn.Sequential:
    """The same network with torch's own layers."""
    kinds = {GhostBatchNorm1d: nn.BatchNorm1d, GhostBatchNorm2d: nn.BatchNorm2d}
    parts = [kinds[type(p)](p.num_features) if type(p) in kinds else copy.deepcopy(p) for p in net]
    return nn.Sequential(*parts).double()


def test_states_load_into_torchs_layers_and_back():
    ours = network()
    theirs = torchs(ours)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(theirs.eval()(images(3)), ours.eval()(images(3)), **CLOSE)
    again = network(seed=1)
    again.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(again.eval()(images(3)), ours(images(3)), **CLOSE)
    assert all(isinstance(value, torch.Tensor) for value in ours.state_dict().values())  # what safetensors asks for


def test_trained_on_after_a_load_it_is_as_if_never_saved():
    ours, other = network(), network(seed=1)
    other.load_state_dict(ours.state_dict())
    for net in (ours, other):
        net(images(8, seed=9))
    torch.testing.assert_close(other.state_dict(), ours.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("average", [{}, {"multi_avg_fn": get_ema_multi_avg_fn(0.5)}, {"use_buffers": True}])
def test_weight_averages_and_update_bn(average):
    """Stochastic weight averages: statistics recomputed with torch's own tool are plain means over groups."""
    net = network()
    averaged = AveragedModel(net, **average)
    for seed in range(2):
        net(images(8, seed=seed))
        averaged.update_parameters(net)
    batches = [images(8, seed=seed) for seed in (5, 6)]
    update_bn(batches, averaged)
    norm = averaged.module[1]
    hidden = averaged.module[0](torch.cat(batches)).detach()
    groups = hidden.split(2)
    assert norm.num_batches_tracked == 8
    assert norm.momentum == net[1].momentum
    torch.testing.assert_close(norm.running_mean, hidden.mean((0, 2, 3)), **CLOSE)
    torch.testing.assert_close(norm.running_var, torch.stack([g.var((0, 2, 3)) for g in groups]).mean(0), **CLOSE)


def test_statistics_can_be_reset():
    net = network()
    net[1].reset_running_stats()
    assert net[1].num_batches_tracked == 0
    net[1](images(8)[:, :1].expand(8, 5, 4, 4))
    fresh = GhostBatchNorm2d(5, 2).double()
    fresh(images(8)[:, :1].expand(8, 5, 4, 4))
    torch.testing.assert_close(net[1].running_mean, fresh.running_mean, rtol=0, atol=0)


def test_an_ensemble_is_evaluated_by_vmap():
    nets = [network(seed=seed).eval() for seed in range(3)]
    state = stack_module_state(nets)
    base = copy.deepcopy(nets[0]).to("meta")
    together = vmap(lambda s, x: functional_call(base, s, (x,)), in_dims=(0, None))(state, images(5))
    torch.testing.assert_close(together, torch.stack([net(images(5)) for net in nets]), **CLOSE)


def test_it_is_folded_into_the_convolution_before_it():
    net = network().eval()
    fused = fuse_conv_bn_eval(net[0], net[1])
    torch.testing.assert_close(fused(images(5)), net[1](net[0](images(5))), **CLOSE)


@pytest.mark.parametrize("training", [False, True])
def test_torch_fx_keeps_it_whole(training):
    net = network().train(training)
    traced = fx.symbolic_trace(net)
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == [str(i) for i in range(7)]
    torch.testing.assert_close(traced(images(8)), copy.deepcopy(net)(images(8)), rtol=0, atol=0)


def test_an_exported_network_evaluates_the_same():
    net = network().eval()
    exported = torch.export.export(net, (images(4),), dynamic_shapes=({0: torch.export.Dim("m", min=2)},))
    torch.testing.assert_close(exported.module()(images(6)), net(images(6)), **CLOSE)


@pytest.mark.parametrize("b", [2, 8])
def test_compiled_it_trains_the_same_and_is_compiled_once(b):
    from torch._dynamo.testing import CompileCounter  # takes seconds

    torch._dynamo.reset()
    compiled = CompileCounter()
    ours, plain = network(b, steps=0), network(b, steps=0)
    fast = torch.compile(ours, backend=compiled, fullgraph=True)
    for step in range(12):
        torch.testing.assert_close(fast(images(8, seed=step)), plain(images(8, seed=step)), **CLOSE)
    assert compiled.frame_count == 1
    torch.testing.assert_close(ours.state_dict(), plain.state_dict(), **CLOSE)
    torch.testing.assert_close(ours.eval()(images(3)), plain.eval()(images(3)), **CLOSE)


def test_it_can_be_made_without_memory_and_filled_later():
    with torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(3, 5, 3), GhostBatchNorm2d(5, 2))
        assert net(torch.empty(8, 3, 4, 4)).shape == (8, 5, 2, 2)
    net = net.to_empty(device="cpu")
    net[1].reset_parameters()
    torch.testing.assert_close(net[1].state_dict(), GhostBatchNorm2d(5, 2).state_dict())


def test_no_affine_map_and_no_statistics_are_torchs_settings():
    norm = GhostBatchNorm(3, 2, affine=False, track_running_stats=False).double()
    for split in (norm._one_by_one, norm._at_once):
        y = split(images(8), None)
        torch.testing.assert_close(y, torch.cat([norm(g) for g in images(8).split(2)]), **CLOSE)
        assert y.mean((2, 3)).view(4, 2, 3).mean(1).abs().max() < 1e-12
    assert norm.running_mean is None
    assert norm.state_dict() == {}
    one = images(1)
    torch.testing.assert_close(norm.eval()(one), nn.BatchNorm2d(3, affine=False, track_running_stats=False)(one))


@pytest.mark.parametrize("momentum", [0.0, 1.0, None])
@pytest.mark.parametrize("at_once", [False, True])
def test_a_momentum_at_its_ends_means_what_it_means_to_torch(momentum, at_once):
    ours, theirs = GhostBatchNorm2d(3, 2).double(), nn.BatchNorm2d(3, momentum=momentum).double()
    ours.momentum = momentum
    if at_once:
        ours._one_by_one = ours._at_once
    for step in range(2):
        ours(images(8, seed=step))
        for group in images(8, seed=step).split(2):
            theirs(group)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), **CLOSE)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (0, 3)])
def test_an_empty_batch_leaves_the_statistics_as_they_are(shape):
    norm = GhostBatchNorm(3, 2)
    before = copy.deepcopy(norm.state_dict())
    assert norm(torch.zeros(shape)).shape == shape
    torch.testing.assert_close(norm.state_dict(), before)


@pytest.mark.parametrize(
    ("kind", "shape", "words"),
    [
        (GhostBatchNorm2d, (4, 3), "expected 4D input"),
        (GhostBatchNorm1d, (4, 3, 2, 2), "expected 2D or 3D input"),
        (GhostBatchNorm, (4,), "got 1D input"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_inputs_of_another_kind_are_refused_as_torch_refuses_them(kind, shape, words, training):
    with pytest.raises(ValueError, match=words):
        kind(3, 2).train(training)(torch.zeros(shape))
