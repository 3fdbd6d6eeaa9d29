"""The simulators, if installed: Meta-World's experts and cameras, the kitchen's tasks, and a cloned policy."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from fewtokens.encoders import Patches
from fewtokens.evaluation.cloning_protocol import make_protocol
from fewtokens.evaluation.cloning_run import Source, run
from fewtokens.evaluation.simulate import CORTEXBENCH, KITCHEN, make_environment, record

pytestmark = pytest.mark.sim

# Searched without importing: their imports read from the environment how to render.
metaworld = pytest.mark.skipif(find_spec("metaworld") is None, reason="metaworld is not installed")
kitchen = pytest.mark.skipif(find_spec("gymnasium_robotics") is None, reason="gymnasium-robotics is not installed")


@metaworld
@pytest.mark.parametrize("task", CORTEXBENCH)
def test_experts_succeed(task):
    environment = make_environment(f"metaworld/{task}", horizon=200)
    expert = environment.expert()
    for seed in (0, 100_000):
        environment.reset(seed)
        assert not environment.success
        while not environment.success:
            action = expert(environment.state)
            assert action.shape == (4,)
            assert np.abs(action).max() <= 1
            environment.step(action)
    assert environment.state.shape == (39,)


@metaworld
def test_a_seed_determines_the_initial_state():
    environment = make_environment("metaworld/drawer-open")
    try:
        states, images = [], []
        for seed in (0, 1, 0):
            environment.reset(seed)
            states.append(environment.state.copy())
            images.append(environment.render(48))
        assert np.array_equal(states[0], states[2])
        assert np.array_equal(images[0], images[2])
        assert not np.array_equal(states[0], states[1])
        assert images[0].shape == (48, 48, 3)
        assert images[0].dtype == np.uint8
        assert images[0].std() > 20  # the image is not black
    finally:
        environment.close()


@metaworld
def test_cameras_and_horizons():
    with pytest.raises(ValueError, match="no camera 'left'; cameras: topview"):
        make_environment("metaworld/hammer", camera="left")
    with pytest.raises(ValueError, match="at most 500 steps"):
        make_environment("metaworld/hammer", horizon=501)
    with pytest.raises(ValueError, match="at least 1 step"):
        make_environment("metaworld/hammer", horizon=0)
    with pytest.raises(ValueError, match="no task 'juggling'; tasks: assembly"):
        make_environment("metaworld/juggling")


@kitchen
def test_the_kitchen():
    environment = make_environment("kitchen/light-switch", horizon=5)
    try:
        environment.reset(0)
        assert environment.state.shape == (59,)
        assert environment.render(48).std() > 20
        assert environment.step(np.zeros(9, np.float32)) == 0
        assert not environment.success
        # The task is done once the lamp's joint is at its goal.
        environment.env.unwrapped.data.qpos[17:19] = [-0.69, -0.05]
        environment.step(np.zeros(9, np.float32))
        assert environment.success
        with pytest.raises(ValueError, match="no scripted expert"):
            record(environment, 1, 48)
    finally:
        environment.close()
    with pytest.raises(ValueError, match="the kitchen has no task 'oven'; tasks: microwave"):
        make_environment("kitchen/oven")
    for name in KITCHEN:
        assert make_environment(f"kitchen/{name}").actions == 9


@metaworld
def test_a_clone_opens_the_drawer(tmp_path):
    """Acceptance test of the protocol: the loss falls on scripted demonstrations, and the clone acts."""
    protocol = make_protocol(
        "small", feature="cells", history=1, demos=2, rollouts=1, render=32, crop=32, epochs=30, every=15, batch=64
    )  # fmt: skip
    report = run(protocol, Patches(16), Source(task="metaworld/drawer-open", horizon=120, hold=2), seeds=1,
                 film=1, folder=tmp_path)  # fmt: skip
    first, last = report.seeds[0]["evaluations"]
    assert last["loss"] < first["loss"]
    assert 0 <= report.mean <= 100
    assert (tmp_path / "seed_0.mp4").is_file()
    assert torch.isfinite(torch.tensor(last["loss"]))
