"""`python -m video_diffusion_pytorch` is the `video-diffusion` command."""

import sys

from video_diffusion_pytorch.cli import main

if __name__ == "__main__":
    sys.exit(main())
