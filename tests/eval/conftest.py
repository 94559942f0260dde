"""Lets the tests of evaluators use the tiny models of the verifiers' tests."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "verifiers"))
