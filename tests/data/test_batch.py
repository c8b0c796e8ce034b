"""Microbatches: shift by one, documents counted from the row's beginning, filler ignored."""

import numpy as np
import torch

from cupola.data.batch import FILLER, IGNORED, Microbatch

END = 0  # the delimiter


def test_targets_are_the_next_tokens() -> None:
    rows = np.array([[5, 6, 7, 8], [1, 2, 3, 4]], dtype=np.uint16)
    batch = Microbatch.of_rows(rows, END, np.array([1, 0]))
    assert batch.tokens.tolist() == [[5, 6, 7], [1, 2, 3]]
    assert batch.targets.tolist() == [[6, 7, 8], [2, 3, 4]]
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert batch.tokens.is_contiguous()
    assert batch.targets.is_contiguous()
    assert batch.sources.tolist() == [1, 0]


def test_documents_start_at_0_and_a_delimiter_opens_the_next() -> None:
    rows = np.array(
        [
            [5, 6, END, 7, END, 8, 9],  # begins in mid-document
            [5, 6, 7, 8, 9, 1, END],  # the delimiter is only a target
            [END, 5, END, END, 6, 7, 8],  # begins with a delimiter, and an empty document
        ]
    )
    batch = Microbatch.of_rows(rows, END)
    assert batch.documents.dtype == torch.int32
    assert batch.documents.tolist() == [[0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 0, 0], [1, 1, 2, 3, 3, 3]]


def test_without_a_delimiter_a_row_is_one_document() -> None:
    batch = Microbatch.of_rows(torch.tensor([[0, 1, 0, 2]]))
    assert batch.documents.tolist() == [[0, 0, 0]]
    assert batch.sources.tolist() == [0]


def test_filler_has_no_targets() -> None:
    batch = Microbatch.of_rows(np.array([[1, 2, 3], [0, 0, 0]]), END, np.array([0, FILLER]))
    assert batch.targets.tolist() == [[2, 3], [IGNORED, IGNORED]]


def test_the_rows_are_copied() -> None:
    rows = torch.tensor([[1, 2, 3]])
    batch = Microbatch.of_rows(rows, END, np.array([FILLER]))
    assert rows.tolist() == [[1, 2, 3]]
    rows[0, 0] = 9
    assert batch.tokens.tolist() == [[1, 2]]


def test_moving_keeps_everything() -> None:
    batch = Microbatch.of_rows(np.array([[1, 0, 3]]), END, np.array([4])).to("meta")
    assert batch.tokens.device.type == batch.targets.device.type == batch.documents.device.type == "meta"
    assert batch.sources.tolist() == [4]
