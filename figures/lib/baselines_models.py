"""The JEPA and its rivals behind one interface, so that one loop trains and one planner asks them.

    start(clip)             (B, T, F) -> (B, S): what a roll-out starts from
    aim(clip)               (B, T, F) -> (B, S'): a goal, in the space of what is predicted
    rollout(start, forces)  (B, S), (B, K, A) -> (B, K, S'): clip by clip, on its own predictions
    compared(x)             (..., S') -> (..., C): the numbers of it in which a plan is judged
    loss(obs, forces, shares, weights) -> total, terms

`short` is the predictor. The inverse model has no roll-out; it has act(clip, goal, left, limit).
Sizes: `sized` chooses a width such that a rival has as many parameters as the JEPA.
"""
import hjepa
import torch
import torch.nn as nn
import torch.nn.functional as F

from lib import state_network
from lib.variants_models import network as layers


def count(model):
    """-> number of parameters."""
    return sum(p.numel() for p in model.parameters())


def sized(make, wanted, step=4, most=8192):
    """make(width) -> module: -> the multiple of `step` whose module has the number of parameters
    nearest to `wanted`. Parameters must grow with the width."""
    def size(width):
        with torch.device("meta"):              # shapes only
            return count(make(width))
    low, high = 1, most // step
    while low < high:                           # the first width that is too large
        middle = (low + high) // 2
        if size(step * middle) < wanted:
            low = middle + 1
        else:
            high = middle
    near = [step * low, step * max(1, low - 1)]
    return min(near, key=lambda width: abs(size(width) - wanted))


# ---- the JEPA

class Jepa(nn.Module):
    """hjepa.HJEPA as it is. Plans are judged by its short level, in the space of t1.

    features: of the observation; with more than bodies have, only the first layers differ.
    """

    def __init__(self, config, features):
        super().__init__()
        self.model = hjepa.build_model(config)
        for encoder in {self.model.context, self.model.target}:
            if encoder.embed.in_features != features:
                encoder.embed = nn.Linear(features, config.width)

    @property
    def short(self):
        return self.model.short

    def start(self, clip):
        z1, _ = self.model.context(clip)
        return z1

    def aim(self, clip):
        t1, _ = self.model.target(clip)
        return t1

    def rollout(self, start, forces):
        return self.model.rollout(start, forces)

    def compared(self, x):
        return x

    def loss(self, obs, forces, shares, weights):
        return hjepa.objective(self.model, obs, forces, weights, shares)


class JepaWithDecoder(Jepa):
    """The same, and every embedding is decoded into the clip that it is of, z1, t1, z2 and t2 by a
    decoder each. The reconstruction errors are part of the loss.

    reconstruction: the weight of their sum.
    """

    def __init__(self, config, features, reconstruction):
        super().__init__(config, features)
        numbers = config.clip_frames * features
        decoders = {name: layers(config.latent, 2 * config.latent, numbers)
                    for name in ("z1", "t1", "z2", "t2")}
        self.decoders = nn.ModuleDict(decoders)
        self.reconstruction = reconstruction

    def reconstruction_errors(self, obs, e):
        """obs (B, K, T, F), embeddings (see hjepa.embeddings) -> dict of mean squared errors."""
        clips = obs.flatten(2)                                            # (B, K, T F)
        of = {"z1": clips[:, 0], "t1": clips[:, 1:].transpose(0, 1), "z2": clips[:, 0],
              "t2": clips[:, -1]}
        return {f"decoded_{name}": F.mse_loss(self.decoders[name](e[name]).float(), clip)
                for name, clip in of.items()}

    def loss(self, obs, forces, shares, weights):
        kept = {}

        def embed_and_keep(*given):
            kept.update(hjepa.embeddings(*given))
            return kept
        total, terms = hjepa.objective(self.model, obs, forces, weights, shares,
                                       embed=embed_and_keep)
        errors = self.reconstruction_errors(obs, kept)
        return total + self.reconstruction * sum(errors.values()), {**terms, **errors}


# ---- reconstruction

class Autoencoder(nn.Module):
    """Reconstruction alone. A clip is encoded, and decoded again: nothing else trains the encoder.

    One encoder, as deep as the JEPA's, with one embedding as large as the JEPA's. A predictor
    like P1 learns to predict in its space, rolled out: its loss is the squared error of the
    predicted embedding, and `decoded` times that of the clip decoded from it. No gradient of it
    goes on into the embeddings. width: of the predictor.
    """

    def __init__(self, config, features, decoded, width):
        super().__init__()
        numbers = config.clip_frames * features
        self.encoder = hjepa.Encoder(features, config.clip_frames, config.latent, config.width,
                                     config.depth, config.depth, config.heads, config.mlp_ratio)
        del self.encoder.read_deep              # the shallow read-out has all blocks below it
        self.decoder = layers(config.latent, 2 * config.latent, numbers)
        self.short = hjepa.Predictor(config.latent, 2 * len(config.masses), width,
                                     config.predictor_blocks)
        self.decoded = decoded

    def start(self, clip):
        return self.encoder.shallow(self.encoder.tokens(clip))

    aim = start

    def rollout(self, start, forces):
        return roll_out(self.short, start, forces)

    def compared(self, x):
        return x

    def loss(self, obs, forces, shares, weights):
        clips = obs.flatten(2)                                            # (B, K, T F)
        z = self.start(obs.flatten(0, 1)).unflatten(0, obs.shape[:2])     # (B, K, D)
        terms = {"reconstruction": F.mse_loss(self.decoder(z).float(), clips)}
        fixed = z.detach().float()
        predicted = self.rollout(fixed[:, 0], forces)
        terms["prediction"] = F.mse_loss(predicted.float(), fixed[:, 1:])
        terms["decoded"] = F.mse_loss(self.decoder(predicted).float(), clips[:, 1:])
        total = terms["reconstruction"] + terms["prediction"] + self.decoded * terms["decoded"]
        return total, terms


def roll_out(step, start, forces):
    """step: (N, S), (N, A) -> (N, S), applied once for each force (N, K, A) -> (N, K, S)."""
    path = []
    for force in forces.unbind(1):
        start = step(start, force)
        path.append(start)
    return torch.stack(path, 1)


# ---- the state

class StatePredictor(nn.Module):
    """What both rivals that predict states share. The state is what is seen in the last frame of a
    clip. A plan is judged by the places in it, of bodies and distractors alike: it is told that
    places count, but not what is a distractor. The loss is the squared error, rolled out.

    network: rollout(seen (N, F), forces (N, K, A)) -> (N, K, F).
    """

    def __init__(self, network):
        super().__init__()
        self.network = network

    @property
    def short(self):
        return self.network.short

    def start(self, clip):
        return clip[:, -1]

    aim = start

    def rollout(self, start, forces):
        return self.network.rollout(start, forces)

    def compared(self, x):
        return x.unflatten(-1, (-1, 4))[..., :2].flatten(-2)

    def loss(self, obs, forces, shares, weights):
        error = state_network.prediction_error(self.network, obs[:, :, -1], forces)
        return error, {"error": error}


class InteractionStep(nn.Module):
    """seen (N, 4 bodies), force (N, 2 bodies) -> the same one clip later.

    An interaction network (Battaglia et al. 2016), encoded and processed in rounds as Sanchez-
    Gonzalez et al. 2020 do: a vector of H numbers for each body, from its four numbers, its force
    and its mass; in each round every ordered pair sends a message of H numbers, the messages to a
    body are summed, and its vector is updated. Weights are shared by all bodies and pairs, so
    bodies of equal mass may be exchanged. masses: one per body. H: width.
    """

    def __init__(self, masses, width, rounds=3):
        super().__init__()
        self.register_buffer("masses", torch.tensor(masses)[:, None])
        self.enter = layers(4 + 2 + 2 + 1, width, width)
        messages = [layers(2 * width + 4, width, width) for _ in range(rounds)]
        updates = [layers(2 * width, width, width) for _ in range(rounds)]
        self.messages = nn.ModuleList(messages)
        self.updates = nn.ModuleList(updates)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(rounds)])
        self.leave = nn.Sequential(nn.LayerNorm(width), layers(width, width, 4))

    def forward(self, seen, force):
        body = seen.unflatten(-1, (-1, 4))                                # (N, bodies, 4)
        push = force.unflatten(-1, (-1, 2))
        mass = self.masses.expand(*body.shape[:2], 1)
        h = self.enter(torch.cat([body, push, push / mass, mass], -1))    # (N, bodies, H)
        gap = body[:, :, None] - body[:, None]                            # (N, to, from, 4)
        other = 1 - torch.eye(body.shape[1], device=body.device)          # nobody sends to itself
        for message, update, norm in zip(self.messages, self.updates, self.norms):
            x = norm(h)
            to = x[:, :, None].expand(*gap.shape[:3], -1)
            sent = message(torch.cat([to, to.transpose(1, 2), gap], -1))  # (N, to, from, H)
            heard = (sent * other[:, :, None]).sum(2)
            h = h + update(torch.cat([x, heard], -1))
        return seen + self.leave(h).flatten(1)


class InteractionNetwork(nn.Module):
    """InteractionStep, rolled out."""

    def __init__(self, masses, width):
        super().__init__()
        self.short = InteractionStep(masses, width)

    def rollout(self, seen, forces):
        return roll_out(self.short, seen, forces)


# ---- no world model

class RawGuess(nn.Module):
    """As hjepa.FirstGuess, of raw clips: z1 and t1 (N, T F) are clips, z2 is nothing."""

    def __init__(self, numbers, actions, clips, width):
        super().__init__()
        self.clips = clips
        self.mlp = layers(2 * numbers + clips, width, width, width, clips * actions)

    def forward(self, z1, z2, t1, left):
        when = F.one_hot(left - 1, self.clips).to(z1.dtype)
        forces = self.mlp(torch.cat([z1, t1, when], -1))
        return forces.unflatten(-1, (self.clips, -1))


class InverseModel(nn.Module):
    """Clip now, goal clip, clips left -> forces. No world model and no search: it is asked again
    after each clip, in all 8 mirrors of the box. Its loss is that of the JEPA's first guess."""

    def __init__(self, config, features, width):
        super().__init__()
        self.guess = RawGuess(config.clip_frames * features, 2 * len(config.masses),
                              config.event_clips, width)

    def context(self, clip):
        seen = clip.flatten(1)
        return seen, seen[:, :0]

    target = context

    def act(self, clip, goal, left, limit):
        """Observed clips (B, T, F), clips left -> forces (B, left, A)."""
        return hjepa.first_guess(self, clip, goal, left, limit)

    def loss(self, obs, forces, shares, weights):
        clips = obs.flatten(2)                                            # (B, K, T F)
        e = {"z1": clips[:, 0], "z2": clips[:, 0, :0], "t1": clips[:, 1:].transpose(0, 1)}
        terms = hjepa.guess_error(self, e, forces)
        return terms["guess"], terms
