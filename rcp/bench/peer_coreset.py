"""anomalib's k-center coreset of a feature matrix at 1 %: `peer_coreset.py ROWS.npy`; the radius is in the rows' own space."""

import json
import os
import sys
import time

os.environ["TQDM_DISABLE"] = "1"
import numpy as np  # noqa: E402
import torch  # noqa: E402
from anomalib.models.components import KCenterGreedy  # noqa: E402

rows = torch.from_numpy(np.load(sys.argv[1]))
torch.manual_seed(0)
sampler = KCenterGreedy(embedding=rows, sampling_ratio=0.01)
started = time.perf_counter()
chosen = sampler.select_coreset_idxs()
seconds = time.perf_counter() - started
radius = max(float(torch.cdist(part, rows[chosen]).amin(1).max()) for part in rows.split(4096))
print(json.dumps({"seconds": seconds, "picked": len(chosen), "radius": radius}))
