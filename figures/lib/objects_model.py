"""An H-JEPA of objects: an embedding per body, weights shared by all bodies, any number of them.

To all that uses it, it is an hjepa.HJEPA: an embedding (N, bodies D) is that of the bodies side by
side, D numbers each. So the objective, the searches and the surprises are those of hjepa.py, and a
squared distance sums over bodies. What is new is what looks at bodies: encoder, predictor and first
guess of hjepa.py are matrices over all bodies at once, which fix their number and their order.
"""
import hjepa
import torch
import torch.nn as nn
import torch.nn.functional as F

from lib import objects_world as worlds


# By how much a force changes a velocity from frame to frame, in observed units, roughly. Contacts
# change it by far more.
STEP = 0.07


def by_body(z, size):
    """z (N, bodies size) -> (N, bodies, size)."""
    return z.unflatten(-1, (-1, size))


class Messages(nn.Module):
    """x (N, bodies, W) -> (N, bodies, W): attention of each body to each other one.

        sum over j != i of gate_ij mlp(A x_i + B x_j),    gate_ij = sigmoid(q_i . k_j / sqrt(d))

    DEVIATION from hjepa.Block: what body j tells body i depends on both, as in an interaction
    network (Battaglia 2016), since a contact does. And a gate is a sigmoid, not a softmax over j: a
    body may listen to none, and it listens to one no less when there are more of them. Only the
    gates see normalised numbers: a norm would blur how far two bodies are apart.
    """

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.norm = nn.LayerNorm(width)
        self.meet = nn.Linear(width, 2 * width)
        self.ask = nn.Linear(width, 2 * width)
        self.tell = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        bodies = x.shape[1]
        q, k = self.ask(self.norm(x)).chunk(2, -1)
        q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)             # (N, heads, bodies, d)
        k = k.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        gate = ((q * self.scale) @ k.transpose(-1, -2)).sigmoid()         # (N, heads, i, j)
        other = 1 - torch.eye(bodies, dtype=gate.dtype, device=gate.device)
        gate = (gate * other).permute(0, 2, 3, 1)                         # (N, i, j, heads)

        mine, theirs = self.meet(x).chunk(2, -1)
        told = F.gelu(mine[:, :, None] + theirs[:, None])                 # (N, i, j, W)
        told = F.gelu(self.tell(told))
        told = told.unflatten(-1, (self.heads, -1)) * gate[..., None]
        return self.out(told.sum(2).flatten(2))


class Encoder(nn.Module):
    """clip (N, T, PER_BODY bodies) -> shallow and deep embedding (N, bodies D).

    A token is a body in a clip: its frames side by side. Messages run over bodies, in blocks as
    those of hjepa.Encoder, which this one follows but for the token. The changes of velocity from
    frame to frame, in units of STEP, are given beside the frames: masses are read from them.
    """

    def __init__(self, frames, latent, width, depth, shallow_depth, heads, mlp_ratio):
        super().__init__()
        wide = mlp_ratio * width
        # Two pairs are read as one number each, two changes of velocity are added.
        self.embed = nn.Sequential(nn.Linear(frames * worlds.PER_BODY, wide),
                                   nn.GELU(),
                                   nn.Linear(wide, wide),
                                   nn.GELU(),
                                   nn.Linear(wide, width))
        blocks = [Block(width, heads, mlp_ratio) for _ in range(depth)]
        self.lower = nn.ModuleList(blocks[:shallow_depth])
        self.upper = nn.ModuleList(blocks[shallow_depth:])
        self.read_shallow = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, latent))
        self.read_deep = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, latent))

    def tokens(self, clip):
        """clip (N, T, F) -> tokens (N, bodies, W) after the lower blocks."""
        seen = clip.unflatten(-1, (-1, worlds.PER_BODY))                  # (N, T, bodies, 10)
        codes = seen[..., worlds.MASS.start::2].abs()
        velocity = seen[..., 2:4]
        change = (velocity[:, 1:] - velocity[:, :-1]) / STEP
        change = F.pad(change.clamp(-5, 5), (0, 0, 0, 0, 1, 0))           # none in the first frame
        change = change * (1 - codes[..., 1:])                            # nor in a hidden one
        seen = torch.cat([seen[..., :worlds.MASS.start], codes, change], -1)
        x = self.embed(seen.transpose(1, 2).flatten(2))
        for block in self.lower:
            x = block(x)
        return x

    def shallow(self, tokens):
        """tokens (N, bodies, W) -> shallow embedding (N, bodies D)."""
        return self.read_shallow(tokens).flatten(1)

    def deep(self, tokens):
        """tokens (N, bodies, W) -> deep embedding (N, bodies D)."""
        for block in self.upper:
            tokens = block(tokens)
        return self.read_deep(tokens).flatten(1)

    def forward(self, clip):
        tokens = self.tokens(clip)
        return self.shallow(tokens), self.deep(tokens)


class Block(nn.Module):
    """x (N, bodies, W) -> (N, bodies, W): messages, then a perceptron for each body."""

    def __init__(self, width, heads, mlp_ratio):
        super().__init__()
        self.messages = Messages(width, heads)
        self.mlp = nn.Sequential(nn.LayerNorm(width),
                                 nn.Linear(width, mlp_ratio * width),
                                 nn.GELU(),
                                 nn.Linear(mlp_ratio * width, width))

    def forward(self, x):
        x = x + self.messages(x)
        return x + self.mlp(x)


class Predictor(hjepa.Predictor):
    """z (N, bodies D), forces (N, clips A) -> (N, bodies D).

    hjepa.Predictor for each body, modulated by its own force; before each of its blocks the bodies
    exchange messages.
    """

    def __init__(self, latent, width, heads, blocks, clips=1):
        super().__init__(latent, 2, width, blocks, clips)
        self.latent = latent
        self.messages = nn.ModuleList([Messages(width, heads) for _ in range(blocks)])

    def forward(self, z, forces):
        z = by_body(z, self.latent)
        push = forces.unflatten(-1, (self.clips, z.shape[1], 2)).transpose(1, 2)
        x = self.enter(torch.cat([z, push.flatten(2)], -1))               # (N, bodies, W)
        codes = self.force(push)                                          # (N, bodies, clips, W/4)
        for i, block in enumerate(self.blocks):
            turn = i * self.clips // len(self.blocks)
            x = x + self.messages[i](x)
            x = block(x, codes[:, :, turn])
        return (z + self.leave(self.norm(x))).flatten(1)


class EachBody(nn.Module):
    """A small map of hjepa.py, the same for each body: (N, bodies D) -> (N, bodies D)."""

    def __init__(self, latent):
        super().__init__()
        self.latent = latent
        self.map = hjepa.small_map(latent)

    def forward(self, z):
        return self.map(by_body(z, self.latent)).flatten(1)


class FirstGuess(nn.Module):
    """hjepa.FirstGuess, body by body, with messages: z1, z2 of now, t1 of the goal (N, bodies D),
    left (N,) -> forces (N, clips, A)."""

    def __init__(self, latent, clips, width, heads, into_encoders):
        super().__init__()
        self.latent = latent
        self.clips = clips
        self.into_encoders = into_encoders
        self.enter = nn.Linear(3 * latent + clips, width)
        self.blocks = nn.Sequential(*[Block(width, heads, 1) for _ in range(3)])
        self.leave = nn.Linear(width, 2 * clips)

    def forward(self, z1, z2, t1, left):
        seen = torch.cat([by_body(z, self.latent) for z in (z1, z2, t1)], -1)
        if not self.into_encoders:
            seen = seen.detach()
        when = F.one_hot(left - 1, self.clips).to(seen.dtype)
        when = when[:, None].expand(-1, seen.shape[1], -1)
        x = self.blocks(self.enter(torch.cat([seen, when], -1)))
        forces = self.leave(x).unflatten(-1, (self.clips, 2))             # (N, bodies, clips, 2)
        return forces.transpose(1, 2).flatten(2)


class Objects(hjepa.HJEPA):
    """The whole model, with rollout and jump of hjepa.HJEPA. The sizes follow the run's: a quarter
    of its embedding for each body, half the width of its predictors and of its first guess."""

    def __init__(self, config):
        nn.Module.__init__(self)
        self.latent = max(2, config.latent // 4)
        heads = config.heads
        shape = (config.clip_frames, self.latent, config.width, config.depth, config.shallow_depth,
                 heads, config.mlp_ratio)
        self.context = Encoder(*shape)
        self.target = Encoder(*shape)
        short = half(config.short_width, heads)
        macro = half(config.macro_width, heads)
        self.short = Predictor(self.latent, short, heads, config.predictor_blocks)
        self.macro = Predictor(self.latent, macro, heads, config.macro_blocks, config.event_clips)
        self.bridge = EachBody(self.latent)
        self.lift = EachBody(self.latent)
        if config.guess_width > 0:
            width = half(config.guess_width, heads)
            self.guess = FirstGuess(self.latent, config.event_clips, width, heads,
                                    config.guess_gradient)


def half(width, heads):
    """-> about half of the width: the next multiple of heads, and of 4 for the code of forces."""
    step = 4 * heads
    return max(step, width // 2 // step * step)


def build(config):
    """Config of a run -> Objects with the start weights of its seed, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hjepa.generator(config.seed, "objects").initial_seed())
        return Objects(config)


def terms_per_body(latent):
    """-> VICReg's terms of z (..., N, bodies D): of the embeddings of single bodies.

    Bodies and samples are pooled into N bodies samples, since they share their weights. That leaves
    a loophole, an embedding that says which body it is and no more. It is a narrow one: three
    bodies can differ along two directions of D, and the covariance term asks for D.
    """
    def terms(z):
        return hjepa.vicreg_terms(by_body(z, latent).flatten(-3, -2))
    return terms


def objective(model, obs, forces, weights, more):
    """obs (B, K, T, F), forces (B, K - 1, A), more (B, 2): share and hidden body -> total, terms:
    hjepa.objective, with VICReg on each body, and with what the context does not see hidden."""
    shares, body = more.unbind(1)
    first = worlds.hide(obs[:, 0], body)

    def embed(model, obs, forces):
        return hjepa.embeddings(model, torch.cat([first[:, None], obs[:, 1:]], 1), forces)
    return hjepa.objective(model, obs, forces, weights, shares, embed=embed,
                           regularise=terms_per_body(model.latent))
