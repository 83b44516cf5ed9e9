"""The world's exact motion, event by event: what the error of a simulator is measured against.

Between two events each body flies a parabola, so the time of the next event is a root of a
polynomial: of degree 2 for a body and a wall, of degree 4 for two bodies. At an event velocities
change by the laws of elastic impact. Everything is float64 and slow: milliseconds per event.
"""
import math

import numpy as np

MOST_EVENTS = 10_000                            # in one world; more means an endless loop


def first_root(polynomial, approaching, horizon):
    """Coefficients, highest power first -> the first root in [0, horizon) at which approaching(t)
    holds; infinity if there is none. Later roots, and roots at which bodies part, are no events."""
    slope = np.polyder(polynomial)
    roots = np.roots(polynomial)
    is_real = np.abs(roots.imag) <= 1e-6 * (1 + np.abs(roots.real))
    first = math.inf
    for t in roots.real[is_real]:
        for _ in range(2):                      # np.roots is too coarse: two Newton steps
            steepness = np.polyval(slope, t)
            if steepness:
                t = t - np.polyval(polynomial, t) / steepness
        if -1e-12 <= t < min(first, horizon) and approaching(t):
            first = max(t, 0.0)
    return first


def wall_time(position, velocity, acceleration, wall, horizon):
    """One body on one axis -> when it meets the wall, whose sign is its side; or infinity."""
    def outward(t):
        return wall * (velocity + acceleration * t) > 0
    return first_root([acceleration / 2, velocity, position - wall], outward, horizon)


def contact_time(d, w, b, reach, horizon):
    """Relative position, velocity and acceleration (2,) -> when the distance shrinks to `reach`; or
    infinity. The polynomial is |d + w t + b t^2 / 2|^2 - reach^2."""
    def closing(t):
        return (d + w * t + b * t * t / 2) @ (w + b * t) < 0
    polynomial = [
        b @ b / 4,
        w @ b,
        w @ w + d @ b,
        2 * d @ w,
        d @ d - reach ** 2,
    ]
    return first_root(polynomial, closing, horizon)


def next_event(x, v, a, radii, horizon):
    """Positions, velocities, accelerations (bodies, 2) -> time of the next event, and the event:
    ("wall", body, axis) or ("contact", body, body). (horizon, None) if nothing happens before."""
    when = horizon
    event = None
    for i in range(len(x)):
        for axis in range(2):
            flight = x[i, axis], v[i, axis], a[i, axis]
            for side in (-1, 1):
                t = wall_time(*flight, side * (1 - radii[i]), when)
                if t < when:
                    when = t
                    event = ("wall", i, axis)
        for j in range(i):
            d = x[i] - x[j]
            w = v[i] - v[j]
            b = a[i] - a[j]
            t = contact_time(d, w, b, radii[i] + radii[j], when)
            if t < when:
                when = t
                event = ("contact", i, j)
    return when, event


def collide(x, v, masses, i, j):
    """Bodies i and j touch: exchange momentum along the line of centres, in place in v."""
    normal = (x[i] - x[j]) / np.linalg.norm(x[i] - x[j])
    closing = (v[i] - v[j]) @ normal
    impulse = -2 * closing / (1 / masses[i] + 1 / masses[j])
    v[i] += impulse / masses[i] * normal
    v[j] -= impulse / masses[j] * normal


def exact(state, forces, masses, radii, clip_seconds):
    """state (bodies, 4), forces (K, 2 bodies), each held for clip_seconds -> final state
    (bodies, 4), number of contacts between bodies. RuntimeError if the events do not end."""
    x = np.array(state[:, :2], dtype=float)
    v = np.array(state[:, 2:], dtype=float)
    masses = np.asarray(masses, dtype=float)
    events = 0
    contacts = 0
    for force in np.asarray(forces, dtype=float):
        a = force.reshape(-1, 2) / masses[:, None]
        left = clip_seconds
        while left > 0:
            t, event = next_event(x, v, a, radii, left)
            x = x + v * t + a * t * t / 2
            v = v + a * t
            left = left - t
            if event is None:
                break
            events += 1
            if events > MOST_EVENTS:
                raise RuntimeError(f"more than {MOST_EVENTS} events in one world")
            kind, body, other = event
            if kind == "wall":
                v[body, other] *= -1
            else:
                contacts += 1
                collide(x, v, masses, body, other)
    return np.concatenate([x, v], 1), contacts
