"""Host memory: keeps freed CPU buffers in the process from step to step."""

import ctypes
import sys
from functools import cache

# glibc's names for what mallopt can set
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


@cache
def keep_freed_memory() -> bool:
    """Tells glibc's malloc to keep freed memory for the next step, as torch does on a GPU.

    By default large buffers go back to the system as soon as they are freed, and the system
    clears them page by page when they are wanted again. A training step frees and wants hundreds,
    and spends up to half of its time on that. The price is that the process stays as large as
    it once was, and that fragmentation makes that larger. Called by `Unet3D` when it first runs on
    a CPU, and by a `Trainer` that reads its clips itself; a second call does nothing.

    Returns:
        Whether this process has such a malloc: true on Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # never trim; never map a buffer on its own; grow by 64 MiB at a time
    settings = ((_M_TRIM_THRESHOLD, -1), (_M_MMAP_MAX, 0), (_M_TOP_PAD, 64 * 2**20))
    return all(mallopt(name, value) == 1 for name, value in settings)
