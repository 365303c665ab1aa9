"""Verification of ensemble forecasts: scores by channel and lead time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# What The Well adds to the variance that it divides by (Ohana et al. 2024)
_ADDED = 1e-7
_BANDS = ("low", "middle", "high")


class ForecastScores:
    """Scores of ensemble forecasts, accumulated in float64 over batches and processes.

    Args:
        weights: Weights of grid points, `(h, w)` or `(h, 1)`, such as `latitude_weights`; None for
            equal ones.
        climatology: Mean field of the training data, `(c, h, w)` or `(c, f, h, w)`, for anomaly
            correlation; None for no such score.
        velocity: Channels of the velocity along the width and the height, for divergence and
            enstrophy; None for no such scores.
        spacing: Distance of grid points along height and width.
        periodic: Whether the domain is periodic along height and width, for derivatives.

    Raises:
        ValueError: If `weights` are negative or all zero.

    Example:
        >>> scores = ForecastScores()
        >>> scores.add(torch.rand(3, 8, 2, 4, 16, 16), torch.rand(3, 2, 4, 16, 16))
        >>> scores.compute()["crps"].shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        weights: Tensor | None = None,
        climatology: Tensor | None = None,
        velocity: tuple[int, int] | None = None,
        spacing: tuple[float, float] = (1.0, 1.0),
        periodic: tuple[bool, bool] = (False, False),
    ) -> None:
        if weights is not None and not (bool((weights >= 0).all()) and bool(weights.any())):
            raise ValueError(
                "ForecastScores: weights must be at least 0, and not all 0, got from "
                f"{float(weights.min()):g} to {float(weights.max()):g}; pass areas, such as those "
                "of latitude_weights"
            )
        self.weights, self.climatology, self.velocity = weights, climatology, velocity
        self.spacing, self.periodic = spacing, periodic
        self._sums: dict[str, Tensor] = {}
        self._members = 0

    def add(
        self,
        members: Tensor,
        truth: Tensor,
        mask: Tensor | None = None,
        counted: int | None = None,
    ) -> None:
        """Adds a batch.

        Args:
            members: Forecasts, `(b, m, c, f, h, w)`, of `m` members; 1 for a deterministic one.
            truth: What happened, `(b, c, f, h, w)`, in the same units.
            mask: Boolean, broadcast against `truth`: where false, values are not scored, and may be
                NaN. None for true everywhere.
            counted: Number of forecasts that count, from the first on; None for all.

        Raises:
            ValueError: If shapes do not fit each other or earlier batches, or a value that counts
                is NaN or infinite.
        """
        members, truth = members[:counted].double().cpu(), truth[:counted].double().cpu()
        self._check(members, truth)
        seen = torch.ones_like(truth, dtype=torch.bool)
        if mask is not None:
            counted_mask = mask[:counted] if mask.ndim == 5 and len(mask) > 1 else mask
            seen = counted_mask.cpu().expand_as(truth)
            truth = truth.where(seen, 0.0)
            members = members.where(seen[:, None], 0.0)
        if not (members.isfinite().all() and truth.isfinite().all()):
            raise ValueError(
                "ForecastScores: members and truth must be finite where the mask is true, got NaN "
                "or infinite values; mask missing values, or leave out forecasts that diverged"
            )
        area = seen.double() * self._checked_weights(truth)
        self._members = members.shape[1]
        terms = _point_scores(members, truth, area) | _rank_scores(members, truth, area)
        if self.climatology is not None:
            normal = self._normal(truth).expand(truth.shape[1:]).where(seen, 0.0)
            terms |= _anomaly_terms(members.mean(dim=1), truth, area, normal)
        # those of a part of a frame would say nothing
        is_whole = seen.flatten(3).all(dim=3).double()
        terms |= _spectral_terms(members, truth, self.spacing, is_whole)
        if self.velocity is not None:
            terms |= self._flow_terms(members, truth, is_whole)
        for name, term in terms.items():
            self._sums[name] = self._sums[name] + term if name in self._sums else term

    def _check(self, members: Tensor, truth: Tensor) -> None:
        """Raises a ValueError unless the shapes fit."""
        fits = members.ndim == 6 and truth.ndim == 5 and members.shape[1] > 0
        if not fits or members.shape[:1] + members.shape[2:] != truth.shape:
            raise ValueError(
                "ForecastScores: members must be (b, m, c, f, h, w) and truth (b, c, f, h, w), got "
                f"{tuple(members.shape)} and {tuple(truth.shape)}; add or remove axes"
            )
        if self._sums and (
            members.shape[1] != self._members or truth.shape[1:3] != self._sums["area"].shape
        ):
            before = (self._members, *self._sums["area"].shape)
            raise ValueError(
                f"ForecastScores: batches must have {before} members, channels and frames, as the "
                f"first one, got {(members.shape[1], *truth.shape[1:3])}; score them apart"
            )

    def _checked_weights(self, truth: Tensor) -> Tensor | float:
        """Weights that fit frames of the truth."""
        if self.weights is None:
            return 1.0
        h, w = truth.shape[-2:]
        shape = self.weights.shape
        if len(shape) != 2 or shape[0] not in (1, h) or shape[1] not in (1, w):
            raise ValueError(
                f"ForecastScores: weights must be ({h}, {w}), ({h}, 1) or (1, {w}), got "
                f"{tuple(shape)}; give one for each grid point, row or column"
            )
        return self.weights.double().cpu()

    def _normal(self, truth: Tensor) -> Tensor:
        """The climatology, `(c, f or 1, h, w)`."""
        assert self.climatology is not None
        normal = self.climatology.double().cpu()
        normal = normal[:, None] if normal.ndim == 3 else normal
        c, f, h, w = truth.shape[1:]
        if normal.shape not in ((c, 1, h, w), (c, f, h, w)):
            raise ValueError(
                f"ForecastScores: climatology must be ({c}, {h}, {w}) or ({c}, {f}, {h}, {w}), got "
                f"{tuple(self.climatology.shape)}; average the training data over time"
            )
        return normal

    def _flow_terms(self, members: Tensor, truth: Tensor, is_whole: Tensor) -> dict[str, Tensor]:
        """Sums of squared divergence and vorticity over whole frames, `(f,)`, and their number."""
        assert self.velocity is not None
        known = is_whole[:, list(self.velocity)].prod(dim=1)
        found = {"flows": known.sum(dim=0)}
        for name, fields in (("members", members), ("truth", truth[:, None])):
            u, v = (fields[:, :, channel] for channel in self.velocity)
            derivatives = flow_derivatives(u, v, self.spacing, self.periodic)
            for kind, field in zip(("divergence", "enstrophy"), derivatives, strict=True):
                square = field.square().mean(dim=(1, 3, 4))
                found[f"{name}_{kind}"] = (square * known).sum(dim=0)
        return found

    def over_processes(self, total: Callable[[Tensor], Tensor]) -> ForecastScores:
        """Returns the scores of the forecasts of all processes, each of which has added some."""
        joined = ForecastScores(
            self.weights, self.climatology, self.velocity, self.spacing, self.periodic
        )
        joined._members = self._members
        joined._sums = {name: total(self._sums[name]) for name in sorted(self._sums)}
        return joined

    def compute(self) -> dict[str, Tensor]:
        """Computes the scores, float64 on the CPU.

        Returns:
            By name, `(c, f)` unless said otherwise; those that need several members, no mask, a
            climatology or velocities are left out where these are missing.

            - `rmse`: root mean square error of the ensemble's mean.
            - `vrmse`: the same for each frame divided by the standard deviation of the truth over
              the frame, averaged over frames (Ohana et al. 2024, The Well).
            - `crps`: continuous ranked probability score, in its fair form for a finite ensemble
              (Ferro 2014, eq. 8); of one member the mean absolute error.
            - `spread`: root of the mean variance of the members.
            - `spread_skill`: `sqrt((m + 1) / m) spread / rmse`, 1 for members that are exchangeable
              with the truth (Fortin et al. 2014).
            - `rank_histogram` `(c, f, m + 1)`: share of the area with as many members below the
              truth; flat for such members. Ties are spread evenly.
            - `coverage` `(c, f, k)`: share of values within the interval between the members of
              rank `j` and `m + 1 - j`, for `j` from 1; `nominal_coverage` `(k,)` is what it should
              be, `(m + 1 - 2 j) / (m + 1)`.
            - `acc`: anomaly correlation of the ensemble's mean, without subtracting the mean
              anomaly.
            - `members_spectrum`, `truth_spectrum` `(c, f, n)`: see `energy_spectrum`; the first is
              the mean over members.
            - `spectral_error_low`, `..._middle`, `..._high`: energy of the members divided by that
              of the truth, minus 1, in thirds of the wavenumbers on a logarithmic scale.
            - `members_divergence`, `truth_divergence` `(f,)`: root mean square; and
              `members_enstrophy`, `truth_enstrophy` `(f,)`: half of the mean square vorticity.

        Raises:
            ValueError: If nothing has been added.
        """
        if not self._sums:
            raise ValueError(
                "ForecastScores: there must be a forecast to score, got none; call add first"
            )
        sums, m = self._sums, self._members
        found = {
            "rmse": (sums["squared_error"] / sums["area"]).sqrt(),
            "vrmse": sums["vrmse"] / sums["frames"],
            "crps": sums["crps"] / sums["area"],
        }
        if m > 1:
            spread = (sums["variance"] / sums["area"]).sqrt()
            ratio = ((m + 1) / m) ** 0.5 * spread / found["rmse"]
            ranks = sums["ranks"] / sums["ranks"].sum(dim=-1, keepdim=True)
            half = m // 2
            inside = [ranks[..., j : m + 1 - j].sum(dim=-1) for j in range(1, half + 1)]
            nominal = [(m + 1 - 2 * j) / (m + 1) for j in range(1, half + 1)]
            found |= {
                "spread": spread,
                "spread_skill": ratio,
                "rank_histogram": ranks,
                "coverage": torch.stack(inside, dim=-1),
                "nominal_coverage": torch.tensor(nominal, dtype=torch.float64, device="cpu"),
            }
        if "anomalies" in sums:
            found["acc"] = sums["anomalies"] / sums["frames"]
        if sums["spectra"].any():
            found |= _spectra(sums)
        if self.velocity is not None and sums["flows"].any():
            for whose in ("members", "truth"):
                mean = {
                    n: sums[f"{whose}_{n}"] / sums["flows"] for n in ("divergence", "enstrophy")
                }
                found[f"{whose}_divergence"] = mean["divergence"].sqrt()
                found[f"{whose}_enstrophy"] = mean["enstrophy"] / 2
        return found


# Sums over a batch


def _point_scores(members: Tensor, truth: Tensor, area: Tensor) -> dict[str, Tensor]:
    """Sums of errors over grid points and forecasts, `(c, f)`."""
    m, points = members.shape[1], (0, 3, 4)
    mean = members.mean(dim=1)
    squared = (mean - truth).square()
    error = (members - truth[:, None]).abs().mean(dim=1)
    terms = {"area": area.sum(dim=points), "squared_error": (area * squared).sum(dim=points)}
    if m > 1:
        # the mean difference of two members, from their order
        order = 2 * torch.arange(1, m + 1, dtype=truth.dtype, device="cpu") - m - 1
        ordered = members.sort(dim=1).values
        apart = torch.einsum("m,bmcfhw->bcfhw", order, ordered) * 2 / (m * (m - 1))
        error = error - apart / 2
        variance = (members - mean[:, None]).square().sum(dim=1) / (m - 1)
        terms["variance"] = (area * variance).sum(dim=points)
    of_frame = area.sum(dim=(3, 4))
    share = area / of_frame[..., None, None].clamp(min=torch.finfo(area.dtype).tiny)
    centre = (share * truth).sum(dim=(3, 4))
    variance = (share * (truth - centre[..., None, None]).square()).sum(dim=(3, 4))
    # unbiased, for equal weights the usual factor n / (n - 1)
    variance = variance / (1 - share.square().sum(dim=(3, 4))).clamp(min=_ADDED)
    frame_error = (share * squared).sum(dim=(3, 4)) / (variance + _ADDED)
    return terms | {
        "crps": (area * error).sum(dim=points),
        "vrmse": frame_error.sqrt().sum(dim=0),
        "frames": (of_frame > 0).double().sum(dim=0),
    }


def _rank_scores(members: Tensor, truth: Tensor, area: Tensor) -> dict[str, Tensor]:
    """Area of the values by the number of members below them, `(c, f, m + 1)`."""
    m = members.shape[1]
    if m == 1:
        return {}
    below = (members < truth[:, None]).sum(dim=1)
    equal = (members == truth[:, None]).sum(dim=1)
    weight = area / (equal + 1)
    ranks = [
        (weight * ((below <= rank) & (rank <= below + equal))).sum(dim=(0, 3, 4))
        for rank in range(m + 1)
    ]
    return {"ranks": torch.stack(ranks, dim=-1)}


def _anomaly_terms(mean: Tensor, truth: Tensor, area: Tensor, normal: Tensor) -> dict[str, Tensor]:
    """The sum over forecasts of the anomaly correlation, `(c, f)`."""
    ours, theirs = mean - normal, truth - normal
    of_frame = (3, 4)
    both = (area * ours * theirs).sum(dim=of_frame)
    sizes = (area * ours.square()).sum(dim=of_frame) * (area * theirs.square()).sum(dim=of_frame)
    # no anomaly, no correlation
    return {"anomalies": torch.where(sizes > 0, both / sizes.sqrt(), 0.0).sum(dim=0)}


def _spectral_terms(
    members: Tensor, truth: Tensor, spacing: Sequence[float], is_whole: Tensor
) -> dict[str, Tensor]:
    """Sums over whole frames `(b, c, f)` of energy spectra, `(c, f, n)`, and their number."""
    weights = is_whole[..., None]
    return {
        "members_spectrum": (energy_spectrum(members, spacing).mean(dim=1) * weights).sum(dim=0),
        "truth_spectrum": (energy_spectrum(truth, spacing) * weights).sum(dim=0),
        "spectra": is_whole.sum(dim=0),
    }


def _spectra(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Mean spectra, and their relative error by band."""
    count = sums["spectra"][..., None]
    found = {name: sums[name] / count for name in ("members_spectrum", "truth_spectrum")}
    ours, theirs = found["members_spectrum"], found["truth_spectrum"]
    # without the mean, which is wavenumber 0
    last = ours.shape[-1] - 1
    edges = [1, *(round((last + 1) ** (i / 3)) for i in (1, 2)), last + 1]
    for i, name in enumerate(_BANDS):
        start = min(edges[i], last)
        band = slice(start, max(edges[i + 1], start + 1))
        energy = theirs[..., band].sum(dim=-1)
        found[f"spectral_error_{name}"] = ours[..., band].sum(dim=-1) / energy - 1
    return found


# Fields


def latitude_weights(latitudes: Any) -> Tensor:
    """Weights of the rows of a grid by their area, the cosine of the latitude.

    Args:
        latitudes: Of the rows, `(h,)`, in degrees from -90 to 90.

    Returns:
        `(h, 1)`, of mean 1.

    Raises:
        ValueError: If a latitude is outside its range.

    Example:
        >>> latitude_weights([-60.0, 0.0, 60.0]).flatten().tolist()
        [0.75, 1.5, 0.75]
    """
    degrees = torch.as_tensor(latitudes, dtype=torch.float64, device="cpu")
    if degrees.ndim != 1 or not bool((degrees.abs() <= 90).all()):
        raise ValueError(
            "latitude_weights: latitudes must be a list of degrees from -90 to 90, got "
            f"{tuple(degrees.shape)} values from {float(degrees.min()):g} to "
            f"{float(degrees.max()):g}; give those of the rows"
        )
    # rounding makes those of the poles negative
    weights = degrees.deg2rad().cos().clamp(min=0)
    return (weights / weights.mean()).round(decimals=12)[:, None]


def energy_spectrum(fields: Tensor, spacing: Sequence[float] = (1.0, 1.0)) -> Tensor:
    """The energy of fields by wavenumber, summed over directions.

    Fields are taken as periodic; of others, the jumps at the edges add to the energy of large
    wavenumbers.

    Args:
        fields: `(..., h, w)`.
        spacing: Distance of grid points along height and width.

    Returns:
        `(..., n)`: at `k`, half of the sum of the squared amplitudes of the Fourier modes whose
        wavenumber, in waves per longer side of the domain, rounds to `k`. Their sum is half of the
        mean square of the field.

    Example:
        >>> x = torch.arange(32) / 32
        >>> wave = torch.cos(2 * torch.pi * 5 * x).expand(32, 32)
        >>> energy_spectrum(wave)[4:7].round(decimals=4).tolist()
        [0.0, 0.25, 0.0]
    """
    h, w = fields.shape[-2:]
    power = fields.double()
    # not every FFT takes a batch without fields
    if fields.numel():
        power = torch.fft.fft2(power).abs().square() / (h * w) ** 2 / 2
    longest = max(h * spacing[0], w * spacing[1])
    down, right = (
        torch.fft.fftfreq(n, distance, dtype=torch.float64, device=fields.device) * longest
        for n, distance in zip((h, w), spacing, strict=True)
    )
    shell = torch.hypot(down[:, None], right).round().long().flatten()
    total = power.new_zeros((*power.shape[:-2], int(shell.max()) + 1))
    return total.index_add_(-1, shell, power.flatten(-2))


def flow_derivatives(
    u: Tensor, v: Tensor, spacing: Sequence[float], periodic: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """Divergence and vorticity of a flow, by central differences.

    Args:
        u: Velocity along the width, `(..., h, w)`.
        v: Velocity along the height, likewise.
        spacing: Distance of grid points along height and width.
        periodic: Whether the domain is periodic along height and width; otherwise differences are
            one-sided at the edges.

    Returns:
        `du/dx + dv/dy` and `dv/dx - du/dy`, `(..., h, w)`.
    """

    def derivative(field: Tensor, axis: int) -> Tensor:
        distance = spacing[axis]
        if periodic[axis]:
            return (field.roll(-1, axis - 2) - field.roll(1, axis - 2)) / (2 * distance)
        return torch.gradient(field, spacing=distance, dim=axis - 2)[0]

    return derivative(u, 1) + derivative(v, 0), derivative(v, 1) - derivative(u, 0)
