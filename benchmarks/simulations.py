"""Two simulations on periodic grids, as data for forecasts: 2-D turbulence and Gray-Scott.

    python benchmarks/simulations.py turbulence vorticity --count 300
    python benchmarks/simulations.py gray_scott patterns --count 300

Turbulence: the vorticity of an incompressible flow that a wave along the height drives (Kolmogorov
flow), with viscosity and drag, by a pseudo-spectral method. Gray-Scott: two substances that diffuse
and react (Pearson 1993), by finite differences in time and a spectral Laplacian. Trajectories start
from random fields, and are recorded after they have forgotten them. A trajectory depends on the
seed and its number only; files that exist are kept.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from video_diffusion_pytorch.files import replacing

BATCH = 50  # trajectories that are computed together


class Turbulence(NamedTuple):
    """A driven 2-D flow in the square [0, 2 pi)^2: d_t w + u . grad w = nu lap w - mu w + forcing.

    Attributes:
        size: Grid points along height and width.
        viscosity: nu.
        drag: mu, which removes energy from large scales.
        forcing: Amplitude of the forcing `-k cos(k y)` of the vorticity.
        wavenumber: k.
        step: Time step of the integration.
        spin_up: Time before the first frame.
        interval: Time between frames.
    """

    size: int = 32
    viscosity: float = 0.015
    drag: float = 0.1
    forcing: float = 1.0
    wavenumber: int = 4
    step: float = 0.01
    spin_up: float = 40.0
    interval: float = 0.2

    def start(self, seed: int, numbers: Sequence[int]) -> Tensor:
        """Random vorticities, `(b, 1, h, w)`, of wavenumbers about 4."""
        noise = torch.stack([_noise(seed, n, (self.size, self.size)) for n in numbers])
        k = torch.hypot(*_wavenumbers(self.size))
        smooth = torch.fft.fft2(noise) * torch.exp(-((k - 4) ** 2) / 4) * (k > 0)
        field = torch.fft.ifft2(smooth).real
        return (field * 4 / field.std(dim=(1, 2), keepdim=True))[:, None]

    def advance(self, state: Tensor, time: float) -> Tensor:
        """Integrates vorticities `(b, 1, h, w)` over a time.

        The linear terms are exact, by an integrating factor, and the others of fourth order
        (Runge-Kutta). The products are free of aliasing by the 2/3 rule (Orszag 1971).
        """
        kx, ky = _wavenumbers(self.size)
        squared = kx**2 + ky**2
        inverse = torch.where(squared > 0, 1 / squared.clamp(min=1), 0.0)
        kept = (kx.abs() < self.size / 3) & (ky.abs() < self.size / 3)
        y = torch.arange(self.size, dtype=torch.float64) * 2 * math.pi / self.size
        wave = -self.forcing * self.wavenumber * torch.cos(self.wavenumber * y)
        driven = torch.fft.fft2(wave[:, None].expand(self.size, self.size))

        def rate(w: Tensor) -> Tensor:
            """The terms that are not linear in the vorticity's spectrum."""
            stream = w * inverse
            u, v = torch.fft.ifft2(1j * ky * stream).real, torch.fft.ifft2(-1j * kx * stream).real
            dx, dy = torch.fft.ifft2(1j * kx * w).real, torch.fft.ifft2(1j * ky * w).real
            return driven - torch.fft.fft2(u * dx + v * dy) * kept

        steps = max(1, round(time / self.step))
        dt = time / steps
        half = torch.exp(-(self.viscosity * squared + self.drag) * dt / 2)
        w = torch.fft.fft2(state[:, 0]) * kept
        for _ in range(steps):
            a = rate(w)
            b = rate(half * (w + dt / 2 * a))
            c = rate(half * w + dt / 2 * b)
            d = rate(half**2 * w + dt * half * c)
            w = half**2 * w + dt / 6 * (half**2 * a + 2 * half * (b + c) + d)
        return torch.fft.ifft2(w).real[:, None]


class GrayScott(NamedTuple):
    """Two substances: d_t u = D_u lap u - u v^2 + F (1 - u), d_t v = D_v lap v + u v^2 - (F + k) v.

    Attributes:
        size: Grid points along height and width, a unit apart.
        diffusion: D_u and D_v.
        feed: F.
        kill: k.
        step: Time step of the integration.
        spin_up: Time before the first frame.
        interval: Time between frames.
    """

    size: int = 32
    diffusion: tuple[float, float] = (0.16, 0.08)
    feed: float = 0.028
    kill: float = 0.062
    step: float = 1.0
    spin_up: float = 500.0
    interval: float = 60.0

    def start(self, seed: int, numbers: Sequence[int]) -> Tensor:
        """Substance u everywhere, and some v in a few squares, `(b, 2, h, w)`."""
        states = []
        for number in numbers:
            rng = np.random.default_rng((seed, number))
            u, v = np.ones((self.size,) * 2), np.zeros((self.size,) * 2)
            for top, left in rng.integers(0, self.size, (10, 2)):
                rows = np.arange(top, top + self.size // 8) % self.size
                columns = np.arange(left, left + self.size // 8) % self.size
                u[np.ix_(rows, columns)], v[np.ix_(rows, columns)] = 0.5, 0.25
            states.append(np.stack((u, v)) + 0.01 * rng.standard_normal((2, self.size, self.size)))
        return torch.from_numpy(np.stack(states))

    def advance(self, state: Tensor, time: float) -> Tensor:
        """Integrates `(b, 2, h, w)` over a time: diffusion exactly, reactions by Heun's method."""
        kx, ky = _wavenumbers(self.size)
        squared = (kx**2 + ky**2) * (2 * math.pi / self.size) ** 2
        steps = max(1, round(time / self.step))
        dt = time / steps
        rates = torch.tensor(self.diffusion, dtype=torch.float64).view(2, 1, 1)
        # half of a step of diffusion before and after the reactions (Strang 1968)
        decay = torch.exp(-rates * squared * dt / 2)

        def diffused(x: Tensor) -> Tensor:
            return torch.fft.ifft2(torch.fft.fft2(x) * decay).real

        def rate(x: Tensor) -> Tensor:
            u, v = x.unbind(dim=1)
            made = u * v**2
            return torch.stack(
                (-made + self.feed * (1 - u), made - (self.feed + self.kill) * v), dim=1
            )

        for _ in range(steps):
            state = diffused(state)
            first = rate(state)
            state = state + dt / 2 * (first + rate(state + dt * first))
            state = diffused(state)
        return state


SIMULATIONS: dict[str, Callable[..., Turbulence | GrayScott]] = {
    "turbulence": Turbulence,
    "gray_scott": GrayScott,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes trajectories, `(c, f, h, w)`, float32, as `00000.npy` and so on."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("simulation", choices=SIMULATIONS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=300, help="trajectories")
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    simulation = SIMULATIONS[options.simulation](size=options.size)
    options.folder.mkdir(parents=True, exist_ok=True)
    about = {"simulation": options.simulation, **simulation._asdict()}
    about |= {"frames": options.frames, "seed": options.seed}
    settings = options.folder / "settings.json"
    if settings.exists() and json.loads(settings.read_text()) != json.loads(json.dumps(about)):
        parser.error(f"{options.folder} has trajectories of other settings; choose another folder")
    settings.write_text(json.dumps(about))
    paths = [options.folder / f"{number:05d}.npy" for number in range(options.count)]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    for first in range(0, len(missing), BATCH):
        numbers = missing[first : first + BATCH]
        found = trajectories(simulation, options.seed, numbers, options.frames)
        for number, trajectory in zip(numbers, found, strict=True):
            # renamed when it is whole
            with replacing(paths[number]) as unfinished, unfinished.open("wb") as file:
                np.save(file, trajectory.float().numpy())
    print(f"{len(missing)} trajectories written to {options.folder}, {len(paths)} in all")


def trajectories(
    simulation: Turbulence | GrayScott, seed: int, numbers: Sequence[int], frames: int
) -> Tensor:
    """Trajectories after the spin-up.

    Args:
        simulation: The simulation.
        seed: With a number it determines the start of a trajectory.
        numbers: One per trajectory.
        frames: Frames of each.

    Returns:
        `(b, c, f, h, w)`, float64.
    """
    state = simulation.advance(simulation.start(seed, numbers), simulation.spin_up)
    found = [state]
    for _ in range(frames - 1):
        found.append(simulation.advance(found[-1], simulation.interval))
    return torch.stack(found, dim=2)


def _wavenumbers(size: int) -> tuple[Tensor, Tensor]:
    """Whole wavenumbers along the width and the height, `(h, w)`."""
    k = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64)
    return k.expand(size, size), k[:, None].expand(size, size)


def _noise(seed: int, number: int, shape: tuple[int, int]) -> Tensor:
    return torch.from_numpy(np.random.default_rng((seed, number)).standard_normal(shape))


if __name__ == "__main__":
    main()
