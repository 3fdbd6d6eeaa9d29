"""Behavior cloning: fusion and policy against reference calculations, frozen encoders, episodes, full runs."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fewtokens.data.demonstrations import write
from fewtokens.encoders import Patches, ViT, ViTConfig, VitEncoder
from fewtokens.evaluation import cloning_run
from fewtokens.evaluation.behavior_cloning import (
    Policy,
    clone,
    confidence_interval,
    encode_demonstrations,
    episode_seeds,
    policy_inputs,
)
from fewtokens.evaluation.cloning_protocol import PRESETS, Cloning, make_protocol, parse_change
from fewtokens.evaluation.cloning_run import Source, run
from fewtokens.evaluation.rollouts import FrameEncoder, filmstrip, fuse, roll_out, stack_history
from fewtokens.evaluation.simulate import record
from tests.evaluation.dots import Dots

SMALL = {
    "feature": "cells", "history": 2, "proprio": 2, "hidden": (32,), "lr": 5e-3, "batch": 32, "epochs": 40, "every": 20,
    "demos": 8, "rollouts": 6, "criterion": "any", "render": 16, "crop": 16,
}  # fmt: skip


def small(**changes) -> Cloning:
    return make_protocol("small", **(SMALL | changes))


@pytest.fixture(scope="module")
def demos():
    return record(Dots(), 8, 16, hold=2)


def tiny_vit() -> VitEncoder:
    torch.manual_seed(0)
    return VitEncoder(ViT(ViTConfig(dim=16, depth=2, num_heads=2, patch_size=4, image_size=(16, 16))).eval())


@pytest.fixture(scope="module")
def cloned(demos):
    protocol = small()
    frame_encoder = FrameEncoder(Patches(4), protocol)
    x, actions = policy_inputs(encode_demonstrations(frame_encoder, demos), demos, protocol)
    return (
        frame_encoder,
        protocol,
        clone(x, actions, protocol, environments=[Dots()], frame_encoder=frame_encoder, film=2),
    )


def untrained(protocol, width):
    torch.manual_seed(0)
    return Policy(width, 2, hidden=protocol.hidden, activation=protocol.activation)


class TestPolicyInputs:
    def test_history_and_flare_by_hand(self):
        features = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
        fused = fuse(stack_history(features, 3), "flare")
        assert fused.shape == (5, 9)
        z = features.numpy()
        for t in range(5):
            # A loop over the last three frames; the first one is repeated early on.
            frames = [z[max(t - 2, 0)], z[max(t - 1, 0)], z[t]]
            expected = [frames[1] - frames[0], frames[2] - frames[1], frames[2]]
            np.testing.assert_allclose(fused[t], np.concatenate(expected), rtol=1e-6)

    def test_other_fusions(self):
        a, b = torch.tensor([1.0, 2.0]), torch.tensor([5.0, 7.0])
        both = torch.stack([a, b])[None]
        assert fuse(both, "concat").tolist() == [[1, 2, 5, 7]]
        assert fuse(both, "flare_full").tolist() == [[1, 2, 5, 7, 4, 5]]
        for fusion in ("flare", "flare_full", "concat"):
            assert fuse(both[:, 1:], fusion).tolist() == [[5, 7]]

    def test_features(self):
        encoder = tiny_vit()
        images = torch.randint(0, 256, (3, 20, 24, 3), dtype=torch.uint8)
        dims = {"class": 16, "prefix": 16, "mean": 16, "cells": 256}
        for feature, dim in dims.items():
            features = FrameEncoder(encoder, small(feature=feature, render=20, crop=16), batch=2)(images)
            assert features.shape == (3, dim)
            assert features.dtype == torch.float32
        # Frames are cropped at the center, and each one is encoded alone.
        middle = images[1:2, 2:18, 4:20].permute(0, 3, 1, 2)[:, None]
        alone = encoder(middle)[0]
        torch.testing.assert_close(
            FrameEncoder(encoder, small(feature="class", render=20, crop=16))(images)[1],
            alone.prefix[0, 0],
            rtol=1e-4,
            atol=1e-5,
        )
        with pytest.raises(ValueError, match="no class token; use feature mean or cells"):
            FrameEncoder(Patches(4), small(feature="class"))(images)
        with pytest.raises(ValueError, match="feature none does not accept an encoder"):
            FrameEncoder(encoder, small(feature="none"))

    def test_inputs(self, demos):
        protocol = small()
        x, actions = policy_inputs(encode_demonstrations(FrameEncoder(Patches(4), protocol), demos), demos, protocol)
        steps = sum(map(len, demos))
        assert x.shape == (steps, 2 * 16 * 48 + 2)
        assert actions.shape == (steps, 2)
        assert torch.equal(x[:, -2:], torch.cat([demo.observations for demo in demos]))
        with pytest.raises(ValueError, match="proprio is 9, but the demonstrations have 2 states"):
            policy_inputs([torch.zeros(len(demos[0]), 1)], demos[:1], small(proprio=9))


class TestPolicy:
    @pytest.mark.parametrize("activation", ["tanh", "relu"])
    def test_forward_against_numpy(self, activation):
        torch.manual_seed(0)
        policy = Policy(4, 2, hidden=(5, 3), activation=activation)
        policy.norm.running_mean.normal_()
        policy.norm.running_var.uniform_(0.5, 2)
        policy.eval()
        x = torch.randn(6, 4)
        h = ((x - policy.norm.running_mean) / (policy.norm.running_var + 1e-5).sqrt()).detach().numpy()
        for number, layer in enumerate(policy.layers):
            h = h @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
            if number < 2:
                h = np.tanh(h) if activation == "tanh" else np.maximum(h, 0)
        np.testing.assert_allclose(policy(x).detach(), h, rtol=1e-5, atol=1e-7)

    def test_learns_and_does_not_change_the_encoder(self, demos):
        encoder = tiny_vit()
        before = {name: value.clone() for name, value in encoder.vit.state_dict().items()}
        protocol = small(feature="class", history=3, every=10)
        frame_encoder = FrameEncoder(encoder, protocol)
        x, actions = policy_inputs(encode_demonstrations(frame_encoder, demos), demos, protocol)
        trained = clone(x, actions, protocol, environments=[Dots()], frame_encoder=frame_encoder)
        losses = [evaluation.loss for evaluation in trained.evaluations]
        assert len(losses) == 4
        assert losses[-1] < 0.5 * losses[0]
        assert losses[-1] < 0.2 * float(actions.var(0).mean())
        assert all(torch.equal(value, before[name]) for name, value in encoder.vit.state_dict().items())
        assert not any(parameter.grad is not None for parameter in encoder.vit.parameters())

    def test_same_seed_same_policy(self, demos):
        protocol = small(epochs=3, every=3)
        x, actions = policy_inputs(encode_demonstrations(FrameEncoder(Patches(4), protocol), demos), demos, protocol)
        first, again, other = (clone(x, actions, protocol, seed=seed).policy.state_dict() for seed in (1, 1, 2))
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not torch.equal(first["layers.0.weight"], other["layers.0.weight"])

    def test_steps_or_epochs(self):
        x, actions = torch.randn(33, 3), torch.randn(33, 2)
        # 33 samples in batches of 16: a last batch of one sample has no variance.
        by_epochs = clone(x, actions, small(epochs=5, every=2, batch=16), held_out=(x, actions))
        assert [evaluation.step for evaluation in by_epochs.evaluations] == [4, 8, 10]
        by_steps = clone(x, actions, small(steps=7, epochs=0, every=3), held_out=(x, actions))
        assert [evaluation.step for evaluation in by_steps.evaluations] == [3, 6, 7]
        assert by_steps.best == min(evaluation.score for evaluation in by_steps.evaluations)
        with pytest.raises(ValueError, match="needs at least 2 steps of demonstrations"):
            clone(x[:1], actions[:1], small())


class TestEpisodes:
    def test_a_clone_succeeds_where_chance_does_not(self, cloned):
        frame_encoder, protocol, trained = cloned
        assert trained.best >= 80
        by_chance = roll_out(
            untrained(protocol, trained.policy.norm.num_features).eval(), frame_encoder, [Dots()], range(6), protocol
        )
        assert not any(rollout.any_success for rollout in by_chance)

    def test_batch_statistics_do_not_change(self, cloned):
        frame_encoder, protocol, trained = cloned
        before = trained.policy.norm.running_mean.clone()
        assert not trained.policy.training
        roll_out(trained.policy, frame_encoder, [Dots()], [0, 1], protocol)
        assert torch.equal(before, trained.policy.norm.running_mean)
        policy = untrained(protocol, trained.policy.norm.num_features).train()
        with pytest.raises(AssertionError, match="batch statistics"):
            roll_out(policy, frame_encoder, [Dots()], [0], protocol)

    def test_side_by_side(self, cloned):
        frame_encoder, protocol, trained = cloned
        one = roll_out(trained.policy, frame_encoder, [Dots()], range(5), protocol)
        three = roll_out(trained.policy, frame_encoder, [Dots(), Dots(), Dots()], range(5), protocol)
        assert [(r.seed, r.steps, r.any_success) for r in one] == [(r.seed, r.steps, r.any_success) for r in three]
        assert [r.total_reward for r in one] == pytest.approx([r.total_reward for r in three], abs=1e-3)

    def test_inputs_of_episodes_and_training_agree(self, cloned):
        """A policy's inputs in an episode equal those of the same episode as a demonstration."""
        frame_encoder, protocol, _ = cloned
        environment = Dots()
        expert = environment.expert()
        rows = []

        class Expert(torch.nn.Linear):
            def forward(self, x):
                rows.append(x[0])
                return torch.as_tensor(expert(x[0, -2:].numpy()))[None]

        roll_out(Expert(1, 1).eval(), frame_encoder, [environment], [0], protocol)
        (demo,) = record(Dots(), 1, 16, hold=0)
        expected, _ = policy_inputs(encode_demonstrations(frame_encoder, [demo]), [demo], protocol)
        torch.testing.assert_close(torch.stack(rows), expected[: len(rows)], rtol=1e-5, atol=1e-5)
        assert len(rows) == len(demo)

    def test_criteria(self, cloned):
        frame_encoder, _, trained = cloned
        by_any = roll_out(trained.policy, frame_encoder, [Dots()], [3], small(criterion="any"))[0]
        by_last = roll_out(trained.policy, frame_encoder, [Dots()], [3], small(criterion="last"))[0]
        assert by_any.any_success
        assert by_any.steps < 20
        assert by_last.steps == 20

    def test_blind(self):
        protocol = small(feature="none", history=1)
        frame_encoder, environment = FrameEncoder(None, protocol), Dots()
        policy = untrained(protocol, 2).eval()
        roll_out(policy, frame_encoder, [environment], [0], protocol)
        assert environment.rendered == 0
        filmed = roll_out(policy, frame_encoder, [environment], [0, 1], protocol, film=1)
        assert environment.rendered == 20
        assert [len(rollout.frames) for rollout in filmed] == [20, 0]

    def test_filmstrip(self, cloned):
        filmed = cloned[2].rollouts
        strip = filmstrip(filmed)
        assert strip.shape == (max(rollout.steps for rollout in filmed), 3, 16, 32)
        green = torch.tensor([46, 160, 67], dtype=torch.uint8)
        assert torch.equal(strip[-1, :, 0, 0], green)
        assert not torch.equal(strip[0, :, 0, 0], green)
        with pytest.raises(ValueError, match="no episode was filmed"):
            filmstrip([])


class TestProtocols:
    def test_published_protocols(self):
        r3m, cortex, dmc = PRESETS["r3m"], PRESETS["cortexbench"], PRESETS["cortexbench_dmc"]
        assert (r3m.proprio, r3m.hidden, r3m.activation, r3m.batch) == (9, (256, 256), "tanh", 32)
        assert (r3m.steps, r3m.every, r3m.rollouts, r3m.demos, r3m.history) == (20_000, 1_000, 50, 25, 1)
        assert (cortex.hidden, cortex.activation, cortex.batch) == ((256, 256, 256), "relu", 256)
        assert (cortex.epochs, cortex.every, cortex.rollouts, cortex.demos) == (100, 5, 25, 25)
        assert (cortex.history, cortex.fusion, cortex.criterion) == (3, "flare", "last")
        assert (dmc.demos, dmc.rollouts, dmc.proprio, dmc.criterion) == (100, 10, 0, "return")
        assert all(
            (protocol.render, protocol.crop, protocol.lr, protocol.feature) == (256, 224, 1e-3, "class")
            for protocol in (r3m, cortex, dmc)
        )

    def test_changes(self):
        assert make_protocol("cortexbench", steps=10).epochs == 0
        assert parse_change("hidden=64,32") == ("hidden", (64, 32))
        assert parse_change("lr=0.01") == ("lr", 0.01)
        for bad, message in (("speed=3", "settings: feature"), ("batch", "name=value"), ("batch=x", "of type int")):
            with pytest.raises(ValueError, match=message):
                parse_change(bad)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"feature": "best"}, "feature must be one of"),
            ({"fusion": "sum"}, "fusion must be one of"),
            ({"batch": 1}, "at least 2 samples"),
            ({"steps": 5, "epochs": 5}, "one of steps and epochs must be 0"),
            ({"crop": 300}, "does not fit in frames"),
            ({"feature": "none", "proprio": 0}, "the policy has no input"),
            ({"history": 0}, "history must be at least 1"),
        ],
    )
    def test_invalid_protocols(self, changes, message):
        with pytest.raises(ValueError, match=message):
            make_protocol("r3m", **changes)
        with pytest.raises(ValueError, match="preset must be one of r3m"):
            make_protocol("rlbench")

    def test_interval(self):
        mean, half = confidence_interval([50.0, 60.0, 70.0])
        assert mean == 60
        assert half == pytest.approx(4.303 * 10 / math.sqrt(3), rel=1e-3)
        assert confidence_interval([5.0]) == (5.0, None)
        stats = pytest.importorskip("scipy.stats")
        for count in (2, 4, 16, 17, 40):
            values = np.random.default_rng(count).normal(size=count)
            expected = stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / math.sqrt(count)
            assert confidence_interval(values.tolist())[1] == pytest.approx(expected, rel=5e-3)

    def test_seeds_of_episodes_and_demonstrations_differ(self):
        assert min(episode_seeds(0, 50)) > 3 * 1000
        assert not set(episode_seeds(0, 50)) & set(episode_seeds(1, 50))


class TestRuns:
    @pytest.fixture(autouse=True)
    def dots(self, monkeypatch):
        self.environments = []

        def make(task, *, camera, horizon):
            self.environments.append(Dots())
            return self.environments[-1]

        monkeypatch.setattr(cloning_run, "make_environment", make)

    def test_full_and_resumed(self, tmp_path):
        source = Source(task="dots/reach", hold=2)
        report = run(small(), Patches(4), source, seeds=2, side_by_side=2, film=2, folder=tmp_path)
        assert report.mean == np.mean([seed["best"] for seed in report.seeds])
        assert report.mean >= 60
        assert all(environment.closed for environment in self.environments)
        assert {path.name for path in tmp_path.iterdir()} == {
            "protocol.json", "features.safetensors", "seed_0.json", "seed_0.safetensors", "seed_0.mp4", "seed_1.json",
            "seed_1.safetensors", "seed_1.mp4",
        }  # fmt: skip
        # The first seed is not trained again: its result is read from its file.
        result = json.loads((tmp_path / "seed_0.json").read_text()) | {"best": -1.0}
        (tmp_path / "seed_0.json").write_text(json.dumps(result))
        (tmp_path / "seed_1.json").unlink()
        again = run(small(), Patches(4), source, seeds=2, side_by_side=2, film=2, folder=tmp_path)
        assert again.seeds[0]["best"] == -1
        assert again.seeds[1] == report.seeds[1]
        with pytest.raises(ValueError, match=r"other settings \(lr\)"):
            run(small(lr=0.1), Patches(4), source, folder=tmp_path)
        with pytest.raises(ValueError, match=r"other settings \(encoder\)"):
            run(small(), Patches(8), source, folder=tmp_path)
        fresh = run(small(epochs=2), Patches(4), source, seeds=1, folder=tmp_path, fresh=True)
        assert not (tmp_path / "seed_1.json").exists()
        assert fresh.half_width is None

    def test_episodes_are_rendered_at_the_size_of_the_demonstrations(self, tmp_path, monkeypatch):
        sizes = set()
        render = Dots.render
        monkeypatch.setattr(Dots, "render", lambda self, size: (sizes.add(size), render(self, size))[1])
        path = write(tmp_path / "demos.safetensors", record(Dots(), 2, 40, hold=1))
        run(small(demos=2, epochs=1), Patches(4), Source(task="dots/reach", data=path), seeds=1)
        assert sizes == {40}
        wide = [replace(demo, images=demo.images[:, :30]) for demo in record(Dots(), 2, 40, hold=1)]
        path = write(tmp_path / "wide.safetensors", wide)
        with pytest.raises(ValueError, match=r"got sides \[30, 40\]"):
            run(small(demos=2), Patches(4), Source(task="dots/reach", data=path))

    def test_invalid_sources(self):
        with pytest.raises(ValueError, match="specify a task or a file"):
            run(small(), Patches(4), Source())
        with pytest.raises(ValueError, match="seeds and side_by_side"):
            run(small(), Patches(4), Source(task="dots/reach"), seeds=0)


def test_an_expert_that_fails():
    with pytest.raises(ValueError, match=r"succeeds in only 0 of 8 episodes of 2 steps"):
        record(Dots(horizon=2), 2, 16)

    class Inexpert(Dots):
        expert = property()

    with pytest.raises(ValueError, match="no scripted expert"):
        record(Inexpert(), 1, 16)
