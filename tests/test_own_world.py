"""The planner for a model and a simulator of one's own: a pendulum that takes one torque."""
import pytest
import torch

import hjepa

AIM = 0.3                                       # the angle that is asked for


class Pendulum:
    """State (N, 2): angle and its speed. It offers what the docstring of plan_once asks for."""
    actions = 1
    force_limit = 3.0

    def __init__(self):
        self.taken = []

    def rollout(self, state, forces, clip_frames):
        self.taken.append(tuple(forces.shape))
        angle, speed = state.unbind(-1)
        states = []
        for torque in forces.repeat_interleave(clip_frames, 1).unbind(1):
            speed = speed + 0.1 * (torque[:, 0] - angle.sin())
            angle = angle + 0.1 * speed
            states.append(torch.stack([angle, speed], -1))
        return torch.stack(states, 1), None


def cost_to_go(clip, left):
    """The simulator is its own model."""
    def cost(plans):
        goals, samples = plans.shape[:2]
        start = clip[:, -1].repeat_interleave(samples, 0)
        states, _ = Pendulum().rollout(start, plans.flatten(0, 1), 3)
        return (states[:, -1, 0] - AIM).square().unflatten(0, (goals, samples))
    return cost


def gens():
    return [hjepa.generator(0, "pendulum", i) for i in range(4)]


@pytest.mark.parametrize("plan", [hjepa.plan_once, hjepa.replan])
def test_one_torque_stays_one_torque(plan):
    world = Pendulum()
    clip = torch.randn(4, 3, 2, generator=hjepa.generator(0, "start")) * 0.1
    states, forces = plan(world, clip, 4, cost_to_go, gens(), clip_frames=3)
    assert states.shape == (4, 12, 2) and forces.shape == (4, 4, 1)
    assert {shape[-1] for shape in world.taken} == {1}
    assert forces.abs().max() <= 3
    assert (states[:, -1, 0] - AIM).abs().max() < 0.02


@pytest.mark.parametrize("plan", [hjepa.plan_once, hjepa.replan])
def test_bounds_may_differ_from_number_to_number(plan):
    """Two torques, of which the second has hardly a force."""
    world = Pendulum()
    world.actions = 2
    world.force_limit = torch.tensor([3.0, 0.01])
    _, forces = plan(world, torch.zeros(4, 3, 2), 4, cost_to_go, gens(), clip_frames=3)
    assert forces.shape == (4, 4, 2)
    assert forces[..., 0].abs().max() > 0.1 and forces[..., 1].abs().max() <= 0.01


@pytest.mark.parametrize("plan", [hjepa.plan_once, hjepa.replan])
def test_a_guess_of_another_size_is_refused(plan):
    """torch.where would spread one torque over two, or two over one plan."""
    def guess(clip, left):
        return torch.zeros(4, left, 2)
    with pytest.raises(ValueError, match=r"a guess is \(4, 4, 2\), a plan is \(4, 4, 1\)"):
        plan(Pendulum(), torch.zeros(4, 3, 2), 4, cost_to_go, gens(), guess, clip_frames=3)


@pytest.mark.parametrize("plan", [hjepa.plan_once, hjepa.replan])
def test_a_world_that_does_not_say_how_many_numbers_a_force_has_is_refused(plan):
    class Silent(Pendulum):
        actions = property()
    with pytest.raises(AttributeError, match="actions"):
        plan(Silent(), torch.zeros(4, 3, 2), 4, cost_to_go, gens(), clip_frames=3)


def test_what_a_world_must_offer_stands_in_the_docstring():
    for name in ("actions", "force_limit", "rollout(state, forces, clip_frames)"):
        assert name in hjepa.plan_once.__doc__
    assert "`plan_once`" in hjepa.replan.__doc__


def test_a_first_guess_without_symmetries_takes_any_number_of_features():
    model = hjepa.HJEPA(features=3, actions=1, latent=8, width=8, heads=2, short_width=16,
                        macro_width=16, macro_blocks=5, guess_width=16)
    clip, goal = torch.randn(2, 4, 5, 3, generator=hjepa.generator(0, "clip"))
    with torch.no_grad():
        z1, z2 = model.context(clip)
        t1, _ = model.target(goal)
        wanted = model.guess(z1, z2, t1, torch.full((4,), 2))[:, :2]
    got = hjepa.first_guess(model, clip, goal, 2, 100.0, symmetries=False)
    torch.testing.assert_close(got, wanted)
