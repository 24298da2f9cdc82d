"""Where a number becomes a finding, and why there: every threshold of the checks."""

from __future__ import annotations

__all__ = [
    "ABSENT_FEATURES",
    "ABSENT_SHARE",
    "COLLAPSED_KL",
    "COLLAPSED_SHARE",
    "COLLAPSED_VARIANCE",
    "CONSTANT_CELLS",
    "DEVIATIONS",
    "ERROR_RATIO",
    "GROUP_SHARE",
    "LENGTH_SCALE_MARGIN",
    "NOISE_FLOOR_MARGIN",
    "SINGLETON_LEVELS",
    "SLOPE",
    "UNSEEN_ROWS",
]

COLLAPSED_KL = 0.01
"""Nats a row. A posterior narrowed by a share s of the prior's variance costs -log(1 - s) / 2: with
less than this, a latent dimension leaves 98% of its prior variance open."""

COLLAPSED_VARIANCE = 0.01
"""Of a latent's posterior means over rows, whose prior variance is 1: the threshold for an inactive
unit of Burda, Grosse & Salakhutdinov (2016), Importance weighted autoencoders, section 5.2."""

ABSENT_SHARE = 1e-3
"""Of a standardised feature's variance: with less, a term moves a row by 3% of its standard
deviation."""

ABSENT_FEATURES = 0.5
"""Share of the features for which a term has to be absent. Estimates vary around 0 and are cut off
there: a term without effects is absent for half of the features or more, not for all."""

COLLAPSED_SHARE = 0.01
"""Mean share over features below which such a term is absent as a whole: a few features with an
effect are reason enough to keep it. Without any effect, 2000 levels of 2.6 rows had 0.003."""

SLOPE = 0.8
"""Of rows on effects that have not seen them; 1 for effects shrunken as they should. Below this a
fifth of what the table says is noise of other rows."""

DEVIATIONS = 3.0
"""Standard errors by which an estimate has to be beyond its threshold, or beyond chance: one of 700
healthy terms is that far off by chance."""

ERROR_RATIO = 1.5
"""Squared error of held-out rows over its expected variance. About 1 - d / p for a healthy fit, as
the latent fits d directions of the row itself; at 1.5, intervals of 95% hold 89%."""

GROUP_SHARE = 0.1
"""Intraclass correlation of a latent with a grouping; 0 in the model. Groups may well differ in the
latent too, so this is a note, and for more than a trace."""

SINGLETON_LEVELS = 0.5
"""Share of the levels with one row: such a row's effect cannot be told from its noise, and the
variance component rests on the other levels alone."""

NOISE_FLOOR_MARGIN = 1.01
"""Factor on the floor of the noise variance within which it is at the floor: float32, and a running
mean that comes near it."""

LENGTH_SCALE_MARGIN = 1.1
"""Factor on the bounds of the search: its last step is 3% wide, and ends within the bounds."""

CONSTANT_CELLS = 0.99
"""Share of the cells of a feature with one and the same value: all its variance is that of 1% of
the rows."""

UNSEEN_ROWS = 0.1
"""Share of held-out rows whose level is not known: these are predicted without the term."""
