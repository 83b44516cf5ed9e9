// The page: what is drawn, what can be dragged, and when the model thinks.
//
// The simulator makes a clip at once. While it is shown, the model decides about the next one, a
// little in each picture, so that drawing never waits for it.

const find = id => document.getElementById(id);

// Settings, weights and probe -> the model that the other parts work with.
function readModel() {
  const model = JSON.parse(find("settings").textContent);
  const halves = new Uint16Array(bytesOf(find("weights").textContent).buffer);
  const probe = new Float32Array(bytesOf(find("probe").textContent).buffer);
  model.weights = {...namedArrays(halfToSingle(halves), model.weightList),
                   ...namedArrays(probe, model.probeList)};
  return model;
}

const model = readModel();
const canvas = find("box");
const THINKING = 10;         // milliseconds in each picture that the model may think
const MOST_PLANS = 36;       // plans beside the first guess
const ENOUGH = 0.8;          // of a clip's time: no new plans are begun after it
const CLIP_SECONDS = model.clipFrames * model.dt;

let random;                  // of this world and its plans
let goal;                    // a state: where the bodies are to be, at rest
let coded = {};              // goal: the one that was encoded last; t1: its code in all mirrors
let scene;                   // what is shown: frames, forces and imagined path, number of plans
let seconds;                 // of the scene that have been shown
let job;                     // the model's thinking about the next scene
let withModel = true;
let placing = null;          // own goals: the number of the body that is to get one now
let dragged = null;          // the number of the goal that is being dragged
let pictures = [];           // times of the last pictures, in milliseconds
let drawn = 0;               // pictures in all

function newWorld(seed) {
  random = new Random(seed);
  const start = randomState(model, random, model.startSpeed);
  goal = randomState(model, random, 0);
  const clip = simulateClip(model, start, new Array(model.actions).fill(0));
  scene = {frames: [start, ...clip], forces: null, path: null, tried: 0};
  seconds = 0;
  job = nextScene();
}

// t1 of the goal; encoded only if the goal has changed.
function* goalCode() {
  if (coded.goal !== goal) {
    const wanted = goal;                                 // it may be dragged on in between
    coded = {goal: wanted, t1: yield* encodeGoal(model, wanted)};
  }
  return coded.t1;
}

// The next scene: the model sees the clip of this one, and decides.
function* nextScene() {
  const clip = scene.frames.slice(1);
  const last = clip[clip.length - 1];
  if (!withModel) {
    const next = simulateClip(model, last, new Array(model.actions).fill(0));
    return {frames: [last, ...next], forces: null, path: null, tried: 0};
  }
  const t1 = yield* goalCode();
  const timeLeft = tried => tried < MOST_PLANS && seconds < ENOUGH * CLIP_SECONDS;
  const {forces, path, tried} = yield* decide(model, clip, t1, random, timeLeft);
  const force = Array.from(forces.subarray(0, model.actions));
  return {frames: [last, ...simulateClip(model, last, force)], forces: force, path, tried};
}

// Let the model think for some milliseconds; -> the next scene, if it is ready.
function think(milliseconds) {
  const end = performance.now() + milliseconds;
  while (performance.now() < end) {
    const step = job.next();
    if (step.done) return step.value;
  }
  return null;
}

let ready = null;            // the next scene, before its time has come

function advance(elapsed) {
  seconds += elapsed;
  if (ready === null) ready = think(THINKING);
  if (seconds < CLIP_SECONDS) return;
  scene = ready ?? finish(job);
  ready = null;
  seconds = Math.min(seconds - CLIP_SECONDS, CLIP_SECONDS);
  job = nextScene();
}

// The state that is shown: on the straight line between two frames.
function shownState() {
  const place = clamp(seconds / model.dt, 0, model.clipFrames);
  const frame = Math.min(Math.floor(place), model.clipFrames - 1);
  const share = place - frame;
  const before = scene.frames[frame];
  const after = scene.frames[frame + 1];
  return before.map((body, i) => body.map((number, k) => number + share * (after[i][k] - number)));
}

// Drawing. The box is [-1, 1] on both axes, y upwards.

const pen = canvas.getContext("2d");

function fitCanvas() {
  const pixels = Math.round(canvas.clientWidth * (window.devicePixelRatio || 1));
  if (canvas.width !== pixels) {
    canvas.width = pixels;
    canvas.height = pixels;
  }
}

const across = x => (x + 1) / 2 * canvas.width;
const down = y => (1 - y) / 2 * canvas.height;
const long = length => length / 2 * canvas.width;
const colour = i => model.colours[i % model.colours.length];

function circle(x, y, radius) {
  pen.beginPath();
  pen.arc(across(x), down(y), long(radius), 0, 2 * Math.PI);
}

function drawGoal(i, reached) {
  circle(goal[i][0], goal[i][1], model.radii[i]);
  pen.fillStyle = colour(i) + (dragged === i ? "44" : "1c");
  pen.fill();
  pen.strokeStyle = colour(i);
  pen.lineWidth = long(0.012);
  pen.setLineDash(reached ? [] : [long(0.045), long(0.03)]);
  pen.stroke();
  pen.setLineDash([]);
}

function drawBody(i, body) {
  circle(body[0], body[1], model.radii[i]);
  pen.fillStyle = colour(i);
  pen.fill();
  pen.fillStyle = "#fff";
  pen.font = `600 ${Math.round(long(model.radii[i]))}px system-ui, sans-serif`;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.fillText(String(model.masses[i]), across(body[0]), down(body[1]));
}

// An arrow from the rim of the body.
function drawForce(body, radius, fx, fy) {
  const size = Math.hypot(fx, fy);
  if (size < 0.02 * model.forceLimit) return;
  const reach = 0.25 / model.forceLimit;                 // the largest force on one axis: 0.25
  const rim = radius / size;
  const tip = [across(body[0] + (rim + reach) * fx), down(body[1] + (rim + reach) * fy)];
  const direction = [fx / size, -fy / size];
  const head = long(Math.min(0.06, 0.6 * reach * size));
  const neck = [tip[0] - head * direction[0], tip[1] - head * direction[1]];
  pen.strokeStyle = "#222";
  pen.fillStyle = "#222";
  pen.lineWidth = long(0.014);
  pen.beginPath();
  pen.moveTo(across(body[0] + rim * fx), down(body[1] + rim * fy));
  pen.lineTo(neck[0], neck[1]);
  pen.stroke();
  pen.beginPath();
  pen.moveTo(tip[0], tip[1]);
  pen.lineTo(neck[0] - head / 2 * direction[1], neck[1] + head / 2 * direction[0]);
  pen.lineTo(neck[0] + head / 2 * direction[1], neck[1] - head / 2 * direction[0]);
  pen.fill();
}

function drawImagined(path, i) {
  pen.fillStyle = colour(i);
  pen.strokeStyle = colour(i);
  for (const positions of path.slice(0, -1)) {
    circle(positions[i][0], positions[i][1], 0.012);
    pen.fill();
  }
  const end = path[path.length - 1][i];
  circle(end[0], end[1], model.radii[i]);
  pen.lineWidth = long(0.008);
  pen.stroke();
}

function draw() {
  fitCanvas();
  const state = shownState();
  pen.clearRect(0, 0, canvas.width, canvas.height);
  state.forEach((body, i) => {
    drawGoal(i, Math.hypot(body[0] - goal[i][0], body[1] - goal[i][1]) < model.reached);
  });
  if (scene.path) state.forEach((_, i) => drawImagined(scene.path, i));
  state.forEach((body, i) => drawBody(i, body));
  if (scene.forces) {
    state.forEach((body, i) => {
      drawForce(body, model.radii[i], scene.forces[2 * i], scene.forces[2 * i + 1]);
    });
  }
}

function tell() {
  const reached = worstDistance(shownState(), goal) < model.reached;
  let hint = reached ? "All are at their goals: drag one away." : "Drag a dashed circle, a goal.";
  if (!withModel) hint = "No forces: the discs just fly on.";
  if (placing !== null) hint = `Tap the goal of the disc of mass ${model.masses[placing]}.`;
  if (find("hint").textContent !== hint) find("hint").textContent = hint;
  if (pictures.length < 2) return;
  const span = pictures[pictures.length - 1] - pictures[0];
  const rate = Math.round(1000 * (pictures.length - 1) / Math.max(span, 1));
  find("status").textContent = `${rate} pictures a second, `
    + (withModel ? `${scene.tried} plans tried beside the first guess` : "without the model");
}

function frame(now) {
  const before = pictures[pictures.length - 1] ?? now;
  pictures.push(now);
  if (pictures.length > 90) pictures.shift();
  advance(Math.min(now - before, 100) / 1000);
  draw();
  drawn += 1;
  if (drawn % 15 === 0) tell();
  requestAnimationFrame(frame);
}

// Goals.

// Put goal i at (x, y), within the walls and beside the other goals, as near as that goes.
function moveGoal(i, x, y) {
  const wall = 1 - model.radii[i];
  const place = [clamp(x, -wall, wall), clamp(y, -wall, wall), 0, 0];
  const moved = goal.map((body, k) => k === i ? place : body);
  for (let round = 0; round < 10; round++) {
    const other = goal.findIndex((_, k) => k !== i && overlap(model, moved, i, k));
    if (other < 0) {
      goal = moved;
      return;
    }
    const [dx, dy] = [place[0] - goal[other][0], place[1] - goal[other][1]];
    const gap = Math.hypot(dx, dy);
    const reach = 1.001 * (model.radii[i] + model.radii[other]);
    const direction = gap > 0 ? [dx / gap, dy / gap] : [1, 0];
    place[0] = clamp(goal[other][0] + reach * direction[0], -wall, wall);
    place[1] = clamp(goal[other][1] + reach * direction[1], -wall, wall);
  }
}

// Where in the box the pointer is.
function pointed(event) {
  const area = canvas.getBoundingClientRect();
  return [2 * (event.clientX - area.left) / area.width - 1,
          1 - 2 * (event.clientY - area.top) / area.height];
}

// The circle of a state that is nearest to (x, y), if its rim is within `reach`; else null.
function nearest(state, x, y, reach) {
  const gaps = state.map((body, i) => Math.hypot(body[0] - x, body[1] - y) - model.radii[i]);
  const least = Math.min(...gaps);
  return least < reach ? gaps.indexOf(least) : null;
}

let grip = [0, 0];           // from the pointer to the centre of the goal that it drags

canvas.addEventListener("pointerdown", event => {
  const [x, y] = pointed(event);
  if (placing !== null) {
    moveGoal(placing, x, y);
    placing = placing + 1 < goal.length ? placing + 1 : null;
    find("own-goals").setAttribute("aria-pressed", String(placing !== null));
    tell();
    return;
  }
  dragged = nearest(goal, x, y, 0.1);
  if (dragged === null) {
    dragged = nearest(shownState(), x, y, 0);            // a disc: its goal is dragged out of it
    if (dragged === null) return;
    moveGoal(dragged, x, y);
  }
  grip = [goal[dragged][0] - x, goal[dragged][1] - y];
  try {
    canvas.setPointerCapture(event.pointerId);
  } catch {
    // A pointer that is gone already cannot be captured.
  }
});
canvas.addEventListener("pointermove", event => {
  if (dragged === null) return;
  const [x, y] = pointed(event);
  moveGoal(dragged, x + grip[0], y + grip[1]);
});
for (const end of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(end, () => { dragged = null; });
}

// Buttons.

find("new-world").addEventListener("click", () => {
  ready = null;
  newWorld(Date.now());
  tell();
});
find("own-goals").addEventListener("click", () => {
  placing = placing === null ? 0 : null;
  find("own-goals").setAttribute("aria-pressed", String(placing !== null));
  tell();
});
find("without").addEventListener("click", () => {
  withModel = !withModel;
  find("without").setAttribute("aria-pressed", String(!withModel));
  ready = null;
  job = nextScene();
  tell();
});
find("check").addEventListener("click", () => selfTest());

// Tests. The same numbers as in Python, to 1e-3?
function selfTest() {
  const numbers = new Float32Array(bytesOf(find("cases").textContent).buffer);
  const cases = namedArrays(numbers, model.caseList);
  const worst = checkNumbers(model, cases);
  const right = Object.values(worst).every(gap => gap < 1e-3);
  const rows = Object.entries(worst).map(([name, gap]) => `${name} ${gap.toExponential(1)}`);
  find("result").textContent = `${cases.clip.shape[0]} recorded cases, computed again: `
    + `${right ? "they agree with Python's" : "THEY DIFFER from Python's"}. Largest differences: `
    + rows.join(", ");
  return {right, worst};
}

// Random worlds and goals, without a picture: how many are reached in 8 seconds?
function trials(count, plans) {
  const clips = Math.round(8 / CLIP_SECONDS);
  const ends = [];
  for (let seed = 1; seed <= count; seed++) {
    const distances = trial(model, seed, clips, plans);
    ends.push(distances[distances.length - 1]);
  }
  const reached = ends.filter(gap => gap < model.reached).length;
  find("result").textContent = `${reached} of ${count} random goals reached after 8 seconds with `
    + `${plans} plans; distances of the worst body: ${ends.map(gap => gap.toFixed(3)).join(" ")}`;
}

find("imagined").textContent = "where the model imagines it in the next second (read from its "
  + `prediction by a linear probe, on average ${model.probeError.toFixed(2)} off under random `
  + "forces; the box is 2 wide)";
window.addEventListener("resize", draw);
newWorld(Date.now());
tell();
draw();
const wish = new URLSearchParams(location.hash.slice(1));
if (wish.has("check")) selfTest();
if (wish.has("trials")) trials(Number(wish.get("trials")), Number(wish.get("plans") ?? 0));
requestAnimationFrame(frame);
