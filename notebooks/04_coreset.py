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
# # 04 · Coreset: which patches to keep
#
# **Goal.** A training set gives tens of thousands of normal patches; the memory keeps one in a hundred. You will pick
# them by hand on six points, see why picking *the farthest one, again and again* works, and measure what it does for
# detection against two other ways of choosing.
#
# **Time.** 33 minutes to teach, about half a minute to run.
#
# **Predict first.** Three ways to choose 500 rows out of 50,000: at random; greedily, always the row that is worst
# covered so far; or the centres of k-means. Which one leaves the smallest *mean* distance to the nearest kept row?
# Which one gives the best detector? Write down both names. Section 4 answers the first, section 6 the second.

# %% tags=["install", "remove-cell"]
import importlib.util

if importlib.util.find_spec("rcp") is None:  # Colab: install rcp there; silent where it is installed
    get_ipython().run_line_magic("pip", 'install --quiet "rcp[notebooks] @ git+https://github.com/-OWNER-/rcp"')
    print("Restart the session now (menu Runtime), then run all cells.")  # what is loaded already is of another version

# %% tags=["setup"]
# %matplotlib inline
# %config InlineBackend.figure_formats = ["jpeg"]
import time

import numpy as np
import rcp  # before torch: it asks waiting threads to sleep, which keeps a busy laptop responsive
import torch
from IPython.display import Markdown
from rcp import coreset, course, metrics
from rcp.course import coreset as lesson
from rcp.course import coreset_patches as real
from rcp.memory import MemoryBank, nearest_neighbours
from rcp.partitioned import partitioned_coreset
from rcp.scoring import score_images

# %% [markdown] tags=["slide"]
# ## 1 · Six points on a line, by eye (4 min)
#
# We may keep a few of these six points. Every point should have a kept one **near**:
#
# position: 0, 1, 2, 6, 7, 10
#
# Start with the point at 0. The farthest point is 10: keep it. Now write above each point the distance to its
# *nearest* kept point: 0, 1, 2, 4, 3, 0. The largest is 4, at position 6: keep that. Again: 0, 1, 2, 0, 1, 0. The
# largest is 2, at position 2. And so on. That is the whole algorithm, called *greedy k-center* or *farthest-first*.

# %% tags=["nbval-check-output"]
line = torch.tensor([[0.0], [1.0], [2.0], [6.0], [7.0], [10.0]])  # (6, 1)
by_eye = [0, 5, 3, 2]  # the points at 0, 10, 6 and 2

on_line = coreset.greedy_coreset(line, size=6, projection=None, start=0)
assert on_line.indices[:4].tolist() == by_eye
print("picked positions", line[on_line.indices, 0].tolist())
print("covering radius ", on_line.radii.tolist())

# %% tags=["slide", "hide-input"]
course.keep(lesson.line_figure(line, on_line), "04_coreset_line")

# %% [markdown]
# **What this tells you.** After each step the largest of the six numbers is the **covering radius**: no point is
# farther than that from its nearest pick (the blue bands). And each radius is the distance at which the *next* pick
# is made: the second pick lies 10 away, the third 4, the fourth 2. Radii never grow, since a further pick can only
# bring points nearer.
#
# After four picks the points at 1 and 7 are tied; the lower index goes first. With all six points picked the radius is 0.

# %% [markdown] tags=["exercise"]
# ### Exercise 4.1 · One step
#
# Write the function that makes one greedy step. It gets the points, (N, D), and the list of rows picked so far, and
# returns the row to pick next: the one whose distance to its nearest pick is largest. `torch.cdist(a, b)` gives the
# distances of all rows of a to all rows of b.

# %% tags=["exercise"]
def next_pick(points, picks):
    return ...  # your turn: a whole number


# %% tags=["solution"]
def next_pick(points, picks):
    near = torch.cdist(points, points[picks]).amin(1)  # (N,): distance to the nearest pick
    return int(near.argmax())


# %% tags=["check"]
lesson.check_1(next_pick)

# %% [markdown] tags=["exercise"]
# ### Exercise 4.2 · All steps
#
# Now the loop around it: `size` picks in all, as a list, beginning with `start`. (Public re-implementations got one
# detail of this wrong.)

# %% tags=["exercise"]
def farthest_first(points, start, size):
    return ...  # your turn: a list of `size` rows


# %% tags=["solution"]
def farthest_first(points, start, size):
    picks = [start]
    while len(picks) < size:
        picks.append(next_pick(points, picks))
    return picks


# %% tags=["check"]
lesson.check_2(farthest_first)

# %% [markdown] tags=["slide"]
# ## 2 · Picked one by one (5 min)
#
# What is being minimised? With $\mathcal M$ all rows and $\mathcal C$ the kept ones, the *k-center* problem asks for
# the subset of a given size with the smallest covering radius (PatchCore, section 3.2):
#
# $$\mathcal C^* = \arg\min_{\mathcal C \subset \mathcal M}\; \max_{m \in \mathcal M}\; \min_{c \in \mathcal C}\; \lVert m - c \rVert$$
#
# Finding the best subset is NP-hard. The greedy loop (PatchCore, algorithm 1) is two lines a pick. It need not
# compare with all picks again: the distance to the nearest pick can only change by the *newest* one.

# %%
def plain_loop(points, start, size):
    near = torch.full((len(points),), torch.inf, dtype=points.dtype)  # (N,): distance to the nearest pick so far
    picks, radii = [start], []
    while True:
        near = torch.minimum(near, (points - points[picks[-1]]).square().sum(1).sqrt())
        radii.append(float(near.max()))
        if len(picks) == size:
            return picks, radii
        picks.append(int(near.argmax()))


# %% [markdown]
# The toy of this notebook: 60 points, of which 34 form a dense cluster, 20 a sparse one, and 6 stand apart. Think of
# the dense cluster as plain background, of which every image is full, and of the 6 as normal but rare: a screw seen
# from the side.

# %% tags=["nbval-check-output"]
toy = lesson.toy()  # (60, 2)
by_loop, radii = plain_loop(toy, start=0, size=lesson.MOST)

picked = coreset.greedy_coreset(toy, size=lesson.MOST, projection=None, start=0)
assert picked.indices.tolist() == by_loop
assert np.allclose(picked.radii, radii)
print("first picks", by_loop[:6], "| radii", [f"{r:.2f}" for r in radii[:6]])

# %% [markdown]
# Squares are picks, the star is the newest one. The ring is the point that is worst covered, with a dashed line to its
# nearest pick: it comes next. All discs have the covering radius.

# %% tags=["slide", "hide-input"]
course.keep(lesson.steps_figure(toy, picked), "04_coreset_steps")

# %% [markdown]
# **What this tells you.** The first picks are the points that stand apart: they are far from everything. Of the dense
# cluster, more than half of all points, one pick is enough for a long time. Greedy asks *where* points are, not *how
# many* there are.
#
# Now play it: press play or move the slider, and watch which point is ringed. **Click a point** to start there, and
# ask whether the picture after 12 picks depends on it. (A click on the curve goes to that number of picks. Without a
# running kernel, the figure above shows the same at rest.)

# %% tags=["sub", "hide-input"]
lesson.steps_explorer(toy)

# %% [markdown]
# How much does the start matter? We try all 60.

# %% tags=["nbval-check-output"]
after = {m: [] for m in (1, 3, 6, 12)}
for start in range(len(toy)):
    found = coreset.greedy_coreset(toy, size=12, projection=None, start=start)
    for m, radii_of_m in after.items():
        radii_of_m.append(float(found.radii[m - 1]))
for m, r in after.items():
    print(f"{m:2} picks: radius {min(r):.2f} to {max(r):.2f} over all starts")

# %% [markdown]
# **What this tells you.** The start matters: with one pick the worst start has nearly twice the radius of the best,
# and after twelve it is still more than half as large again. More than twice it can never be, whatever the number of
# picks: section 3 says why. On real patches, with hundreds of picks, little of it is left: section 6 prints the
# range over three random starts. So a random start is good enough.

# %% [markdown] tags=["slide"]
# ## 3 · How good can it be? Never worse than twice the best (4 min)
#
# Greedy never takes a pick back. Still, its radius $r$ is at most **twice** the best possible one $R$. The proof
# is the pigeonhole principle.
#
# 1. After $M$ picks, the worst covered point lies $r$ away from all of them. Each pick, when it was made, was at
#    least $r$ away from those before it, because radii only fall. So these $M+1$ points are pairwise at least $r$
#    apart.
# 2. Now take *any* $M$ centres, the best ones, wherever they may lie. Each of the $M+1$ points goes to its nearest
#    centre. There are more points than centres, so two points $a, b$ share a centre $c$.
# 3. Then $r \le \lVert a-b\rVert \le \lVert a-c\rVert + \lVert c-b\rVert \le 2R$.
#
# In the picture: discs of radius $r/2$ around the $M+1$ points do not overlap, and $M$ centres cannot be in all of
# them.

# %% tags=["sub", "hide-input"]
course.keep(lesson.proof_figure(toy, picked), "04_coreset_proof")

# %% [markdown]
# (The slider figure above draws the same discs for any number of picks: choose *r/2* there.) A proof is one thing;
# let us also try to break it. With 12 points and 4 picks there are 495 subsets: few enough to look at all of them.

# %%
def best_radius(points, size):
    between = torch.cdist(points, points)  # (n, n)
    subsets = torch.combinations(torch.arange(len(points)), size)  # (495, 4)
    return float(between[subsets].amin(1).amax(1).min())  # (495, 4, n) → (495, n) → (495,) → the best


# %% tags=["nbval-check-output"]
generator, ratios = torch.Generator().manual_seed(0), []
for _ in range(40):
    points = torch.rand(12, 2, generator=generator, dtype=torch.float64)
    best = best_radius(points, 4)
    for start in range(12):
        ratios.append(float(coreset.greedy_coreset(points, size=4, projection=None, start=start).radii[-1]) / best)
assert min(ratios) >= 1 - 1e-9 and max(ratios) <= 2
print(f"{len(ratios)} runs: greedy / best is {min(ratios):.2f} to {max(ratios):.2f}, median {np.median(ratios):.2f}")

# %% tags=["slide", "hide-input"]
course.keep(lesson.factor_figure(np.array(ratios)), "04_coreset_factor")

# %% [markdown]
# **What this tells you.** The factor 2 is the worst case, and it does occur: on 0, 1, 2 with one pick, starting at 0
# gives the radius 2, the point 1 would give 1. And on our six points two centres anywhere, at 1 and 8, reach the
# radius 2, where greedy's two picks have 4. For distances in general, no quick method can promise less than 2,
# unless P = NP (Hochbaum & Shmoys, 1985).
#
# The proof has a use: once greedy is done, $r/2$ is a **lower bound** for *every* choice of that many centres, also
# for centres that are not data points. Section 4 draws it.

# %% [markdown] tags=["slide"]
# ## 4 · Random, greedy, k-means: who wins what (5 min)
#
# Two other ways to choose $M$ centres:
#
# * **random**: $M$ rows, drawn. What is frequent is drawn often.
# * **k-means**: every row goes to its nearest centre, every centre moves to the mean of its rows, and again. That
#   lowers the mean of the *squared* distances. Its centres are means: points where no patch need ever have been.
#   (On the toy SciPy computes it, on real patches faiss, through `lesson.kmeans`; both take all rows, ten times.)
#
# The same toy, 6 centres each. The discs have each method's own covering radius.

# %% tags=["sub", "hide-input"]
course.keep(lesson.methods_figure(toy), "04_coreset_methods")

# %% [markdown]
# **What this tells you.** Three choices, two yardsticks. Greedy has the smallest *largest* distance; k-means the
# smallest *mean* distance, with most centres inside the clusters; one that serves several lonely points lies among
# them, near none. Random rows fall into the dense cluster, and the points that stand apart are left out. Greedy pays for its guarantee: on the mean it is the worst of the three here.
#
# Move the number of centres, and the seed. Look for a case where k-means has the smaller *largest* distance, too:
# greedy is only within a factor 2 of the best. (At rest, this is the figure above.)

# %% tags=["sub", "hide-input"]
lesson.methods_explorer(toy)

# %% [markdown] tags=["exercise"]
# ### Exercise 4.3 · One image, a thousand times
#
# A camera got stuck: of 64 ordinary good images one is in the training set 1,000 times, the other 63 once each. The
# memory has the same size as without the 999 extra copies, and greedy has the same start. Which memory keeps exactly
# the same points as without them: `"random"`, `"greedy"`, `"k-means"`, `"all"` or `"none"`?

# %% tags=["exercise"]
which_4_3 = ...  # your answer: a text

# %% tags=["solution"]
points = lesson.toy()
copied = torch.cat([points, points[:1].expand(999, 2)])  # row 0 a thousand times
before = coreset.greedy_coreset(points, size=12, projection=None, start=5).indices
after_copies = coreset.greedy_coreset(copied, size=12, projection=None, start=5).indices
assert torch.equal(points[before], copied[after_copies])
which_4_3 = "greedy"

# %% tags=["check"]
lesson.check_3(which_4_3)

# %% [markdown]
# ### The same on real patches
#
# One row per patch, as notebook 01 made them: 28 × 28 rows an image at 224 pixels.

# %%
# real data: os.environ.update(RCP_DATA="/data/mvtec", RCP_CATEGORY="bottle")  (import os)
category = course.category("terminal")
extractor = rcp.PatchExtractor(rcp.FeatureSettings("efficientnet_lite0"))
train = extractor.extract(category.train)
test = extractor.extract(category.test)
rows, labels = train.rows, category.test.labels  # (N, D), (n,)

# %% tags=["nbval-check-output"]
n, h, w, d = train.values.shape
print(f"{course.source(category)}: {n} images × {h} × {w} patches = {len(rows):,} rows of {d} numbers")

# %%
def picks_of(rows, method, size, seed):
    generator = torch.Generator().manual_seed(seed)
    if method == "random":
        return torch.randperm(len(rows), generator=generator)[:size]
    return coreset.greedy_coreset(rows, size=size, generator=generator, projection=None).indices


def centres_of(rows, method, size, seed):
    if method == "k-means":
        return lesson.kmeans(rows, size, seed)
    return rows[picks_of(rows, method, size, seed)]


# %% [markdown]
# For the curves we take 12,000 random rows, so that k-means at 10 % does not take a minute, and three seeds.
# `coreset.covering_radius` is the largest distance, a memory bank's `nearest` gives all of them.

# %%
few = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(9))[:12_000]]  # (12000, D)
shares, seeds, curves = (0.001, 0.003, 0.01, 0.03, 0.1), (0, 1, 2), {}
for method in ("random", "greedy", "k-means"):
    curves[method] = np.empty((len(seeds), len(shares), 2))
    for s, seed in enumerate(seeds):
        for i, share in enumerate(shares):
            centres = centres_of(few, method, coreset.coreset_size(len(few), share), seed)
            mean = MemoryBank(centres).nearest(few)[0].mean()
            curves[method][s, i] = coreset.covering_radius(few, centres), float(mean)

# %% tags=["slide", "hide-input"]
course.keep(real.coverage_figure(shares, curves), "04_coreset_coverage")

# %% tags=["hide-input"]
at = {m: v[:, 2].mean(0) for m, v in curves.items()}  # 1 %
Markdown(
    f"On {course.source(category)}, at 1 % of 12,000 rows (means of {len(seeds)} seeds): the covering radius is "
    + ", ".join(f"**{v[0]:.1f}** for {m}" for m, v in at.items())
    + "; the mean distance is "
    + ", ".join(f"**{v[1]:.1f}** for {m}" for m, v in at.items())
    + "."
)

# %% [markdown]
# **What this tells you.** The bands are the range over the seeds; the black line is greedy's radius halved, below
# which no choice of centres can come (section 3). In the committed run:
#
# * *Mean distance*: k-means is far ahead at every size. Greedy and random are about equal, greedy a little worse
#   where few rows are kept: it never looks at the mean.
# * *Largest distance*: random is far behind, and its curve falls slowly: some rare patches are simply not drawn.
# * k-means comes near greedy's radius, and below it where few rows are kept. Its centres may lie *between* patches. In
#   many dimensions that is worth much: two patches differ by the noise of both, a mean has little noise of its own.
#
# So "greedy minimises the largest distance" is true among *rows*, up to its factor. Section 6 asks whether the means'
# advantage helps detection.

# %% [markdown] tags=["slide"]
# ## 5 · Which patches are kept (3 min)
#
# All training rows now, 1 % of them. First the 24 first picks, then 24 random rows. Each crop shows 40 × 40 pixels
# around the centre of the patch; white lies outside the image. (The feature has seen more than the crop: see notebook
# 01.)

# %%
size = coreset.coreset_size(len(rows), 0.01)
generator = torch.Generator().manual_seed(0)
kept = coreset.greedy_coreset(rows, size=size, generator=generator, projection=None)
drawn = picks_of(rows, "random", size, seed=0)

# %% tags=["slide", "hide-input"]
groups = {"the first 24 greedy picks (the very first is drawn)": kept.indices[:24], "24 random patches": drawn[:24]}
course.keep(real.crops_figure(train, groups), "04_coreset_crops")

# %% [markdown]
# **What this tells you.** Greedy collects what is *different*: in the committed run screws at other angles, corners,
# digits, contacts. Random collects what is *frequent*: much background. Both are normal; only the first collection
# knows the rare views.
#
# Where in the image do the picks come from? We count them over the grid.

# %% tags=["slide", "hide-input"]
course.keep(real.where_figure(train, kept.indices), "04_coreset_where")

# %%
spread = train.values.float().var(0).sum(-1).flatten()  # (H·W,): how much a position differs from image to image
most = spread.topk(h * w // 10).indices  # the tenth of the positions that varies most
for name, chosen in (("greedy", kept.indices), ("random", drawn)):
    share = torch.isin(chosen % (h * w), most).float().mean()
    print(f"{name}: {100 * share:.0f} % of the {len(chosen)} rows lie at the tenth of the positions that varies most")

# %% [markdown]
# **What this tells you.** Greedy spends its rows where normal *varies most*, and few where all images look the same;
# random rows lie anywhere. In the committed run that is at the four screws, each of which may be turned anyhow: in
# the mean of the images they are blurred. Start Jupyter with `RCP_CATEGORY=granulate`, a texture without positions: is it
# the same there?
#
# Step through the picks. The frame marks the pick, squares mark earlier picks in the same image. Click near a
# square to go to that pick, or on the curve. (At rest, this is the figure of crops above.)

# %% tags=["sub", "hide-input"]
real.picks_explorer(train, kept)

# %% [markdown] tags=["slide"]
# ## 6 · What it does for detection (5 min)
#
# A test patch is as anomalous as it is far from the memory, an image as its worst patch (notebook 05). A normal patch
# that the memory does not cover gets a high score: a **false alarm**. So the covering radius should matter more than
# the mean.
#
# Same features, same size, three seeds, four memories. The fourth separates two things that k-means does at once: it
# takes the k-means centres and replaces each by the nearest real row ("snapped"). Where two centres have the same
# nearest row, that row is kept once, so this memory can be a few rows smaller; the table says how many it has.

# %%
memories = {m: [centres_of(rows, m, size, seed) for seed in seeds] for m in ("random", "greedy", "k-means")}
memories["k-means, snapped"] = [rows[nearest_neighbours(c, rows)[1][:, 0].unique()] for c in memories["k-means"]]

aurocs, scores = {}, {}
for method, choices in memories.items():
    images = [score_images(test.values, MemoryBank(m))[0].numpy() for m in choices]  # (n,) per seed
    aurocs[method], scores[method] = [metrics.auroc(labels, s) for s in images], images[0]

# %%
for method, choices in memories.items():
    radius = [coreset.covering_radius(rows, m) for m in choices]
    good = scores[method][labels == 0]
    print(f"{method}, {'/'.join(str(len(m)) for m in choices)} rows: image AUROC {np.mean(aurocs[method]):.3f} ± "
          f"{np.std(aurocs[method], ddof=1):.3f} over seeds, radius {min(radius):.1f}–{max(radius):.1f}\n"
          f"    scores of the good images, seed 0: {good.mean():.1f}, sd over images {good.std():.1f}")

# %% tags=["slide", "hide-input"]
course.keep(real.detection_figure(aurocs, scores, labels), "04_coreset_detection")

# %% [markdown]
# **What this tells you.** In the committed run the order is clear, and larger than the seeds' spread: greedy, then
# k-means, then snapped, then random. Look at the blue dots (good test images) on the right. A random memory gives
# *good* images scores as high as those of defects: each of them has some rare normal patch that was not drawn. Greedy
# moves the blue dots to the left and keeps them together.
#
# k-means lies between. On average it gives good images scores as low as greedy does, but they scatter more, and some
# defects score lower than most good images. One reading: its centres sit where patches are frequent; a rare one
# weighs little in a mean, and a mean of different ones resembles none of them. Snapping costs it more: its rows then
# sit in the crowds, much as random rows do.
#
# Do not take this as a law. Start Jupyter with `RCP_CATEGORY=granulate`, a texture: are order and gaps the same there?
# Or take a category of MVTec AD (`RCP_DATA=… RCP_CATEGORY=bottle`), and look first whether the AUROCs leave room for a
# difference: where every defect is plain, any memory will do, and the comparison says nothing.
#
# Now look at the false alarms themselves: the worst patch, by the random memory, of the good test images with the
# highest scores; below it, the training patch that each memory (seed 0) holds nearest to it.

# %%
positions = {"random": drawn, "greedy": kept.indices}
grids = score_images(test.values, MemoryBank(rows[drawn]))[1].flatten(1)  # (n, H·W)
good = np.flatnonzero(labels == 0)
highest = good[np.argsort(-grids.amax(1).numpy()[good], kind="stable")[:6]]  # six good test images
worst = torch.tensor([i * h * w + int(grids[i].argmax()) for i in highest])  # rows of the test images
nearest = {}
for method, p in positions.items():
    distance, which = nearest_neighbours(test.rows[worst], rows[p])
    nearest[method] = p[which[:, 0]], distance[:, 0]

# %% tags=["slide", "hide-input"]
course.keep(real.alarms_figure(test, train, worst, nearest), "04_coreset_alarms")

# %% [markdown]
# **What this tells you.** In the committed run the worst patches of *good* parts are rare views, screws and digits
# as they seldom stand. The random memory has nothing like them, and answers with a poor match far away. The greedy
# memory has a nearer one. (We chose the cases by the *random* memory's errors, so the comparison flatters greedy; the
# table above does not choose.)
#
# ### The price: greedy collects outliers, good or bad
#
# "Farthest first" has no notion of *bad*. Suppose one defective image was taken for a good one: how many picks come
# from it? To compare, we add a *good* test image in its place. Six of each kind, one at a time.

# %%
def picks_from(image):
    more = torch.cat([rows, test.values[image].flatten(0, 1)])  # its patches come last
    generator = torch.Generator().manual_seed(0)
    chosen = coreset.greedy_coreset(more, size=size, generator=generator, projection=None).indices
    return int((chosen >= len(rows)).sum())


print(f"one image more: its share of the rows would give {size / (n + 1):.0f} of {size} picks")
for kind, label in (("defective", 1), ("good", 0)):
    images = np.flatnonzero(labels == label)
    images = images[np.linspace(0, len(images) - 1, 6).astype(int)]  # evenly from the list
    found = [picks_from(int(i)) for i in images]
    print(f"{kind:9} images: {found}, mean {np.mean(found):.1f}")

# %% [markdown]
# **What this tells you.** Compare the means, and each with the fair share. In the committed run the good images get
# about their share, the defective ones more, though the two kinds overlap; how much more depends on which six are
# taken. Greedy asks only whether a patch is *new*. What it has taken is "normal" from then on, a patch of a defect
# like any other. That is the other side of covering rare patches: **greedy needs clean training data.**

# %% [markdown] tags=["slide"]
# ## 7 · The lazy bound: the same picks for less work (4 min)
#
# The plain loop compares all $N$ rows with every one of the $M$ picks. Most of that is in vain: a row in the dense
# cluster will not be the farthest for a long time. One observation saves it:
#
# > A row's distance to its nearest pick can only **shrink**. So a distance that was computed long ago is an **upper
# > bound** today.
#
# Take the row with the highest bound. If the bound is *stale* (there were picks since), show the row the picks that
# it missed, which lowers its bound, and look again. If the bound is *fresh*, pick the row. All other rows have lower
# bounds, so lower distances.

# %%
def lazy(x, start, size):
    picks, log, looked = [start], [], []
    bound = np.linalg.norm(x - x[start], axis=1)  # (N,)
    met = np.ones(len(x), int)  # (N,): how many of the picks each row was compared with
    while len(picks) < size:
        i = int(bound.argmax())
        if met[i] < len(picks):  # stale: show the row what it missed
            missed = x[picks[met[i] :]]
            bound[i] = min(bound[i], np.linalg.norm(x[i] - missed, axis=1).min())
            met[i] = len(picks)
            looked.append(i)
        else:  # fresh, and no bound is higher: no row can be farther
            log.append((looked, bound.copy()))
            picks.append(i)
            looked = []
    return picks, met, log


# %% tags=["nbval-check-output"]
lazy_picks, met, log = lazy(toy.numpy(), start=0, size=lesson.MOST)
assert lazy_picks == by_loop
print(f"the same {len(lazy_picks)} picks | plain loop: {len(toy) * (lesson.MOST - 1)} distances, lazy: {met.sum()}")

# %% [markdown]
# **Why it is exact, and no approximation.** Write $d_i$ for the true distance of row $i$, $b_i \ge d_i$ for its
# bound. The picked row $j$ has a fresh bound, $b_j = d_j$, and the highest one. So for every other row $d_i \le b_i
# \le b_j = d_j$: it *is* the farthest. No row with a stale bound can hide a larger distance, because its bound would
# have been higher. (Ties: `argmax` takes the lowest index; a tied row before it has a bound at least as high, so it
# is looked at first.)
#
# Triangles are the bounds, dots the true distances, ticks mark the rows that were looked at for this pick.

# %% tags=["slide", "hide-input"]
course.keep(real.bounds_figure(toy, lazy_picks, log, 4), "04_coreset_bounds")

# %% [markdown]
# Step through the picks. Look for steps where a single row was looked at, and for triangles far above their dots:
# stale for long, and never in the way. (At rest, this is the figure above.)

# %% tags=["sub", "hide-input"]
real.bounds_explorer(toy, lazy_picks, log)

# %% [markdown]
# On real patches, in double precision, so that rounding decides no tie:

# %%
x = few[:4000].double()
lazy_picks, met, _ = lazy(x.numpy(), start=0, size=80)
exact = coreset.greedy_coreset(x, size=80, projection=None, start=0)
assert torch.equal(x[lazy_picks], x[exact.indices])  # the same points
course.keep(real.met_figure(met, 79), "04_coreset_met")

# %% [markdown]
# **What this tells you.** Few rows were compared with all picks. A row that lies deep inside some disc is left alone
# for long. The library does the same in blocks: it takes the rows with the highest bounds by the thousand, shows them
# the missed picks in one matrix product, and picks among the few that stay far. That is how `coreset.greedy_coreset`
# gets its speed, with the picks of the plain loop.

# %% [markdown] tags=["slide"]
# ## 8 · What it costs (3 min)
#
# *Predict.* $N$ rows of $d$ numbers, $M$ picks: how many multiplications does the plain loop take? One per number,
# row and pick: $N \cdot M \cdot d$. At a fixed share, $M = N/100$, that grows with the **square** of $N$: twice the
# images, four times the work. Its memory is the list of distances, $O(N)$. (The full $N \times N$ table would be a
# mistake: see the numbers.)

# %% tags=["nbval-check-output"]
for title, total, width in (("these rows", n * h * w, d), ("bottle, WRN-50, 224 px", 209 * 28 * 28, 1536)):
    m = coreset.coreset_size(total, 0.01)
    table = total**2 * 4 / 1e9  # GB, float32
    print(f"{title:22} N = {total:7,}, M = {m:5,}: {total * m * width:.1e} multiplications; N × N table {table:3.0f} GB")

# %% [markdown]
# *Measure*: the plain loop against the library on the same rows, at 1 %. Seconds depend on the machine; their ratio
# depends on it less.

# %%
for count in (2_000, 8_000, 24_000):
    x = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))[:count]]
    clock = [time.perf_counter()]
    for _ in range(2):
        plain_loop(x, 0, count // 100)
        clock.append(time.perf_counter())
        coreset.greedy_coreset(x, size=count // 100, projection=None, start=0)
        clock.append(time.perf_counter())
    plain, fast = np.diff(clock).reshape(2, 2).min(0)  # the better of two runs, each
    print(f"{count:6,} rows: plain loop {plain:.2f} s, library {fast:.2f} s, ratio {plain / fast:.1f}")

# %% [markdown]
# **What this tells you.** On small sets there is little to gain, and such short times scatter: run the cell twice. On
# large sets the library is several times as fast, and the more so the more rows there are. (The project's BENCHMARKS.md
# has the figures for 163,856 rows.)
#
# ### A random projection, and when it pays
#
# The other lever is $d$. Multiply all rows with a random Gaussian matrix of $d'$ columns, scaled by $1/\sqrt{d'}$,
# and pick *there*: squared distances are kept on average over all such matrices, and one distance spreads by about
# $1/\sqrt{2d'}$ of itself (Johnson & Lindenstrauss). Only the picking uses it; the memory keeps the rows themselves.

# %% tags=["slide", "hide-input"]
ratios_of = {width: real.distance_ratios(rows, width) for width in (8, 32, 128)}
course.keep(real.projection_figure(ratios_of), "04_coreset_projection")

# %% [markdown]
# **What this tells you.** Wider projections spread less, about as the theory says. The middle need not be 1: all
# pairs share *one* matrix, and where patches differ in a few directions mostly, its error in these is common to all.
# A common factor would not change any pick; the spread does.
#
# Move the dimension: by theory the spread halves each time the dimension grows fourfold; here it goes 0.20, 0.13, 0.05
# (committed run), as patches differ in few directions. The seed draws another matrix. (At rest, this is the figure
# above.)

# %% tags=["sub", "hide-input"]
real.projection_explorer(rows)

# %%
generator = torch.Generator().manual_seed(0)
projected = coreset.greedy_coreset(rows, size=size, generator=generator, projection=128)
true_radius = coreset.covering_radius(rows, rows[projected.indices])
print(f"picked in {kept.dimension} dimensions, their own: radius {float(kept.radii[-1]):.1f}")
print(f"picked in {projected.dimension} dimensions: radius {float(projected.radii[-1]):.1f} there, {true_radius:.1f} in truth")

# %% [markdown]
# **What this tells you.** The `radii` of a coreset are measured where it was picked. To compare two coresets, measure
# both in the rows' own space, as here. From 152 to 128 dimensions the projection saves a sixth of the multiplications
# and loses some coverage: a poor bargain. From 1,536 to 128 it would save eleven
# twelfths: it is made for such wide features.
#
# ### Millions of rows
#
# `partitioned_coreset` picks in parts, and then among the picks of the parts. It is no longer the exact greedy
# coreset, but $M$ rows that lie pairwise $r'$ apart still prove (section 3, again) that $M-1$ centres cannot do
# better than $r'/2$.

# %%
parted = partitioned_coreset(rows, size=size, parts=8, generator=torch.Generator().manual_seed(0), projection=None)
print(f"radius: exact greedy {float(kept.radii[-1]):.1f}, in 8 parts {float(parted.radii[-1]):.1f};"
      f" no {size - 1} centres go below {float(parted.radii[-2]) / 2:.1f}")

# %% [markdown] tags=["exercise"]
# ### Exercise 4.4 · How large is the memory?
#
# A category has 280 training images. WideResNet-50 at 320 pixels gives 40 × 40 patches an image, and 1,536 numbers a
# patch, in float32. The coreset keeps 1 % of all rows, picked in a projection to 128 dimensions. How many rows does the
# memory hold, and how many megabytes (10^6 bytes)? The megabytes may be rounded, to 1 %.

# %% tags=["exercise"]
memory_4_4 = ...  # your answer: [rows, megabytes]

# %% tags=["solution"]
m = coreset.coreset_size(280 * 40 * 40, 0.01)
memory_4_4 = [m, m * 1536 * 4 / 1e6]

# %% tags=["check"]
lesson.check_4(memory_4_4)

# %% [markdown] tags=["slide"]
# ## Where we differ from the paper
#
# * **The start is in the coreset.** Algorithm 1 begins with an empty set, whose minimum is not defined. PatchCore's
#   published code begins with the mean distance to ten random rows, which need not be kept, and never forgets that
#   mean: it stays in the minimum. Ours draws one row and keeps it.
# * **Exact, and in O(N) memory.** The published code offers an exact variant with an N × N table, and the one with
#   ten starts. Ours has the exact picks without the table.
# * **The projection** is Gaussian, as in the lemma; the published code takes a linear layer as PyTorch initialises it
#   (uniform, another scale). Both project to 128 dimensions by default. In this notebook we mostly pick in the rows'
#   own space (`projection=None`).
# * **1 %** is ReConPatch's setting; PatchCore reports 25, 10 and 1 %. ReConPatch picks among the *trained* rows
#   $f(p)$, not among $p$ as here.
#
# ## What to read next
#
# **05_scoring** asks the memory: nearest neighbour, maps, metrics, and where to draw the line.

# %% [markdown] tags=["notes"]
# *For the lecturer.* Let the class do section 1 aloud, before the figure. Then ask before the slider of section 2:
# "where will the next pick be?"; they find it at once, which is the point: the algorithm is what the eye does. Ask
# before section 6 who voted for k-means, and why a small *mean* distance should help an image score that is a
# *maximum*.
#
# What usually confuses: that the picks are data rows but k-means centres are not; that the discs need not cover the
# plane, only the points; that a coreset keeps the odd rows and not the typical ones; that the radius is rooted L2 and
# grows with the feature scale, so radii of two backbones cannot be compared; that a stale bound is too *high*, never
# too low, which is why nothing is lost.
