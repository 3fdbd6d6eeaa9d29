"""Simulated robots: Meta-World with its scripted experts, and the Franka kitchen of Gymnasium-Robotics.

Neither is the environment of a published table: R3M, CortexBench and Token Bottleneck used older Meta-World tasks (v2)
with cameras of their own and the kitchen of an old RoboHive, so success rates here compare encoders with each other and
with nothing else. RLBench needs CoppeliaSim, which no package index has, and is not here.

Needs `pip install 'fewtokens[sim]'`. Frames are rendered off screen, by EGL unless MUJOCO_GL or DISPLAY is set, without
shadows, reflections and multisampling, which on a CPU saves most of the time.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fewtokens.data.demonstrations import Demonstration

NOTE = "not the environments of the papers: success here does not compare with their tables"

# The five Meta-World tasks of CortexBench.
CORTEXBENCH = ("assembly", "bin-picking", "button-press-topdown", "drawer-open", "hammer")

# Our name -> that of Gymnasium-Robotics, and the task of R3M on the same thing (kitchen_*-v3), where there is one. Its
# knob1_on turns the knob of the bottom right burner, which Gymnasium's kitchen does not score; the left one is nearest.
KITCHEN = {
    "microwave": ("microwave", "micro_open"),
    "light-switch": ("light switch", "light_on"),
    "slide-cabinet": ("slide cabinet", "sdoor_open"),
    "hinge-cabinet": ("hinge cabinet", "ldoor_open"),
    "bottom-burner": ("bottom burner", None),
    "top-burner": ("top burner", None),
    "kettle": ("kettle", None),
}


class Environment(Protocol):
    """A task that a policy acts in.

    Attributes:
        task: its name.
        actions: numbers of an action, each in -1..1.
        proprio: how many of the first states are the robot's own.
        horizon: steps after which an episode ends.
        camera: the name of its view.
    """

    task: str
    actions: int
    proprio: int
    horizon: int
    camera: str

    def reset(self, seed: int) -> None:
        """Begins an episode; one seed, one beginning."""
        ...

    def step(self, action: NDArray[np.float32]) -> float:
        """Acts for one step and gives the reward."""
        ...

    def render(self, size: int) -> NDArray[np.uint8]:
        """What the camera sees, [size,size,3]."""
        ...

    @property
    def state(self) -> NDArray[np.float32]:
        """The states, [S]."""
        ...

    @property
    def success(self) -> bool:
        """Whether the task is done at this moment."""
        ...

    def close(self) -> None:
        """Frees what rendering holds."""
        ...


def make(task: str, *, camera: str | None = None, horizon: int | None = None) -> Environment:
    """The environment of a task such as "metaworld/drawer-open" or "kitchen/microwave".

    Args:
        task: any task of Meta-World (without its version), or one of `KITCHEN`.
        camera: of Meta-World: corner, corner2, corner3, corner4 (default), topview, behindGripper, gripperPOV; of the
            kitchen: free (default), left_cap, right_cap.
        horizon: steps of an episode; 500 (Meta-World, its most) or 280 (kitchen) where not said.

    Raises:
        ValueError: no such task or camera, an impossible horizon, or the simulators are not installed.
    """
    suite, _, name = task.partition("/")
    if suite not in ("metaworld", "kitchen") or not name:
        raise ValueError(f"no task {task!r}; say metaworld/TASK or kitchen/TASK, such as metaworld/drawer-open")
    if horizon is not None and horizon < 1:
        raise ValueError(f"the horizon must be at least 1 step, got {horizon}")
    return (MetaWorld if suite == "metaworld" else Kitchen)(name, camera, horizon)


def _simulator(name: str) -> Any:
    """A module of the extra [sim]."""
    if sys.platform == "linux" and "MUJOCO_GL" not in os.environ and "DISPLAY" not in os.environ:
        if "mujoco" in sys.modules:  # it reads the variable when it is imported
            raise ValueError("mujoco was imported before MUJOCO_GL was set: set MUJOCO_GL=egl before Python starts")
        os.environ["MUJOCO_GL"] = "egl"
    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(f"simulators are not installed ({error}): pip install 'fewtokens[sim]'") from None


class _Camera:
    """Renders a model from one camera as cheaply as MuJoCo can."""

    def __init__(self, model: Any, camera: Any, upside_down: bool = False) -> None:
        self.mujoco = _simulator("mujoco")
        self.model, self.camera, self.upside_down = model, camera, upside_down
        model.vis.quality.offsamples = 0
        self.renderer: Any = None

    def __call__(self, data: Any, size: int) -> NDArray[np.uint8]:
        if self.renderer is None or self.renderer.height != size:
            self.close()
            screen = self.model.vis.global_
            screen.offwidth, screen.offheight = max(screen.offwidth, size), max(screen.offheight, size)
            self.renderer = self.mujoco.Renderer(self.model, size, size)
            for flag in ("mjRND_SHADOW", "mjRND_REFLECTION"):
                self.renderer.scene.flags[getattr(self.mujoco.mjtRndFlag, flag)] = 0
        self.renderer.update_scene(data, self.camera)
        frame = self.renderer.render()
        return np.ascontiguousarray(frame[::-1, ::-1] if self.upside_down else frame)

    def close(self) -> None:
        if self.renderer is not None:
            self.renderer.close()
            self.renderer = None


class _Simulated:
    """What both simulators have: a view by one camera, and what the last step left."""

    env: Any
    _camera: _Camera
    _state: NDArray[np.float32]
    _success: bool

    def render(self, size: int) -> NDArray[np.uint8]:
        return self._camera(self.env.unwrapped.data, size)

    @property
    def state(self) -> NDArray[np.float32]:
        return self._state

    @property
    def success(self) -> bool:
        return self._success

    def close(self) -> None:
        self._camera.close()


class MetaWorld(_Simulated):
    """A task of Meta-World 3 (arXiv 1910.10897): 39 states, of which hand and gripper are the robot's; 4 actions.

    Seeds lead to the library's own beginnings: 50 of each of its seeds.
    """

    actions, proprio = 4, 4

    def __init__(self, name: str, camera: str | None = None, horizon: int | None = None) -> None:
        library = _simulator("metaworld")
        known = sorted(key.removesuffix("-v3") for key in library.ALL_V3_ENVIRONMENTS)
        if name not in known:
            raise ValueError(f"Meta-World has no task {name!r}; it has {', '.join(known)}")
        self.task, self._name = f"metaworld/{name}", f"{name}-v3"
        self.env = library.ALL_V3_ENVIRONMENTS[self._name]()
        most = int(self.env.max_path_length)
        if horizon is not None and horizon > most:
            raise ValueError(f"an episode of Meta-World ends after {most} steps, got a horizon of {horizon}")
        self.horizon = horizon or most
        cameras = [self.env.model.camera(number).name for number in range(self.env.model.ncam)]
        self.camera = camera or "corner4"
        if self.camera not in cameras:
            raise ValueError(f"Meta-World has no camera {camera!r}; it has {', '.join(cameras)}")
        # Its corner cameras hang upside down.
        self._camera = _Camera(self.env.model, self.camera, upside_down=self.camera.startswith("corner"))
        self._state, self._success = np.zeros(39, np.float32), False

    def reset(self, seed: int) -> None:
        family, number = divmod(seed, 50)
        self.env.set_task(_beginnings(self._name, family)[number])
        state, _ = self.env.reset()
        self._state, self._success = np.asarray(state, np.float32), False

    def step(self, action: NDArray[np.float32]) -> float:
        state, reward, _, _, said = self.env.step(np.clip(action, -1, 1))
        self._state, self._success = np.asarray(state, np.float32), bool(said["success"])
        return float(reward)

    def expert(self) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        """The library's scripted expert: states to an action."""
        policy = _simulator("metaworld.policies").ENV_POLICY_MAP[self._name]()

        def act(state: NDArray[np.float32]) -> NDArray[np.float32]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that its gains are high
                action = policy.get_action(state.astype(np.float64))
            return np.clip(action, -1, 1).astype(np.float32)

        return act


@lru_cache(maxsize=64)
def _beginnings(name: str, seed: int) -> list[Any]:
    """The 50 that the library draws from a seed."""
    tasks = _simulator("metaworld").MT1(name, seed=seed).train_tasks
    assert len(tasks) == 50
    return tasks


class Kitchen(_Simulated):
    """FrankaKitchen-v1 of Gymnasium-Robotics with one task: 59 states, the first 9 the arm's joints; 9 actions.

    It has no expert; demonstrations come from a file. Every episode begins alike but for noise on what is felt.
    """

    actions, proprio = 9, 9

    def __init__(self, name: str, camera: str | None = None, horizon: int | None = None) -> None:
        if name not in KITCHEN:
            raise ValueError(f"the kitchen has no task {name!r}; it has {', '.join(KITCHEN)}")
        library = _simulator("gymnasium_robotics")
        gymnasium = _simulator("gymnasium")
        gymnasium.register_envs(library)
        self.task, self.horizon = f"kitchen/{name}", horizon or 280
        self._goal = KITCHEN[name][0]
        self.env = gymnasium.make(
            "FrankaKitchen-v1", tasks_to_complete=[self._goal], max_episode_steps=self.horizon, disable_env_checker=True
        )
        model = self.env.unwrapped.model
        cameras = [model.camera(number).name for number in range(model.ncam)]
        self.camera = camera or "free"
        if self.camera not in ("free", *cameras):
            raise ValueError(f"the kitchen has no camera {camera!r}; it has free, {', '.join(cameras)}")
        self._camera = _Camera(model, _free_camera() if self.camera == "free" else self.camera)
        self._state, self._success = np.zeros(59, np.float32), False

    def reset(self, seed: int) -> None:
        seen, _ = self.env.reset(seed=seed)
        self._state, self._success = np.asarray(seen["observation"], np.float32), False

    def step(self, action: NDArray[np.float32]) -> float:
        seen, reward, _, _, said = self.env.step(np.clip(action, -1, 1))
        self._state = np.asarray(seen["observation"], np.float32)
        self._success = self._goal in said["episode_task_completions"]
        return float(reward)


def _free_camera() -> Any:
    """The view that Gymnasium-Robotics itself renders."""
    view = _simulator("gymnasium_robotics.envs.franka_kitchen.franka_env").DEFAULT_CAMERA_CONFIG
    camera = _simulator("mujoco").MjvCamera()
    camera.distance, camera.azimuth, camera.elevation = view["distance"], view["azimuth"], view["elevation"]
    camera.lookat[:] = view["lookat"]
    return camera


def record(
    environment: Environment,
    count: int,
    size: int,
    *,
    hold: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Demonstration]:
    """Demonstrations of a scripted expert, from the beginnings of seeds 0, 1, ...; failed ones are left out.

    Args:
        environment: one with an expert.
        count: how many.
        size: side of the frames, in pixels.
        hold: steps that are still recorded after the task is done; to the horizon where None.
        progress: called with (done, in all).

    Raises:
        ValueError: no expert, or one that fails at more than two of three beginnings.
    """
    if not hasattr(environment, "expert"):
        raise ValueError(f"{environment.task} has no scripted expert; give demonstrations by --data FILE")
    expert = environment.expert()
    made: list[Demonstration] = []
    for seed in range(3 * count + 2):
        environment.reset(seed)
        images, states, actions, rewards = list[Any](), list[Any](), list[Any](), list[Any]()
        done_for = 0
        for _ in range(environment.horizon):
            state = environment.state
            action = expert(state)
            images.append(environment.render(size))
            states.append(state)
            actions.append(action)
            rewards.append(environment.step(action))
            done_for += environment.success or done_for > 0
            if hold is not None and done_for > hold:
                break
        if not done_for:
            continue
        seen, felt, done = (torch.from_numpy(np.stack(part)) for part in (images, states, actions))
        made.append(Demonstration(seen, felt, done, torch.tensor(rewards)))
        if progress is not None:
            progress(len(made), count)
        if len(made) == count:
            return made
    raise ValueError(
        f"the expert of {environment.task} succeeds in only {len(made)} of {3 * count + 2} episodes of "
        f"{environment.horizon} steps; allow longer ones"
    )
