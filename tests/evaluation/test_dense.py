"""PCK and mean IoU on small examples, and complete data sets in their layouts from frames to scores."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from fewtokens.core.pipeline import Pipeline
from fewtokens.data.dense_sets import davis_sequences, jhmdb_clips, vip_videos
from fewtokens.encoders import Patches, load_encoder
from fewtokens.evaluation import dense
from fewtokens.evaluation.label_propagation import PROTOCOLS
from fewtokens.evaluation.mean_iou import confusion, mean_iou
from fewtokens.evaluation.pck import count_correct, joint_maps, joints_from_maps, pck, read_joints
from tests.helpers.dense import make_davis, make_jhmdb, make_vip, save_mask


class TestJoints:
    def test_a_stamp(self):
        """At pixel (25, 10) of 40x20, on a grid of 8 columns and 4 rows: column 5, row 2."""
        maps = joint_maps(torch.tensor([[25.0, 10.0]]), (20, 40), (4, 8))
        joint, background = maps[..., 0], maps[..., 1]
        assert joint[2, 5] == 1
        assert joint[2, 4] == joint[1, 5] == joint[2, 6] == pytest.approx(math.exp(-2))
        assert joint[2, 3] == pytest.approx(math.exp(-8))
        assert joint[0, 3] == pytest.approx(math.exp(-16))
        # Four cells wide: two before the peak, one after it.
        assert int((joint > 0).sum()) == 16
        assert not joint[:, 7].any() and not joint[:, 2].any()
        assert torch.equal(background, (joint == 0).float())

    def test_stamps_are_cropped_to_the_grid(self):
        maps = joint_maps(torch.tensor([[0.0, 0.0], [500.0, 3.0]]), (20, 40), (4, 8))
        # A corner of -1.5 is rounded to -1: cells 0 and 1 have the second and the third value of the stamp.
        assert int((maps[..., 0] > 0).sum()) == 4 and maps[1, 1, 0] == 1
        assert maps[0, 1, 0] == maps[1, 0, 0] == pytest.approx(math.exp(-2))
        assert not maps[..., 1].any()

    @pytest.mark.parametrize(
        ("place", "peak", "cells"),
        [(0.2, 1, (0, 1)), (0.6, 2, (0, 1, 2)), (1.2, 2, (0, 1, 2)), (1.6, 2, (0, 1, 2, 3)), (5.2, 5, (3, 4, 5, 6))],
    )
    def test_stamps_at_the_border_as_in_videowalk(self, place, peak, cells):
        """The numbers of its `draw_labelmap_np`, whose corner is int(place - 1.5)."""
        maps = joint_maps(torch.tensor([[place * 5, 50.0]]), (100, 40), (20, 8))
        row = maps[10, :, 0]
        assert int(row.argmax()) == peak and row[peak] == 1
        assert row.nonzero().flatten().tolist() == list(cells)

    def test_joints_from_maps(self):
        soft = torch.zeros(2, 4, 8, 3)
        soft[0, 2, 5, 0], soft[0, 2, 6, 0] = 3, 1
        soft[1, 1, 1, 1] = 0.2
        joints = joints_from_maps(soft, (20, 40))
        # Columns 5 and 6 weighted 3 to 1, 5 pixels per column, without an offset to the center of the cell.
        assert joints[0].tolist() == [[5.25 * 5, 10.0], [-1, -1]]
        assert joints[1].tolist() == [[-1, -1], [5.0, 5.0]]
        spread = torch.zeros(1, 1, 8, 2)
        spread[0, 0, :, 0] = torch.arange(1, 9)
        # The largest five of eight: columns 3 to 7 with weights 4 to 8.
        expected = sum(c * (c + 1) for c in range(3, 8)) / 30
        assert joints_from_maps(spread, (1, 8))[0, 0, 0] == pytest.approx(expected)

    def test_pck_by_hand(self):
        """Two joints 50 px apart: the person is 30 px large, so 3 px count at 0.1 and 6 px at 0.2."""
        truth = torch.tensor([[[10.0, 10.0], [40.0, 50.0]]]).repeat(5, 1, 1)
        predicted = truth.clone()
        predicted[0] += 100  # the first frame does not count
        predicted[1, 0, 0] += 3
        predicted[2, 0, 0] += 5
        predicted[3, 0, 0] += 7
        predicted[4, 1] = -1  # not predicted, excluded
        counts = count_correct(predicted, truth, (100, 100))
        assert counts == {"counted": [4, 3], "unseen": [0, 1], "found_0_1": [2, 3], "found_0_2": [3, 3]}
        assert pck([counts]) == {"pck_0_1": 75.0, "pck_0_2": 87.5}
        # The mean of the percentages of the joints, not the fraction of all: joint 0 now has 2 of 4 plus 4 of 4.
        more = {"counted": [4, 0], "unseen": [0, 0], "found_0_1": [4, 0], "found_0_2": [4, 0]}
        assert pck([counts, more])["pck_0_1"] == pytest.approx((100 * 6 / 8 + 100) / 2)
        # A joint outside the frame neither counts nor enlarges the box.
        truth[:, 1, 0] = 120
        outside = count_correct(predicted, truth, (100, 100))
        assert outside["counted"] == [0, 0]
        assert math.isnan(pck([outside])["pck_0_1"])

    def test_reading(self, tmp_path):
        scipy_io = pytest.importorskip("scipy.io")
        array = np.arange(2 * 15 * 3, dtype=float).reshape(2, 15, 3)
        path = tmp_path / "a.mat"
        scipy_io.savemat(path, {"pos_img": array})
        joints = read_joints(path)
        assert joints.shape == (3, 15, 2)
        assert joints[2, 4].tolist() == (array[:, 4, 2] - 1).tolist()
        scipy_io.savemat(path, {"pos_img": array[:, :, 0]})
        assert read_joints(path).shape == (1, 15, 2)
        content = path.read_bytes()
        for data, message in ((content[:60], "cut short"), (content[:-40], "cut short"), (b"", "cut short")):
            path.write_bytes(data)
            with pytest.raises(ValueError, match=message):
                read_joints(path)
        scipy_io.savemat(path, {"pos_world": array})
        with pytest.raises(ValueError, match="pos_img must be"):
            read_joints(path)
        scipy_io.savemat(path, {"pos_img": array[:, :3]})
        with pytest.raises(ValueError, match=r"\[2, 3, 3\]"):
            read_joints(path)
        with pytest.raises(ValueError, match="no such file"):
            read_joints(tmp_path / "b.mat")


def test_mean_iou_by_hand():
    truth = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 255]])
    predicted = torch.tensor([[0, 1, 1, 1], [2, 2, 0, 2]])
    matrix = confusion(predicted, truth)
    assert matrix.sum() == 7
    assert matrix[0, :2].tolist() == [1, 1] and matrix[2, 0] == 1
    # Background 1 of {2 true + 2 predicted - 1}, class 1: 2 of 3, class 2: 2 of 3; the other 17 classes do not occur.
    assert mean_iou(matrix) == pytest.approx(100 * (1 / 3 + 2 / 3 + 2 / 3) / 3)
    # Pooled over frames and videos, not a mean of means.
    both = matrix + confusion(truth[:1], truth[:1])
    assert mean_iou(both) == pytest.approx(100 * (3 / 5 + 4 / 5 + 2 / 3) / 3)
    # A class that is only predicted counts as 0.
    assert mean_iou(confusion(torch.tensor([3, 1]), torch.tensor([1, 1]))) == pytest.approx(25)
    with pytest.raises(ValueError, match="classes must be below 20, got 20"):
        confusion(torch.tensor([20]), torch.tensor([1]))
    with pytest.raises(ValueError, match="predicted masks have shape"):
        confusion(torch.zeros(2), torch.zeros(3))


@pytest.fixture(scope="module")
def encode():
    return dense.encode_with(Pipeline("", load_encoder("patches", patch_size=8)))


class TestSets:
    """Squares that move by whole cells: propagation with raw pixels must follow them."""

    native = dataclasses.replace(PROTOCOLS["davis"]["A"], size="native", top=1)

    def test_davis(self, tmp_path, encode):
        sequences, _ = davis_sequences(make_davis(tmp_path / "D"))
        steps = []
        results = [
            dense.davis(files, encode, self.native, dense.SIZES, progress=lambda *n: steps.append(n))
            for files in sequences
        ]
        assert steps[-1] == (5, 5)
        one, two = (result.row for result in results)
        assert (one["objects"], two["objects"], one["grid"], one["tokens"]) == (2, 1, [8, 12], 480)
        for row in (one, two):
            assert [row["scores"][size]["tolerance"] for size in dense.SIZES] == [1, 9]
            # Resizing to the grid and back only rounds the corners of the squares.
            assert all(numbers["j"] > 0.9 for size in dense.SIZES for numbers in row["scores"][size]["objects"])
        assert results[0].masks.unique().tolist() == [0, 1, 2]
        lines, tables = dense.davis_summary([one, two])
        assert [line["sequence"] for line in lines] == ["one", "two"]
        scores = [numbers["j"] for row in (one, two) for numbers in row["scores"]["native"]["objects"]]
        assert len(scores) == 3 and tables["native"]["j_mean"] == pytest.approx(100 * sum(scores) / 3)

    def test_objects_that_appear_later_are_ignored(self, tmp_path, encode):
        root = make_davis(tmp_path / "D")
        late = np.zeros((64, 96), dtype=np.uint8)
        late[40:60, 40:60] = 7
        save_mask(root / "Annotations" / "480p" / "two" / "00003.png", late)
        files = davis_sequences(root)[0][1]
        assert dense.davis(files, encode, self.native).row["objects"] == 1
        save_mask(root / "Annotations" / "480p" / "two" / "00000.png", 0 * late)
        with pytest.raises(ValueError, match="the first mask contains no object"):
            dense.davis(files, encode, self.native)

    def test_too_short_and_not_finite(self, tmp_path, encode):
        files = davis_sequences(make_davis(tmp_path / "D"))[0][0]
        short = dataclasses.replace(files, images=files.images[:2], labels=files.labels[:2])
        with pytest.raises(ValueError, match="one: J and F require at least 3 frames"):
            dense.davis(short, encode, self.native)
        with pytest.raises(ValueError, match="no images"):
            dense.davis(dataclasses.replace(files, images=[]), encode, self.native)

        class Overflowing(Patches):
            def __call__(self, *args, **kwargs):
                tokens, cues = super().__call__(*args, **kwargs)
                return tokens.replace(features=tokens.features * torch.inf), cues

        with pytest.raises(ValueError, match="not all finite"):
            dense.davis(files, dense.encode_with(Pipeline("", Overflowing())), self.native)

    def test_masks_of_another_size(self, tmp_path, encode):
        root = make_davis(tmp_path / "D")
        for n in range(5):
            save_mask(root / "Annotations" / "480p" / "one" / f"{n:05}.png", np.ones((32, 48), dtype=np.uint8))
        with pytest.raises(ValueError, match="masks are 48x32, but frames are 96x64"):
            dense.davis(davis_sequences(root)[0][0], encode, self.native)

    def test_jhmdb(self, tmp_path, encode):
        pytest.importorskip("scipy")
        root = make_jhmdb(tmp_path / "jhmdb")
        protocol = dataclasses.replace(PROTOCOLS["jhmdb"]["A"], size="128x160", top=1)
        files = jhmdb_clips(root)[0][0]
        result = dense.jhmdb(files, encode, protocol)
        assert result.joints.shape == (4, 15, 2)
        assert result.row["counted"] == [3] * 15 and result.row["grid"] == [16, 20]
        lines, scores = dense.jhmdb_summary([result.row])
        assert scores == {"pck_0_1": 100, "pck_0_2": 100, "joints_counted": 45, "joints_unseen": 0}
        torch.testing.assert_close(result.joints, read_joints(files.labels[0]), atol=1e-3, rtol=0)
        assert lines[0]["pck_0_1"] == scores["pck_0_1"]
        files.images.pop()
        with pytest.raises(ValueError, match="4 frames, but there are 3 images"):
            dense.jhmdb(files, encode, protocol)

    def test_vip(self, tmp_path, encode):
        videos, _ = vip_videos(make_vip(tmp_path / "VIP"))
        protocol = dataclasses.replace(PROTOCOLS["vip"]["A"], size="native", top=1)
        results = [dense.vip(files, encode, protocol) for files in videos]
        assert results[0].masks.unique().tolist() == [0, 5, 13]
        lines, scores = dense.vip_summary([result.row for result in results])
        assert scores["mean_iou"] > 95 and lines[0]["mean_iou"] == pytest.approx(scores["mean_iou"])
        # 16 pixels belong to no class.
        assert sum(map(sum, results[0].row["confusion"])) == 4 * 64 * 96 - 16

    def test_half_precision_and_few_tokens(self, tmp_path):
        files = davis_sequences(make_davis(tmp_path / "D"))[0][0]
        half = dense.encode_with(Pipeline("", load_encoder("patches", patch_size=8, dtype="float16")))
        row = dense.davis(files, half, self.native).row
        assert row["scores"]["native"]["objects"][0]["j"] > 0.9
        few = dense.encode_with(Pipeline("tome(keep=0.5)", load_encoder("patches", patch_size=8)))
        assert dense.davis(files, few, self.native).row["tokens"] == 240
        pairs = dense.encode_with(Pipeline("", load_encoder("patches", patch_size=8, tubelet_size=2)))
        with pytest.raises(ValueError, match="features for each frame"):
            dense.davis(files, pairs, self.native)
