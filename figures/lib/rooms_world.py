"""Two Rooms: a dot, two rooms, a wall with a door between them, and pictures of it.

The task is that of EB-JEPA (Terver et al., 2026, section 5), which took it from Sobal et al., 2025.
Lengths are in pixels, one step is one frame. A state (N, 1, 4) holds x and y of the dot, the x of
the wall and the y of the door. So a state says all, and the one body of a state makes `hjepa.replan`
work as it is.

Where this differs from EB-JEPA:
- There, a step that touches a wall is not made in the training data, and in the evaluation the dot
  stops at the wall, with noise. Here one rule holds for both. The dot moves along its step and stops
  just before what it meets, so no step leads through a corner.
- There, each step of the training data has a heading and a length of its own, near 1 pixel. Here an
  action is held for a clip, as in a plan, and its length is uniform, up to the longest step that a
  plan may ask for. Some dots hold an action for longer and press against walls, as plans do.
"""
import math

import hjepa
import torch

SIZE = 65                                       # pixels, both ways
LOW, HIGH = 4.0, 60.0                           # the border; free is what lies between
HALF_WALL = 1.0                                 # the wall covers |x - wall| <= HALF_WALL
HALF_DOOR = 4.0                                 # and its door |y - door| <= HALF_DOOR
BLUR = 1.3                                      # standard deviation of the dot
LONGEST = 2.45                                  # step
SHORTEST = 0.2                                  # step in the training data
GAP = 0.01                                      # how far before a wall the dot stops
CLIP = 4                                        # steps for which an action is held
CLIPS = 22                                      # of a training trajectory
KAPPA = 5.0                                     # how well a heading is kept, of von Mises
DOOR_SHARE = 0.35                               # of the trajectories are made to pass the door
HOLD = 4                                        # clips for which some dots hold an action
HOLD_SHARE = 0.5                                # of the other trajectories
CLEAR = 2.6                                     # starts and goals keep this far from walls
REACHED = 4.5                                   # a goal is reached nearer than this

WALLS = torch.arange(20, 45)                    # where the wall may stand
DOORS = torch.arange(10, 55)                    # where its door may be
NEW_WALLS = torch.tensor([22, 27, 32, 37, 42])  # never trained on, whatever the door


def draw_layouts(n, gen, new=False):
    """-> wall, door (n,): whole numbers. new: of the walls that are never trained on."""
    walls = NEW_WALLS if new else WALLS[~torch.isin(WALLS, NEW_WALLS)]
    wall = walls[torch.randint(len(walls), (n,), generator=gen)]
    door = DOORS[torch.randint(len(DOORS), (n,), generator=gen)]
    return wall.float(), door.float()


def make_states(position, wall, door):
    """position (N, 2), wall, door (N,) -> states (N, 1, 4)."""
    layout = torch.stack([wall, door], -1)
    return torch.cat([position, layout], -1)[:, None]


def is_free(position, wall, door):
    """position (..., 2), wall, door (...) -> bool (...): not in a wall and not beyond the border."""
    x, y = position.unbind(-1)
    inside = (position > LOW).all(-1) & (position < HIGH).all(-1)
    in_wall = ((x - wall).abs() <= HALF_WALL) & ((y - door).abs() > HALF_DOOR)
    return inside & ~in_wall


def enter_box(position, step, low, high):
    """A point moves from position by step, (N, 2) each, towards the box from low to high (N, 2).
    -> the share of the step (N,) after which it is in the box; inf if it does not get there.

    Each axis gives a span of time in which the point is between the box's sides. It is in the box
    when all spans overlap. Along the sides is not in the box.
    """
    to_low = (low - position) / step
    to_high = (high - position) / step
    # A step along an axis: the point is between the sides always or never.
    between = (position > low) & (position < high)
    still = step == 0
    enter = torch.minimum(to_low, to_high)
    leave = torch.maximum(to_low, to_high)
    enter = torch.where(still, torch.where(between, -math.inf, math.inf), enter)
    leave = torch.where(still, math.inf, leave)
    enter = enter.amax(-1)
    leave = leave.amin(-1)
    meets = (enter < leave) & (leave > 0) & (enter <= 1)
    return torch.where(meets, enter.clamp_min(0), math.inf)


def first_contact(position, step, wall, door):
    """position, step (N, 2), wall, door (N,) -> the share of the step (N,) after which the dot meets
    a wall or the border; inf if it meets none.  needs: enter_box"""
    edge = torch.where(step > 0, HIGH, LOW)
    border = (edge - position) / step
    border = border.masked_fill(step == 0, math.inf).amin(-1)
    border = border.masked_fill(border > 1, math.inf)
    beyond = torch.full_like(wall, SIZE)
    left, right = wall - HALF_WALL, wall + HALF_WALL
    above = enter_box(position, step, torch.stack([left, -beyond], -1),
                      torch.stack([right, door - HALF_DOOR], -1))
    below = enter_box(position, step, torch.stack([left, door + HALF_DOOR], -1),
                      torch.stack([right, 2 * beyond], -1))
    return torch.minimum(border, torch.minimum(above, below))


def move(position, action, wall, door):
    """position, action (N, 2), wall, door (N,) -> the next position (N, 2), and whether the dot met
    something (N,).

    A longer action than LONGEST is cut to that length. The dot stops GAP before what it meets.
    needs: first_contact, is_free
    """
    length = action.norm(dim=-1, keepdim=True)
    action = action * (LONGEST / length.clamp_min(LONGEST))
    length = action.norm(dim=-1).clamp_min(1e-12)
    contact = first_contact(position, action, wall, door)
    met = contact <= 1
    # The gap also counts where the step would end just before a wall.
    share = torch.where(met, contact - GAP / length, 1.0).clamp_min(0)
    end = position + share[:, None] * action
    # Rounding may still put the end into a wall. Then the dot stays, and it was free before.
    stays = ~is_free(end, wall, door)
    return torch.where(stays[:, None], position, end), met | stays


def route_valid(path, wall, door, slack=1e-3):
    """path (N, T, 2), wall, door (N,) -> (N,): every point is free and no step leads through a wall.

    It does not use `move`: it asks of each step, in float64, at which height it is between the two
    faces of the wall. slack: how deep, in pixels, a step may touch a wall: rounding.
    """
    path = path.cpu().double()
    wall = wall.cpu().double()[:, None]
    door = door.cpu().double()[:, None]
    inside = (path > LOW).all(-1) & (path < HIGH).all(-1)
    a, b = path[:, :-1], path[:, 1:]
    run = b[..., 0] - a[..., 0]
    still = run.abs() < 1e-9
    safe = torch.where(still, torch.ones_like(run), run)
    face = HALF_WALL - slack
    times = torch.stack([(wall - face - a[..., 0]) / safe, (wall + face - a[..., 0]) / safe], -1)
    enter = times.amin(-1).clamp(0, 1)
    leave = times.amax(-1).clamp(0, 1)
    in_wall = (a[..., 0] - wall).abs() < face
    enter = torch.where(still, torch.zeros_like(run), enter)
    leave = torch.where(still, in_wall.double(), leave)
    crosses = leave > enter
    rise = b[..., 1] - a[..., 1]
    heights = torch.stack([a[..., 1] + enter * rise, a[..., 1] + leave * rise], -1)
    in_door = ((heights - door[..., None]).abs() <= HALF_DOOR + slack).all(-1)
    return inside.all(1) & (in_door | ~crosses).all(1)


class Rooms:
    """Two Rooms with the arguments and results of hjepa.World, as far as `hjepa.replan` asks.

    force_limit: the largest action per axis, in pixels a step. Its square fits into the disc of
    steps that training data hold, so no plan asks for a step that was never seen.
    """
    force_limit = 1.7
    actions = 2

    def rollout(self, state, forces, clip_frames):
        """state (N, 1, 4), forces (N, K, 2), each held for clip_frames steps ->
        states (N, K clip_frames, 1, 4) and contacts (N, K clip_frames).  needs: move"""
        position = state[:, 0, :2]
        layout = state[:, 0, 2:]
        wall, door = layout.unbind(-1)
        states, contacts = [], []
        for action in forces.repeat_interleave(clip_frames, 1).unbind(1):
            position, met = move(position, action, wall, door)
            states.append(torch.cat([position, layout], -1)[:, None])
            contacts.append(met)
        return torch.stack(states, 1), torch.stack(contacts, 1)


def render_dot(state):
    """state (..., 1, 4) -> pictures of the dot (..., 65, 65). A row is a y, a column an x."""
    x, y = (part[..., None] for part in state[..., 0, :2].unbind(-1))
    pixel = torch.arange(SIZE, device=state.device, dtype=state.dtype)
    along_x = torch.exp(-(pixel - x).square() / (2 * BLUR ** 2))          # (..., 65)
    along_y = torch.exp(-(pixel - y).square() / (2 * BLUR ** 2))
    return along_y[..., :, None] * along_x[..., None, :]


def render_walls(state):
    """state (..., 1, 4) -> pictures of the walls (..., 65, 65)."""
    wall, door = (part[..., None] for part in state[..., 0, 2:].unbind(-1))
    pixel = torch.arange(SIZE, device=state.device, dtype=state.dtype)
    in_wall = ((pixel - wall).abs() <= HALF_WALL)[..., None, :]
    in_door = ((pixel - door).abs() <= HALF_DOOR)[..., :, None]
    edge = (pixel == LOW) | (pixel == HIGH)
    within = (pixel >= LOW) & (pixel <= HIGH)
    border = (edge[:, None] & within) | (edge & within[:, None])
    walls = (in_wall & ~in_door & within & within[:, None]) | border
    return walls.to(state.dtype)


def render(state):
    """state (..., 1, 4) -> pictures (..., 2, 65, 65), dot and walls.
    needs: render_dot, render_walls"""
    return torch.stack([render_dot(state), render_walls(state)], -3)


# ---- what the model is trained on

def von_mises(n, gen):
    """-> n angles around 0, by the inverse of the cumulative distribution on a fine grid."""
    angle = torch.linspace(-math.pi, math.pi, 4097)
    density = torch.exp(KAPPA * (torch.cos(angle) - 1))
    total = torch.cumsum((density[1:] + density[:-1]) / 2, 0)
    total = torch.cat([torch.zeros(1), total]) / total[-1]
    unit = torch.rand(n, generator=gen)
    after = torch.searchsorted(total, unit).clamp(1, len(total) - 1)
    share = (unit - total[after - 1]) / (total[after] - total[after - 1]).clamp_min(1e-12)
    return angle[after - 1] + share * (angle[1] - angle[0])


def wander(position, heading, wall, door, clips, gen, hold):
    """position (N, 2), heading, wall, door (N,) -> path (N, clips + 1, 2), actions (N, clips, 2).

    An action is held for a clip. The next heading is drawn around the last one. After a clip that
    met a wall it is drawn anew. hold (N,), bool: these dots draw an action, any heading, at every
    HOLD-th clip only, so they press against walls.  needs: Rooms, von_mises
    """
    n = len(position)
    state = make_states(position, wall, door)
    path, actions = [position], []
    for number in range(clips):
        anew = 2 * math.pi * torch.rand(n, generator=gen)
        turn = von_mises(n, gen)
        length = SHORTEST + (LONGEST - SHORTEST) * torch.rand(n, generator=gen)
        if number > 0:
            heading = torch.where(met | hold, anew, heading + turn)
        action = length[:, None] * torch.stack([heading.cos(), heading.sin()], -1)
        if number % HOLD > 0:
            action = torch.where(hold[:, None], actions[-1], action)
        states, contacts = Rooms().rollout(state, action[:, None], CLIP)
        state = states[:, -1]
        met = contacts.any(1)
        path.append(state[:, 0, :2])
        actions.append(action)
    return torch.stack(path, 1), torch.stack(actions, 1)


def draw_free(wall, door, gen):
    """wall, door (N,) -> free positions (N, 2), uniform."""
    position = torch.zeros(len(wall), 2)
    todo = torch.arange(len(wall))
    while len(todo) > 0:
        draw = LOW + (HIGH - LOW) * torch.rand(len(todo), 2, generator=gen)
        position[todo] = draw
        todo = todo[~is_free(draw, wall[todo], door[todo])]
    return position


def draw_trajectories(wall, door, gen):
    """wall, door (N,) -> states (N, CLIPS + 1, 1, 4), one between clips, actions (N, CLIPS, 2), on
    the CPU.

    A share of DOOR_SHARE passes the door. Those are run both ways from a point in it, with a heading
    within 45 degrees of horizontal. Backwards, what the dot moved in a clip is turned round; then
    all clips are made once more from the start, so all positions are what `move` gives.
    needs: wander, draw_free, Rooms
    """
    n = len(wall)
    position = draw_free(wall, door, gen)
    heading = 2 * math.pi * torch.rand(n, generator=gen)
    hold = torch.rand(n, generator=gen) < HOLD_SHARE
    _, actions = wander(position, heading, wall, door, CLIPS, gen, hold)

    unit = 2 * torch.rand(n, 2, generator=gen) - 1
    middle = torch.stack([wall, door], -1)
    in_door = middle + 0.99 * unit * torch.tensor([HALF_WALL, HALF_DOOR])
    side = torch.randint(2, (n,), generator=gen)
    heading = math.pi * side + math.pi / 4 * (2 * torch.rand(n, generator=gen) - 1)
    never = torch.zeros(n, dtype=torch.bool)
    _, onward = wander(in_door, heading, wall, door, CLIPS, gen, never)
    back, _ = wander(in_door, heading + math.pi, wall, door, CLIPS, gen, never)
    before = (back[:, :-1] - back[:, 1:]).flip(1) / CLIP                  # in order of time
    both = torch.cat([before, onward], 1)                                 # (N, 2 CLIPS, 2)
    first = torch.randint(CLIPS + 1, (n,), generator=gen)                 # index of the cut
    pick = first[:, None] + torch.arange(CLIPS)
    through_actions = both.take_along_dim(pick[..., None], 1)
    through_start = back.flip(1).take_along_dim(first[:, None, None], 1)[:, 0]

    through = torch.rand(n, generator=gen) < DOOR_SHARE
    actions = torch.where(through[:, None, None], through_actions, actions)
    position = torch.where(through[:, None], through_start, position)
    start = make_states(position, wall, door)
    later, _ = Rooms().rollout(start, actions, CLIP)
    return torch.cat([start[:, None], later[:, CLIP - 1::CLIP]], 1), actions


# ---- what it is tested on

def make_tasks(n, gen, new=False):
    """-> start, goal (n, 1, 4): in different rooms of the same layout, on the CPU.

    new: of layouts that are never trained on.  needs: draw_layouts
    """
    wall, door = draw_layouts(n, gen, new)
    unit = torch.rand(n, 2, 2, generator=gen)
    y = LOW + CLEAR + (HIGH - LOW - 2 * CLEAR) * unit[..., 1]
    left_end = wall - HALF_WALL - CLEAR
    right_end = wall + HALF_WALL + CLEAR
    left_x = LOW + CLEAR + (left_end - LOW - CLEAR) * unit[:, 0, 0]
    right_x = right_end + (HIGH - CLEAR - right_end) * unit[:, 1, 0]
    left = make_states(torch.stack([left_x, y[:, 0]], -1), wall, door)
    right = make_states(torch.stack([right_x, y[:, 1]], -1), wall, door)
    swap = (torch.rand(n, generator=gen) < 0.5)[:, None, None]
    return torch.where(swap, right, left), torch.where(swap, left, right)


def distance(state, goal):
    """Two states (..., 1, 4) -> (...): pixels between the dots."""
    return (state[..., 0, :2] - goal[..., 0, :2]).norm(dim=-1)


def oracle(state, goal, steps):
    """state, goal (N, 1, 4) -> states (N, steps, 1, 4): the shortest path through the door.

    The dot goes to the last of near mouth, far mouth and goal that it sees. A mouth lies one pixel
    outside of the wall, at the height at which the straight line passes, or as near to that as the
    door allows.  needs: move, first_contact
    """
    wall, door = state[:, 0, 2], state[:, 0, 3]
    start, end = state[:, 0, :2], goal[:, 0, :2]
    run = end[:, 0] - start[:, 0]
    run = torch.where(run == 0, torch.full_like(run, 1e-6), run)
    side = torch.where(run > 0, 1.0, -1.0)
    targets = [end]
    for mouth in (side * (HALF_WALL + 1), -side * (HALF_WALL + 1)):
        x = wall + mouth
        height = start[:, 1] + (x - start[:, 0]) / run * (end[:, 1] - start[:, 1])
        y = torch.minimum(torch.maximum(height, door - HALF_DOOR + 1), door + HALF_DOOR - 1)
        targets.append(torch.stack([x, y], -1))
    position = start
    states = []
    for _ in range(steps):
        step = targets[-1] - position
        for target in reversed(targets[:-1]):
            sees = first_contact(position, target - position, wall, door) > 1
            step = torch.where(sees[:, None], target - position, step)
        position, _ = move(position, step, wall, door)
        states.append(make_states(position, wall, door))
    return torch.stack(states, 1)
