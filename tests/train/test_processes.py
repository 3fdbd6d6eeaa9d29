"""Ending a process."""

from fewtokens.train.processes import end_process


def test_a_single_process_continues():
    assert end_process() is None
