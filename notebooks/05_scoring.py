# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown] tags=["slide"]
# # 05 · Scoring: from a distance to a decision
#
# **Goal.** A detector hands you a heat map, a score and a table of metrics. After this notebook you can say of each of these
# numbers where it comes from, compute it by hand on a small case, and name the ways in which it is usually got wrong.
#
# **Time.** 40 minutes to teach, about half a minute to run. For two lessons cut after section 5: the first makes scores, the second
# judges them and decides.
#
# **Predict first.** Someone shrinks the ground-truth masks carelessly, and most defects vanish from them. The heat maps stay
# as they are. Does the pixel AUROC get worse, or better? Section 8 measures it.

# %% tags=["install", "remove-cell"]
import importlib.util

if importlib.util.find_spec("rcp") is None:  # Colab: install rcp there; silent where it is installed
    get_ipython().run_line_magic("pip", 'install --quiet "rcp[notebooks] @ git+https://github.com/-OWNER-/rcp"')
    print("Restart the session now (menu Runtime), then run all cells.")  # what is loaded already is of another version

# %% tags=["setup"]
# %matplotlib inline
# %config InlineBackend.figure_formats = ["jpeg"]
from itertools import pairwise

import numpy as np
import rcp  # before torch
import torch
import torch.nn.functional as F
from IPython.display import Markdown
from scipy import ndimage
from scipy.stats import beta, spearmanr

from rcp import calibration, course, metrics, plots, scoring
from rcp.course import metrics as judging
from rcp.course import scoring as lesson
from rcp.images import Geometry, read_mask
from rcp.memory import MemoryBank

# %% [markdown]
# The detector of this notebook is PatchCore: it keeps 1 % of the patch features of good images as its *memory*
# (notebook 04) and trains nothing. All that follows holds for ReConPatch as well; only its features are trained first.

# %% tags=["nbval-check-output"]
# real data: os.environ.update(RCP_DATA="/data/mvtec", RCP_CATEGORY="bottle")  (import os)
category = course.category("terminal")
extractor = rcp.PatchExtractor(rcp.FeatureSettings("efficientnet_lite0"))
train, test = extractor.extract(category.train), extractor.extract(category.test)  # values (n, H, W, C)
detector = rcp.PatchCore("efficientnet_lite0").fit(train)
print(f"{course.source(category)}: {len(train)} training images, {len(detector.memory)} rows in the memory")

# %%
result = rcp.evaluate(detector, category.test, features=test)
labels, scores = result.labels, result.scores  # (n,) 0 good, 1 defective; image scores, patch scores, maps
geometry = scores.geometry  # how files are resized and cropped
n, H, W, _ = test.values.shape
print(result)

# %% [markdown]
# At the end of the lesson you will know what each number of this line counts.

# %% [markdown] tags=["slide"]
# ## 1 · The nearest normal patch (6 min)
#
# A patch is as anomalous as it is far from its nearest row in the memory $\mathcal M$ (ReConPatch, Eq. 9):
#
# $$r^* = \arg\min_{r \in \mathcal M} \lVert f(p_t) - r \rVert, \qquad s_t = \lVert f(p_t) - r^* \rVert$$
#
# PatchCore has no $f$: its rows are the patch features themselves. Here is an "image" of 2 × 3 patches, each of two numbers,
# and a memory of four rows, the corners of a 4 × 3 rectangle. Find the six distances by eye before you run the loop.

# %% tags=["nbval-check-output"]
memory = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0], [4.0, 3.0]])  # (M, D)
patches = torch.tensor([[[0.0, 1.0], [4.0, 1.0], [3.0, 3.0]], [[0.0, 0.0], [7.0, 7.0], [1.0, 0.0]]])  # (H, W, D)

by_hand = torch.empty(2, 3)
for row in range(2):
    for column in range(3):
        by_hand[row, column] = min(((patches[row, column] - r) ** 2).sum().sqrt() for r in memory)
print(by_hand.tolist())

# %% [markdown]
# The library's memory answers many queries at once, and also tells *which* row is nearest. `score_images` takes whole images
# and returns the grid of patch scores and its maximum, the image score.

# %% tags=["nbval-check-output"]
bank = MemoryBank(memory)
distance, which = bank.nearest(patches.flatten(0, 1))  # (H·W, 1) each
image_score, grids = scoring.score_images(patches[None], bank)  # (1,), (1, H, W)
assert torch.allclose(distance.view(2, 3), by_hand) and torch.allclose(grids[0], by_hand)
print("nearest rows", which.view(2, 3).tolist(), "| image score", image_score.tolist())

# %% [markdown]
# **What this tells you.** (7, 7) is 5 away from (4, 3), by Pythagoras: 3, 4, 5. The distance is *rooted*. Some search
# libraries return squared distances, 25 here, and projects that forgot the root are in circulation; section 3 shows what that changes.
#
# Now the real thing. The memory's rows are training patches, so each answer has a home: an image, a row and a column.

# %%
distance, row = detector.memory.nearest(test.rows)  # (n·H·W, 1) each
kept = detector.coreset.indices  # (M,) which rows of the training features the memory keeps
assert torch.equal(detector.memory.rows, train.rows[kept])

home = torch.stack(torch.unravel_index(kept[row[:, 0]], train.values.shape[:3]), dim=-1)  # image, row, column
scene = lesson.Scene(category, result, detector.colour_limits(), distance.view(n, H, W), home.view(n, H, W, 3))
assert torch.allclose(scene.distance, scores.patch_scores)

# %% [markdown] tags=["sub"]
# The worst patch of four defective images and of a good one, the nearest *normal* patch to each, and the training image that
# it was seen in. A crop shows the 7 × 7 grid cells that are framed in the large pictures; the frame in its middle is the patch's
# own cell. What does the normal patch have that the other lacks, or the reverse?

# %% tags=["slide", "hide-input"]
course.keep(lesson.nearest_figure(scene), "05_scoring_nearest")

# %% [markdown]
# Click a pixel of the image or of its heat map (or drag across it): beside it appear the patch, its nearest normal patch, where
# that one comes from, and the distance. The slider walks from the most normal test image to the most anomalous one. Look for a
# place where the *picture* looks fine and the distance is large. Without a kernel the figure above is the same thing at rest.

# %% tags=["sub", "hide-input"]
lesson.nearest_explorer(scene)

# %%
place = torch.stack(torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij"), dim=-1)  # (H, W, 2)
shift = (scene.home[..., 1:] - place).abs().amax(-1)  # (n, H, W) grid cells between a patch and its answer
print(f"nearest normal patch at most 2 cells from the patch's own place: {100 * (shift <= 2).float().mean():.0f} %")
print(f"more than 5 cells away: {100 * (shift > 5).float().mean():.0f} %, out of a grid of {H} × {W}")

# %% [markdown]
# **What this tells you.** Pairs explain a score better than a heat map does: you see what the detector took for the best match.
# Position is no part of a feature; a patch may find its match anywhere. Where parts always lie alike (as the terminal does)
# many matches are close by, and on plain background they are anywhere.

# %% [markdown] tags=["slide"]
# ## 2 · Equation 10, and how little it does (4 min)
#
# A match in a sparse corner of the memory is less reassuring than one in a crowd. So the paper multiplies the distance by a
# factor that looks at the $b$ rows $N_b(r^*)$ nearest to $r^*$ (itself among them):
#
# $$s_t = \Big( 1 - \frac{\exp \lVert f(p_t) - r^* \rVert}{\sum_{r' \in N_b(r^*)} \exp \lVert f(p_t) - r' \rVert} \Big) \cdot
# \lVert f(p_t) - r^* \rVert \tag{10}$$
#
# Six rows on a line: a crowd at 0, ½ and 1, and three loners. Both queries are 1 away from their nearest row. $b = 3$.

# %% tags=["nbval-check-output"]
line = torch.tensor([[0.0], [0.5], [1.0], [100.0], [120.0], [140.0]])  # (M, 1)
queries = torch.tensor([[2.0], [101.0]])  # (Q, 1)
factors = []
for q in queries:
    star = (line - q).abs().argmin()  # r*
    crowd = (line - line[star]).abs().flatten().argsort()[:3]  # N_b(r*)
    e = torch.exp((line[crowd] - q).abs().flatten())  # exp ||q - r'||, r* first
    factors.append(1 - e[0] / e.sum())
print([f"{factor:.3f}" for factor in factors])

# %% tags=["nbval-check-output"]
bank = MemoryBank(line)
nearest, around = bank.around(queries, 3)  # (Q,) and (Q, 3)
assert torch.allclose(scoring.reweighting(nearest, around), torch.stack(factors))
print("distances to r*", nearest.tolist(), "| to its neighbourhood", around[0].tolist(), around[1].tolist())

# %% [markdown]
# **What this tells you.** In the crowd the score shrinks to 81 %, at the loner it stays. It cannot shrink much further: $r^*$ is
# the nearest of all, so each of the $b$ terms of the sum is at least $\exp \lVert f(p_t) - r^* \rVert$, and the fraction is at
# most $1/b$. With $b = 3$ the factor is at least ⅔; with our $b = 9$ at least 8/9.
#
# And there is a trap in the exponentials. float32 ends at $3.4 \cdot 10^{38}$, which is $\exp(88.7)$:

# %% tags=["nbval-check-output"]
print([f"{value:.3g}" for value in torch.exp(torch.tensor([88.0, 89.0, 100.0]))])
d, around = torch.tensor([100.0]), torch.tensor([[100.0, 101.0, 102.0]])
naive = 1 - torch.exp(d) / torch.exp(around).sum(1)
print(f"naive {naive.item():.3f} | in logarithms {scoring.reweighting(d, around).item():.3f}")

# %% [markdown]
# $\infty / \infty$ is no number. The library subtracts logarithms first: $\exp(d^* - \log \sum \exp d')$ never leaves $[0, 1/b]$.
# How large the distances are depends on the network; a squared distance is beyond 88 as soon as the distance is 9.4.
#
# On the real patches, with $b = 9$:

# %%
b = 9
nearest, around = detector.memory.around(test.rows, b)  # (n·H·W,) and (n·H·W, b)
factor = scoring.reweighting(nearest, around)
assert factor.min() >= 1 - 1 / b
print(f"largest distance {nearest.max():.1f} | factor: least {factor.min():.4f}, median {factor.median():.7f}")
print(f"rank correlation of patch scores with and without: {spearmanr(nearest, nearest * factor).statistic:.6f}")

# %%
kinds = {kind: scoring.score_images(test.values, detector.memory, reweight=kind)[0] for kind in scoring.REWEIGHTS}
for kind, values in kinds.items():
    print(f"Eq. 10 {kind:5}: image AUROC {metrics.auroc(labels, values.numpy()):.4f}")

# %% tags=["sub", "hide-input"]
figure = lesson.reweighting_figure(factor, b, kinds["off"], kinds["patch"], labels)
course.keep(figure, "05_scoring_reweighting")

# %% [markdown]
# **What this tells you.** Differences of distances stand in an exponent, and distances of real features differ by whole units:
# the sum is many times its smallest term, and the factor is nearly 1. Eq. 10 can swap images of nearly equal score, and
# that is all. (Start Jupyter with `RCP_CATEGORY=granulate`, a texture: does the AUROC move there?) So PatchCore here has it `"off"`, ReConPatch has it on each `"patch"`, as
# its paper writes; `"image"` is PatchCore's paper: the worst patch only.

# %% [markdown] tags=["slide"]
# ## 3 · From a grid to a map (5 min)
#
# The grid is coarse. For a map it is brought to the size of the image by linear interpolation, and smoothed. Both act on rows
# and on columns alone, so each side needs one small matrix:
#
# $$\text{map} = A_h \cdot \text{grid} \cdot A_w^\top$$
#
# A pixel's centre is translated into units of the grid; it gets a share of the two scores beside it.

# %% tags=["nbval-check-output"]
def side(cells, pixels):
    A = torch.zeros(pixels, cells)
    for pixel in range(pixels):
        where = (pixel + 0.5) / pixels * cells - 0.5  # 0 is the centre of the first cell
        where = min(max(where, 0.0), cells - 1.0)  # beyond the last centre its score stands
        low = min(int(where), cells - 2)
        A[pixel, low], A[pixel, low + 1] = 1 - (where - low), where - low
    return A


print(*side(3, 6).tolist(), sep="\n")

# %% tags=["nbval-check-output"]
grid = by_hand  # (2, 3): the toy of section 1
map_by_hand = side(2, 4) @ grid @ side(3, 6).T  # (4, 6)
assert torch.allclose(map_by_hand, scoring.pixel_maps(grid[None], (4, 6), sigma=0)[0])
assert torch.allclose(map_by_hand, F.interpolate(grid[None, None], (4, 6), mode="bilinear")[0, 0])
print(*[[round(value, 2) for value in values] for values in map_by_hand.tolist()], sep="\n")

# %% [markdown]
# Smoothing with a Gaussian of width sigma is linear as well: it blurs the columns of the two matrices, once, instead of every
# map. The library does so, and gets what blurring the map would give:

# %%
size = geometry.output_size(*scores.sizes[0])  # (h, w) of the crop in pixels
sharp = scoring.pixel_maps(scene.distance[:1], size, sigma=0)[0]
blurred = torch.from_numpy(ndimage.gaussian_filter(sharp.numpy(), 4, mode="reflect", truncate=4))
assert torch.allclose(blurred, scoring.pixel_maps(scene.distance[:1], size, sigma=4)[0], rtol=1e-4)

# %% [markdown]
# PatchCore's published code has sigma 4 at 224 pixels; ReConPatch's paper does not state one. What would another one give? To look
# at it, the masks of the test images are needed. Looking is fine; *choosing* a sigma by it would be training on the test set.

# %%
true = [
    read_mask(category.test[i].mask, shape) if category.test[i].mask else np.zeros(shape, bool)
    for i, shape in zip(scores.indices, scores.sizes)
]  # n × (height, width) of the files
masks = np.stack([geometry.apply_mask(mask) for mask in true])  # (n, h, w), as the network saw the images
curve = {}
for sigma in (0, 1, 2, 4, 6, 8, 12):
    curve[sigma] = metrics.pixel_metrics(masks, scoring.pixel_maps(scene.distance, size, float(sigma)).numpy())
assert np.isclose(curve[4]["aupro"], result.metrics["aupro"])

# %% tags=["slide", "hide-input"]
typical = plots.typical(result)[1]  # of the first kind of defect, the image with the median score
course.keep(lesson.smoothing_figure(scene, typical, curve), "05_scoring_smoothing")

# %% [markdown]
# Move sigma from 0 to 12 and watch the map and the dashed line; the other slider changes the image. At which sigma does a thin
# defect drown? Without a kernel the figure above shows three of the thirteen settings.

# %% tags=["sub", "hide-input"]
lesson.smoothing_explorer(scene, curve)

# %% [markdown]
# **What this tells you.** Smoothing removes the noise between neighbouring patches, then it removes the defect. In the committed
# run sigma 2 to 8 is worth half a hundredth of AUPRO: two methods that differ by less, at different sigmas, do not differ.
#
# ### What a forgotten root changes
# The largest of the squares is the square of the largest, so the order of the *images* stays. But interpolation and smoothing
# take means, and the mean of squares is not the square of the mean: the *maps* change.

# %%
for name, squared in (("L2", False), ("squared L2", True)):
    image_score, grids = scoring.score_images(test.values, detector.memory, squared=squared)
    maps = scoring.pixel_maps(grids, size)
    found = metrics.pixel_metrics(masks, maps.numpy())
    print(f"{name:10} image AUROC {metrics.auroc(labels, image_score.numpy()):.4f}", end=" | ")
    print(f"pixel AUROC {found['pixel_auroc']:.4f} | AUPRO {found['aupro']:.4f}")

# %% tags=["hide-input"]
rooted = scores.maps[typical]  # `maps` are the squared ones: the loop above ended with them
course.keep(judging.squared_figure(rooted, maps[typical], scene.defect(typical)), "05_scoring_squared")

# %% [markdown]
# **What this tells you.** The squared map looks "cleaner", because squaring spreads high values and crowds low ones together.
# That is cosmetics: the image AUROC cannot tell the two apart, and the pixel metrics hardly can. What a forgotten root does break
# is all that counts in units: a limit, a colour scale, Eq. 10, a comparison with somebody else's scores.

# %% [markdown] tags=["slide"]
# ## 4 · One number for an image (3 min)
#
# Both papers take the maximum: $\max_t s_t$ over the patches, before any smoothing. One defective patch is enough to reject a
# part, so that is reasonable; but one noisy patch is enough, too. The alternatives, on the same patch scores:

# %%
def rules(scores):
    patches, maps = scores.patch_scores, scores.maps  # (n, H, W), (n, h, w)
    return {
        "max of the patches": scoring.image_scores(patches),
        "max of the smoothed map": maps.flatten(1).amax(1),
        "mean of the top 1 %": lesson.mean_of_top(patches),  # you write it in exercise 5.1
        "99 % quantile": patches.flatten(1).quantile(0.99, dim=1),
        "mean of all": patches.flatten(1).mean(1),
    }

# %% [markdown]
# One category is one draw. A second source of luck is the seed, which decides where the coreset starts. Three seeds:

# %%
areas = {}
for seed in (0, 1, 2):
    other = rcp.PatchCore("efficientnet_lite0", seed=seed, bank=rcp.BankSettings(folds=0)).fit(train)
    for name, values in rules(other.score(test)).items():
        areas.setdefault(name, []).append(metrics.auroc(labels, values.numpy()))
for name, values in areas.items():
    print(f"{name:24} image AUROC {np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}")

# %% tags=["slide", "hide-input"]
course.keep(judging.rules_figure(areas), "05_scoring_rules")

# %% [markdown]
# **What this tells you.** In the committed run the mean over all patches is the worst: a small defect is a few patches of hundreds.
# The others lie closer together, and the seed moves them about as much as the rule does. The maximum of the *smoothed* map is
# ahead of the papers' rule at each of the three seeds. Start Jupyter with `RCP_CATEGORY=granulate`, a texture: is it the same
# there? We keep the papers' rule. To change it because of this figure would be to choose on test labels.

# %% [markdown] tags=["exercise"]
# ### Exercise 5.1 · The mean of the top 1 %
# Write the rule: for patch scores (n, H, W) return (n,), each image's mean over its largest 1 % of patches. Their number is
# 0.01 · H · W, rounded, and at least 1.

# %% tags=["exercise"]
def top_share(grids):
    return ...  # your turn

# %% tags=["solution"]
def top_share(grids):
    k = max(1, round(0.01 * grids.shape[1] * grids.shape[2]))
    return grids.flatten(1).topk(k).values.mean(1)

# %% tags=["check"]
lesson.check_1(top_share)

# %% [markdown] tags=["slide"]
# ## 5 · One colour scale, or an illusion (3 min)
#
# A colour scale has to be set by something. By the image itself? Then *every* image has a glowing spot, its own maximum. By the
# test images? Then what you see depends on the company. Here it is set once, by good images. But not by scoring them against a
# memory that holds their own patches: they would look too normal. So the training images are dealt into folds, and each fold is
# scored against a memory built without it (`rcp.calibration`).

# %% tags=["nbval-check-output"]
print(calibration.fold_of(10, 5, torch.Generator().manual_seed(0)).tolist(), "the fold of each of ten images")

# %%
own = detector.score(train).image_scores  # the memory holds some of their own patches
held = detector.calibration.image_scores  # each scored by a memory that has none of them
print(f"median image score of the training images: own memory {own.median():.1f}, held out {held.median():.1f}")
print(f"of the good test images, which no memory has seen: {scores.image_scores[labels == 0].median():.1f}")

# %% [markdown]
# **What this tells you.** Neither is quite what new images score. The own memory errs low: it was picked to cover just these
# patches, so limits would be too low, and there would be more false alarms than promised. Held out errs high, in the committed
# run by more: each fold's memory was made from fewer images than the full one. We take the error that does not break the promise
# on false alarms; section 9 makes that promise.
#
# The scale starts at the median of the held-out patch scores and goes as far above their 99.9 % quantile as that lies above the
# median. So the lower half of the colours is what normal patches score:

# %%
quantiles = detector.calibration.patch_quantiles  # (1001,): the 0, 0.1, … 100 % quantiles
low, normal = quantiles[500], quantiles[999]
high = low + 2 * (normal - low)
assert np.allclose((low, high), detector.colour_limits())
print(f"from {low:.1f} (median) over {normal:.1f} (99.9 %) to {high:.1f}")

# %% tags=["slide", "hide-input"]
course.keep(lesson.illusion_figure(scene), "05_scoring_illusion")

# %% [markdown]
# **What this tells you.** The middle row makes three good parts look broken: heat everywhere. The maps are the same as in the
# bottom row. Before you trust a heat map in a paper, look for its colour bar; if there is none, you may be looking at the middle row.
#
# That ends the first half. Each image now has a score and a map; next: how good are they?

# %% [markdown] tags=["notes"]
# *For the lecturer: a place to cut.* The second lesson needs nothing from the first but the words score, map and held out.

# %% [markdown] tags=["slide"]
# ## 6 · AUROC by sorting (5 min)
#
# Flag everything that scores at least a limit. The **true positive rate** (TPR) is the flagged share of the defective images,
# the **false positive rate** (FPR) that of the good ones. Let the limit sink from the top: the point (FPR, TPR) walks from (0, 0)
# to (1, 1). The area under its path is the AUROC. With four images of each kind:

# %% tags=["nbval-check-output"]
few_scores, few_labels = [9, 8, 7, 6, 5, 4, 3, 2], [1, 1, 0, 1, 0, 1, 0, 0]
steps, area = [(0.0, 0.0)], 0.0
for _, label in sorted(zip(few_scores, few_labels), reverse=True):
    fpr, tpr = steps[-1]
    if label:
        tpr += 1 / 4  # a defect found: one step up
    else:
        fpr, area = fpr + 1 / 4, area + tpr / 4  # a false alarm: one step right, and a column below it
    steps.append((fpr, tpr))
print(area, steps[:5])

# %% [markdown]
# A second way to the same number: the share of all pairs (a defective image, a good one) in which the defective one scores higher.
# Each column below the staircase counts the defects above one good image.

# %% tags=["nbval-check-output"]
bad = [s for s, label in zip(few_scores, few_labels) if label]
good = [s for s, label in zip(few_scores, few_labels) if not label]
pairs = sum((b > g) + 0.5 * (b == g) for b in bad for g in good)  # a tie counts half
print(f"{pairs} of {len(bad) * len(good)} pairs in order: {pairs / 16}")
assert area == pairs / 16 == metrics.auroc(few_labels, few_scores)

# %% tags=["slide", "hide-input"]
course.keep(judging.staircase_figure(few_labels, few_scores, steps), "05_scoring_staircase")

# %% [markdown]
# **What this tells you.** AUROC knows no limit and no unit: only the order counts. Any rising function of the scores (a root, a
# logarithm, a sigmoid) leaves it as it is, as long as no two scores become equal. With ties the staircase goes diagonally, and half a
# pair is counted; a detector that gives every image the same score gets ½, not 0 and not 1.
#
# On the test images, with the limit that section 9 will derive:

# %% tags=["slide", "hide-input"]
image_scores = scores.image_scores.numpy()
limit = detector.threshold(0.05)
course.keep(judging.roc_figure(labels, image_scores, limit.value, scores.unit), "05_scoring_roc")

# %% [markdown]
# Move the limit with the slider, or click into the histogram. Find the limit that catches all defects; what does it cost? Without
# a kernel the figure above shows one setting.

# %% tags=["sub", "hide-input"]
judging.roc_explorer(labels, image_scores, limit.value, scores.unit)

# %% [markdown]
# Names must say what was counted. *Image* AUROC: a sample is an image. *Pixel* AUROC: a sample is a pixel of any test image,
# good images included. The two are different quantities, and the second is nearly always close to 1: most pixels are easy.
# Two more stand in the line of results. *AP*: lower the limit until a defect is just found, take the precision there (the share of
# defects among what is flagged), and average it over the defects. *F1-max*: the best F1 of all limits; more on it in section 9.

# %% [markdown] tags=["exercise"]
# ### Exercise 5.2 · Six scores and a tie
# Defective images score 6, 4 and 3; good images score 5, 4 and 2. What is the AUROC? By hand first; a number between 0 and 1.

# %% tags=["exercise"]
shared_5_2 = ...  # your answer: a number

# %% tags=["solution"]
pairs = [(bad > good) + 0.5 * (bad == good) for bad in (6, 4, 3) for good in (5, 4, 2)]
shared_5_2 = sum(pairs) / len(pairs)  # (6 above 3) + (4: half a tie and one) + (3: one), of 9

# %% tags=["check"]
judging.check_2(shared_5_2)

# %% [markdown] tags=["slide"]
# ## 7 · AUPRO by regions (5 min)
#
# Pixel AUROC weighs defects by their area. A map of 16 × 24 pixels with a large defect (64 pixels) and a tiny one (4). The large
# one is found; the tiny one scores like the background:

# %%
mask = np.zeros((16, 24), bool)
mask[2:10, 2:10] = mask[11:13, 18:20] = True
r, c = np.indices(mask.shape)
missed = (7 * r + 11 * c) % 23 / 23  # background: 0 to 0.96
missed[2:10, 2:10] = 0.7 + 0.04 * (r + c)[2:10, 2:10]  # large: 0.86 to 1.42
seen = missed.copy()
seen[11:13, 18:20] = 1.2  # the same, but the tiny defect is found as well

# %% [markdown]
# *Per-region overlap* (PRO) is the mean over the regions of each region's flagged share: every region has one vote. A region is a
# set of connected pixels, corners included. Its area under the curve is taken up to FPR 0.3, and divided by 0.3:

# %%
def pro_by_hand(mask, heat):
    regions, count = ndimage.label(mask, np.ones((3, 3)))
    points = [(0.0, 0.0)]
    for limit in np.unique(heat)[::-1]:  # every distinct score, from the top
        flagged = heat >= limit
        shares = [flagged[regions == region].mean() for region in range(1, count + 1)]
        points.append((flagged[~mask].mean(), np.mean(shares)))
    return np.array(points)  # (T, 2): FPR, PRO

# %%
def area_by_hand(points, limit=0.3):
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x1 > limit and x0 < limit:  # the step that crosses the limit is cut there
            x1, y1 = limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        if x1 <= limit:
            area += (x1 - x0) * (y0 + y1) / 2
    return area / limit

# %% tags=["nbval-check-output"]
for name, heat in (("tiny defect missed", missed), ("tiny defect seen", seen)):
    assert np.isclose(area_by_hand(pro_by_hand(mask, heat)), metrics.aupro([mask], [heat]))
    found = metrics.pixel_metrics([mask], [heat])
    print(f"{name:18}: pixel AUROC {found['pixel_auroc']:.3f}, AUPRO {found['aupro']:.3f}")

# %% tags=["slide", "hide-input"]
points = pro_by_hand(mask, missed)
course.keep(judging.regions_figure(mask, missed, points, limit=0.8), "05_scoring_regions")

# %% [markdown]
# **What this tells you.** Missing the tiny defect costs pixel AUROC next to nothing, as it has 4 of 68 anomalous pixels. AUPRO falls
# by more than a third: one of two regions was missed. (Not by half: up to FPR 0.3 some background, and with it a part of the
# missed region, is flagged.) Lower the limit and see when the second region (cyan outline, lower right) gets its green squares,
# and what else does. Without a kernel the figure shows one limit.

# %% tags=["sub", "hide-input"]
judging.regions_explorer(mask, missed, points)

# %% [markdown]
# ### A trap: 200 limits
# Many programs do not walk through every distinct score but through 200 (or 50) limits, evenly spaced from the lowest score to the
# highest. Here are the curve by such limits, for all test maps, and the exact AUPRO. Then *one* pixel of a good image gets an
# absurd score, as a hot pixel of a camera may do.

# %%
def pro_curve(masks, maps, limits):
    normal = np.sort(maps[~masks])
    shares = []
    for mask, heat in zip(masks, maps):
        regions, count = ndimage.label(mask, np.ones((3, 3)))
        for region in range(1, count + 1):
            own = np.sort(heat[regions == region])
            shares.append(1 - np.searchsorted(own, limits) / len(own))  # the share that scores >= limit
    fpr = 1 - np.searchsorted(normal, limits) / len(normal)
    return np.stack([fpr, np.mean(shares, axis=0)], axis=1)  # (T, 2)


every = np.r_[np.inf, np.unique(missed)[::-1]]
assert np.allclose(pro_curve(mask[None], missed[None], every), points)  # the same as the slow loop

# %%
maps = scores.maps.numpy()
hot = maps.copy()
hot[int(np.argmin(labels)), 0, 0] = 20 * maps.max()  # one normal pixel
curves, found = {}, {}
for name, values in (("200 limits", maps), ("200 limits, one outlier", hot)):
    curves[name] = pro_curve(masks, values, np.linspace(values.max(), values.min(), 200))
    found[name] = area_by_hand(np.vstack([[0, 0], curves[name]]))
    print(f"{name:24} {found[name]:.4f} | exact {metrics.aupro(masks, values):.4f}")

# %% tags=["sub", "hide-input"]
fine = np.quantile(maps[masks], np.linspace(1, 0, 500))
curves = {"exact": pro_curve(masks, maps, fine)} | curves
course.keep(judging.coarse_figure(curves, {"exact": metrics.aupro(masks, maps)} | found), "05_scoring_outlier")

# %% [markdown]
# **What this tells you.** One pixel among all those of the test maps stretches the range, the evenly spaced limits jump over the part where everything
# happens, and the straight line between two points cuts the curve's corner. The exact value moves by no more than one pixel can
# be worth. Sorting all pixels once is cheap, so there is no reason to approximate.

# %% [markdown] tags=["slide"]
# ## 8 · The mask-resizing trap (4 min)
#
# Masks are black and white; resizing makes grey. What is a grey pixel? A 2 × 2 defect in a mask of 8 × 12 that is to shrink by 2
# has an area of 4 pixels, and should have 1 afterwards:

# %%
def shrink(mask, size):
    grey = F.interpolate(torch.from_numpy(mask)[None, None].float(), size, mode="bilinear", antialias=True)
    nearest = Geometry(size, None).apply_mask(mask)
    grey = grey[0, 0].numpy()
    return {"nearest": nearest, "bilinear, as int": grey.astype(int) > 0, "bilinear, > 0": grey > 0}, grey

# %% tags=["nbval-check-output"]
small = np.zeros((8, 12), bool)
small[3:5, 5:7] = True
ways, grey = shrink(small, (4, 6))
print(grey)
print({name: int(values.sum()) for name, values in ways.items()})

# %% [markdown]
# The defect lies across four new pixels and covers a quarter of each. Cast to integers ("0.25 is 0") it is erased; with "> 0" it
# is four times too large. Nearest neighbour takes one old pixel for each new one: right on average, and wrong by chance.
#
# Now every mask of the test set to a quarter of its side, as 1024 pixels become 256 in MVTec AD:

# %%
def cropped(mask):
    top, left, bottom, right = (round(edge) for edge in geometry.crop_box(*mask.shape))
    return mask[top:bottom, left:right]


full = [cropped(mask) for mask in true]
quarter = [(mask.shape[0] // 4, mask.shape[1] // 4) for mask in full]
shrunk = [shrink(mask, size)[0] for mask, size in zip(full, quarter)]
ways = {name: [each[name] for each in shrunk] for name in shrunk[0]}
due = np.array([mask.sum() / 16 for mask in full])  # pixels that the shrunk masks should have

# %% tags=["slide", "hide-input"]
least = [int(i) for i in np.argsort(due, kind="stable") if labels[i]][:3]  # the three smallest defects
shown = {"true mask": [full[i] for i in least]} | {name: [values[i] for i in least] for name, values in ways.items()}
course.keep(judging.masks_figure(shown, due[least]), "05_scoring_masks")

# %% [markdown]
# And what does it do to the metrics? The maps are the same patch scores each time, brought to the small size.

# %%
sigma = 4 * quarter[0][0] / size[0]  # 4 pixels at the crop's size
small_maps = [scoring.pixel_maps(g[None], q, sigma)[0].numpy() for g, q in zip(scene.distance, quarter)]
lines = ["| masks | area, of what is due | defects gone | pixel AUROC | AUPRO |", "|---|---|---|---|---|"]
for name, values in ways.items():
    area = np.array([mask.sum() for mask in values])
    found = metrics.pixel_metrics(values, small_maps)
    lines.append(f"| quarter size, {name} | {100 * area.sum() / due.sum():.0f} % | {int(((area == 0) & (due > 0)).sum())} of "
                 f"{int((due > 0).sum())} | {found['pixel_auroc']:.4f} | {found['aupro']:.4f} |")  # fmt: skip

# %% [markdown]
# The last two lines come from `rcp.evaluate`: protocol `crop` judges what the network saw, with the papers' resize (nearest);
# protocol `original` leaves every mask as it is, and brings the *map* to the mask.

# %% tags=["sub", "hide-input"]
original = rcp.evaluate(detector, category.test, features=test, protocol="original")
for name, each in (("protocol crop", result), ("protocol original", original)):
    lines.append(f"| {name} | | | {each.metrics['pixel_auroc']:.4f} | {each.metrics['aupro']:.4f} |")
Markdown("\n".join(lines) + f"\n\n{course.source(category)}; protocol original: {100 * original.unseen_share:.0f} % of the pixels "
         "lie outside the crop that the network saw, and count.")  # fmt: skip

# %% [markdown]
# **What this tells you.** The question of the title cell: erasing defects makes the numbers *better*. In the committed run the cast
# to integers erases most defects, and the pixel AUROC is close to 1. A defect that is gone from the mask cannot be missed; what
# remains is the core of the large, easy ones. An error that flatters is not found by looking at the result. So a table of pixel
# metrics has to name its protocol, and the safest one leaves the masks alone.

# %% [markdown] tags=["exercise"]
# ### Exercise 5.3 · How safe is nearest?
# A defect of 3 × 3 pixels; the mask is brought to a quarter of its side, and nearest neighbour takes every fourth row and every
# fourth column. There are 16 ways for the defect to lie relative to these samples. In which *share* of them does it vanish?

# %% tags=["exercise"]
shared_5_3 = ...  # your answer: a number between 0 and 1

# %% tags=["solution"]
gone = 0
for row in range(4):
    for column in range(4):
        mask = np.zeros((32, 32), bool)
        mask[8 + row : 11 + row, 8 + column : 11 + column] = True
        gone += not Geometry(resize=8, crop=None).apply_mask(mask).any()
shared_5_3 = gone / 16  # 1 - (3/4)²: both its rows and its columns must meet a sample

# %% tags=["check"]
judging.check_3(shared_5_3)

# %% [markdown] tags=["slide"]
# ## 9 · Where to draw the line (5 min)
#
# A limit is needed in the end. Test labels must not set it, and at a real production line there are none. What we have are the
# $n$ scores of held-out good images. Sort them. A new good image is equally likely to fall into each of the $n + 1$ gaps before,
# between and behind them (if it is like the others). Take the $k$-th smallest as the limit: of the $n+1$ gaps, $n + 1 - k$
# lie above it. That share should be at most the false-alarm rate $\varepsilon$ that you allow:
#
# $$k = \lceil (n + 1)(1 - \varepsilon) \rceil$$

# %% tags=["nbval-check-output"]
ten = torch.tensor([3.1, 2.4, 2.9, 2.2, 2.7, 2.5, 3.6, 2.6, 2.3, 2.8])  # ten held-out scores
ordered = ten.sort().values
k = int(np.ceil(11 * (1 - 0.2)))  # at most 20 % false alarms
print(f"rank {k} of 10: limit {ordered[k - 1]:.1f}; {11 - k} of 11 gaps lie above it, {(11 - k) / 11:.0%}")
assert scoring.threshold(ten, 0.2).value == ordered[k - 1]

# %%
k = int(np.ceil((len(held) + 1) * (1 - 0.05)))
limit = detector.threshold(0.05)
assert limit.value == held.sort().values[k - 1]
low, high = limit.interval  # 95 %
assert np.allclose((low, high), beta.ppf([0.025, 0.975], len(held) + 1 - k, k))
print(f"rank {k} of {len(held)}: limit {limit.value:.2f}, with 95 % confidence {100 * low:.1f} to {100 * high:.1f} % false alarms")

# %% [markdown]
# **What this tells you.** "At most 5 %" is what one may *expect*, averaged over all calibration sets that could have been drawn. You
# have one. The rate that this very limit has follows a Beta distribution, $\mathrm{Beta}(n + 1 - k, k)$, whatever the scores'
# own distribution is, as long as it is continuous; the interval above holds 95 % of it.
#
# Do not believe it: simulate. Draw a calibration set from a known distribution, set the limit, compute the true rate; 3,000 times.

# %% tags=["slide", "hide-input"]
course.keep(judging.rates_figure([20, len(held), 500]), "05_scoring_rates")

# %% [markdown]
# Move n. How many good images does it take until the interval (dashed lines) ends below 7 %? Without a kernel the figure above
# shows three numbers of images.

# %% tags=["sub", "hide-input"]
judging.rates_explorer()

# %% [markdown]
# Too small a rate cannot be promised at all, and the library says so instead of returning the maximum. So with fewer than 19
# training images this notebook stops where it first asks for 5 % (in section 6):

# %% tags=["nbval-check-output"]
try:
    scoring.threshold(ten, 0.05)
except ValueError as error:
    print(error)

# %% [markdown]
# The verdict on the test images. A share out of few images has an interval, too (Clopper & Pearson, 1934). The dotted line
# is the limit with the best F1 *on these test labels*: an **oracle**. It is shown to compare, never to decide.

# %%
v = result.verdict
found = v.false_alarms, v.normals
low = beta.ppf(0.025, found[0], found[1] - found[0] + 1) if found[0] else 0.0
high = beta.ppf(0.975, found[0] + 1, found[1] - found[0]) if found[0] < found[1] else 1.0
f1, oracle = metrics.f1_threshold(labels, image_scores)
print(f"limit  {limit.value:.2f}: {v.detected} of {v.anomalies} defects found, {v.false_alarms} of {v.normals} false alarms", end="")
print(f" (95 % interval of that rate: {100 * low:.0f} to {100 * high:.0f} %)")
print(f"oracle {oracle:.2f}: F1 {f1:.3f}, the best on these labels")

# %% tags=["slide", "hide-input"]
figure = judging.limits_figure(labels, image_scores, held.numpy(), limit, oracle, scores.unit)
course.keep(figure, "05_scoring_limits")

# %% [markdown]
# **What this tells you.** The oracle knows where the defects lie, and settles between the two heaps of these very images. The honest
# limit knows nothing of defects. In the committed run it errs to the safe side: each held-out image was scored by a memory of four fifths of the
# images, so it looks a bit more anomalous than a new good image looks to the full memory (section 5 printed both medians).

# %% [markdown] tags=["exercise"]
# ### Exercise 5.4 · The rank
# 209 held-out good images, at most 2 % false alarms. Which of their sorted scores is the limit? Give its rank, counted from the
# smallest (1) to the largest (209).

# %% tags=["exercise"]
shared_5_4 = ...  # your answer: a whole number

# %% tags=["solution"]
shared_5_4 = int(np.ceil((209 + 1) * (1 - 0.02)))

# %% tags=["check"]
judging.check_4(shared_5_4)

# %% [markdown]
# ## Where we differ from the papers
#
# * Eq. 10 is computed in logarithms. Its $b$ is not stated in ReConPatch's paper; ours is 9, as in re-implementations of PatchCore.
# * PatchCore here is the variant without Eq. 10 (`variant="concat"`); `"paper"` has it on the image score, and `"amazon"`, named after
#   the published code, has squared distances.
# * Sigma 4 is PatchCore's; ReConPatch's paper states none. It counts in pixels of the map that is judged.
# * The papers judge the crop of 224 pixels; so does protocol `crop`. `original` leaves the masks as they are. Our AUPRO uses every
#   distinct score.
# * The papers report no decision limit. Ours comes from held-out normal images, with an interval.
#
# ## What to read next
#
# Notebook 06, *ensemble*: why the raw scores of two detectors cannot be averaged, and how the median of held-out normal scores makes
# them comparable.

# %% [markdown] tags=["notes"]
# *For the lecturer.* Section 1: let the class click, and ask for a large distance that they cannot explain by looking; often it is a
# rare but good patch (an edge, a reflex), and that is how false alarms come about. Section 4: ask who would switch to the best rule,
# and what that would cost. Section 6: have two students walk the staircase at the board, one calling "up", one "right". Section 9:
# ask what happens if the calibration images come from another shift, with other light: the promise holds only for images like those.
#
# What usually confuses: that FPR has another denominator in image AUROC (good images) than in AUPRO (normal pixels of all images);
# that AUROC needs no limit while the production line needs one; and that "95 %" and "5 %" in section 9 have nothing to do with each other.
