"""Correction of the log-mean bias: an estimated log-mel is too low at loud moments."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from srlib.config import LOG_MEL_FLOOR
from srlib.models.prior import SLOW_FRAMES

# Strength of the correction, and the relative power (ratio to the mean) at which it saturates. Both were chosen on the
# validation tracks by Zimtohrli, which falls by a sixth at a cutoff of 4 kHz.
EMPHASIS, MOST_RELATIVE = 0.2, 30.0


def emphasised(log_mel: torch.Tensor, first_band: int) -> torch.Tensor:
    """Estimated log-mels `[batch, 1, frames, 256]` whose loud moments are raised from a band on.

    A mean of logarithms underestimates power (Jensen's inequality), most at short loud events, such as onsets, whose
    time is uncertain. The gain grows with the power of a cell over its mean over 2.57 s.
    """
    above = log_mel[:, 0, :, first_band:]
    if not above.shape[-1]:
        return log_mel
    power = torch.exp(2 * above).transpose(1, 2)
    mean = F.avg_pool1d(power, SLOW_FRAMES, 1, SLOW_FRAMES // 2, count_include_pad=False)
    relative = (power / mean.clamp(min=LOG_MEL_FLOOR**2)).transpose(1, 2)
    raised = log_mel.clone()
    raised[:, 0, :, first_band:] += 0.5 * torch.log1p(EMPHASIS * relative / (1 + relative / MOST_RELATIVE))
    return raised
