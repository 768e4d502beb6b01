"""Experiments: a grid of data, categories, backbones, methods and seeds → result files; resumable, on one machine or many.

`grid` says what is to be measured, `runner` and `cluster` have it done, `measure` does it, `results` keeps it, `summary`
tells what it means.
"""

from rcp.experiments.grid import Cell, Data, Grid, Method
from rcp.experiments.gridfile import read_grid
from rcp.experiments.results import Results
from rcp.experiments.runner import Machine, plan, run_grid
from rcp.experiments.watch import Outcome

__all__ = ["Cell", "Data", "Grid", "Machine", "Method", "Outcome", "Results", "plan", "read_grid", "run_grid"]
