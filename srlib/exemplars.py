"""Clean log-mels inferred from degraded ones by what the same degradation does to stored frames of music.

The degradation of a recording is known: how many bands pass the filter, and how loud the white noise is. So it can be
done to a store of clean music, and the regression from degraded to clean that is best there has a closed form. What
lasts for seconds and what moves about it are inferred apart: clips are few and tell collections apart, frames are many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import torch
from torch import nn

from srlib.config import HOP_LENGTH, LEVEL_REACH, LOG_MEL_FLOOR, N_MELS
from srlib.loudness import deficit_db
from srlib.mel import denormalise, log_mel, normalise

FRAMES = 4  # of each clip in the store, spread over it
# Added to the variance of each feature: keeps loud, similar bands from being trusted to more digits than the next
# clip has in common with the store.
_VARIANCE = 0.015
# Of the covariance of motion, over the share of bands that are missing, added to that of levels: what moves together
# mostly differs together, and the more bands are known, the more slopes are to be told from few clips.
_MOTION_SHARE, _FEWEST_MISSING = 0.25, 64
_HEARD = 0.3  # normalised log-mel (0.9 nat, 8 dB) over the noise's median from which a band's level is music's
# Nat over the noise's median: below the first, subtracting its power is no use in a frame, above the second it is all
# it takes. What is left is at least this share of the noise's power: means over time tell no less.
_UNSURE_NAT, _SURE_NAT, _LEAST_POWER = 0.5, 1.5, 0.1
# Of the kernel regression of what lines leave of levels: principal components, width in their spreads, and how many
# clips' worth of agreement outweighs the assumption that nothing is left.
_COMPONENTS, _WIDTH, _DOUBT, _LEAST_SPREAD, _CENTRES = 5, 0.5, 0.005, 0.05, 512
_NOISE_FRAMES = 2048
_REMEMBERED = 48  # regressions, of one to two megabytes each
_EMPTY_NAT = 1.5  # bands so near the floor hold no noise
FLOOR = normalise(math.log(LOG_MEL_FLOOR))


def moving_mean(frames: torch.Tensor, reach: int = LEVEL_REACH) -> torch.Tensor:
    """Mean over `reach` frames to either side of `[batch, frames, bands]`, over fewer at the ends."""
    count = frames.shape[1]
    total = nn.functional.pad(frames.float().cumsum(1), (0, 0, 1, 0))
    index = torch.arange(count, device=frames.device)
    first, last = (index - reach).clamp(min=0), (index + reach + 1).clamp(max=count)
    return ((total[:, last] - total[:, first]) / (last - first)[:, None]).to(frames.dtype)


@dataclass(frozen=True)
class WhiteNoise:
    """Its standard deviation's natural logarithm, and which bands `[256]` it reaches."""

    level: torch.Tensor
    bands: torch.Tensor

    def to(self, device: torch.device) -> WhiteNoise:
        return WhiteNoise(self.level.to(device), self.bands.to(device))

    @classmethod
    def find(cls, frames: torch.Tensor, known: torch.Tensor) -> WhiteNoise:
        """In normalised log-mels `[frames, 256]` of which the bands `known` `[256]`, the lowest, pass the filter.

        Above the filter only noise is left; where nothing is, the noise was filtered too and rules the quietest
        moments of the quietest bands.
        """
        frames, noise = denormalise(frames.float()), _white_noise(frames.device)
        empty = math.log(LOG_MEL_FLOOR) + _EMPTY_NAT
        missing = slice(min(int(known.sum()) + 6, N_MELS - 8), None)  # of a steep filter
        above = frames[:, missing].median(dim=0).values
        heard = above > empty
        if 2 * heard.sum() > len(heard):
            level = (above - _median_white_noise(frames.device)[missing])[heard].median()
            return cls(level, torch.ones_like(known))
        quiet = frames.quantile(0.1, dim=0)
        bands = known & (quiet > empty)  # what is held for known may reach beyond where a filter ended
        bands = bands if bands.any() else known
        return cls((quiet - noise.quantile(0.1, dim=0))[bands].quantile(0.02), bands)


def excerpts(log_mels: torch.Tensor) -> torch.Tensor:
    """What the store keeps of clips `[clips, frames, 256]`: `[clips, 4, 256]`."""
    every = log_mels.shape[1] / FRAMES
    return log_mels[:, (every * (torch.arange(FRAMES) + 0.5)).long()]


class Inferred(NamedTuple):
    """Clean `frames` `[frames, 256]`, normalised, and how far each stands out of the noise, `heard` `[frames, 256]`.

    `deficit_db`: what the missing bands lack in power, being means of logarithms; zero unless it was asked for.
    """

    frames: torch.Tensor
    heard: torch.Tensor
    deficit_db: float


class Exemplars(nn.Module):
    """A store of clean music, `log_mel` `[clips, 4, 256]` (normalised), and what can be inferred from it."""

    def __init__(self, clips: int) -> None:
        super().__init__()
        self.register_buffer("log_mel", torch.zeros(clips, FRAMES, N_MELS))
        self._fitted: dict[tuple, Regression] = {}

    def fill(self, frames: torch.Tensor) -> None:
        """Take clean music `[clips, 4, 256]`, again and again if it is short."""
        self.log_mel.copy_(frames[torch.arange(len(self.log_mel)) % len(frames)])

    def infer(
        self, frames: torch.Tensor, known: torch.Tensor, noise: WhiteNoise | None = None, with_deficit: bool = False
    ) -> Inferred:
        """What degraded frames `[frames, 256]` are when they are clean.

        Args:
            frames: normalised log-mel.
            known: `[256]`, True for bands that hold music, under noise or not.
            noise: what there is of it, if any.
            with_deficit: also say what the missing bands lack; takes a third longer.
        """
        if noise is None:
            slow, inferred = moving_mean(frames[None])[0], frames.clone()
            if known.all():
                return Inferred(inferred, torch.zeros_like(frames), 0.0)
            slow, regression = slow[:, known], self._regression(known, None, with_deficit)
            inferred[:, ~known] = regression(frames[:, known] - slow, slow)
            return Inferred(inferred, torch.zeros_like(frames), regression.deficit_db)
        features = _features(frames, noise.level)
        slow = moving_mean(features[None])[0]
        regression = self._regression(known, noise, with_deficit)
        inferred = regression(features - slow, _level_features(slow, noise.level))
        subtracted, certainty = _subtracted(frames, noise.level)
        inferred = certainty * subtracted + (1 - certainty) * inferred
        return Inferred(inferred, features[:, N_MELS:], regression.deficit_db)

    def _regression(self, known: torch.Tensor, noise: WhiteNoise | None, with_deficit: bool) -> Regression:
        """Remembered as long as the store is what it was: one recording is asked for again, and cutoffs are few."""
        heard = None if noise is None else (float(noise.level), _key(noise.bands))
        key = _key(known), heard, with_deficit, self.training, self.log_mel.data_ptr(), self.log_mel._version
        if key not in self._fitted:
            if len(self._fitted) >= _REMEMBERED:
                self._fitted.pop(next(iter(self._fitted)))  # the oldest
            examples = self._without_noise(known) if noise is None else self._with_noise(known, noise)
            regression = Regression.fit(*examples, int((~known).sum()))
            if with_deficit:
                regression = replace(regression, deficit_db=_deficit_db(regression, *examples[:3], known))
            self._fitted[key] = regression
        return self._fitted[key]

    def _without_noise(self, known: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        """What a regression is fitted to: features of the store, what levels are told from, clean bands, a start."""
        clips = self.log_mel.float()
        x = clips[..., known]
        return x, x.mean(1), clips[..., ~known], None

    def _with_noise(
        self, known: torch.Tensor, noise: WhiteNoise
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        clips = self.log_mel[:: 2 if self.training else 1].float()  # half is twice as fast
        hiss = _white_noise(clips.device).repeat(-(-clips.shape[0] * FRAMES // _NOISE_FRAMES), 1)
        hiss = torch.exp(2 * (hiss[: clips.shape[0] * FRAMES].view_as(clips) + noise.level))
        power = torch.exp(2 * denormalise(clips)) * known + hiss * noise.bands  # powers add
        degraded = normalise(torch.log(power.clamp(min=LOG_MEL_FLOOR**2)) / 2)
        start = torch.eye(2 * N_MELS, N_MELS, device=clips.device) * known  # a band is what is heard of it
        x = _features(degraded, noise.level)
        return x, _level_features(x.mean(1), noise.level), clips, start


@dataclass(frozen=True)
class Regression:
    """From degraded features to clean bands: lines for motion and levels, and a kernel regression on top for levels.

    `mean_x` `[x]`, `mean_y` `[y]`; slopes `[x, y]`; `embed` `[bands, 5]`, `centres` `[512, 5]`, `heights` `[512, y]`.
    `deficit_db` is how much more power the store has in its missing bands than what is inferred of them.
    """

    mean_x: torch.Tensor
    mean_y: torch.Tensor
    level_slopes: torch.Tensor
    motion_slopes: torch.Tensor
    embed: torch.Tensor
    centres: torch.Tensor
    heights: torch.Tensor
    deficit_db: float = 0.0

    @classmethod
    def fit(
        cls, x: torch.Tensor, levels: torch.Tensor, y: torch.Tensor, start: torch.Tensor | None, missing: int
    ) -> Regression:
        """Fit to features `[clips, frames, x]`, what levels are told from `[clips, x]`, and clean `[clips, frames, y]`.

        Slopes are drawn to `start` `[x, y]`, or to zero. `missing` is how many bands the filter took.
        """
        clips, count, features = x.shape
        start = torch.zeros(features, y.shape[-1], device=x.device) if start is None else start
        fast_x, fast_y = ((frames - frames.mean(1, keepdim=True)).flatten(0, 1) for frames in (x, y))
        frames = clips * (count - 1)  # each clip's mean is taken off
        motion_xx, motion_xy = fast_x.T @ fast_x / frames, fast_x.T @ fast_y / frames
        mean_x, mean_y = levels.mean(0), y.mean((0, 1))
        slow_x, slow_y = levels - mean_x, y.mean(1) - mean_y
        share = _MOTION_SHARE * N_MELS / max(missing, _FEWEST_MISSING)
        level_xx = slow_x.T @ slow_x / clips + share * motion_xx
        level_xy = slow_x.T @ slow_y / clips + share * motion_xy
        slopes = _slopes(level_xx, level_xy, start)
        embed = _embedding(slow_x[:, :N_MELS])
        centres = slow_x[:, : len(embed)] @ embed
        chosen = centres[:_CENTRES]
        kernel = _kernel(centres, chosen)
        normal = kernel.T @ kernel + _DOUBT * clips * kernel[: len(chosen)] + 1e-3 * torch.eye(len(chosen)).to(x)
        heights = torch.linalg.solve(normal, kernel.T @ (slow_y - slow_x @ slopes))
        return cls(mean_x, mean_y, slopes, _slopes(motion_xx, motion_xy, start), embed, chosen, heights)

    def __call__(self, motion: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """Clean bands `[frames, y]` of how features move about their moving mean and of what that mean says of levels.

        Both are `[frames, x]`.
        """
        return self.level(levels) + motion @ self.motion_slopes

    def level(self, levels: torch.Tensor) -> torch.Tensor:
        """Clean levels `[n, y]` of what they are told from, `[n, x]`."""
        level = levels - self.mean_x
        near = _kernel(level[:, : len(self.embed)] @ self.embed, self.centres)
        return self.mean_y + level @ self.level_slopes + near @ self.heights


def _deficit_db(
    regression: Regression, features: torch.Tensor, levels: torch.Tensor, clean: torch.Tensor, known: torch.Tensor
) -> float:
    """Of the bands above the highest known one, over the clips that the regression was fitted to."""
    first = int(known.nonzero().max()) + 1 if known.any() else 0
    if first == N_MELS:
        return 0.0
    motion = (features - features.mean(1, keepdim=True)) @ regression.motion_slopes[:, first - N_MELS :]
    inferred = (regression.level(levels)[:, None, first - N_MELS :] + motion).clamp(min=FLOOR)
    return deficit_db(denormalise(inferred), denormalise(clean[..., first - N_MELS :]), first)


def _key(bands: torch.Tensor) -> bytes:
    return bands.cpu().numpy().tobytes()


def _slopes(xx: torch.Tensor, xy: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    return start + torch.linalg.solve(xx + _VARIANCE * torch.eye(len(xx), device=xx.device), xy - xx @ start)


def _embedding(levels: torch.Tensor) -> torch.Tensor:
    """`[bands, 5]`: principal components of levels `[clips, bands]` to unit spread, over the root of their count."""
    # In single precision LAPACK gives up on the many bands that are alike where noise hides them.
    spreads, directions = torch.linalg.eigh((levels.T @ levels / len(levels)).double())
    spreads, directions = spreads[-_COMPONENTS:].to(levels), directions[:, -_COMPONENTS:].to(levels)
    return directions / torch.sqrt(spreads + _LEAST_SPREAD) / math.sqrt(_COMPONENTS)


def _kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.exp(-(torch.cdist(a, b) ** 2) / (2 * _WIDTH**2))


def _features(frames: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """`[..., 512]`: normalised log-mels `[..., 256]` and how far they stand out of the noise."""
    median = normalise(_median_white_noise(frames.device) + noise)
    return torch.cat([frames, (frames - median - _HEARD).clamp(min=0)], dim=-1)


def _level_features(slow: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """What levels are told from, `[..., 512]`: the mean of features over time, with the noise's power taken off.

    The mean of hundreds of frames shows music 5 dB below the noise in narrow bands and 10 dB in wide ones, but as
    hundredths of a nat: no line does justice to these and to what stands out.
    """
    subtracted, _ = _subtracted(slow[..., :N_MELS], noise)
    return torch.cat([subtracted, slow[..., N_MELS:]], dim=-1)


def _subtracted(frames: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised log-mels `[..., 256]` less the noise's power, and how far a frame is to be believed, 0 to 1."""
    median = _median_white_noise(frames.device) + noise
    above = denormalise(frames) - median
    subtracted = median + torch.log((torch.exp(2 * above) - 1).clamp(min=_LEAST_POWER)) / 2
    return normalise(subtracted), ((above - _UNSURE_NAT) / (_SURE_NAT - _UNSURE_NAT)).clamp(0, 1)


@cache
def _white_noise(device: torch.device) -> torch.Tensor:
    """Log-mel of white noise of variance one, nat, `[frames, 256]`, the same every time."""
    wav = torch.randn(1, _NOISE_FRAMES * HOP_LENGTH, generator=torch.Generator().manual_seed(0))
    return log_mel(wav)[0, 0].to(device)


@cache
def _median_white_noise(device: torch.device) -> torch.Tensor:
    return _white_noise(device).median(dim=0).values
