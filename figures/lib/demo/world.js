// The simulator of hjepa.py, section 1, for one world: discs in a box, elastic contacts, forces.
//
// A state is a list of bodies, [x, y, vx, vy] each. A force is a list of numbers, fx and fy of each
// body. `world` has masses, radii, dt, substeps, clipFrames and forceLimit. Lengths are in half box
// widths, times in seconds. The comments in hjepa.py say why each line is there.

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

// A ball leaves the ground with `speed`, pressed down by `press`: its height and upward velocity.
function bounce(speed, press, time) {
  if (press > 0) {
    const period = 2 * speed / Math.max(press, 1e-12);
    time = time % Math.max(period, 1e-12);
  }
  const height = speed * time - press * time * time / 2;
  return [height, speed - press * time];
}

// A wall is `gap` away: when the body gets there (Infinity: never), and how fast it is there.
function reachWall(gap, speed, press) {
  const squared = speed * speed + 2 * press * gap;
  const impact = Math.sqrt(Math.max(squared, 0));
  if (gap < 0) return [0, impact];
  if (squared < 0 || (speed <= 0 && press <= 0)) return [Infinity, impact];
  if (speed > 0) return [2 * gap / (speed + impact), impact];
  return [(impact - speed) / press, impact];
}

// One body on one axis with walls at -wall and +wall: position and velocity after `time`.
function flyBetweenWalls(x, v, a, wall, time) {
  for (let bounces = 0; bounces < 1000; bounces++) {
    const [timeRight, impactRight] = reachWall(wall - x, v, a);
    const [timeLeft, impactLeft] = reachWall(wall + x, -v, -a);
    const right = timeRight <= timeLeft;
    const side = right ? 1 : -1;
    const impact = right ? impactRight : impactLeft;
    const when = Math.min(timeRight, timeLeft);
    if (!(when <= time)) {
      return [x + v * time + a * time * time / 2, v + a * time];
    }
    const [height, rise] = bounce(impact, side * a, time - when);
    if (!(height > 2 * wall)) {
      return [side * (wall - height), -side * rise];
    }
    x = side * wall;
    v = -side * impact;
    time = time - when;
  }
  return [x, v];
}

// Relative position d, velocity w, acceleration b of two discs: when is their distance `reach`?
function reachDisc(d, w, b, reach, dt) {
  const excess = d[0] * d[0] + d[1] * d[1] - reach * reach;
  if (!(excess > 0)) return 0;
  const line = [w[0] + b[0] * dt / 2, w[1] + b[1] * dt / 2];
  const approach = -(d[0] * line[0] + d[1] * line[1]);
  const discriminant = approach * approach - (line[0] * line[0] + line[1] * line[1]) * excess;
  const root = Math.sqrt(Math.max(discriminant, 0));
  let time = clamp(excess / Math.max(approach + root, 1e-12), 0, dt);
  for (let step = 0; step < 3; step++) {
    const place = [0, 1].map(k => d[k] + w[k] * time + b[k] * time * time / 2);
    const velocity = [0, 1].map(k => w[k] + b[k] * time);
    const error = place[0] * place[0] + place[1] * place[1] - reach * reach;
    const slope = 2 * (place[0] * velocity[0] + place[1] * velocity[1]);
    time = clamp(time - error / Math.min(slope, -1e-9), 0, dt);
  }
  return time;
}

// Contact of bodies i and j within dt, in place: from x and v both can then simply fly.
function collidePair(world, i, j, x, v, a, dt) {
  const reach = world.radii[i] + world.radii[j];
  const d = [0, 1].map(k => x[i][k] - x[j][k]);
  const w = [0, 1].map(k => v[i][k] - v[j][k]);
  const b = [0, 1].map(k => a[i][k] - a[j][k]);

  const line = [0, 1].map(k => w[k] + b[k] * dt / 2);
  const lineSquared = Math.max(line[0] * line[0] + line[1] * line[1], 1e-12);
  const nearest = clamp(-(d[0] * line[0] + d[1] * line[1]) / lineSquared, 0, dt);
  const onTheWay = [0, 1].map(k => d[k] + w[k] * nearest + b[k] * nearest * nearest / 2);
  const atTheEnd = [0, 1].map(k => d[k] + line[k] * dt);
  const closest = Math.min(onTheWay[0] * onTheWay[0] + onTheWay[1] * onTheWay[1],
                           atTheEnd[0] * atTheEnd[0] + atTheEnd[1] * atTheEnd[1]);
  if (!(closest < reach * reach)) return;

  const when = reachDisc(d, w, b, reach, dt);
  const left = dt - when;
  const apart = [0, 1].map(k => d[k] + w[k] * when + b[k] * when * when / 2);
  const length = Math.max(Math.hypot(apart[0], apart[1]), 1e-12);
  const n = [apart[0] / length, apart[1] / length];
  const speed = -((w[0] + b[0] * when) * n[0] + (w[1] + b[1] * when) * n[1]);
  if (!(speed >= 0)) return;
  const press = -(b[0] * n[0] + b[1] * n[1]);
  const [height, rise] = bounce(speed, press, left);

  const moved = height + speed * left + press * left * left / 2;
  const turned = rise + speed + press * left;
  const total = world.masses[i] + world.masses[j];
  const shares = [[i, world.masses[j] / total], [j, -world.masses[i] / total]];
  for (const [body, share] of shares) {
    for (const k of [0, 1]) {
      v[body][k] += share * turned * n[k];
      x[body][k] += share * (moved - turned * dt) * n[k];
    }
  }
}

// One body flies for dt along one axis and bounces off the walls: position and velocity.
function flyAxis(x, v, a, wall, dt) {
  const xEnd = x + (v * dt + a * (dt * dt / 2));
  const turn = -v / a;
  const turningPoint = x - v * v / (2 * a);
  const turnsBeyond = Math.abs(turningPoint) > wall && turn > 0 && turn < dt;
  if (Math.abs(xEnd) > wall || turnsBeyond) return flyBetweenWalls(x, v, a, wall, dt);
  return [xEnd, v + a * dt];
}

// The state, and one force that is held for a clip -> the clip, a list of states.
function simulateClip(world, state, force) {
  const x = state.map(body => [body[0], body[1]]);
  const v = state.map(body => [body[2], body[3]]);
  const a = world.masses.map((mass, i) => [force[2 * i] / mass, force[2 * i + 1] / mass]);
  const dt = world.dt / world.substeps;
  const clip = [];
  for (let frame = 0; frame < world.clipFrames; frame++) {
    for (let substep = 0; substep < world.substeps; substep++) {
      for (let i = 0; i < x.length; i++) {
        for (let j = 0; j < i; j++) collidePair(world, i, j, x, v, a, dt);
      }
      for (let i = 0; i < x.length; i++) {
        for (const k of [0, 1]) {
          [x[i][k], v[i][k]] = flyAxis(x[i][k], v[i][k], a[i][k], 1 - world.radii[i], dt);
        }
      }
    }
    clip.push(x.map((place, i) => [place[0], place[1], v[i][0], v[i][1]]));
  }
  return clip;
}

// Random numbers that depend on the seed alone (mulberry32): uniform in [0, 1), and normal.
class Random {
  constructor(seed) {
    this.seed = seed >>> 0;
  }
  uniform() {
    this.seed = (this.seed + 0x6D2B79F5) >>> 0;
    let bits = this.seed;
    bits = Math.imul(bits ^ (bits >>> 15), bits | 1);
    bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
    return ((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32;
  }
  normal() {
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    return radius * Math.cos(2 * Math.PI * this.uniform());
  }
}

// Whether bodies i and j of a state overlap.
function overlap(world, state, i, j) {
  const gap = Math.hypot(state[i][0] - state[j][0], state[i][1] - state[j][1]);
  return gap < world.radii[i] + world.radii[j];
}

// A random state: bodies that do not overlap, velocities with this standard deviation.
function randomState(world, random, speed) {
  for (;;) {
    const state = world.radii.map(radius => {
      const wall = 1 - radius;
      return [(2 * random.uniform() - 1) * wall, (2 * random.uniform() - 1) * wall,
              speed * random.normal(), speed * random.normal()];
    });
    let free = true;
    for (let i = 0; i < state.length; i++) {
      for (let j = 0; j < i; j++) free = free && !overlap(world, state, i, j);
    }
    if (free) return state;
  }
}

// How far the farthest body is from its goal.
function worstDistance(state, goal) {
  return Math.max(...state.map((body, i) => Math.hypot(body[0] - goal[i][0],
                                                       body[1] - goal[i][1])));
}
