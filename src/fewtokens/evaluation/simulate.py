"""Simulated robots: Meta-World with its scripted experts, and the Franka kitchen of Gymnasium-Robotics.

Neither is the environment of a published table: R3M, CortexBench and Token Bottleneck used older Meta-World tasks (v2)
with custom cameras and the kitchen of an old RoboHive, so use success rates here only to compare encoders with each
other. RLBench is not supported: it needs CoppeliaSim, which is in no package index.

Requires `pip install 'fewtokens[sim]'`. Frames are rendered off screen, with EGL unless MUJOCO_GL or DISPLAY is set,
without shadows, reflections and multisampling, which take most of the time on a CPU.
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

NOTE = "not the environments of the papers: success rates are not comparable with their tables"

# The five Meta-World tasks of CortexBench.
CORTEXBENCH = ("assembly", "bin-picking", "button-press-topdown", "drawer-open", "hammer")

# Task -> its name in Gymnasium-Robotics, and R3M's task on the same object (kitchen_*-v3) or None. R3M's knob1_on turns
# the knob of the bottom right burner, which Gymnasium's kitchen does not score; the left one is the closest.
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
    """An environment in which a policy acts.

    Attributes:
        task: the name of the task.
        actions: the number of action dimensions, each in -1..1.
        proprio: the number of leading states that describe the robot itself.
        horizon: steps after which an episode ends.
        camera: the name of the camera.
    """

    task: str
    actions: int
    proprio: int
    horizon: int
    camera: str

    def reset(self, seed: int) -> None:
        """Starts an episode; the seed determines the initial state."""
        ...

    def step(self, action: NDArray[np.float32]) -> float:
        """Acts for one step and returns the reward."""
        ...

    def render(self, size: int) -> NDArray[np.uint8]:
        """Renders the view of the camera, [size,size,3]."""
        ...

    @property
    def state(self) -> NDArray[np.float32]:
        """The state vector, [S]."""
        ...

    @property
    def success(self) -> bool:
        """Whether the task is done after the last step."""
        ...

    def close(self) -> None:
        """Frees the renderer."""
        ...


def make_environment(task: str, *, camera: str | None = None, horizon: int | None = None) -> Environment:
    """Creates the environment of a task such as "metaworld/drawer-open" or "kitchen/microwave".

    Args:
        task: any task of Meta-World (without the version), or one of `KITCHEN`.
        camera: in Meta-World: corner, corner2, corner3, corner4 (default), topview, behindGripper, gripperPOV; in the
            kitchen: free (default), left_cap, right_cap.
        horizon: steps per episode. Default: 500 (Meta-World, the maximum) or 280 (kitchen).

    Raises:
        ValueError: no such task or camera, a horizon out of range, or the simulators are not installed.
    """
    suite, _, name = task.partition("/")
    if suite not in ("metaworld", "kitchen") or not name:
        raise ValueError(f"task must be metaworld/TASK or kitchen/TASK, such as metaworld/drawer-open, got {task!r}")
    if horizon is not None and horizon < 1:
        raise ValueError(f"horizon must be at least 1 step, got {horizon}")
    return (MetaWorld if suite == "metaworld" else Kitchen)(name, camera, horizon)


def _simulator(name: str) -> Any:
    """Imports a module of the extra [sim]."""
    if sys.platform == "linux" and "MUJOCO_GL" not in os.environ and "DISPLAY" not in os.environ:
        if "mujoco" in sys.modules:  # it reads the variable at import
            raise ValueError("mujoco was imported before MUJOCO_GL was set; set MUJOCO_GL=egl before starting Python")
        os.environ["MUJOCO_GL"] = "egl"
    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(
            f"the simulators are not installed ({error}); install them with pip install 'fewtokens[sim]'"
        ) from None


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
    """Base of both simulators: renders one camera, and stores state and success of the last step."""

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
    """A task of Meta-World 3 (arXiv 1910.10897): 39 states, the first 4 those of hand and gripper; 4 actions.

    A seed selects one of the library's initial states, which come in groups of 50 per library seed.
    """

    actions, proprio = 4, 4

    def __init__(self, name: str, camera: str | None = None, horizon: int | None = None) -> None:
        library = _simulator("metaworld")
        tasks = sorted(key.removesuffix("-v3") for key in library.ALL_V3_ENVIRONMENTS)
        if name not in tasks:
            raise ValueError(f"Meta-World has no task {name!r}; tasks: {', '.join(tasks)}")
        self.task, self._name = f"metaworld/{name}", f"{name}-v3"
        self.env = library.ALL_V3_ENVIRONMENTS[self._name]()
        max_steps = int(self.env.max_path_length)
        if horizon is not None and horizon > max_steps:
            raise ValueError(f"horizon must be at most {max_steps} steps in Meta-World, got {horizon}")
        self.horizon = horizon or max_steps
        cameras = [self.env.model.camera(number).name for number in range(self.env.model.ncam)]
        self.camera = camera or "corner4"
        if self.camera not in cameras:
            raise ValueError(f"Meta-World has no camera {camera!r}; cameras: {', '.join(cameras)}")
        # The corner cameras are mounted upside down.
        self._camera = _Camera(self.env.model, self.camera, upside_down=self.camera.startswith("corner"))
        self._state, self._success = np.zeros(39, np.float32), False

    def reset(self, seed: int) -> None:
        group, number = divmod(seed, 50)
        self.env.set_task(_initial_states(self._name, group)[number])
        state, _ = self.env.reset()
        self._state, self._success = np.asarray(state, np.float32), False

    def step(self, action: NDArray[np.float32]) -> float:
        state, reward, _, _, info = self.env.step(np.clip(action, -1, 1))
        self._state, self._success = np.asarray(state, np.float32), bool(info["success"])
        return float(reward)

    def expert(self) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        """Returns the library's scripted expert, which maps a state to an action."""
        policy = _simulator("metaworld.policies").ENV_POLICY_MAP[self._name]()

        def act(state: NDArray[np.float32]) -> NDArray[np.float32]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it warns of high gains
                action = policy.get_action(state.astype(np.float64))
            return np.clip(action, -1, 1).astype(np.float32)

        return act


@lru_cache(maxsize=64)
def _initial_states(name: str, seed: int) -> list[Any]:
    """The 50 initial states that the library samples with a seed."""
    tasks = _simulator("metaworld").MT1(name, seed=seed).train_tasks
    assert len(tasks) == 50
    return tasks


class Kitchen(_Simulated):
    """FrankaKitchen-v1 of Gymnasium-Robotics with one task: 59 states, the first 9 those of the arm; 9 actions.

    It has no expert; demonstrations come from a file. All episodes start in the same state, except for noise on the
    observations.
    """

    actions, proprio = 9, 9

    def __init__(self, name: str, camera: str | None = None, horizon: int | None = None) -> None:
        if name not in KITCHEN:
            raise ValueError(f"the kitchen has no task {name!r}; tasks: {', '.join(KITCHEN)}")
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
            raise ValueError(f"the kitchen has no camera {camera!r}; cameras: free, {', '.join(cameras)}")
        self._camera = _Camera(model, _free_camera() if self.camera == "free" else self.camera)
        self._state, self._success = np.zeros(59, np.float32), False

    def reset(self, seed: int) -> None:
        observation, _ = self.env.reset(seed=seed)
        self._state, self._success = np.asarray(observation["observation"], np.float32), False

    def step(self, action: NDArray[np.float32]) -> float:
        observation, reward, _, _, info = self.env.step(np.clip(action, -1, 1))
        self._state = np.asarray(observation["observation"], np.float32)
        self._success = self._goal in info["episode_task_completions"]
        return float(reward)


def _free_camera() -> Any:
    """The default camera of Gymnasium-Robotics."""
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
    """Records demonstrations of a scripted expert with seeds 0, 1, ...; failed episodes are skipped.

    Args:
        environment: an environment with an expert.
        count: the number of demonstrations.
        size: side of the frames in pixels.
        hold: steps recorded after the task is done; None to record to the horizon.
        progress: called with (demonstrations done, total).

    Raises:
        ValueError: the environment has no expert, or the expert fails in more than two of three episodes.
    """
    if not hasattr(environment, "expert"):
        raise ValueError(f"{environment.task} has no scripted expert; pass demonstrations with --data FILE")
    expert = environment.expert()
    demonstrations: list[Demonstration] = []
    for seed in range(3 * count + 2):
        environment.reset(seed)
        images, states, actions, rewards = list[Any](), list[Any](), list[Any](), list[Any]()
        steps_done = 0
        for _ in range(environment.horizon):
            state = environment.state
            action = expert(state)
            images.append(environment.render(size))
            states.append(state)
            actions.append(action)
            rewards.append(environment.step(action))
            steps_done += environment.success or steps_done > 0
            if hold is not None and steps_done > hold:
                break
        if not steps_done:
            continue
        demonstrations.append(
            Demonstration(
                images=torch.from_numpy(np.stack(images)),
                observations=torch.from_numpy(np.stack(states)),
                actions=torch.from_numpy(np.stack(actions)),
                rewards=torch.tensor(rewards),
            )
        )
        if progress is not None:
            progress(len(demonstrations), count)
        if len(demonstrations) == count:
            return demonstrations
    raise ValueError(
        f"the expert of {environment.task} succeeds in only {len(demonstrations)} of {3 * count + 2} episodes of "
        f"{environment.horizon} steps; increase the horizon"
    )
