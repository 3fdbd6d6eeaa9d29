"""The end of a process."""

from fewtokens.train.processes import end_process


def test_a_process_of_its_own_goes_on():
    assert end_process() is None
