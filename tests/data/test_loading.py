"""Data workers stay silent when the main process disconnects."""

import os
import sys
from multiprocessing import current_process, resource_sharer
from multiprocessing.connection import Client

from fewtokens.data.loading import _silence_disconnects


def serve_after_disconnect(monkeypatch, capfd):
    """Shares a descriptor as workers do, disconnects once in the middle, and returns the output on stderr."""
    monkeypatch.setattr(resource_sharer, "_resource_sharer", sharer := resource_sharer._ResourceSharer())
    read, write = os.pipe()
    try:
        shared = resource_sharer.DupFd(read)
        address, _ = shared._id
        Client(address, authkey=current_process().authkey).close()
        os.close(shared.detach())  # requests are served in order, so the interrupted one is finished
    finally:
        sharer.stop(timeout=5)
        os.close(read)
        os.close(write)
    return capfd.readouterr().err


def test_disconnects_are_not_reported(monkeypatch, capfd):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    assert "EOFError" in serve_after_disconnect(monkeypatch, capfd), "without the hook, the server prints the error"
    _silence_disconnects(0)
    assert serve_after_disconnect(monkeypatch, capfd) == ""
