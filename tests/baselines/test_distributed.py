"""Scores split over two gloo processes equal those of one."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from baselines import Sample, get_method
from baselines.distributed import over_ranks
from eval.errors import KeelBenchError

METHODS = {
    "bi_anchoring": {"anchor_count": 2},
    "gradsafe": {"gap": "top_fraction"},
    "representation_matching": {"anchor_count": 3},
}
SAMPLES = [Sample.of(f"Name {n} colours.", "Red, green, blue."[: 3 + n]) for n in range(5)]


def score_all(tokenizer):
    from tests.helpers import tiny_model

    model = tiny_model("llama")
    return {name: get_method(name)(**options).score(model, tokenizer, SAMPLES) for name, options in METHODS.items()}


def worker(rank: int, port: int, tokenizer_folder: str, out: str) -> None:
    from transformers import AutoTokenizer

    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found = score_all(AutoTokenizer.from_pretrained(tokenizer_folder))
    np.savez(f"{out}/{rank}.npz", **{name: scores.score for name, scores in found.items()})

    def fail_on_one(indices):
        if 1 in indices:
            raise KeelBenchError("sample 1 is odd")
        return torch.zeros(len(indices), 1)

    with pytest.raises(KeelBenchError, match="rank 1: sample 1 is odd"):
        over_ranks(4, fail_on_one)
    assert over_ranks(1, lambda indices: torch.ones(len(indices), 1)).tolist() == [[1.0]]  # rank 1 has nothing to do
    dist.destroy_process_group()
    # Python's own way out aborts where gloo's thread still lets go of the last exchange's tensors (torch 2.13: 8 of 25
    # runs, with a barrier before it 5 of 25); everything this worker had to say is on disk.
    os._exit(0)


def test_two_ranks_score_like_one(tokenizer, smollm2_folder, tmp_path: Path):
    alone = score_all(tokenizer)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(worker, args=(port, str(smollm2_folder), str(tmp_path)), nprocs=2)
    for rank in range(2):
        with np.load(tmp_path / f"{rank}.npz") as found:
            for name, scores in alone.items():
                assert np.abs(found[name] - scores.score).max() < 1e-5, name


def test_one_process_does_everything():
    assert over_ranks(3, lambda indices: torch.tensor([[float(i)] for i in indices])).tolist() == [[0.0], [1.0], [2.0]]
