"""The order of copies, products and waits when experts move to a GPU, on streams that only record the calls."""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from moe_atlas.auditing.layer import device_transfer
from moe_atlas.auditing.layer.expert_findings import ExpertFindings
from moe_atlas.auditing.layer.expert_stream import LayerExperts, StoredExpert


class Streams:
    """Two streams, the moments recorded on them, and a log."""

    def __init__(self):
        self.log, self.current = [], "products"

    def recorded(self, stream):
        moment = f"{stream} {sum(line.startswith(f'record {stream}') for line in self.log)}"
        self.log.append(f"record {moment}")
        return SimpleNamespace(name=moment, synchronize=lambda: self.log.append(f"synchronise {moment}"))

    def named(self, name):
        return SimpleNamespace(
            record_event=lambda: self.recorded(name),
            wait_event=lambda event: self.log.append(f"{name} wait for {event.name}"),
            name=name,
        )

    def Stream(self, device):  # noqa: N802
        return self.named("copies")

    def current_stream(self, device):
        return self.named(self.current)

    @contextmanager
    def stream(self, stream):
        self.current = stream.name
        yield
        self.current = "products"


@pytest.fixture
def streams(monkeypatch):
    found = Streams()
    monkeypatch.setattr(torch, "get_device_module", lambda device: found)
    device_transfer._copy_stream.cache_clear()
    yield found
    device_transfer._copy_stream.cache_clear()


def test_products_wait_for_a_copy_that_was_begun_beside_them(streams):
    across = device_transfer.transfer_to(torch.device("cuda"))
    arrive = across.start(lambda: streams.log.append(f"copy on {streams.current}") or "weights")
    assert streams.log == ["copy on copies", "record copies 0"]
    assert arrive() == "weights"
    assert streams.log[2:] == ["products wait for copies 0"]


def test_memory_is_released_once_products_are_done_and_the_processor_runs_one_expert_ahead(streams):
    across = device_transfer.transfer_to(torch.device("cuda"))
    held = [torch.zeros(1) for _ in range(3)]
    alive = [weakref.ref(tensor) for tensor in held]
    for number in range(3):
        across.release_after(held.pop(0), lambda number=number: streams.log.append(f"release {number}"))
    assert streams.log == [
        "record products 0",
        "record products 1", "synchronise products 0", "release 0",
        "record products 2", "synchronise products 1", "release 1",
    ]  # fmt: skip
    assert [tensor() is None for tensor in alive] == [True, True, False]
    across.wait()
    assert streams.log[7:] == ["synchronise products 2", "release 2"]
    assert alive[2]() is None


def test_all_layers_share_one_stream_of_copies(streams):
    assert (
        device_transfer.ToGpu(torch.device("cuda"))._copies
        is device_transfer.ToGpu(torch.device("cuda"))._copies
    )


def test_on_the_processor_nothing_is_begun_before_it_is_asked_for_and_nothing_held_behind():
    here, log = device_transfer.transfer_to(torch.device("cpu")), []
    arrive = here.start(lambda: log.append("cast") or "weights")
    assert log == []
    assert arrive() == "weights"
    here.release_after(None, lambda: log.append("release"))
    assert log == ["cast", "release"]
    assert not here.page_locked


@pytest.mark.parametrize("identical", [True, False])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)])
def test_an_identical_expert_crosses_once_for_both_unless_they_multiply_in_other_dtypes(identical, dtypes):
    def side(dtype):
        return SimpleNamespace(replay=SimpleNamespace(dtype=dtype), multiplied=lambda stored: {"cast": dtype})

    sides = [side(dtype) for dtype in dtypes]
    source = SimpleNamespace(sides=sides)
    read = StoredExpert([{}, {}], identical, None, ExpertFindings())
    expert = LayerExperts._place(SimpleNamespace(source=source), 0, read)
    assert [weights["cast"] for weights in expert.weights] == list(dtypes)
    assert (expert.weights[0] is expert.weights[1]) == (identical and dtypes[0] == dtypes[1])
    assert (expert.by_index, expert.requantised) == (None, None)
