"""The variants: one entry each. What it replaces, where it comes from, and what of it is tuned.

Micro-World Models is [1] of hjepa.py, LeCun 2022 is [3]. The other sources go by the names that
papers give to their models.

Every variant is tried with three values of one number, `tuned`, at the shortest length of training.
The first value is what its paper, or the run, suggests; see lib/variants_runs.py. Where a variant
has no number of its own, it is the weight of decorrelation, on which planning hangs most.
"""
import collections
import dataclasses
import functools

import hjepa

from lib import variants_models as models
from lib import variants_objectives as objectives

# family, source, what: for the reader. settings: of the Config. tuned, values: a field of Config or
# a keyword of the objective. objective, build, draw: as hjepa.train takes them. before: with this
# objective the encoders are trained first, to be frozen. macro: can it jump?
Variant = collections.namedtuple(
    "Variant", "family source what settings tuned values objective build draw before macro",
    defaults=[{}, "cov_weight", (1.0, 0.25, 4.0), hjepa.objective, hjepa.build_model,
              hjepa.draw_training, None, True])

FAMILIES = ("the run", "against collapse", "more signals", "predictor", "latent", "data")
BARE = {"std_weight": 0.0, "cov_weight": 0.0}
PREDICTION = {"tuned": "pred_weight", "values": (25.0, 5.0, 125.0)}


def against_collapse():
    family = "against collapse"
    contrastive = {"tuned": "temperature", "values": (0.1, 0.02, 0.5),
                   "objective": objectives.contrastive}
    average = {"tuned": "momentum", "values": (0.996, 0.98, 0.999),
               "objective": objectives.average_target, "build": models.with_average_target}
    gauss = {"tuned": "gauss_weight", "values": (2.0, 0.5, 8.0)}
    found = {
        "VICReg on an expander": Variant(
            family, "LeCun 2022 figure 14; EB-JEPA: projector",
            "variance and covariance of an expanded embedding",
            objective=objectives.on_expander, build=models.with_expander),
        "SIGReg": Variant(
            family, "LeJEPA, LeWM; EB-JEPA eq. 8", "a test of normality in random directions",
            BARE, **gauss, objective=objectives.sigreg, build=models.counting),
        "SIGReg in sub-spaces": Variant(
            family, "Sub-JEPA", "the same, in three orthogonal sub-spaces of 16, 32, 64 dimensions",
            BARE, **gauss, objective=objectives.sub_sigreg, build=models.with_subspaces),
        "EMA target": Variant(
            family, "I-JEPA, V-JEPA", "the target encoder is an average of the context encoder",
            BARE, **average),
        "EMA target and VICReg": Variant(
            family, "I-JEPA, V-JEPA", "the same, and VICReg stays", **average),
        "stopped targets": Variant(
            family, "hierarchical planning, the objective",
            "the prediction error does not reach the target encoder",
            objective=objectives.stopped_targets),
        "Barlow Twins": Variant(
            family, "LeCun 2022 section 4.5", "correlation of prediction and target in place of "
            "the covariance term", {"cov_weight": 0.0}, "barlow_weight", (25.0, 5.0, 125.0),
            objective=objectives.barlow_twins),
        "no variance term": Variant(
            family, "EB-JEPA table 4", "nothing forbids a constant embedding",
            {"std_weight": 0.0}),
        "no covariance term": Variant(
            family, "EB-JEPA table 4", "dimensions may repeat each other",
            {"cov_weight": 0.0}, "std_weight", (25.0, 5.0, 125.0)),
        "no regulariser": Variant(
            family, "EB-JEPA table 4", "neither", BARE, **PREDICTION),
    }
    for latent in (16, 64, 256):
        found[f"contrastive, {latent} dimensions"] = Variant(
            family, "LeCun 2022 section 4.5", "InfoNCE over the batch, no VICReg",
            {**BARE, "latent": latent}, **contrastive)
    return found


def more_signals():
    family = "more signals"
    found = {
        "no temporal similarity": Variant(
            family, "EB-JEPA eq. 12", "neighbouring targets may be far apart", {"sim_weight": 0.0}),
        "no first guess": Variant(
            family, "LeCun 2022, mode 1", "the encoders get no gradient from forces",
            {"guess_weight": 0.0, "guess_width": 0}),
        "inverse dynamics": Variant(
            family, "EB-JEPA eq. 12", "the force is read from two target embeddings",
            {}, "idm_weight", (1.0, 0.2, 5.0), objectives.inverse_dynamics, models.with_inverse),
        "straightening": Variant(
            family, "temporal straightening, 2603.12231", "a step leads on as the one before",
            {}, "straight_weight", (1.0, 0.2, 5.0), objectives.straightened),
        "biasing heads": Variant(
            family, "LeCun 2022 section 4.5.2", "contact and momentum are read from predictions",
            {}, "head_weight", (1.0, 0.2, 5.0), objectives.biased, models.with_heads),
        "dense and deep": Variant(
            family, "V-JEPA 2.1", "every clip is predicted at both taps",
            {}, "dense_weight", (25.0, 5.0, 1.0), objectives.dense, models.with_other_tap),
    }
    for most in (2, 3, 5):
        found[f"from every clip, {most} steps"] = Variant(
            family, "EB-JEPA eq. 9", f"roll-outs of 1 to {most} steps begin at each clip",
            objective=functools.partial(objectives.from_every_clip, most))
    return found


def predictors():
    family = "predictor"
    return {
        "Gaussian": Variant(
            family, "VJEPA", "mean and log variance, negative log likelihood",
            {}, "pred_weight", (2.0, 0.5, 8.0), objectives.gaussian, models.with_spread),
        "frozen encoder": Variant(
            family, "V-JEPA 2-AC", "encoders are trained without forces and frozen; then P1, P2 "
            "and the rest with forces, for as many epochs again",
            build=models.with_frozen_encoders, before=objectives.without_forces),
        "shared encoder": Variant(
            family, "ablation", "one encoder for context and target", {"shared": True}),
        "no maps": Variant(
            family, "Micro-World Models: composite", "neither bridge nor lift",
            {"map_weight": 0.0}),
        "one-step training": Variant(
            family, "EB-JEPA eq. 9, K = 1", "P1 never learns from its own predictions",
            objective=functools.partial(objectives.from_every_clip, 1)),
        "no macro level": Variant(
            family, "ablation", "the deep embedding, P2 and the maps train nothing",
            {"map_weight": 0.0}, objective=objectives.no_macro_level, macro=False),
    }


def latents():
    return {f"{latent} dimensions": Variant(
        "latent", "When does LeJEPA learn a world model", "the size of all embeddings",
        {"latent": latent}) for latent in (16, 32, 64, 128, 256)}


def data():
    family = "data"
    found = {}
    for percent in (10, 24, 50):
        found[f"contacts in {percent} %"] = Variant(
            family, "coverage", "share of sequences in which bodies meet",
            {"contact_share": percent / 100})
    found["narrow forces"] = Variant(
        family, "When does LeJEPA learn a world model: coverage", "each force leads to a goal",
        draw=models.draw_narrow)
    found["no symmetries"] = Variant(
        family, "ablation", "without flips and axis swaps of the box", {"symmetries": False})
    for blind in (False, True):
        for frames in (1, 2, 3):
            look = functools.partial(models.looking, frames=frames, blind=blind)
            name = f"{frames} frames" if frames > 1 else "1 frame"
            name = f"positions only, {name}" if blind else name
            found[name] = Variant(family, "JEPA-WMs: context length, proprioception",
                                  "encoders see the last frames of a clip", build=look)
    found["positions only"] = Variant(
        family, "JEPA-WMs: proprioception", "velocity is not observed, 5 frames are",
        build=functools.partial(models.looking, blind=True))
    return found


THE_RUN = Variant("the run", "Micro-World Models; EB-JEPA eq. 6-7", "VICReg, as the run has it")

VARIANTS = {"the run": THE_RUN,
            **against_collapse(), **more_signals(), **predictors(), **latents(), **data()}

FIELDS = {field.name for field in dataclasses.fields(hjepa.Config)}


def as_the_run(name, config):
    """Whether a variant changes nothing in a run of this Config: its settings are the run's."""
    variant = VARIANTS[name]
    own = (variant.objective, variant.build, variant.draw)
    theirs = (hjepa.objective, hjepa.build_model, hjepa.draw_training)
    alike = all(getattr(config, key) == value for key, value in variant.settings.items())
    return name != "the run" and alike and own == theirs


def objective_of(name, value):
    """-> the objective, told the value that is tuned unless that is a setting."""
    variant = VARIANTS[name]
    if variant.tuned in FIELDS:
        return variant.objective
    return functools.partial(variant.objective, **{variant.tuned: value})


def config_of(name, value, base, epochs, seed):
    """Config of the run -> Config of a variant."""
    variant = VARIANTS[name]
    settings = {**variant.settings, "epochs": epochs, "seed": seed, "validate_every": 0}
    if variant.tuned in FIELDS:
        settings[variant.tuned] = value
    return dataclasses.replace(base, **settings)
