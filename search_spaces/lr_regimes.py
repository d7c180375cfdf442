"""Which learning-rate regime? Does a longer warm-up pay at a higher rate, and do batch-norm biases want more of it?

    python -m tune.search --space lr_regimes

"How to Train Your ResNet" scans the learning rate by factors 1/8..16 (post 2), warms up for 5 of 24 epochs, gives the
batch-norm biases 16 to 64 times the rate of the other weights (post 8), and shrinks cutout from 8 to 5 and 0 pixels as
runs get shorter (post 8). All four interact; this space varies them together around the baseline S0.

To write another space, copy this file: the file's name is the space's name, SPACE is what is searched. A copy outside
of this folder is given by its path: --space my_space.py. `base` is a whole config, known to be good; it is tried first.
Each key of `domains` is a field of model.config.Config, where its unit and meaning stand; each value is LogUniform (for
factors), Uniform, IntUniform or Choice, and holds the base's value. docs/spaces.md shows what else a space can do.
"""

from model.recipes import s0
from search_spaces.space import IntUniform, LogUniform, SearchSpace, Uniform

SPACE = SearchSpace(
    base=s0(),
    domains={
        "lr_scale": LogUniform(1 / 8, 16),  # times the whole schedule
        "warmup_frac": Uniform(0.05, 0.5),  # of the epochs; the base has 5/24
        "bn_bias_lr_mult": LogUniform(1, 64),  # weight decay is divided by it
        "cutout_px": IntUniform(0, 12),
    },
)
