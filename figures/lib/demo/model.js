// The networks of hjepa.py, section 3: encoders, short predictor, first guess. Forward only.
//
// A matrix is a Float32Array, one row after the other. `weights` maps the names of the state_dict
// to {shape, data}. Functions with a star may be paused at each `yield`, so that the page can draw
// in between; `finish` runs one to its end.

function finish(job) {
  for (;;) {
    const step = job.next();
    if (step.done) return step.value;
  }
}

// Text in base64 -> the bytes.
function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

// One number in half precision, as 16 bits, -> the number.
function halfToNumber(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

// Half-precision numbers -> single precision.
function halfToSingle(halves) {
  const table = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) table[bits] = halfToNumber(bits);
  const singles = new Float32Array(halves.length);
  for (let i = 0; i < halves.length; i++) singles[i] = table[halves[i]];
  return singles;
}

// list: [[name, shape], ...] in the order in which their numbers lie in `numbers`.
function namedArrays(numbers, list) {
  const named = {};
  let start = 0;
  for (const [name, shape] of list) {
    const size = shape.reduce((product, side) => product * side, 1);
    named[name] = {shape, data: numbers.subarray(start, start + size)};
    start += size;
  }
  return named;
}

// x (rows, in) -> (rows, out), as nn.Linear: weight (out, in) and bias (out).
// Four rows go together, so that each weight is read once for four of them.
function linear(weights, name, x) {
  const {shape: [outputs, inputs], data: weight} = weights[name + ".weight"];
  const bias = weights[name + ".bias"].data;
  const rows = x.length / inputs;
  const y = new Float32Array(rows * outputs);
  let row = 0;
  for (; row + 4 <= rows; row += 4) {
    const x0 = x.subarray(row * inputs, (row + 1) * inputs);
    const x1 = x.subarray((row + 1) * inputs, (row + 2) * inputs);
    const x2 = x.subarray((row + 2) * inputs, (row + 3) * inputs);
    const x3 = x.subarray((row + 3) * inputs, (row + 4) * inputs);
    for (let o = 0; o < outputs; o++) {
      const w = weight.subarray(o * inputs, (o + 1) * inputs);
      let sum0 = bias[o], sum1 = bias[o], sum2 = bias[o], sum3 = bias[o];
      for (let i = 0; i < inputs; i++) {
        const wi = w[i];
        sum0 += wi * x0[i];
        sum1 += wi * x1[i];
        sum2 += wi * x2[i];
        sum3 += wi * x3[i];
      }
      y[row * outputs + o] = sum0;
      y[(row + 1) * outputs + o] = sum1;
      y[(row + 2) * outputs + o] = sum2;
      y[(row + 3) * outputs + o] = sum3;
    }
  }
  for (; row < rows; row++) {
    for (let o = 0; o < outputs; o++) {
      let sum = bias[o];
      for (let i = 0; i < inputs; i++) sum += weight[o * inputs + i] * x[row * inputs + i];
      y[row * outputs + o] = sum;
    }
  }
  return y;
}

// x (rows, width) -> each row with mean 0 and variance 1; with a name, times weight plus bias.
function layerNorm(weights, name, x, width) {
  const y = new Float32Array(x.length);
  for (let start = 0; start < x.length; start += width) {
    let mean = 0;
    for (let i = 0; i < width; i++) mean += x[start + i] / width;
    let variance = 0;
    for (let i = 0; i < width; i++) variance += (x[start + i] - mean) ** 2 / width;
    const scale = 1 / Math.sqrt(variance + 1e-5);
    for (let i = 0; i < width; i++) y[start + i] = (x[start + i] - mean) * scale;
  }
  if (name === null) return y;
  const weight = weights[name + ".weight"].data;
  const bias = weights[name + ".bias"].data;
  for (let i = 0; i < y.length; i++) y[i] = y[i] * weight[i % width] + bias[i % width];
  return y;
}

// The error function, to 2e-7: Abramowitz and Stegun, formula 7.1.26.
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const polynomial = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t
                       - 0.284496736) * t + 0.254829592) * t;
  const value = 1 - polynomial * Math.exp(-x * x);
  return x < 0 ? -value : value;
}

function gelu(x) {
  return x.map(value => 0.5 * value * (1 + erf(value * Math.SQRT1_2)));
}

function silu(x) {
  return x.map(value => value / (1 + Math.exp(-value)));
}

function sum(x, y) {
  return x.map((value, i) => value + y[i]);
}

// parts: [matrix, width] each, all with as many rows -> the rows side by side.
function sideBySide(parts, rows) {
  const width = parts.reduce((total, part) => total + part[1], 0);
  const joined = new Float32Array(rows * width);
  for (let row = 0; row < rows; row++) {
    let column = row * width;
    for (const [matrix, size] of parts) {
      joined.set(matrix.subarray(row * size, (row + 1) * size), column);
      column += size;
    }
  }
  return joined;
}

// In place. The largest is subtracted first: some scores are above 600, too large for exp.
function softmax(scores) {
  const largest = Math.max(...scores);
  let total = 0;
  for (let i = 0; i < scores.length; i++) {
    scores[i] = Math.exp(scores[i] - largest);
    total += scores[i];
  }
  for (let i = 0; i < scores.length; i++) scores[i] /= total;
}

// A transformer block: x (N tokens, width), attention among the `tokens` rows of each clip.
function attend(weights, name, x, tokens, width, heads) {
  const qkv = linear(weights, name + ".qkv", layerNorm(weights, name + ".norm1", x, width));
  const mixed = new Float32Array(x.length);
  const size = width / heads;
  const scores = new Float64Array(tokens);
  for (let first = 0; first < x.length / width; first += tokens) {
    for (let head = 0; head < heads; head++) {
      const q = head * size, k = width + head * size, v = 2 * width + head * size;
      for (let to = 0; to < tokens; to++) {
        const here = 3 * width * (first + to);
        for (let from = 0; from < tokens; from++) {
          const there = 3 * width * (first + from);
          let score = 0;
          for (let i = 0; i < size; i++) score += qkv[here + q + i] * qkv[there + k + i];
          scores[from] = score / Math.sqrt(size);
        }
        softmax(scores);
        for (let from = 0; from < tokens; from++) {
          const there = 3 * width * (first + from);
          for (let i = 0; i < size; i++) {
            mixed[width * (first + to) + q + i] += scores[from] * qkv[there + v + i];
          }
        }
      }
    }
  }
  x = sum(x, linear(weights, name + ".out", mixed));
  const hidden = gelu(linear(weights, name + ".mlp.0",
                             layerNorm(weights, name + ".norm2", x, width)));
  return sum(x, linear(weights, name + ".mlp.2", hidden));
}

// Encoder `name` of observed clips (N, frames, features) -> shallow and deep embeddings (N, latent).
// The deep one is left out (null) where it is not wanted.
function* encode(model, name, clips, deep) {
  const {weights, frames, width, heads} = model;
  const read = (part, tokens) => linear(weights, `${name}.${part}.2`,
                                        layerNorm(weights, `${name}.${part}.0`, tokens, width));
  let x = linear(weights, name + ".embed", clips);
  const position = weights[name + ".position"].data;
  x = x.map((value, i) => value + position[i % position.length]);
  for (let i = 0; i < model.shallowDepth; i++) {
    x = attend(weights, `${name}.lower.${i}`, x, frames, width, heads);
    yield;
  }
  const shallow = read("read_shallow", x);
  if (!deep) return [shallow, null];
  for (let i = 0; i < model.depth - model.shallowDepth; i++) {
    x = attend(weights, `${name}.upper.${i}`, x, frames, width, heads);
    yield;
  }
  return [shallow, read("read_deep", x)];
}

// The short predictor P1: z (N, latent), one force each (N, actions) -> the next z (N, latent).
function predict(model, z, forces) {
  const {weights, latent, actions, shortWidth: width} = model;
  const rows = z.length / latent;
  let code = silu(linear(weights, "short.force.0", forces));
  code = silu(linear(weights, "short.force.2", code));
  let x = linear(weights, "short.enter", sideBySide([[z, latent], [forces, actions]], rows));
  for (let block = 0; block < model.predictorBlocks; block++) {
    const name = `short.blocks.${block}`;
    const adapt = linear(weights, name + ".adapt", code);       // shift, scale, gate of each row
    const column = (i, part) => adapt[3 * width * Math.floor(i / width) + part * width + i % width];
    let y = layerNorm(weights, null, x, width);
    y = y.map((value, i) => value * (1 + column(i, 1)) + column(i, 0));
    y = linear(weights, name + ".mlp.2", gelu(linear(weights, name + ".mlp.0", y)));
    x = x.map((value, i) => value + (1 + column(i, 2)) * y[i]);
  }
  const last = layerNorm(weights, "short.norm", x, width);
  return sum(z, linear(weights, "short.leave", last));
}

// P1 on its own output: z1 (N, latent), plans (N, clips, actions) -> [p1 of each clip].
function* imagine(model, z1, plans) {
  const {latent, actions, clips} = model;
  const rows = z1.length / latent;
  const path = [];
  let z = z1;
  for (let clip = 0; clip < clips; clip++) {
    const forces = new Float32Array(rows * actions);
    for (let row = 0; row < rows; row++) {
      const start = (row * clips + clip) * actions;
      forces.set(plans.subarray(start, start + actions), row * actions);
    }
    z = predict(model, z, forces);
    path.push(z);
    yield;
  }
  return path;
}

// The first guess: z1, z2 of now and t1 of the goal (N, latent) -> forces (N, clips, actions) for
// goals that are a whole macro-event ahead.
function* guess(model, z1, z2, t1) {
  const {weights, latent, clips} = model;
  const rows = z1.length / latent;
  const when = new Float32Array(rows * clips);
  for (let row = 0; row < rows; row++) when[row * clips + clips - 1] = 1;
  let x = sideBySide([[z1, latent], [z2, latent], [t1, latent], [when, clips]], rows);
  for (const layer of [0, 2, 4]) {
    x = gelu(linear(weights, `guess.mlp.${layer}`, x));
    yield;
  }
  return linear(weights, "guess.mlp.6", x);
}
