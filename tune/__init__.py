"""Search, export, confirm. The only package that imports ray and optuna."""

import model as model  # which sees to Ctrl-C while a command of either package is loaded
