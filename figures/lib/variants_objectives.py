"""The objective of each variant: hjepa.objective with one function replaced, or one term added.

All take what hjepa.objective takes, and give what it gives. What is tuned is a keyword argument.
"""
import hjepa
import torch
import torch.nn.functional as F

from lib import variants_losses as losses
from lib import variants_models as models

DIRECTIONS = 128                                # random directions of SIGReg, anew in each step


def add_terms(extra, weight, model, obs, forces, weights, shares=None, embed=hjepa.embeddings,
              **functions):
    """hjepa.objective + weight * the sum of extra(model, obs, forces, e), a dict of terms."""
    kept = {}

    def embed_and_keep(*given):
        kept.update(embed(*given))
        return kept
    total, terms = hjepa.objective(model, obs, forces, weights, shares, embed=embed_and_keep,
                                   **functions)
    more = extra(model, obs, forces, kept)
    return total + weight * sum(more.values()), {**terms, **more}


def weighted_targets(e):
    """Embeddings -> t1, t2 in float32, their gradient weighted as in hjepa.prediction_errors."""
    t1, t2 = e["t1"].float(), e["t2"].float()
    if "shares" in e:
        t1 = hjepa.with_gradient(t1, e["shares"])
        t2 = hjepa.with_gradient(t2, e["shares"])
    return t1, t2


def all_deep_targets(model, obs):
    """obs (B, K, T, F) -> t2 of each later clip (K - 1, B, D)."""
    batch, clips = obs.shape[:2]
    later = obs[:, 1:].transpose(0, 1)                                    # (K - 1, B, T, F)
    _, t2 = model.target(later.flatten(0, 1))
    return t2.unflatten(0, (clips - 1, batch))


# ---- against collapse

def on_expander(model, *given, **functions):
    """VICReg of v = expander(z); the prediction stays on z."""
    def regularise(z):
        return hjepa.vicreg_terms(model.expander(z))
    return hjepa.objective(model, *given, regularise=regularise, **functions)


def regularise_by(directions, model, obs, forces, weights, shares, gauss_weight, functions):
    """SIGReg in place of VICReg."""
    def regularise(z):
        return {"gauss": losses.sigreg(z, directions)}
    weights = {**weights, "gauss": gauss_weight}
    return hjepa.objective(model, obs, forces, weights, shares, regularise=regularise, **functions)


def sigreg(model, obs, forces, weights, shares=None, *, gauss_weight, **functions):
    gen = hjepa.generator(model.seed, "sigreg", models.count_step(model))
    latent = model.bridge[-1].out_features
    directions = losses.unit_directions(latent, DIRECTIONS, gen, obs.device)
    return regularise_by(directions, model, obs, forces, weights, shares, gauss_weight, functions)


def sub_sigreg(model, obs, forces, weights, shares=None, *, gauss_weight, **functions):
    gen = hjepa.generator(model.seed, "sigreg", models.count_step(model))
    sizes = model.subspace_sizes
    directions = losses.directions_inside(model.subspaces, sizes, DIRECTIONS // len(sizes), gen)
    return regularise_by(directions, model, obs, forces, weights, shares, gauss_weight, functions)


def average_target(model, *given, momentum, **functions):
    models.follow(model, momentum)
    return hjepa.objective(model, *given, **functions)


def stopped_errors(e):
    """prediction_errors without a gradient to the target encoder."""
    stopped = {"t1": e["t1"].detach(), "t2": e["t2"].detach()}
    return hjepa.prediction_errors({**e, **stopped})


def stopped_targets(*given, **functions):
    return hjepa.objective(*given, predict=stopped_errors, **functions)


def contrastive(*given, temperature, **functions):
    """InfoNCE in place of the prediction error. With several processes each has its own batch."""
    def predict(e):
        t1, t2 = weighted_targets(e)
        return {"pred1": losses.info_nce(e["p1"], t1, temperature),
                "pred2": losses.info_nce(e["p2"], t2, temperature)}
    return hjepa.objective(*given, predict=predict, **functions)


def barlow_twins(*given, barlow_weight, **functions):
    """The cross-correlation in place of the covariance term. The variance term stays: a correlation
    does not see the scale, and a planner does."""
    def extra(model, obs, forces, e):
        t1, t2 = weighted_targets(e)
        return {"barlow1": losses.barlow(e["p1"], t1), "barlow2": losses.barlow(e["p2"], t2)}
    return add_terms(extra, barlow_weight, *given, **functions)


# ---- more signals

def inverse_dynamics(*given, idm_weight, **functions):
    """From embeddings of two clips to the force in the later one, at both taps (EB-JEPA eq. 12)."""
    def extra(model, obs, forces, e):
        pairs = torch.cat([e["t1"][:-1], e["t1"][1:]], -1)                # (K - 2, B, 2 D)
        force1 = forces[:, 1:].transpose(0, 1)                            # (K - 2, B, A)
        last = torch.cat([e["t2_before"], e["t2"]], -1)
        return {"idm1": F.mse_loss(model.inverse1(pairs).float(), force1),
                "idm2": F.mse_loss(model.inverse2(last).float(), forces[:, -1])}
    return add_terms(extra, idm_weight, *given, **functions)


def straightened(*given, straight_weight, **functions):
    """Temporal straightening of the target embeddings, at both taps."""
    def extra(model, obs, forces, e):
        return {"straight1": losses.straightness(e["t1"]),
                "straight2": losses.straightness(all_deep_targets(model, obs))}
    return add_terms(extra, straight_weight, *given, **functions)


def biased(*given, head_weight, **functions):
    """Heads on the predicted embeddings: do bodies meet, and the velocity of their centre of mass
    (LeCun 2022, section 4.5.2). P2 is asked about the whole macro-event."""
    def extra(model, obs, forces, e):
        met = losses.contacts_seen(obs, forces, model.masses, model.dt)   # (B, K - 1)
        velocity = losses.centre_velocity(obs[:, 1:], model.masses)       # (B, K - 1, 2)
        met1 = met.T.float()
        met2 = met.any(1).float()
        said1 = model.heads1(e["p1"]).float()                             # (K - 1, B, 3)
        said2 = model.heads2(e["p2"]).float()                             # (B, 3)
        return {"contact1": F.binary_cross_entropy_with_logits(said1[..., 0], met1),
                "contact2": F.binary_cross_entropy_with_logits(said2[..., 0], met2),
                "centre1": F.mse_loss(said1[..., 1:], velocity.transpose(0, 1)),
                "centre2": F.mse_loss(said2[..., 1:], velocity[:, -1])}
    return add_terms(extra, head_weight, *given, **functions)


def dense(*given, dense_weight, **functions):
    """Every clip is predicted at both taps: t2 from p1, and t1 of the last clip from p2, too."""
    def extra(model, obs, forces, e):
        t2 = all_deep_targets(model, obs)
        t1, _ = weighted_targets(e)
        if "shares" in e:
            t2 = hjepa.with_gradient(t2.float(), e["shares"])
        return {"dense2": F.mse_loss(model.deepen(e["p1"]).float(), t2.float()),
                "dense1": F.mse_loss(model.flatten(e["p2"]).float(), t1[-1])}
    return add_terms(extra, dense_weight, *given, **functions)


def from_every_clip(most, *given, **functions):
    """P1 is rolled out from every clip but the last, up to `most` steps (EB-JEPA eq. 9).

    pred1 is the mean over k = 1 to `most` of L_k, the error after k steps over all starts.
    """
    def embed(model, obs, forces):
        e = hjepa.embeddings(model, obs, forces)
        batch, clips = forces.shape[:2]
        starts = obs[:, :-1].transpose(0, 1)                              # (K - 1, B, T, F)
        tokens = model.context.tokens(starts.flatten(0, 1))
        z = model.context.shallow(tokens)
        z = z.unflatten(0, (clips, batch))                                # (K - 1, B, D)
        force = forces.transpose(0, 1)                                    # (K - 1, B, A)
        e["steps"] = []
        for k in range(min(most, clips)):
            # Start j is k steps on, in clip j + k. The last ones have arrived at the last clip.
            begun = z[:clips - k]
            z = model.short(begun.flatten(0, 1), force[k:].flatten(0, 1))
            z = z.unflatten(0, begun.shape[:2])
            e["steps"].append(z)
        return e

    def predict(e):
        t1, t2 = weighted_targets(e)
        errors = []
        for k, p in enumerate(e["steps"]):
            errors.append(F.mse_loss(p.float(), t1[k:]))
        return {"pred1": sum(errors) / len(errors),
                "pred2": F.mse_loss(e["p2"].float(), t2)}
    return hjepa.objective(*given, embed=embed, predict=predict, **functions)


# ---- predictors

def gaussian(model, *given, **functions):
    """Mean and log variance, negative log likelihood in place of the squared error (VJEPA)."""
    def predict(e):
        t1, t2 = weighted_targets(e)
        before = torch.cat([e["z1"][None], e["p1"][:-1]])
        spread1 = models.log_variance(model.spread1, before, e["p1"])
        spread2 = models.log_variance(model.spread2, e["z2"], e["p2"])
        return {"pred1": losses.gaussian_error(e["p1"], spread1, t1),
                "pred2": losses.gaussian_error(e["p2"], spread2, t2)}
    return hjepa.objective(model, *given, predict=predict, **functions)


def without_forces(model, obs, forces, weights, shares=None, **functions):
    """Every force is told as 0, and there is no first guess: what happens on average."""
    return hjepa.objective(model, obs, torch.zeros_like(forces), {**weights, "guess": 0.0}, shares,
                           **functions)


def no_macro_embeddings(model, obs, forces):
    """embeddings, but nothing at the macro level carries a gradient. Its terms are in the log, and
    in the composite of the log, but they train nothing."""
    e = hjepa.embeddings(model, obs, forces)
    for name in ("z2", "t2", "p2", "t2_before"):
        e[name] = e[name].detach()
    return e


def no_macro_level(*given, **functions):
    return hjepa.objective(*given, embed=no_macro_embeddings, **functions)
