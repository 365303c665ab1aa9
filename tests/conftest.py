"""One thread: tensors this small gain nothing from more, and lose much where cores are shared."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

import torch

torch.set_num_threads(1)
