"""The conclusions of the report and of README, each checked against the numbers.

A claim is a phrase of the text and a function of the result files that has to be true. Whoever
changes a conclusion changes the claim with it; a test fails if a phrase is not in the text, or is
not what the numbers say.
"""
import numpy as np

from lib.resolve import Missing
from tables import one

BEST = "replanned from guess"
ABOVE, BELOW, OPEN = "above", "below", "open"   # what an interval of a difference says


def side(ci):
    """An interval of a difference -> where it lies: above zero, below, or on both sides."""
    low, high = ci
    if low > 0:
        return ABOVE
    return BELOW if high < 0 else OPEN


def apart(higher, lower, key):
    """Does the interval of one row lie above that of the other?"""
    return higher[f"{key}_ci"][0] > lower[f"{key}_ci"][1]


# Rows that several claims ask for.

def row(files, file, table="rows", **chosen):
    """The one row of FILE.json with these values. Missing if there is none, or more than one."""
    try:
        return one(files[file][table], **chosen)
    except Missing:
        raise
    except LookupError as error:
        raise Missing(file, error) from None


def planner(files, name, frames=25):
    return row(files, "planning", planner=name, frames=frames)


def planning_pair(files, a, b, frames):
    return row(files, "planning", "pairs", a=a, b=b, frames=frames)


def errors_at(files, method, contacts):
    forces = "true" if method in ("P1", "P2") else None
    return row(files, "dynamics", method=method, forces=forces, contacts=contacts)


def pushed(files, level, **chosen):
    return row(files, "response", "counterfactuals", level=level, frames=25, **chosen)


def film(files, rule):
    return row(files, "surprise", rule=rule, level="both")


def r2(files, source, target, file="representation"):
    return row(files, file, source=source, target=target)


def variant(files, name):
    """The row of a variant, of the longest training."""
    return row(files, "variants", variant=name, epochs=max(files["variants"]["epochs"]))


def gains(files, plan, *names):
    """-> where the intervals of these variants' differences from the run lie, a set."""
    return {side(variant(files, name)[f"{plan}_gain_ci"]) for name in names}


# The claims.

def no_collapse(files):
    last = files["curves"]["rows"][-1]
    return last["std_min"] > 0.8 and last["rank"] > 50


def contacts_are_hard(files):
    jump = planner(files, "macro from guess")
    return apart(jump["no contact"], jump["contact"], "success")


def knows_contacts(files):
    pairs = [planning_pair(files, BEST, "fly and fold", frames) for frames in (50, 75)]
    return all(side(pair["matters"]["success_ci"]) == ABOVE for pair in pairs)


def beats_free_flight_far(files):
    return all(side(planning_pair(files, BEST, "fly and fold", frames)["success_ci"]) == ABOVE
               for frames in (50, 75))


def flight_goes_far_at_25(files):
    return planner(files, "fly and fold")["success"] > 0.95


def equals_state_network(files):
    return all(side(planning_pair(files, BEST, "state network", frames)["success_ci"]) == OPEN
               for frames in (25, 50, 75))


def guess_needs_no_search(files):
    return planner(files, "first guess")["mean_body"] > 0.8


def search_gains_from_guess(files):
    pair = planning_pair(files, "macro from guess", "macro open loop", 25)
    return side(pair["success_ci"]) == ABOVE


def a_tenth_is_enough(files):
    sides = [side(planning_pair(files, BEST, "replanned from guess, a tenth", frames)["success_ci"])
             for frames in (25, 50, 75)]
    return sides == [OPEN, ABOVE, ABOVE]


def covariance_is_most(files):
    last = files["curves"]["rows"][-1]
    return sum(last[f"cov_{z}"] for z in ("z1", "t1", "z2", "t2")) > 0.5 * last["composite"]


def diagnose_no_collapse(files):
    return all(gauge["std_min"] > 0.8 for gauge in files["diagnose"]["rows"])


def rank_below_dimensions(files):
    return all(gauge["rank"] < gauge["dimensions"] for gauge in files["diagnose"]["rows"])


def untrained_reads_state_better(files):
    return all(r2(files, "untrained shallow tap", target, "probe")["r2"]
               > r2(files, "shallow tap", target, "probe")["r2"]
               for target in ("position", "velocity"))


def training_helps_probes(files):
    return all(r2(files, tap, target, "probe")["r2"]
               > r2(files, f"untrained {tap}", target, "probe")["r2"] + 0.1
               for tap in ("shallow tap", "deep tap")
               for target in ("kinetic energy", "pair distance"))


def raw_clip_has_no_energy(files):
    return all(abs(r2(files, "raw clip", target, "probe")["r2"]) < 0.01
               for target in ("kinetic energy", "pair distance"))


def untrained_network_reads_all(files):
    return all(r2(files, "untrained shallow, network", target)["r2"] > 0.99
               for target in ("position", "velocity", "kinetic energy", "pair distance"))


def predictions_beat_controls(files):
    return all(apart(r2(files, f"{name} prediction", target), r2(files, control, target), "r2")
               for name in ("P1", "P2") for target in ("position +25", "velocity +25")
               for control in ("raw clip + forces", f"untrained {name}"))


def flight_is_exact(files):
    fly = errors_at(files, "fly and fold", "0")["position_error"]
    return fly < 0.001 and all(errors_at(files, name, "0")["position_error"] > 0.01
                               for name in ("P1", "P2"))


def contacts_are_learnt_in_part(files):
    return all(apart(errors_at(files, "fly and fold", contacts), errors_at(files, name, contacts),
                     "position_error") for name in ("P1", "P2") for contacts in ("1", "2+"))


def listens_to_forces(files):
    return all(apart(row(files, "dynamics", method=name, forces=other, contacts="all"),
                     errors_at(files, name, "all"), "position_error")
               for name in ("P1", "P2") for other in ("shuffled", "zero"))


def follows_pushes(files):
    return all(0.9 < pushed(files, "short", body=body)["slope"] < 1.1 for body in (0, 1, 2))


def controls_reach_nothing(files):
    return all(planner(files, name)["success"] == 0
               for name in ("zero", "random", "shuffled goal", "untrained"))


def oracle_reaches_all(files):
    return planner(files, "oracle")["success"] == 1


def latent_cost_is_good(files):
    return planner(files, "simulator + latent cost")["success"] > 0.95


def decoded_cost_is_worse_far(files):
    return all(side(planning_pair(files, "short replanned", "model + decoded cost", frames)
                    ["success_ci"]) == ABOVE for frames in (50, 75))


def replanning_helps(files):
    pair = planning_pair(files, "short replanned", "short open loop", 25)
    return side(pair["success_ci"]) == ABOVE


def replanning_works_far(files):
    return all(planner(files, "short open loop", frames)["success"] < 0.25
               and planner(files, "short replanned", frames)["success"] > 0.8
               for frames in (50, 75))


def episode_is_reached(files):
    return max(files["episode"]["errors"]) < 0.1


def met_bodies_are_harder(files):
    return all(apart(pushed(files, level, body=body), pushed(files, level, body="others"),
                     "pearson")
               for level in ("short", "macro") for body in (0, 1, 2))


def macro_is_weaker_at_contacts(files):
    return apart(pushed(files, "short", body="others"), pushed(files, "macro", body="others"),
                 "pearson")


def pass_through_is_seen(files):
    return film(files, "pass-through")["share_ci"][0] > 0.9


def contacts_often_surprise(files):
    return film(files, "lawful contact (control)")["share"] > 0.75


def maps_err_most(files):
    last = files["curves"]["rows"][-1]
    return min(last["bridge"], last["lift"]) > max(last["pred1"], last["pred2"])


def two_levels_do_not_win(files):
    gains = [pair[key] for pair in files["hierarchy"]["pairs"]
             for key in ("gain_calls_ci", "worst_gain_calls_ci") if key in pair]
    return len(gains) > 20 and all(side(gain) != ABOVE for gain in gains)


def flat_reaches_most(files):
    tried = [plan for plan in files["hierarchy"]["rows"]
             if plan["frames"] == 75 and plan["planner"] != "oracle"]
    if not tried:
        raise Missing("hierarchy", "no goals 75 frames ahead")
    return max(tried, key=lambda plan: plan["mean_body"])["planner"] == "flat"


def both_terms_are_needed(files):
    bare = ("no variance term", "no covariance term", "no regulariser")
    return gains(files, "closed", *bare) == {BELOW}


def error_says_nothing(files):
    longest = max(files["variants"]["epochs"])
    errors = {row["variant"]: row["macro_error"] for row in files["variants"]["rows"]
              if row["epochs"] == longest and "macro_error" in row}
    return min(errors, key=errors.get) == "no covariance term"


def kin_of_vicreg_do_as_well(files):
    kin = ("VICReg on an expander", "Barlow Twins")
    return gains(files, "closed", *kin) == {OPEN} and gains(files, "macro", *kin) == {BELOW}


def averages_do_not_collapse(files):
    return variant(files, "EMA target")["rank1"] > 20


def averages_plan_worse(files):
    return gains(files, "closed", "EMA target", "EMA target and VICReg") == {BELOW}


def normality_is_not_enough(files):
    return (gains(files, "closed", "SIGReg", "SIGReg in sub-spaces") == {BELOW}
            and variant(files, "SIGReg")["t2"] < variant(files, "the run")["t2"] - 0.3)


def contrast_gives_places_and_no_predictions(files):
    found = [variant(files, f"contrastive, {latent} dimensions") for latent in (16, 64, 256)]
    base = variant(files, "the run")
    return all(row["t1"] > base["t1"] - 0.02 and row["closed"] < 0.1
               and row["macro_error"] > 3 * base["macro_error"] for row in found)


def contrast_suffers_from_size(files):
    few, *many = [variant(files, f"contrastive, {latent} dimensions") for latent in (16, 64, 256)]
    return all(row["closed"] < few["closed"] and row["macro_error"] > few["macro_error"]
               for row in many)


def signals_make_no_difference(files):
    more = ("no temporal similarity", "no first guess", "inverse dynamics", "straightening",
            "biasing heads", "dense and deep")
    return gains(files, "closed", *more) == {OPEN}


def one_step_reaches_nothing(files):
    return variant(files, "one-step training")["closed"] < 0.01


def roll_outs_must_be_long(files):
    enough = ("from every clip, 3 steps", "from every clip, 5 steps")
    return (gains(files, "closed", "from every clip, 2 steps") == {BELOW}
            and gains(files, "closed", *enough) == {OPEN})


def frozen_and_gaussian_lose(files):
    return gains(files, "closed", "frozen encoder", "Gaussian") == {BELOW}


def no_difference_for_the_short_level(files):
    return gains(files, "closed", "shared encoder", "no maps", "no macro level") == {OPEN}


def sizes_make_no_difference(files):
    sizes = [f"{latent} dimensions" for latent in (16, 32, 64, 128)]
    frames = [f"{count} frame{'s' * (count > 1)}" for count in (1, 2, 3)]
    return gains(files, "closed", *sizes, *frames) == {OPEN}


def positions_alone_are_not_enough(files):
    blind = [row for row in files["variants"]["rows"] if row["epochs"] == 9
             and row["variant"].startswith("positions only")]
    return (max(row["closed"] for row in blind) < 0.4
            and min(row["t1"] for row in blind) > variant(files, "the run")["t1"] - 0.02)


def narrow_forces_lose(files):
    return gains(files, "closed", "narrow forces") == {BELOW}


def fewer_contacts_win(files):
    longest = max(files["variants"]["epochs"])
    above = {row["variant"] for row in files["variants"]["rows"] if row["epochs"] == longest
             and side(row.get("closed_gain_ci", (0, 0))) == ABOVE}
    return "contacts in 10 %" in above and above <= {"contacts in 10 %", "contacts in 24 %"}


def rival(files, name, world="plain", frames=25):
    """The row of a rival in baselines.json."""
    return row(files, "baselines", rival=name, world=world, frames=frames)


def states_are_learnt_sooner(files):
    return {side(rival(files, name)["gain_ci"])
            for name in ("state network", "interaction network")} == {ABOVE}


def autoencoder_falls_behind(files):
    near, far = (rival(files, "reconstruction", frames=frames) for frames in (25, 50))
    return side(near["gain_ci"]) == OPEN and side(far["gain_ci"]) == BELOW


def noise_costs_the_jepa(files):
    def left(name):
        return rival(files, name, "noise")["success"] / rival(files, name)["success"]
    return left("JEPA") < 0.6 and left("reconstruction") > 0.85


def jepa_comes_later(files):
    """After three times as many epochs it has the autoencoder's goals and errors of before."""
    later = row(files, "long/baselines", rival="JEPA", world="noise")
    places = [row(files, file, "models", rival=name, world="noise")["places"][-1]
              for file, name in (("long/baselines", "JEPA"), ("baselines", "reconstruction"))]
    before = rival(files, "reconstruction", "noise")
    return abs(later["success"] - before["success"]) < 0.05 and places[0] < 1.15 * places[1]


def second_world_costs_the_jepa(files):
    def left(name):
        return rival(files, name, "second")["success"] / rival(files, name)["success"]
    return left("JEPA") < 0.6 and left("reconstruction") > 0.95


def decoder_makes_no_difference_among_noise(files):
    return side(rival(files, "JEPA and decoder", "noise")["gain_ci"]) == OPEN


def search(files, planner, plans, cost="last step", frames=25):
    """The row of a search in planners.json."""
    return row(files, "planners", planner=planner, plans=plans, cost=cost, frames=frames)


WITHOUT_GRADIENT = ("random shooting", "CEM", "iCEM", "MPPI")


def gradients_guide_best(files):
    few = search(files, "Adam", 60)
    many = [search(files, name, 240) for name in WITHOUT_GRADIENT]
    return (few["success"] > max(other["success"] for other in many) - 0.02
            and few["strict"] > max(other["strict"] for other in many) + 0.1)


def guess_does_as_much(files):
    return search(files, "CEM from guess", 60)["strict"] >= search(files, "Adam", 60)["strict"]


def gained_over_cem(files, planner):
    """-> where the intervals of a search's differences from CEM lie, a set: the distance of the
    last step, every horizon and number of plans."""
    pairs = [pair for pair in files["planners"]["pairs"]
             if pair["planner"] == planner and pair["cost"] == "last step"]
    return {side(pair["all"]) for pair in pairs}


def others_gain_nothing(files):
    return ABOVE not in gained_over_cem(files, "iCEM") | gained_over_cem(files, "MPPI")


def metric_adds_no_goal(files):
    plain, metric = (search(files, "CEM", 240, cost) for cost in ("last step", "metric of change"))
    return metric["success"] <= plain["success"] and metric["strict"] > plain["strict"] + 0.05


def predicted_map_is_smooth(files):
    true, blurred = (row(files, "cost_maps", kind="contact", space="t1", future=future)
                     for future in ("simulator", "model"))
    return blurred["minima"] < true["minima"] / 2 and apart(blurred, true, "to_minimum")


def latent(files, name, kicks="two"):
    return row(files, "latent", kicks=kicks, name=name)


def two_values_suffice(files):
    low, high = latent(files, "K = 2")["over_told_ci"]
    return low < 1 < high


def capacity_flattens_energy(files):
    """Energy of what never happens, as a multiple of that of what happened: it falls."""
    def apart(name):
        found = latent(files, name)
        return found["energy_body"] / found["energy"]
    return all(apart(f"d = 256, {family}") < 0.6 * apart(f"d = 1, {family}")
               for family in ("free", "from scratch"))


def penalty_prevents(files):
    few, many = (latent(files, f"d = {d}, penalty") for d in (8, 256))
    return abs(many["energy_body"] / few["energy_body"] - 1) < 0.1


def worst_zeta_does_not_help(files):
    return all(row(files, "latent", "plans", kicks=kicks, planner="worst over zeta")[key]
               >= row(files, "latent", "plans", kicks=kicks, planner="mean over zeta")[key]
               for kicks in ("two", "ring") for key in ("mean", "worst"))


def bodies(files, case, model):
    return row(files, "objects", "plans", case=case, model=model, planner="short replanned")


def objects_learn_contacts_sooner(files):
    """Bodies that only a contact moves, impossible films, and goals, beside the run."""
    mine, run = (row(files, "objects", "surprise", model=model, level="macro")
                 for model in ("plain", "run"))
    met = [bodies(files, "contact only", model) for model in ("plain", "run")]
    own = row(files, "objects", "against_run", case="own", part="all", model="plain",
              planner="short replanned")
    return (apart(mine, run, "share") and apart(*met, "that_body")
            and side(own["success_ci"]) == ABOVE)


def masking_gains_nothing(files):
    cases = ("own", "contact only", "2 bodies", "4 bodies", "5 bodies", "masses between",
             "masses beyond")
    return all(bodies(files, case, "masked")["success"] <= bodies(files, case, "plain")["success"]
               for case in cases)


def masses_need_a_force(files):
    return row(files, "objects", "masses", model="hidden",
               situation="no force, no contact yet")["embedding"] < 0.05


def digit(files, encoder):
    return row(files, "pictures", "images", encoder=encoder)


def regularisers_are_alike_on_digits(files):
    return all(not apart(digit(files, a), digit(files, b), "linear")
               for pair in (("VICReg", "SIGReg"), ("VICReg, projector", "SIGReg, projector"))
               for a, b in (pair, pair[::-1]))


def projectors_help(files):
    return all(digit(files, f"{name}, projector")["linear"] > digit(files, name)["linear"]
               for name in ("VICReg", "SIGReg"))


def films_are_followed(files):
    found = {name: row(files, "pictures", "video", row=name)
             for name in ("4 steps, imagined", "as last seen", "straight on")}
    mine = found.pop("4 steps, imagined")
    return all(apart(other, mine, "step_8") for other in found.values())


REPORT = {
    "the state network and the interaction network are far ahead of the JEPA":
        states_are_learnt_sooner,
    "The autoencoder reaches as many goals as the JEPA at 25 frames and fewer at 50":
        autoencoder_falls_behind,
    "Among noise the JEPA loses half of its goals, and reconstruction does not":
        noise_costs_the_jepa,
    "epochs the JEPA is where the autoencoder was": jepa_comes_later,
    "A second world, which could be predicted, costs the JEPA as much, and reconstruction nothing":
        second_world_costs_the_jepa,
    "Adding a decoder makes no difference among noise": decoder_makes_no_difference_among_noise,
    "A gradient of the learnt cost is the best guide": gradients_guide_best,
    "The first guess does as much for CEM": guess_does_as_much,
    "iCEM and MPPI gain nothing over CEM": others_gain_nothing,
    "The metric of change adds no goal": metric_adds_no_goal,
    "The map that P1 predicts is smooth": predicted_map_is_smooth,
    "The embeddings do not collapse": no_collapse,
    "At the end of training it is most of the composite": covariance_is_most,
    "No dimension of any set has collapsed": diagnose_no_collapse,
    "The rank is below the number of dimensions": rank_below_dimensions,
    "from the shallow tap of an untrained encoder they are read better than from the trained one":
        untrained_reads_state_better,
    "Kinetic energy and pair distance are not linear in the raw clip": raw_clip_has_no_energy,
    "There the trained encoder is ahead of the untrained one": training_helps_probes,
    "it reads them from the untrained encoder as well": untrained_network_reads_all,
    "Both predictors beat the raw clip with forces, and both beat untrained predictors":
        predictions_beat_controls,
    "Without contacts it makes no error, and both predictors do": flight_is_exact,
    "With a contact both predictors err less than fly and fold": contacts_are_learnt_in_part,
    "the model listens to the forces": listens_to_forces,
    "the decoded change of that body follows the simulator closely": follows_pushes,
    "The simple controls reach no goal by the worst body": controls_reach_nothing,
    "The oracle reaches every goal": oracle_reaches_all,
    "The true simulator with the latent cost loses few of them": latent_cost_is_good,
    "The first guess alone reaches most goals by the mean body": guess_needs_no_search,
    "One macro jump reaches more goals when its search starts from the guess":
        search_gains_from_guess,
    "reaches about as many goals 25 frames ahead, and fewer of those 50 and 75 frames ahead":
        a_tenth_is_enough,
    "fly and fold reaches nearly every goal": flight_goes_far_at_25,
    "At 50 and 75 frames the model reaches more goals than fly and fold": beats_free_flight_far,
    "Against the state network no difference is shown at any horizon": equals_state_network,
    "Replanning reaches more goals than planning once": replanning_helps,
    "Open-loop plans fail at 50 and 75 frames, and replanning still works": replanning_works_far,
    "Here a cost on decoded positions is worse than the latent cost": decoded_cost_is_worse_far,
    "All three bodies reach their goals": episode_is_reached,
    "Of the goals where a contact matters the model reaches more than fly and fold": knows_contacts,
    "Contact goals remain the harder ones": contacts_are_hard,
    "For the body that is pushed both correlations are higher": met_bodies_are_harder,
    "P2 is the weaker of the two": macro_is_weaker_at_contacts,
    "Films in which bodies pass through each other nearly always surprise the model":
        pass_through_is_seen,
    "It surprises the model often": contacts_often_surprise,
    "and learns contacts sooner": objects_learn_contacts_sooner,
    "Hiding a body, as in C-JEPA, gains nothing": masking_gains_nothing,
    "a clip without a force nothing": masses_need_a_force,
    "lift and bridge err more than either": maps_err_most,
    "no planner with both levels is shown to reach more goals than the flat one":
        two_levels_do_not_win,
    "With enough calls the flat planner reaches the most goals at 75 frames": flat_reaches_most,
    "VICReg needs both terms": both_terms_are_needed,
    "across systems, error says nothing about plans": error_says_nothing,
    "do as well in closed loop, and lose jumps": kin_of_vicreg_do_as_well,
    "A moving-average target does not collapse even without a regulariser":
        averages_do_not_collapse,
    "It plans worse, and no better with VICReg": averages_plan_worse,
    "That one test of normality replaces all else": normality_is_not_enough,
    "InfoNCE gives a space that is as good to plan in":
        contrast_gives_places_and_no_predictions,
    "More dimensions make it worse": contrast_suffers_from_size,
    "make no difference shown. EB-JEPA needs": signals_make_no_difference,
    "P1 never meets the space in which it is rolled out, and reaches nothing":
        one_step_reaches_nothing,
    "Two steps are too few": roll_outs_must_be_long,
    "So does a Gaussian prediction": frozen_and_gaussian_lose,
    "Maps and macro level do not help the short level": no_difference_for_the_short_level,
    "Embeddings of 16 to 256 dimensions do equally well": sizes_make_no_difference,
    "From positions alone a third of the goals at most is reached":
        positions_alone_are_not_enough,
    "Forces that each lead to a goal cover less": narrow_forces_lose,
    "Nothing else beats the run in closed loop": fewer_contacts_win,
    "SIGReg does as well here as VICReg": regularisers_are_alike_on_digits,
    "A projector helps": projectors_help,
    "What is imagined follows them better than their last places or a straight line do":
        films_are_followed,
    "as good as the told one within its interval": two_values_suffice,
    "the energy of futures that never happen comes near that of what happened":
        capacity_flattens_energy,
    "A penalty on zeta prevents most of it": penalty_prevents,
    "Planning for the worst zeta does not help": worst_zeta_does_not_help,
}

README = {
    "It is the model": controls_reach_nothing,
    "It knows contacts": knows_contacts,
    "Predicting embeddings wins nothing here": equals_state_network,
    "VICReg is needed": both_terms_are_needed,
    "Two levels do not pay yet": two_levels_do_not_win,
}
