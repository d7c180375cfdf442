"""How cheaply can an accuracy be reached, with the tricks of post 8 and of the record holders after it?

    python -m tune.search --space speedrun --objective flops-to-target --target-acc 0.94 --data cifar10

S8 of "How to Train Your ResNet" needs 10 epochs for 94%. hlb-CIFAR10 (tysam-code 2023) and airbench (K. Jordan, arXiv
2404.00498, and Muon, 2024) changed activation, initialisation, first layer, flips, averaging and update rule. All of
these are domains here, with what has to be tuned anew beside them: epochs, width, rates, momentum, decay, schedule,
crops. airbench states its learning rate and decay apart from momentum and batch, so that each can be tuned alone; the
coordinates do that here. muon_lr is no part of that: its steps are relative to the weights' norm, so that it doesn't
grow with the batch, but lr_scale multiplies it too. Scoring is S8's for all: on more views it costs time that is not
counted. Wide nets are dear: `--limit train_flops=F` keeps out whoever takes more than S8.
"""

from dataclasses import replace

from model.recipes import s8
from search_spaces.coordinates import DECAY_RATE, EFFECTIVE_LR, MOMENTUM_STEPS
from search_spaces.space import Choice, IntUniform, LogUniform, SearchSpace, Uniform

AIRBENCH = replace(
    s8(),
    act="gelu",
    celu_alpha=0.0,
    whiten_px=2,
    whiten_eps=5e-4,
    whiten_both_signs=True,
    identity_init=True,
    alternating_flip=True,
    crop_pad_px=2,
    lookahead=True,
    ema_decay=0.95,
    peak_lr=0.52,  # its 11.5 per 1024 images, halved for 512, over 1 + 1 / (1 - momentum) of S8's momentum
    weight_decay=1.33e-3,  # its 0.0153 per 1024 images, over its rate of 11.5
)
"""airbench94 on S8's net and schedule"""

MUON_S8 = replace(s8(), solver="muon", identity_init=True)
"""S8 with the two tricks that are ahead of it by most in the experiment `airbench_tricks`"""

SPACE = SearchSpace(
    base=s8(),
    more_bases=(AIRBENCH, replace(AIRBENCH, solver="muon"), MUON_S8),
    domains={
        "epochs": IntUniform(6, 12),
        "width": IntUniform(8, 96),
        "warmup_frac": Uniform(0.05, 0.4),
        "tail_to_zero": Choice((False, True)),
        "momentum_steps": LogUniform(2, 20),
        "effective_lr": LogUniform(1, 40),  # low enough for batches of 128, whose rate is a quarter
        "decay_rate": LogUniform(5e-4, 3e-2),
        "solver": Choice(("sgd", "muon")),
        "muon_lr": LogUniform(0.02, 1, only_if={"solver": ("muon",)}),
        "act": Choice(("celu", "gelu")),
        "identity_init": Choice((False, True)),
        "whiten_px": Choice((3, 2)),
        "whiten_both_signs": Choice((False, True)),
        "whiten_eps": LogUniform(1e-4, 2e-2),
        "alternating_flip": Choice((False, True)),
        "crop_pad_px": IntUniform(1, 4),
        "lookahead": Choice((False, True)),
        "ema_decay": Choice((0.99, 0.95)),
    },
    coordinates=(EFFECTIVE_LR, DECAY_RATE, MOMENTUM_STEPS),
)
