"""Diffusion and flow: schedules, conversions, closed-form samplers, guidance, seeded noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fewtokens.tokenizers.blocks.flow import (
    PATHS,
    Diffusion,
    ProjectedGuidance,
    RectifiedFlow,
    VariancePreserving,
    guide,
    seeded_noise,
    sigmoid_normal,
)


def posterior(path, z: torch.Tensor, s: torch.Tensor, mean: float, std: float) -> tuple[torch.Tensor, torch.Tensor]:
    """E[x|z] and E[e|z] of normal data, from the joint normal distribution of x, e and z."""
    a, b = path.coefficients(s)
    a, b = a[:, None], b[:, None]
    gain = (z - a * mean) / ((a * std) ** 2 + b**2)
    return mean + a * std**2 * gain, b * gain


class TestSchedules:
    def test_cosine(self):
        signal = VariancePreserving.cosine().signal
        assert float(signal[0]) == pytest.approx(0.9999952, abs=5e-8)
        assert float(signal[4095]) == pytest.approx(0.49384, abs=5e-6)
        assert float(signal[8191]) == pytest.approx(3.6e-11, rel=0.02)

    def test_linear_is_that_of_ddpm(self):
        expected = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
        np.testing.assert_allclose(VariancePreserving.linear().signal.numpy(), expected, rtol=1e-12)

    def test_levels_fall_from_noise(self):
        assert RectifiedFlow().levels(4) == [1.0, 0.75, 0.5, 0.25]
        cosine = VariancePreserving.cosine()
        assert cosine.levels(1) == [8191 / 8192]
        assert cosine.levels(3) == [8191 / 8192, 4095 / 8192, 0.0]
        with pytest.raises(ValueError, match="8192 levels, got 9000"):
            cosine.levels(9000)


class TestTargets:
    @pytest.mark.parametrize("path", PATHS)
    @pytest.mark.parametrize("target", ["v", "x", "eps"])
    def test_a_prediction_means_data_and_noise(self, path, target):
        diffusion = Diffusion.from_names(path, target)
        torch.manual_seed(0)
        x, noise = torch.randn(2, 3, 4, dtype=torch.float64)
        s = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        parts = diffusion.split(diffusion.noised(x, noise, s), diffusion.targets(x, noise, s), s)
        torch.testing.assert_close(parts, (x, noise), rtol=1e-6, atol=1e-6)

    def test_velocity_is_the_derivative_of_the_path(self):
        x, noise = torch.tensor([[0.3]]), torch.tensor([[-1.2]])
        flow = Diffusion(RectifiedFlow(), "v")
        torch.testing.assert_close(flow.targets(x, noise, torch.tensor([0.4])), noise - x)
        cosine = Diffusion(VariancePreserving.cosine(), "v")
        a, b = cosine.path.coefficients(torch.tensor([0.4]))
        torch.testing.assert_close(cosine.targets(x, noise, torch.tensor([0.4])), a * noise - b * x)

    def test_levels_of_frames(self):
        x, noise = torch.randn(2, 2, 3, 4, 5)
        s = torch.rand(2, 3)
        z = Diffusion(RectifiedFlow()).noised(x, noise, s)
        torch.testing.assert_close(z[1, 2], (1 - s[1, 2]) * x[1, 2] + s[1, 2] * noise[1, 2])

    @pytest.mark.parametrize("names", [("straight", "v"), ("flow", "noise")])
    def test_unknown_names(self, names):
        with pytest.raises(ValueError, match="must be one of"):
            Diffusion.from_names(*names)


class TestSampler:
    @pytest.mark.parametrize("target", ["v", "x"])
    @pytest.mark.parametrize(
        ("steps", "std"),
        [(1, 0.0), (2, 0.2), (4, 0.3405), (8, 0.4148), (16, 0.4557), (32, 0.4774), (64, 0.4886), (256, 0.4971)],
    )
    def test_std_of_normal_data_after_euler_steps(self, target, steps, std):
        # With the exact field of N(2, 0.5^2) a sample is linear in the noise. Its mean is exact.
        diffusion = Diffusion(RectifiedFlow(), target)

        def field(z, s):
            x, noise = posterior(diffusion.path, z, s.double(), 2.0, 0.5)
            return {"v": noise - x, "x": x}[target]

        low, high = diffusion.sample(field, torch.tensor([[-1.0], [1.0]], dtype=torch.float64), steps)
        assert float(high - low) / 2 == pytest.approx(std, abs=5e-5)
        assert float(high + low) / 2 == pytest.approx(2.0, abs=1e-5)

    def test_euler(self):
        torch.manual_seed(0)
        matrix, z = torch.randn(4, 4), torch.randn(3, 4)

        def field(z, s):
            return z @ matrix * (1 + s[:, None])

        expected = z
        for step in range(5, 0, -1):
            s = step / 5
            expected = expected - 0.2 * (expected @ matrix * (1 + s))
        torch.testing.assert_close(Diffusion(RectifiedFlow(), "v").sample(field, z, 5), expected)

    def test_a_single_point_is_exact_in_one_step(self):
        point = torch.tensor([0.3, -0.7])
        noise = torch.randn(5, 2)
        sample = Diffusion(RectifiedFlow(), "v").sample(lambda z, s: (z - point) / s[:, None], noise, 1)
        torch.testing.assert_close(sample, point.expand(5, 2))

    @pytest.mark.parametrize("path", ["cosine", "linear"])
    def test_one_ddim_step_returns_the_prediction(self, path):
        prediction = torch.randn(3, 4)
        diffusion = Diffusion.from_names(path, "x")
        assert torch.equal(diffusion.sample(lambda z, s: prediction, torch.randn(3, 4), 1), prediction)

    @pytest.mark.parametrize("target", ["v", "x", "eps"])
    def test_ddim_reaches_the_distribution(self, target):
        # As on the flow, with many steps the standard deviation is that of the data.
        diffusion = Diffusion(VariancePreserving.cosine(1000), target)

        def field(z, s):
            x, noise = posterior(diffusion.path, z, s.double(), 2.0, 0.5)
            a, b = (share[:, None] for share in diffusion.path.coefficients(s.double()))
            return {"v": a * noise - b * x, "x": x, "eps": noise}[target]

        low, high = diffusion.sample(field, torch.tensor([[-1.0], [1.0]], dtype=torch.float64), 1000)
        assert float(high - low) / 2 == pytest.approx(0.5, abs=5e-3)
        assert float(high + low) / 2 == pytest.approx(2.0, abs=5e-3)

    def test_frames_at_different_levels_are_sampled_independently(self):
        # A queue: frame i starts i steps late. If frames do not interact, each equals its own sample.
        diffusion, steps, frames = Diffusion(RectifiedFlow(), "x"), 4, 6
        levels = [*diffusion.path.levels(steps), None]
        torch.manual_seed(0)
        noise = torch.randn(1, frames, 3, dtype=torch.float64)

        def network(z, s):
            return torch.tanh(z) * s[..., None]

        z = noise.clone()
        for tick in range(frames + steps - 1):
            for frame in range(max(0, tick - steps + 1), min(frames, tick + 1)):
                level, lower = levels[tick - frame], levels[tick - frame + 1]
                s = torch.full((1, 1), level, dtype=torch.float64)
                below = None if lower is None else torch.full_like(s, lower)
                part = z[:, frame : frame + 1]
                z[:, frame : frame + 1] = diffusion.step(part, network(part, s), s, below)
        singly = diffusion.sample(lambda z, s: network(z, s.double()), noise[0], steps)
        torch.testing.assert_close(z[0], singly, rtol=0, atol=1e-12)

    def test_no_steps(self):
        with pytest.raises(ValueError, match="steps must be at least 1"):
            Diffusion(RectifiedFlow()).sample(lambda z, s: z, torch.zeros(1, 1), 0)


class TestLevels:
    @pytest.mark.parametrize("stratified", [False, True])
    def test_sigmoid_normal(self, stratified):
        torch.manual_seed(0)
        s = sigmoid_normal(40_000, stratified=stratified)
        share = float(((s > 0.25) & (s < 0.75)).float().mean())
        assert math.erf(math.log(3) / math.sqrt(2)) == pytest.approx(0.7281, abs=5e-5)
        assert share == pytest.approx(0.7281, abs=1e-4 if stratified else 0.01)

    def test_each_quantile_once(self):
        s = sigmoid_normal(8, 8, stratified=True)
        bins = (torch.special.ndtr(torch.logit(s.double())) * 64).floor().flatten().sort().values
        assert bins.tolist() == list(range(64))

    def test_discrete_levels(self):
        s = Diffusion.from_names("cosine", "x").random_levels((2, 5000))
        index = s * 8192
        assert torch.equal(index, index.round())
        assert 0 <= int(index.min()) < 20 and 8171 < int(index.max()) < 8192

    def test_levels_of_predicted_data_reach_pure_noise(self):
        """A sampler with one step evaluates level 1 alone, near which half of a percent of the others are."""
        torch.manual_seed(0)
        data, velocity = (Diffusion.from_names("flow", target).random_levels((20_000,)) for target in ("x", "v"))
        assert float((data > 0.95).float().mean()) == pytest.approx(0.05, abs=0.005)
        assert float((velocity > 0.95).float().mean()) < 0.005
        assert bool(((data > 0) & (data <= 1)).all())

    def test_the_loss_of_the_true_target_is_zero(self):
        x, noise = torch.randn(2, 3, 4)
        s = torch.rand(3)
        diffusion = Diffusion(RectifiedFlow(), "v")
        assert float(diffusion.loss(lambda z, s: noise - x, x, s, noise)) == 0
        error = diffusion.loss(lambda z, s: torch.zeros_like(z), x, s, noise)
        torch.testing.assert_close(error, (noise - x).square().mean())


class TestGuidance:
    def test_neutral_scale(self):
        c, u = torch.randn(2, 3, 4)
        assert torch.equal(guide(c, u, 1.0), c)
        assert torch.equal(ProjectedGuidance(1.0)(c, u), c)
        torch.testing.assert_close(guide(c, u, 3.0), c + 2 * (c - u))  # as MAGVIT counts, with g = 2

    def test_equal_branches(self):
        c = torch.randn(3, 4)
        assert torch.equal(guide(c, c, 4.0), c)
        assert torch.equal(ProjectedGuidance(4.0)(c, c), c)

    def test_a_parallel_difference_does_not_act(self):
        c = torch.randn(3, 4)
        torch.testing.assert_close(ProjectedGuidance(4.0)(c, 0.5 * c), c)

    def test_momentum_and_limit(self):
        torch.manual_seed(0)
        apg = ProjectedGuidance(4.0)
        running = np.zeros(8)
        for _ in range(3):
            c, u = 3 * torch.randn(2, 1, 2, 4, dtype=torch.float64)
            running = (c - u).numpy().ravel() - 0.5 * running
            limited = running * min(1, 2.5 / np.linalg.norm(running))
            unit = c.numpy().ravel() / np.linalg.norm(c)
            expected = c.numpy().ravel() + 3 * (limited - limited @ unit * unit)
            guided = apg(c, u)
            np.testing.assert_allclose(guided.numpy().ravel(), expected, rtol=1e-12)
            assert float((guided - c).norm()) <= 2.5 * 3 + 1e-9


class TestNoise:
    def test_standard_normal(self):
        noise = seeded_noise((100, 1000), seed=1)
        assert float(noise.mean()) == pytest.approx(0, abs=0.01)
        assert float(noise.std()) == pytest.approx(1, abs=0.01)
        assert float((noise.abs() < 1).float().mean()) == pytest.approx(0.6827, abs=0.005)
        rows = np.corrcoef(noise[:2].numpy())[0, 1]
        assert abs(rows) < 0.1

    def test_depends_on_seed_and_position_only(self):
        noise = seeded_noise((6, 3), seed=2)
        assert torch.equal(noise[:2], seeded_noise((2, 3), seed=2))
        assert torch.equal(noise[4:], seeded_noise((2, 3), seed=2, start=12))
        assert not torch.equal(noise, seeded_noise((6, 3), seed=3))
