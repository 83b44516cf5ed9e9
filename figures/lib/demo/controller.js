// What hjepa.py's planner does, in small: look, ask the first guess, try some plans with P1.

// A clip, a list of states -> what the encoders see (frames, features).
function observe(clip) {
  const scale = [1 / 0.55, 1 / 0.55, 2, 2];
  return Float32Array.from(clip.flat(2), (value, i) => value * scale[i % 4]);
}

// The 8 symmetries of the box, as hjepa.py numbers them. Number 0 changes nothing.
const MIRRORS = [0, 1, 2, 3, 4, 5, 6, 7].map(
  number => ({flipX: number % 2 === 1, flipY: (number >> 1) % 2 === 1, swap: number >= 4}));

// Numbers in pairs (x, y), seen in a mirror: first swap, then flip.
function reflect(numbers, mirror) {
  const seen = new Float32Array(numbers.length);
  for (let i = 0; i < numbers.length; i += 2) {
    const x = mirror.swap ? numbers[i + 1] : numbers[i];
    const y = mirror.swap ? numbers[i] : numbers[i + 1];
    seen[i] = mirror.flipX ? -x : x;
    seen[i + 1] = mirror.flipY ? -y : y;
  }
  return seen;
}

// Back again: what was flipped after the swap is flipped first now.
function reflectBack(numbers, mirror) {
  if (!mirror.swap) return reflect(numbers, mirror);
  return reflect(numbers, {flipX: mirror.flipY, flipY: mirror.flipX, swap: true});
}

function joined(matrices) {
  const size = matrices[0].length;
  const whole = new Float32Array(matrices.length * size);
  matrices.forEach((matrix, i) => whole.set(matrix, i * size));
  return whole;
}

// A clip in all 8 mirrors (8, frames, features).
function inAllMirrors(clip) {
  const seen = observe(clip);
  return joined(MIRRORS.map(mirror => reflect(seen, mirror)));
}

// The goal as a clip, of bodies that stand still there -> t1 in all mirrors (8, latent).
function* encodeGoal(model, goal) {
  const still = goal.map(body => [body[0], body[1], 0, 0]);
  const clip = Array.from({length: model.frames}, () => still);
  const [t1] = yield* encode(model, "target", inAllMirrors(clip), false);
  return t1;
}

// The clip that is seen now, t1 of the goal in all mirrors -> z1 (latent) and the first guess
// (clips, actions): the mean of the answers in all mirrors.
function* lookAndGuess(model, clip, t1) {
  const [z1, z2] = yield* encode(model, "context", inAllMirrors(clip), true);
  const answers = yield* guess(model, z1, z2, t1);
  const size = model.clips * model.actions;
  const forces = new Float32Array(size);
  MIRRORS.forEach((mirror, number) => {
    const answer = reflectBack(answers.subarray(number * size, (number + 1) * size), mirror);
    for (let i = 0; i < size; i++) forces[i] += answer[i] / MIRRORS.length;
  });
  const {forceLimit} = model;
  return {z1: z1.slice(0, model.latent), z2: z2.slice(0, model.latent),
          forces: forces.map(force => clamp(force, -forceLimit, forceLimit))};
}

// p1 (latent) -> where the bodies are, [[x, y], ...]: a linear probe reads it. The model itself has
// no need to know.
function readPositions(model, p1) {
  const numbers = linear(model.weights, "probe", p1);
  return model.masses.map((_, i) => [numbers[2 * i], numbers[2 * i + 1]]);
}

// The mean squared distance of embedding number `row` from the goal's.
function cost(p1, row, t1, latent) {
  let total = 0;
  for (let i = 0; i < latent; i++) total += (p1[row * latent + i] - t1[i]) ** 2;
  return total / latent;
}

const TOGETHER = 4;          // plans that are imagined together
const DEVIATION = 0.2;       // of plans from the first guess, in force limits

// Decides what to do. t1: of the goal, in all mirrors. mayGoOn(plans tried) says whether there is
// time for TOGETHER more. Of the first guess and the plans around it, the one whose imagined end is
// nearest to the goal is taken. -> forces (clips, actions), path: positions in the imagined clips.
function* decide(model, clip, t1, random, mayGoOn) {
  const {z1, forces: first} = yield* lookAndGuess(model, clip, t1);
  const {latent, forceLimit} = model;
  let path = yield* imagine(model, z1, first);
  let best = first;
  let lowest = cost(path[path.length - 1], 0, t1, latent);
  let tried = 0;
  while (mayGoOn(tried)) {
    const plans = Array.from({length: TOGETHER}, () => first.map(force => {
      const other = force + DEVIATION * forceLimit * random.normal();
      return clamp(other, -forceLimit, forceLimit);
    }));
    const starts = joined(plans.map(() => z1));
    const paths = yield* imagine(model, starts, joined(plans));
    plans.forEach((plan, row) => {
      const price = cost(paths[paths.length - 1], row, t1, latent);
      if (price < lowest) {
        lowest = price;
        best = plan;
        path = paths.map(p1 => p1.slice(row * latent, (row + 1) * latent));
      }
    });
    tried += TOGETHER;
  }
  return {forces: best, tried, path: path.map(p1 => readPositions(model, p1))};
}

// The largest difference of two lists of numbers. Infinity where one is no number.
function difference(a, b) {
  let largest = a.length === b.length ? 0 : Infinity;
  for (let i = 0; i < a.length; i++) {
    const gap = Math.abs(a[i] - b[i]);
    largest = gap <= largest || gap > largest ? Math.max(gap, largest) : Infinity;
  }
  return largest;
}

// The recorded cases, computed again here -> {name: largest difference from Python's numbers}.
function checkNumbers(model, cases) {
  const worst = {};
  const count = cases.clip.shape[0];
  const bodies = model.masses.length;
  const states = numbers => {
    const found = [];
    for (let frame = 0; frame < numbers.length; frame += 4 * bodies) {
      found.push(model.masses.map((_, i) => Array.from(
        numbers.subarray(frame + 4 * i, frame + 4 * i + 4))));
    }
    return found;
  };
  for (let number = 0; number < count; number++) {
    const recorded = name => {
      const {data} = cases[name];
      const size = data.length / count;
      return data.subarray(number * size, (number + 1) * size);
    };
    const compare = (name, numbers) => {
      worst[name] = Math.max(worst[name] ?? 0, difference(numbers, recorded(name)));
    };
    const clip = states(recorded("clip"));
    const [goal] = states(recorded("goal"));
    const t1 = finish(encodeGoal(model, goal));
    const seen = finish(lookAndGuess(model, clip, t1));
    compare("z1", seen.z1);
    compare("z2", seen.z2);
    compare("t1", t1.subarray(0, model.latent));
    compare("forces", seen.forces);
    const path = finish(imagine(model, seen.z1, seen.forces));
    const p1 = path[path.length - 1];
    compare("p1", p1);
    compare("imagined", readPositions(model, p1).flat());
    const force = Array.from(recorded("forces").subarray(0, model.actions));
    compare("next", simulateClip(model, clip[clip.length - 1], force).flat(2));
  }
  return worst;
}

// One world with random goals, without a picture -> the distance of the farthest body from its goal
// after each clip.
function trial(model, seed, clips, plans) {
  const random = new Random(seed);
  const goal = randomState(model, random, 0);
  const start = randomState(model, random, model.startSpeed);
  const t1 = finish(encodeGoal(model, goal));
  let clip = simulateClip(model, start, new Array(model.actions).fill(0));
  const distances = [];
  for (let number = 0; number < clips; number++) {
    const {forces} = finish(decide(model, clip, t1, random, tried => tried < plans));
    clip = simulateClip(model, clip[clip.length - 1], forces.subarray(0, model.actions));
    distances.push(worstDistance(clip[clip.length - 1], goal));
  }
  return distances;
}
