"""A tiny environment with the interface of the simulators: move a white dot to a red one."""

from __future__ import annotations

import numpy as np


class Dots:
    task, actions, proprio, camera = "dots/reach", 2, 2, "above"

    def __init__(self, horizon=20):
        self.horizon, self.closed, self.rendered = horizon, False, 0

    def reset(self, seed):
        rng = np.random.default_rng(seed)
        self.position, self.goal = np.array([0.5, 0.1]), np.array([rng.choice([0.15, 0.85]), 0.85])

    def step(self, action):
        self.position = np.clip(self.position + 0.15 * np.clip(action, -1, 1), 0, 1)
        return -float(np.abs(self.position - self.goal).max())

    def render(self, size):
        self.rendered += 1
        frame = np.zeros((size, size, 3), np.uint8)
        cell = max(1, size // 8)
        for (x, y), color in ((self.goal, (255, 0, 0)), (self.position, (255, 255, 255))):
            top, left = int(y * (size - cell)), int(x * (size - cell))
            frame[top : top + cell, left : left + cell] = color
        return frame

    @property
    def state(self):
        return self.position.astype(np.float32)

    @property
    def success(self):
        return bool(np.abs(self.position - self.goal).max() < 0.12)

    def close(self):
        self.closed = True

    def expert(self):
        return lambda state: np.clip((self.goal - state) / 0.15, -1, 1).astype(np.float32)
