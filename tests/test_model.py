"""Shapes, equations, shared weights, gradients, and which clip each prediction is compared with."""
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hjepa import HJEPA, AdaptiveBlock, Block, Encoder, FirstGuess, Predictor, embeddings
from hjepa import objective

SMALL = dict(latent=8, width=8, heads=2, depth=2, shallow_depth=1, short_width=16, macro_width=16,
             macro_blocks=5, guess_width=0)
WEIGHTS = {"pred": 25.0, "std": 25.0, "cov": 1.0, "map": 5.0}


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(n=16, clips=6):
    """Random clips and forces in the default sizes."""
    obs = torch.randn(n, clips, 5, 12, generator=gen(1))
    forces = torch.randn(n, clips - 1, 6, generator=gen(2))
    return obs, forces


def gradient(module):
    """Sum of the absolute gradients of a module's parameters."""
    return sum(p.grad.abs().sum().item() for p in module.parameters() if p.grad is not None)


def shake(module, seed=0):
    """Adds noise to all parameters, so that no bias is 0 and no norm's scale is 1."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=gen(seed)))
    return module


# The blocks against their equations

def test_block_is_a_pre_norm_transformer_block():
    """Against torch's own multi-head attention."""
    block = shake(Block(width=8, heads=2, mlp_ratio=3))
    x = torch.randn(4, 5, 8, generator=gen())
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        attention.in_proj_weight.copy_(block.qkv.weight)
        attention.in_proj_bias.copy_(block.qkv.bias)
        attention.out_proj.weight.copy_(block.out.weight)
        attention.out_proj.bias.copy_(block.out.bias)
    y = block.norm1(x)
    expected = x + attention(y, y, y)[0]
    expected = expected + block.mlp(block.norm2(expected))
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)
    assert block.mlp[0].out_features == 24


def test_attention_is_softmax_over_the_frames():
    """One head by hand: weights are softmax of scaled products and mix the values of the frames."""
    block = shake(Block(width=4, heads=1))
    x = torch.randn(1, 3, 4, generator=gen())
    q, k, v = block.qkv(block.norm1(x)).chunk(3, -1)
    mixed = torch.zeros(3, 4)
    for t in range(3):
        scores = [math.exp((q[0, t] @ k[0, s]).item() / math.sqrt(4)) for s in range(3)]
        for s in range(3):
            mixed[t] += scores[s] / sum(scores) * v[0, s]
    middle = x + block.out(mixed)
    expected = middle + block.mlp(block.norm2(middle))
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


def test_adaptive_block_is_its_equation():
    """x + (1 + gate) mlp((1 + scale) norm(x) + shift)"""
    block = shake(AdaptiveBlock(width=6, code=3))
    x = torch.randn(4, 6, generator=gen())
    code = torch.randn(4, 3, generator=gen(1))
    numbers = code @ block.adapt.weight.T + block.adapt.bias              # (4, 18)
    shift = numbers[:, :6]
    scale = numbers[:, 6:12]
    gate = numbers[:, 12:]
    deviation = x.var(-1, unbiased=False, keepdim=True).add(1e-5).sqrt()
    norm = (x - x.mean(-1, keepdim=True)) / deviation
    expected = x + (1 + gate) * block.mlp((1 + scale) * norm + shift)
    torch.testing.assert_close(block(x, code), expected, rtol=1e-4, atol=1e-5)


def test_adaptive_block_with_a_code_that_says_nothing_is_a_plain_residual_block():
    block = AdaptiveBlock(width=6, code=3)
    nn.init.zeros_(block.adapt.weight)
    nn.init.zeros_(block.adapt.bias)
    x = torch.randn(4, 6, generator=gen())
    expected = x + block.mlp(F.layer_norm(x, (6,)))
    torch.testing.assert_close(block(x, torch.randn(4, 3)), expected)


def test_predictor_is_its_equation():
    predictor = shake(Predictor(latent=8, actions=6, width=16, blocks=2))
    z = torch.randn(4, 8, generator=gen())
    forces = torch.randn(4, 6, generator=gen(1))
    code = forces
    for linear in (predictor.force[0], predictor.force[2]):
        code = F.silu(linear(code))
    x = torch.cat([z, forces], 1) @ predictor.enter.weight.T + predictor.enter.bias
    assert len(predictor.blocks) == 2
    for block in predictor.blocks:
        x = block(x, code)
    expected = z + predictor.leave(predictor.norm(x))
    torch.testing.assert_close(predictor(z, forces), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("clips, blocks, turns", [(5, 5, [0, 1, 2, 3, 4]), (2, 4, [0, 0, 1, 1]),
                                                  (3, 4, [0, 0, 1, 2]), (1, 2, [0, 0])])
def test_blocks_take_turns_with_the_forces_of_a_macro_event(clips, blocks, turns):
    """Block i is modulated by force turns[i]; the input layer sees all forces."""
    predictor = shake(Predictor(latent=8, actions=6, width=16, blocks=blocks, clips=clips))
    z = torch.randn(4, 8, generator=gen())
    forces = torch.randn(4, clips, 6, generator=gen(1))
    x = predictor.enter(torch.cat([z, forces.flatten(1)], 1))
    for block, turn in zip(predictor.blocks, turns, strict=True):
        x = block(x, predictor.force(forces[:, turn]))
    expected = z + predictor.leave(predictor.norm(x))
    torch.testing.assert_close(predictor(z, forces.flatten(1)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("k", range(5))
def test_a_force_enters_its_own_block_and_none_before(k):
    """Apart from the input layer, which is made blind to forces here."""
    predictor = shake(Predictor(latent=8, actions=6, width=16, blocks=5, clips=5))
    with torch.no_grad():
        predictor.enter.weight[:, 8:] = 0
    seen = []
    for block in predictor.blocks:
        block.register_forward_pre_hook(lambda block, given: seen.append(given))
    z = torch.randn(4, 8, generator=gen())
    forces = torch.randn(4, 5, 6, generator=gen(1))
    other = forces.clone()
    other[:, k] += 1
    before = predictor(z, forces.flatten(1))
    after = predictor(z, other.flatten(1))
    for i in range(5):
        (x, code), (other_x, other_code) = seen[i], seen[5 + i]
        assert torch.equal(x, other_x) == (i <= k)
        assert torch.equal(code, other_code) == (i != k)
    assert not torch.equal(before, after)


def test_the_blocks_of_the_macro_predictor_take_turns():
    model = HJEPA(**{**SMALL, "macro_blocks": 5})
    obs, forces = batch()
    assert model.macro.clips == len(model.macro.blocks) == 5
    assert model.short.clips == 1
    _, z2 = model.context(obs[:, 0])
    expected = model.macro(z2, forces.flatten(1))
    assert torch.equal(model.jump(z2, forces), expected)
    assert not torch.equal(model.jump(z2, forces.flip(1)), expected)      # their order matters


def test_a_force_without_a_block_is_refused():
    with pytest.raises(ValueError, match="5 forces need as many blocks or more, got 4"):
        Predictor(latent=8, actions=6, blocks=4, clips=5)


def test_an_untrained_predictor_says_that_little_changes():
    """Five steps of it stay close to where they began; with the usual start they would not."""
    torch.manual_seed(0)
    predictor = Predictor(latent=32, actions=6)
    usual = Predictor(latent=32, actions=6)
    usual.leave.reset_parameters()
    start = torch.randn(64, 32, generator=gen())
    moved = []
    for p in (predictor, usual):
        z = start
        for _ in range(5):
            z = p(z, torch.randn(64, 6, generator=gen(1)))
        moved.append((z - start).std().item())
    assert moved[0] < 0.4
    assert moved[0] < 0.2 * moved[1]


# The first guess

def test_a_first_guess_is_its_equation():
    """All three embeddings and a one-hot of the clips left go through four linear maps."""
    guess = shake(FirstGuess(latent=8, actions=6, clips=5, width=16))
    z1, z2, t1 = torch.randn(3, 4, 8, generator=gen())
    left = torch.tensor([1, 5, 2, 5])
    x = torch.cat([z1, z2, t1, torch.eye(5)[[0, 4, 1, 4]]], 1)
    linears = [layer for layer in guess.mlp if isinstance(layer, nn.Linear)]
    assert len(linears) == 4
    for i, linear in enumerate(linears):
        x = F.gelu(x) if i > 0 else x
        x = x @ linear.weight.T + linear.bias
    got = guess(z1, z2, t1, left)
    torch.testing.assert_close(got, x.view(4, 5, 6), rtol=1e-4, atol=1e-5)
    for wrong in (0, 6):
        with pytest.raises(RuntimeError):
            guess(z1, z2, t1, torch.full((4,), wrong))


def test_a_first_guess_is_there_if_it_has_a_width_and_changes_no_start_weight():
    """So runs with and without it begin at the same place."""
    torch.manual_seed(0)
    without = HJEPA(**SMALL)
    torch.manual_seed(0)
    model = HJEPA(**{**SMALL, "guess_width": 16})
    assert not hasattr(without, "guess")
    assert model.guess.mlp[0].out_features == 16
    for name, value in without.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


# The encoder

def test_shapes():
    model = HJEPA(**{**SMALL, "latent": 10})
    obs, forces = batch(n=3)
    z1, z2 = model.context(obs[:, 0])
    assert z1.shape == z2.shape == (3, 10)
    tokens = model.target.tokens(obs[:, 1])
    assert tokens.shape == (3, 5, 8)
    t1, t2 = model.target(obs[:, 1])
    assert torch.equal(t1, model.target.shallow(tokens))
    assert torch.equal(t2, model.target.deep(tokens))
    assert model.rollout(z1, forces).shape == (3, 5, 10)
    assert model.rollout(z1, forces[:, :2]).shape == (3, 2, 10)
    assert model.jump(z2, forces).shape == (3, 10)
    assert model.bridge(z2).shape == (3, 10)
    assert model.lift(z1).shape == (3, 10)


def test_other_sizes():
    """Two bodies, three frames, two forces to an event."""
    model = HJEPA(features=8, frames=3, actions=4, event_clips=2, latent=6, width=12, depth=3,
                  shallow_depth=2, heads=3, mlp_ratio=1, short_width=8, macro_width=12,
                  predictor_blocks=1, macro_blocks=3)
    obs = torch.randn(4, 3, 3, 8, generator=gen())
    forces = torch.randn(4, 2, 4, generator=gen())
    assert len(model.context.lower) == 2
    assert len(model.context.upper) == 1
    assert len(model.short.blocks) == 1
    assert len(model.macro.blocks) == 3
    assert model.short.enter.out_features == 8
    assert model.macro.enter.out_features == 12
    total, _ = objective(model, obs, forces, WEIGHTS)
    assert total.isfinite()


def test_encoder_is_its_parts():
    """tokens: embed, add the position, the lower blocks. shallow and deep: norm, side by side, one
    linear map; the upper blocks lie between."""
    encoder = shake(Encoder(latent=8, width=8, heads=2, depth=3, shallow_depth=2))
    clip = torch.randn(4, 5, 12, generator=gen())
    x = clip @ encoder.embed.weight.T + encoder.embed.bias + encoder.position
    for block in encoder.lower:
        x = block(x)
    torch.testing.assert_close(encoder.tokens(clip), x)

    def read(module, tokens):
        norm, _, linear = module
        normed = F.layer_norm(tokens, (8,), norm.weight, norm.bias)
        return linear(normed.reshape(4, 40))
    torch.testing.assert_close(encoder.shallow(x), read(encoder.read_shallow, x))
    (upper,) = encoder.upper
    torch.testing.assert_close(encoder.deep(x), read(encoder.read_deep, upper(x)))


def test_embedding_depends_on_the_order_of_frames():
    encoder = Encoder(latent=8, width=8, heads=2)
    clip = batch()[0][:, 0]
    for a, b in zip(encoder(clip), encoder(clip.flip(1))):
        assert (a - b).abs().max() > 1e-2


def test_the_position_tells_frames_apart():
    """Without it, attention treats the frames of a clip as a set: the tokens of a reversed clip are
    the reversed tokens."""
    encoder = Encoder(latent=8, width=8, heads=2, depth=1)
    clip = batch()[0][:, 0]
    with torch.no_grad():
        tokens = encoder.tokens(clip)
        assert not torch.allclose(encoder.tokens(clip.flip(1)).flip(1), tokens, atol=1e-3)
        encoder.position.zero_()
        tokens = encoder.tokens(clip)
        torch.testing.assert_close(encoder.tokens(clip.flip(1)).flip(1), tokens)


def test_shallow_embedding_ignores_the_blocks_above_it():
    encoder = Encoder(latent=8, width=8, heads=2, depth=3, shallow_depth=1)
    clip = batch()[0][:, 0]
    shallow_before, deep_before = encoder(clip)
    shake(encoder.upper)
    shallow_after, deep_after = encoder(clip)
    assert torch.equal(shallow_before, shallow_after)
    assert not torch.equal(deep_before, deep_after)


def test_autocast_runs_the_encoder_in_bfloat16():
    """A float32 position would turn the tokens back into float32."""
    encoder = Encoder(latent=8, width=8, heads=2)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = encoder.tokens(batch()[0][:, 0])
    assert tokens.dtype == torch.bfloat16


# The counting world: a sequence is a number that doubles and adds its force, from clip to clip,
# p_{k+1} = 2 p_k + f_k. All frames of clip k show p_k. Doubling makes the order of the forces
# matter; whole numbers make every sum exact.

class Sees(nn.Module):
    """Both embeddings of a clip are its number."""

    def tokens(self, clip):
        return clip

    def shallow(self, tokens):
        return tokens[:, -1]

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
    model.context = Sees()
    model.target = Sees()
    model.short = Counts()
    model.macro = Counts()
    model.bridge = nn.Identity()
    model.lift = nn.Identity()
    return model


def counting_world(n=7, clips=6):
    """-> obs (n, clips, 5, 2), forces (n, clips - 1, 2), made of whole numbers."""
    forces = torch.randint(-3, 4, (n, clips - 1, 2), generator=gen()).float()
    number = [torch.randint(-3, 4, (n, 2), generator=gen(1)).float()]
    for k in range(clips - 1):
        number.append(2 * number[-1] + forces[:, k])
    obs = torch.stack(number, 1)[:, :, None].expand(-1, -1, 5, -1)
    return obs.clone(), forces


def counting_terms(obs, forces):
    _, terms = objective(counting_model(), obs, forces, WEIGHTS)
    return terms


def test_counting_world_is_predicted_exactly():
    terms = counting_terms(*counting_world())
    assert [terms[name].item() for name in ("pred1", "pred2", "bridge", "lift")] == [0, 0, 0, 0]


def test_shifted_forces_or_clips_are_noticed():
    obs, forces = counting_world()
    for wrong in ((obs, forces.roll(1, 1)), (obs, forces.roll(-1, 1)), (obs, forces.flip(1)),
                  (obs.roll(1, 1), forces), (obs.roll(-1, 1), forces)):
        terms = counting_terms(*wrong)
        assert terms["pred1"] > 0.1
        assert terms["pred2"] > 0.1


@pytest.mark.parametrize("k", range(6))
def test_prediction_k_is_compared_with_clip_k(k):
    """Clip k off by 3: only the k-th of five errors sees it, and only clip 5 is macro's goal."""
    obs, forces = counting_world()
    obs[:, k] += 3
    terms = counting_terms(obs, forces)
    if k == 0:                                  # the start: off by 3, doubled with each clip
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


def test_embeddings_are_of_the_clips_they_are_named_after():
    obs, forces = counting_world()
    number = obs[:, :, 0]                                                 # (n, 6, 2)
    e = embeddings(counting_model(), obs, forces)
    assert torch.equal(e["z1"], number[:, 0])
    assert torch.equal(e["z2"], number[:, 0])
    assert torch.equal(e["t1"], number[:, 1:].transpose(0, 1))
    assert torch.equal(e["t2"], number[:, 5])
    assert torch.equal(e["p1"], e["t1"])
    assert torch.equal(e["p2"], e["t2"])


# Gradients

@pytest.mark.parametrize("settings", [{}, {"shared": True}, {"guess_width": 16},
                                      {"guess_width": 16, "guess_gradient": False},
                                      {"macro_blocks": 6}])
def test_gradients_reach_every_parameter(settings):
    model = HJEPA(**{**SMALL, **settings})
    guess = 5.0 if "guess_width" in settings else 0.0
    total, _ = objective(model, *batch(), {**WEIGHTS, "sim": 5.0, "guess": guess})
    total.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.abs().sum() > 0, name


def test_no_stop_gradient_between_the_branches():
    """The prediction errors alone pull both encoders: neither is frozen, averaged or detached."""
    model = HJEPA(**SMALL)
    total, _ = objective(model, *batch(), {"pred": 25.0, "std": 0.0, "cov": 0.0, "map": 0.0})
    total.backward()
    for encoder in (model.context, model.target):
        for part in (encoder.read_shallow, encoder.read_deep, encoder.lower, encoder.upper):
            assert gradient(part) > 0
    assert gradient(model.bridge) == gradient(model.lift) == 0


def test_maps_pull_the_target_encoder_only():
    """bridge and lift aim at the context encoder's embedding without moving it."""
    model = HJEPA(**SMALL)
    total, _ = objective(model, *batch(), {"pred": 0.0, "std": 0.0, "cov": 0.0, "map": 1.0})
    total.backward()
    assert gradient(model.context) == 0
    for part in (model.target.read_shallow, model.target.read_deep, model.bridge, model.lift):
        assert gradient(part) > 0


def test_autocast_leaves_no_parameter_without_gradient():
    """The context encoder runs twice, once with gradient and once without. The second run must not
    take the bfloat16 weights of the first one from its gradient."""
    model = HJEPA(**SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = objective(model, *batch(), WEIGHTS)
    total.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name


def test_shared_means_one_encoder():
    two = HJEPA(**SMALL)
    one = HJEPA(**SMALL, shared=True)

    def size(module):
        return sum(p.numel() for p in module.parameters())
    assert one.context is one.target
    assert two.context is not two.target
    assert size(two) - size(one) == size(two.context)
    clip = batch()[0][:, 0]
    assert torch.equal(one.context(clip)[1], one.target(clip)[1])
    assert not torch.equal(two.context(clip)[1], two.target(clip)[1])


def test_prediction_depends_on_force_and_state():
    model = HJEPA(**SMALL)
    obs, forces = batch()
    z1, z2 = model.context(obs[:, 0])

    def end_of_rollout(z, forces):
        return model.rollout(z, forces)[:, -1]
    for predict, z in ((end_of_rollout, z1), (model.jump, z2)):
        right = predict(z, forces)
        assert (right - predict(z, 0 * forces)).abs().max() > 1e-3
        assert (right - predict(0 * z, forces)).abs().max() > 1e-3


def test_force_acts_differently_in_different_states():
    """The effect of a force is not one and the same vector for all states: the blocks are adapted
    to it."""
    torch.manual_seed(0)
    predictor = Predictor(latent=8, actions=6, width=64)
    z = torch.randn(32, 8, generator=gen())
    force = torch.randn(1, 6, generator=gen(1)).expand(32, -1)
    effect = predictor(z, force) - predictor(z, 0 * force)
    assert effect.std(0).mean() > 0.1 * effect.abs().mean()
