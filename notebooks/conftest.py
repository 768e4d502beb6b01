"""For nbval: notebooks run without progress bars, and their figures and tables go to a folder that is thrown away."""

import atexit
import os
import shutil
import tempfile

import rcp  # noqa: F401  (sets OMP_WAIT_POLICY before any kernel starts)

folder = tempfile.mkdtemp(prefix="rcp-notebooks-")
atexit.register(shutil.rmtree, folder, ignore_errors=True)
os.environ["RCP_OUT"] = folder
os.environ["RCP_PROGRESS"] = "0"
