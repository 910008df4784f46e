"""The same numbers again on a GPU: torch's deterministic kernels, where ``compute.deterministic`` asks for them.

On a CPU torch is deterministic for the same machine and number of threads. On a GPU some kernels add in whatever order
their threads arrive (atomic additions), and cuBLAS may share its workspace among streams; what is set here forbids both
(torch's notes on reproducibility, cuBLAS's on results reproducibility). Another batch size, GPU or version may still
take other kernels, which round otherwise.
"""

import os

WORKSPACE = ":4096:8"  # eight buffers of 4 MiB: one of the two settings that cuBLAS and torch call deterministic


def settle(deterministic: bool) -> None:
    """Before anything is computed on a GPU; a later plan of the same process may want it otherwise.

    An operation that has no deterministic kernel raises torch's RuntimeError then, which names it.
    """
    import torch

    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", WORKSPACE)
    torch.use_deterministic_algorithms(deterministic)
