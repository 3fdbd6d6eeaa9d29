"""A tiny environment of the simulators' protocol: a white dot is to be brought to a red one."""

from __future__ import annotations

import numpy as np


class Dots:
    task, actions, proprio, camera = "dots/reach", 2, 2, "above"

    def __init__(self, horizon=20):
        self.horizon, self.closed, self.rendered = horizon, False, 0

    def reset(self, seed):
        rng = np.random.default_rng(seed)
        self.place, self.goal = np.array([0.5, 0.1]), np.array([rng.choice([0.15, 0.85]), 0.85])

    def step(self, action):
        self.place = np.clip(self.place + 0.15 * np.clip(action, -1, 1), 0, 1)
        return -float(np.abs(self.place - self.goal).max())

    def render(self, size):
        self.rendered += 1
        frame = np.zeros((size, size, 3), np.uint8)
        cell = max(1, size // 8)
        for (x, y), colour in ((self.goal, (255, 0, 0)), (self.place, (255, 255, 255))):
            top, left = int(y * (size - cell)), int(x * (size - cell))
            frame[top : top + cell, left : left + cell] = colour
        return frame

    @property
    def state(self):
        return self.place.astype(np.float32)

    @property
    def success(self):
        return bool(np.abs(self.place - self.goal).max() < 0.12)

    def close(self):
        self.closed = True

    def expert(self):
        return lambda state: np.clip((self.goal - state) / 0.15, -1, 1).astype(np.float32)
