"""anomalib's AUPRO with torchmetrics' AUROC and AP over all pixels: `peer_metrics.py MAPS.npy MASKS.npy`."""

import json
import resource
import sys
import time
import warnings

warnings.filterwarnings("ignore")
import numpy as np  # noqa: E402
import torch  # noqa: E402
from anomalib.metrics.aupro import _AUPRO  # noqa: E402
from torchmetrics.functional.classification import binary_auroc, binary_average_precision  # noqa: E402

maps, masks = (torch.from_numpy(np.load(path)) for path in sys.argv[1:3])
started = time.perf_counter()
pixels, labels = maps.flatten(), masks.flatten().int()
found = {"pixel_auroc": float(binary_auroc(pixels, labels)), "pixel_ap": float(binary_average_precision(pixels, labels))}
aupro = _AUPRO(fpr_limit=0.3)
aupro.update(maps, masks.int())
found["aupro"] = float(aupro.compute())
found["seconds"] = time.perf_counter() - started
found["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps(found))
