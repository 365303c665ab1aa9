"""One thread: tensors this small gain nothing from more, and lose much where cores are shared."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

import torch

torch.set_num_threads(1)

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # a shell's background job ignores Ctrl+C, which tests send
    signal.signal(signal.SIGINT, signal.default_int_handler)
