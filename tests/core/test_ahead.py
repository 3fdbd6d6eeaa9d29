"""Work in threads ahead of the caller: order, bounds, errors, the end."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from fewtokens.core.ahead import StoppedError, iterate_ahead, map_ahead


def test_results_are_in_the_order_of_the_items():
    def late(item, check):
        time.sleep(0.01 * (item % 3 == 0))
        return item**2

    with map_ahead(late, range(20), 3) as results:
        assert list(results) == [item**2 for item in range(20)]
    with map_ahead(late, [], 3) as results:
        assert list(results) == []


def test_no_more_results_wait_than_there_are_threads():
    started = []
    with map_ahead(lambda item, check: started.append(item), range(100), 2) as results:
        for number, _ in enumerate(results):
            assert len(started) <= number + 3


def test_an_error_is_raised_at_its_item():
    def odd_only(item, check):
        if item == 3:
            raise ValueError("three")
        return item

    seen = []
    with pytest.raises(ValueError, match="three"), map_ahead(odd_only, range(9), 2) as results:
        seen.extend(iter(results.__next__, None))
    assert seen == [0, 1, 2]


def test_the_end_of_the_block_stops_running_functions_and_drops_others():
    entered, stopped, before = threading.Event(), [], threading.active_count()

    def endless(item, check):
        if item == 0:
            return
        entered.set()
        try:
            while True:
                check(item, 10)
                time.sleep(0.001)
        except StoppedError:
            stopped.append(item)
            raise

    with pytest.raises(KeyboardInterrupt), map_ahead(endless, range(50), 1) as results:
        next(results)
        entered.wait()
        raise KeyboardInterrupt
    assert stopped == [1]
    assert threading.active_count() == before


def test_threads_use_the_gpu_of_the_caller(monkeypatch):
    current = threading.local()
    current.device = 3
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: getattr(current, "device", 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: setattr(current, "device", device))
    with map_ahead(lambda item, check: torch.cuda.current_device(), range(4), threads=2) as results:
        assert list(results) == [3, 3, 3, 3]


def test_iterate_ahead_takes_one_item_ahead():
    taken = []

    def items():
        for item in range(6):
            taken.append(item)
            yield item

    with iterate_ahead(items()) as results:
        for item in results:
            assert len(taken) <= item + 2
    assert taken == list(range(6))
