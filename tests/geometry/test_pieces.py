"""Rows in pieces: every row once, in order, in whatever thread, and an error of one is an error of all."""

from __future__ import annotations

import multiprocessing
import os
import threading
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from moe_atlas.geometry.fields import chunking
from moe_atlas.geometry.fields.evaluation import EMPTY, RowGroup


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@torch.inference_mode()
def test_every_row_is_worked_on_once_and_in_order(threads, monkeypatch):
    monkeypatch.setattr(chunking, "CHUNK", 20)
    x_PD = torch.randn(33, 4)
    out_PD = torch.zeros_like(x_PD)

    def work(part):
        out_PD[part] += 2 * x_PD[part]
        return x_PD[part].sum(1)

    sums = chunking.map_chunks(work, *x_PD.shape)
    assert [len(part) for part in sums] == [5, 5, 5, 5, 5, 5, 3]
    assert torch.equal(torch.cat(sums), x_PD.sum(1))
    assert torch.equal(out_PD, 2 * x_PD)
    assert torch.get_num_threads() == threads


def test_a_gpu_gets_large_pieces_from_one_thread(threads, monkeypatch):
    monkeypatch.setattr(chunking, "CHUNK", 4)
    monkeypatch.setattr(chunking, "GPU_CHUNK", 60)
    seen = chunking.map_chunks(lambda part: (part, threading.get_ident()), 33, 4, on=torch.device("meta"))
    assert seen == [
        (slice(begin, end), threading.get_ident()) for begin, end in ((0, 15), (15, 30), (30, 33))
    ]


def test_an_error_in_a_piece_is_raised(threads, monkeypatch):
    monkeypatch.setattr(chunking, "CHUNK", 4)

    def work(part):
        if part.start == 3:
            raise ValueError("third")

    with pytest.raises(ValueError, match="third"):
        chunking.map_chunks(work, 9, 4)


def test_rows_of_a_table_are_kept_by_expert_and_found_by_slot():
    table_TP = torch.tensor([[2, 0, EMPTY], [0, 1, 2], [EMPTY, 2, 1]])
    group = RowGroup(table_TP, slice(1, 3), 4)
    assert group.count == 5
    assert [group.tokens_R[group.slice_of(e)].tolist() for e in range(4)] == [[0], [1, 2], [1, 2], []]
    assert [group.slots_R[group.slice_of(e)].tolist() for e in range(4)] == [[1], [1, 2], [2, 1], []]
    place_TP = group.places(10, 99)
    assert place_TP.tolist() == [[10, 99], [11, 13], [14, 12]]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(chunking, "CHUNK", 4)
    monkeypatch.setattr(chunking, "torch", SimpleNamespace(**{**vars(torch), "get_num_threads": lambda: 3}))
    work = partial(chunking.map_chunks, lambda part: part.start, 9, 4)
    assert work() == list(range(9))
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(20)
    code = child.exitcode
    child.kill()
    assert code == 0
