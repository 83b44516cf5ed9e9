"""Shapes, shared weights, gradients, and which clip each prediction is compared with."""
import pytest
import torch
from torch import nn

from hjepa import HJEPA, Encoder, objective

SMALL = dict(latent=8, width=8, heads=2, depth=2, tap=1, short_width=16, macro_width=16)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(n=16, clips=6):
    """Random clips and forces in the default sizes."""
    return (torch.randn(n, clips, 5, 12, generator=gen(1)),
            torch.randn(n, clips - 1, 6, generator=gen(2)))


def gradient(module):
    """Sum of the absolute gradients of a module's parameters."""
    return sum(p.grad.abs().sum().item() for p in module.parameters() if p.grad is not None)


# The counting world: a sequence is a number that doubles and adds its force, from clip to clip,
# p_{k+1} = 2 p_k + f_k. All frames of clip k show p_k. Doubling makes the order of the forces
# matter; whole numbers make every sum exact.

class Sees(nn.Module):
    """Both embeddings of a clip are its number."""

    def shallow(self, clip):
        return clip, clip[:, -1]

    def deep(self, tokens):
        return tokens[:, -1]

    def forward(self, clip):
        return clip[:, -1], clip[:, -1]


class Counts(nn.Module):
    """The true law of the counting world, for as many forces as it is given."""

    def forward(self, z, forces):
        for force in forces.split(2, -1):
            z = 2 * z + force
        return z


def counting_model():
    """A real HJEPA, so its own rollout and jump are used, with stubs for encoders and networks."""
    model = HJEPA(features=2, actions=2, **SMALL)
    model.context, model.target = Sees(), Sees()
    model.short, model.macro = Counts(), Counts()
    model.bridge, model.lift = nn.Identity(), nn.Identity()
    return model


def counting_world(n=7, clips=6):
    """-> obs (n, clips, 5, 2), forces (n, clips - 1, 2), made of whole numbers."""
    forces = torch.randint(-3, 4, (n, clips - 1, 2), generator=gen()).float()
    number = [torch.randint(-3, 4, (n, 2), generator=gen(1)).float()]
    for k in range(clips - 1):
        number.append(2 * number[-1] + forces[:, k])
    return torch.stack(number, 1)[:, :, None].expand(-1, -1, 5, -1).clone(), forces


def test_counting_world_is_predicted_exactly():
    terms = objective(counting_model(), *counting_world())[1]
    assert [terms[name].item() for name in ("pred1", "pred2", "bridge", "lift")] == [0, 0, 0, 0]


def test_shifted_forces_or_clips_are_noticed():
    model, (obs, forces) = counting_model(), counting_world()
    for wrong in ((obs, forces.roll(1, 1)), (obs, forces.roll(-1, 1)), (obs, forces.flip(1)),
                  (obs.roll(1, 1), forces), (obs.roll(-1, 1), forces)):
        terms = objective(model, *wrong)[1]
        assert terms["pred1"] > 0.1 and terms["pred2"] > 0.1


@pytest.mark.parametrize("k", range(6))
def test_prediction_k_is_compared_with_clip_k(k):
    """Clip k off by 3: only the k-th of five errors sees it, and only clip 5 is macro's goal."""
    obs, forces = counting_world()
    obs[:, k] += 3
    terms = objective(counting_model(), obs, forces)[1]
    if k == 0:                               # the start: off by 3, doubled with each clip
        assert terms["pred1"] == pytest.approx(sum((3 * 2 ** j) ** 2 for j in range(1, 6)) / 5)
        assert terms["pred2"] == (3 * 2 ** 5) ** 2
    else:
        assert terms["pred1"] == pytest.approx(9 / 5)
        assert terms["pred2"] == (9 if k == 5 else 0)


@pytest.mark.parametrize("k", range(5))
def test_force_k_enters_prediction_k_plus_1(k):
    """Force k off by 1: predictions up to clip k stay exact, k + 1 is off by 1, then doubled."""
    obs, forces = counting_world()
    forces[:, k] += 1
    model = counting_model()
    path = model.rollout(obs[:, 0, 0], forces)
    off = (path - obs[:, 1:, 0])[0, :, 0]
    assert off.tolist() == [0.0] * k + [2.0 ** j for j in range(5 - k)]
    assert (model.jump(obs[:, 0, 0], forces) - obs[:, 5, 0])[0, 0] == 2.0 ** (4 - k)


def test_shapes():
    model, (obs, forces) = HJEPA(**{**SMALL, "latent": 10}), batch(n=3)
    z1, z2 = model.context(obs[:, 0])
    assert z1.shape == z2.shape == (3, 10)
    tokens, t1 = model.target.shallow(obs[:, 1])
    assert tokens.shape == (3, 5, 8)
    assert torch.equal(t1, model.target(obs[:, 1])[0])
    assert torch.equal(model.target.deep(tokens), model.target(obs[:, 1])[1])
    assert model.rollout(z1, forces).shape == (3, 5, 10)
    assert model.rollout(z1, forces[:, :2]).shape == (3, 2, 10)
    assert model.jump(z2, forces).shape == model.bridge(z2).shape == model.lift(z1).shape == (3, 10)


def test_embedding_depends_on_the_order_of_frames():
    encoder, clip = Encoder(latent=8, width=8, heads=2), batch()[0][:, 0]
    for a, b in zip(encoder(clip), encoder(clip.flip(1))):
        assert (a - b).abs().max() > 1e-2


def test_shallow_embedding_ignores_the_blocks_above_it():
    encoder, clip = Encoder(latent=8, width=8, heads=2, depth=3, tap=1), batch()[0][:, 0]
    before = [z.detach() for z in encoder(clip)]
    with torch.no_grad():
        for p in encoder.upper.parameters():
            p.add_(0.1)
    after = encoder(clip)
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])


@pytest.mark.parametrize("shared", [False, True])
def test_gradients_reach_every_parameter(shared):
    model = HJEPA(**SMALL, shared=shared)
    objective(model, *batch())[0].backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0, name


def test_no_stop_gradient_between_the_branches():
    """The prediction errors alone pull both encoders: neither is frozen, averaged or detached."""
    model = HJEPA(**SMALL)
    total, _ = objective(model, *batch(), std_weight=0.0, cov_weight=0.0, map_weight=0.0)
    total.backward()
    for encoder in (model.context, model.target):
        assert gradient(encoder.tap1) > 0 and gradient(encoder.tap2) > 0
        assert gradient(encoder.lower) > 0 and gradient(encoder.upper) > 0
    assert gradient(model.bridge) == gradient(model.lift) == 0


def test_maps_pull_the_target_encoder_only():
    """bridge and lift aim at the context encoder's embedding without moving it."""
    model = HJEPA(**SMALL)
    objective(model, *batch(), 0.0, 0.0, 0.0, 1.0)[0].backward()
    assert gradient(model.context) == 0
    assert gradient(model.target.tap1) > 0 and gradient(model.target.tap2) > 0
    assert gradient(model.bridge) > 0 and gradient(model.lift) > 0


def test_shared_means_one_encoder():
    two, one = HJEPA(**SMALL), HJEPA(**SMALL, shared=True)

    def size(module):
        return sum(p.numel() for p in module.parameters())
    assert one.context is one.target and two.context is not two.target
    assert size(two) - size(one) == size(two.context)
    clip = batch()[0][:, 0]
    assert torch.equal(one.context(clip)[1], one.target(clip)[1])
    assert not torch.equal(two.context(clip)[1], two.target(clip)[1])


def test_prediction_depends_on_force_and_state():
    model, (obs, forces) = HJEPA(**SMALL), batch()
    z1, z2 = model.context(obs[:, 0])
    for predict, z in ((lambda z, f: model.rollout(z, f)[:, -1], z1), (model.jump, z2)):
        right = predict(z, forces)
        assert (right - predict(z, 0 * forces)).abs().max() > 1e-3
        assert (right - predict(0 * z, forces)).abs().max() > 1e-3
