"""Imports run one way: tune -> search_spaces -> model.config, tune -> model."""

import ast
import subprocess
import sys

import pytest

from tests.conftest import REPO
