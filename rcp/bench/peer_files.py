"""anomalib's PatchCore from files to metrics on one category in MVTec AD's layout: `peer_files.py ROOT CATEGORY`.

WideResNet-50 with random weights (only its time counts), levels 2 and 3, 256 pixels, crop 224, coreset 1 %, on the CPU.
"""

import json
import logging
import os
import resource
import sys
import time
import warnings

os.environ["TQDM_DISABLE"] = "1"
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
from anomalib.data import MVTecAD  # noqa: E402
from anomalib.engine import Engine  # noqa: E402
from anomalib.models import Patchcore  # noqa: E402

root, category = sys.argv[1:3]
os.chdir(root)  # its results folder goes there
before = Patchcore.configure_pre_processor(image_size=(256, 256), center_crop_size=(224, 224))
data = MVTecAD(root=root, category=category, train_batch_size=16, eval_batch_size=16, num_workers=2)
model = Patchcore(
    backbone="wide_resnet50_2", layers=["layer2", "layer3"], pre_trained=False, coreset_sampling_ratio=0.01,
    pre_processor=before,
)  # fmt: skip
engine = Engine(accelerator="cpu", devices=1, enable_progress_bar=False, logger=False)
started = time.perf_counter()
engine.fit(model=model, datamodule=data)
fitted = time.perf_counter()
engine.test(model=model, datamodule=data, verbose=False)
done = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": done - started, "fit": fitted - started, "test": done - fitted, "peak_rss_bytes": peak}))
