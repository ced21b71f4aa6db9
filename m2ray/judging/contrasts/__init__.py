"""The difference between two conditions: its value, one-sided bounds, and the p-value against a margin.

Three kinds, by what is known of the outcomes:

- `PairedBinary`: successes and failures of the same episodes, one training seed. Tango's score test (1998), and an
  exact bound where few or no episodes differ.
- `MeanDifference`: scores in 0..1, several training seeds, or episodes in groups. A t-test of the mean with the
  variance of clusters, and Gaffke's test (2005), which needs no normal distribution.
- `Unpaired`: bare counts. The score test of two independent shares (Miettinen and Nurminen 1985).
"""

from m2ray.judging.contrasts.bounded import Floats
from m2ray.judging.contrasts.contrast import Contrast
from m2ray.judging.contrasts.counts import PairedBinary, Unpaired, is_binary
from m2ray.judging.contrasts.means import (
    MeanDifference,
    difference_of_samples,
    difference_of_systems,
    effective_clusters,
    mean_difference,
    mean_ratio,
)

__all__ = [
    "Contrast",
    "Floats",
    "MeanDifference",
    "PairedBinary",
    "Unpaired",
    "difference_of_samples",
    "difference_of_systems",
    "effective_clusters",
    "is_binary",
    "mean_difference",
    "mean_ratio",
]
