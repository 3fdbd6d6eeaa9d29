"""Processes that read data stay silent when the process that reads their batches goes away."""

import os
import sys
from multiprocessing import current_process, resource_sharer
from multiprocessing.connection import Client

from fewtokens.data.loading import _silence_disconnects


def serve_after_hang_up(monkeypatch, capfd):
    """Shares a descriptor as workers do, hangs up once in the middle, and returns what was printed to stderr."""
    monkeypatch.setattr(resource_sharer, "_resource_sharer", sharer := resource_sharer._ResourceSharer())
    read, write = os.pipe()
    try:
        shared = resource_sharer.DupFd(read)
        address, _ = shared._id
        Client(address, authkey=current_process().authkey).close()
        os.close(shared.detach())  # requests are served in order: the one that hung up is done with
    finally:
        sharer.stop(timeout=5)
        os.close(read)
        os.close(write)
    return capfd.readouterr().err


def test_a_reader_that_hangs_up_is_not_reported(monkeypatch, capfd):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    assert "EOFError" in serve_after_hang_up(monkeypatch, capfd), "the server prints what it does not expect"
    _silence_disconnects(0)
    assert serve_after_hang_up(monkeypatch, capfd) == ""
