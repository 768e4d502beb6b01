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
# # 09 · Pictures of the feature space
#
# **Goal.** We redraw three figures of the ReConPatch paper from our own runs: the UMAP of patch features over the epochs
# (Figure 3), the histogram of image scores with d' (Figure 4), the contours (Figure 5). For each we ask what can be read
# from it, and what cannot. The figures come from result files of long trainings; beside each we compute a short version live.
#
# **Time.** 30 minutes to teach, about 50 s to run (a quarter of that is UMAP, which compiles itself at its first call).
#
# **Predict first.** Take the patches at four fixed grid positions of all good images. (a) In PatchCore's features, without
# any training: how many times farther apart are patches of *different* positions than patches of the *same* position? Does
# the training raise that number? (b) A test patch lies far away from all others in a UMAP picture. Is it more anomalous
# than one in the middle of the crowd? Write both down; sections 3 and 4 answer.

# %% tags=["install", "remove-cell"]
import importlib.util

if importlib.util.find_spec("rcp") is None:  # Colab: install rcp there; silent where it is installed
    get_ipython().run_line_magic("pip", 'install --quiet "rcp[notebooks] @ git+https://github.com/-OWNER-/rcp"')
    print("Restart the session now (menu Runtime), then run all cells.")  # what is loaded already is of another version

# %% tags=["setup"]
# %matplotlib inline
# %config InlineBackend.figure_formats = ["jpeg"]
import math
import warnings
from dataclasses import replace

import numpy as np
import rcp  # before torch: it asks waiting threads to sleep
import torch
from IPython.display import Markdown
from rcp import course, hits, metrics, plots_paper
from rcp.course import feature_checks as check
from rcp.course import feature_map as lesson
from rcp.course import feature_scores as judged
from rcp.distances import distances
from rcp.experiments.measure import Material
from rcp.head import Head, train_head
from rcp.memory import nearest_neighbours
from rcp.positions import neighbour_agreement, positions, separation
from rcp.reproduce.figure_files import found_or_measured

# %% [markdown] tags=["slide"]
# ## 1 · What UMAP keeps: fuzzy neighbours (6 min)
#
# UMAP takes rows of many numbers and draws one point for each in the plane. It works in two steps. First it makes a graph:
# who is whose neighbour, and how strongly. Then it moves the points until neighbours in the graph are near in the plane. The
# first step decides what a picture *can* show, and it is short enough to do by hand.
#
# Take one row and its distances $d_1 \le d_2 \le \dots$ to its $k$ nearest rows. (UMAP counts the row itself as the first,
# at distance 0.) The **membership** of neighbour $j$ is
#
# $$\mu_j = \exp\!\left(-\frac{\max(0,\, d_j - \rho)}{\sigma}\right), \qquad \rho = \text{the smallest distance above 0},
# \qquad \sigma \text{ such that } \sum_{j>1} \mu_j = \log_2 k .$$
#
# Source: McInnes, Healy & Melville, *UMAP*, arXiv 1802.03426, section 3.1.

# %% [markdown]
# **By eye.** Distances 0, 1, 2, 4, so $k = 4$, $\rho = 1$ and $\log_2 4 = 2$. With $x = e^{-1/\sigma}$ the three memberships
# are $1, x, x^3$. They add up to 2 if $x + x^3 = 1$, that is $x \approx 0.682$. The sum grows with σ, so a computer halves
# an interval until it has σ:

# %%
def fuzzy(d):  # (k,) sorted distances, the row itself first → (k-1,) memberships of the others, and σ
    rho, low, high = d[d > 0].min(), 0.0, 1000 * float(d.max())
    for _ in range(64):
        sigma = (low + high) / 2
        members = torch.exp(-(d[1:] - rho).clamp_min(0) / sigma)
        low, high = (low, sigma) if members.sum() > math.log2(len(d)) else (sigma, high)
    return members, sigma


# %% tags=["nbval-check-output"]
d = torch.tensor([0.0, 1.0, 2.0, 4.0])
members, sigma = fuzzy(d)
x = float(members[1])
print("memberships", [f"{m:.3f}" for m in members.tolist()], f"| σ = {sigma:.3f} | x + x³ = {x + x**3:.3f}")

# %% [markdown]
# The package `umap` does the same. Its first call takes a few seconds, because it is compiled then. It must agree:

# %% tags=["nbval-check-output"]
from umap import UMAP
from umap.umap_ import fuzzy_simplicial_set, smooth_knn_dist

sigmas, rhos = smooth_knn_dist(d[None].numpy(), 4.0, local_connectivity=1.0)
assert abs(sigmas[0] - sigma) < 1e-3 and rhos[0] == 1
print(f"umap: ρ = {rhos[0]:.3f}, σ = {sigmas[0]:.3f}")

# %% [markdown]
# Now twenty points in a dense group and ten in a sparse one. What is a neighbour seen from one side may be none from the
# other, so UMAP joins the two views, $a$ and $b$, into $a + b - ab$ (the chance that at least one of two independent links
# exists). By hand, then by the library:

# %% tags=["nbval-check-output"]
generator = torch.Generator().manual_seed(1)
dense = 0.3 * torch.randn(20, 2, generator=generator)
sparse = 1.2 * torch.randn(10, 2, generator=generator) + torch.tensor([4.0, 0.0])
points, k = torch.cat([dense, sparse]), 6  # (30, 2)

near_d, near = distances(points).sort(1)
graph = torch.zeros(30, 30)
for i in range(30):
    graph[i, near[i, 1:k]] = fuzzy(near_d[i, :k])[0]
graph = graph + graph.T - graph * graph.T  # (30, 30), symmetric

by_library = fuzzy_simplicial_set(
    points.numpy(), k, None, "euclidean", knn_indices=near[:, :k].numpy(), knn_dists=near_d[:, :k].numpy()
)[0].toarray()
assert np.allclose(by_library, graph, atol=1e-3)
print(f"{int((graph > 0).sum()) // 2} links of {30 * 29 // 2} pairs, as strong by hand as by the library")

# %% tags=["slide", "hide-input"]
lonely = int(near_d[:, 1].argmax())  # the point whose nearest neighbour is farthest away
course.keep(lesson.membership_figure(points, lambda d: fuzzy(d)[0], k, (0, lonely)), "09_umap_membership")

# %% [markdown] tags=["sub"]
# **What this tells you.** Both marked points have a nearest neighbour of membership 1, although one lies several times
# farther away than the other. Each point measures with its own ruler: ρ shifts it, σ stretches it. *Scale is forgotten
# here*, before anything is drawn. No later step can bring it back.
#
# Now choose: click on any point of the left panel, move k, and watch the two curves. They always start at 1. (Without a
# kernel, the figure above is the same thing at rest.)

# %%
lesson.membership_explorer(points, lambda d: fuzzy(d)[0], (0, lonely))

# %% [markdown]
# The second step puts the rows in the plane and moves them: pairs with a strong link attract each other, randomly drawn
# pairs repel each other, a few hundred rounds. Starting point and draws come from a random generator. That is why a picture
# depends on a seed.

# %% [markdown] tags=["exercise"]
# ### Exercise 9.1 · Membership
#
# Write the function that returns the memberships of the neighbours, for σ given. `d` holds the sorted distances, the row
# itself first. Careful: *another* row may lie at distance 0, too; then ρ is still the smallest distance above 0.

# %% tags=["exercise"]
def membership(d, sigma):  # (k,), a number → (k - 1,)
    return ...  # your turn


# %% tags=["solution"]
def membership(d, sigma):  # (k,), a number → (k - 1,)
    rho = d[d > 0].min()
    return torch.exp(-(d[1:] - rho).clamp_min(0) / sigma)


# %% tags=["check"]
check.check_1(membership)

# %% [markdown] tags=["slide"]
# ## 2 · What UMAP does not show (6 min)
#
# Three clouds in ten dimensions, of which we know the truth. B lies 20 from A; C lies 100 from A, and is four times as wide
# as the others. *Predict:* which of these facts will you see in the picture?

# %%
generator = torch.Generator().manual_seed(0)
cloud = torch.arange(3).repeat_interleave(80)  # (240,) which cloud a row belongs to
width = torch.tensor([1.0, 1.0, 4.0])
clouds = torch.randn(240, 10, generator=generator) * width[cloud, None]  # (240, 10)
clouds[:, 0] += torch.tensor([0.0, 20.0, 100.0])[cloud]


# %%
def layout(rows, seed=0, n_neighbors=15, init="spectral"):  # (N, D) → (N, 2)
    reducer = UMAP(n_neighbors=n_neighbors, n_epochs=200, init=init, random_state=seed, n_jobs=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Graph is not fully connected")  # we count the parts ourselves, below
        return reducer.fit_transform(np.asarray(rows))


# %% [markdown]
# With `random_state` and `n_jobs=1` the layout is the same, bit by bit, on the same machine with the same versions. Without
# `random_state` UMAP works in parallel, and every call gives another picture.

# %% tags=["nbval-check-output"]
names = ("A", "B", "C: four times as wide")
three = {f"UMAP, seed {seed}": layout(clouds, seed) for seed in range(3)}
again = layout(clouds, 0)
print("same seed, equal bits:", np.array_equal(again, three["UMAP, seed 0"]))
print("other seed, equal bits:", np.array_equal(three["UMAP, seed 1"], three["UMAP, seed 0"]))
print("parts of the graph, with no link between them:", lesson.parts(clouds, 15))

# %% tags=["slide", "hide-input"]
course.keep(lesson.clouds_figure(clouds, cloud, three, names), "09_umap_clouds")

# %%
def measured(rows):  # (N, D) → distances of the centres A–B, A–C, B–C, and width of C over width of A
    rows = torch.as_tensor(rows)
    centre = torch.stack([rows[cloud == i].mean(0) for i in range(3)])  # (3, D)
    wide = [rows[cloud == i].std(0).mean() for i in range(3)]
    ab, ac, bc = distances(centre)[[0, 0, 1], [1, 2, 2]].tolist()
    return f"{ab:.1f} | {ac:.1f} | {bc:.1f} | {ac / ab:.2f} | {wide[2] / wide[0]:.2f}"


head = "| | A–B | A–C | B–C | A–C over A–B | width of C over A |\n|---|---|---|---|---|---|\n"
Markdown(head + "\n".join(f"| {name} | {measured(r)} |" for name, r in {"truth": clouds, **three}.items()))

# %% [markdown] tags=["sub"]
# **What this tells you.** That there are three groups is true, and the picture says so. All else is lost: C is drawn about
# as near as B, and about as wide as A, and the three seeds do not even agree on which gap is the largest. These are not
# errors of the program. Section 1 showed that no scale enters the drawing. And the graph has three parts: where no link
# joins two groups, *nothing* says how far apart they should be, only the start and the repulsion do.

# %% [markdown] tags=["slide"]
# ### Groups that are not there
#
# Now the opposite test: 200 rows of *one* Gaussian cloud in ten dimensions. There is nothing to find. The setting
# `n_neighbors` is the $k$ of section 1.

# %%
one = torch.randn(200, 10, generator=torch.Generator().manual_seed(2))  # (200, 10)
alike = torch.zeros(200, dtype=torch.int)  # a single group
sizes = (3, 5, 10, 15, 30, 60)
crowds = {k: {f"seed {seed}": layout(one, seed, k) for seed in range(3)} for k in sizes}
kept = {k: np.mean([lesson.kept_neighbours(one, torch.as_tensor(drawn)) for drawn in crowds[k].values()]) for k in sizes}
print("of the 10 nearest rows, so many are among the 10 nearest in the picture, too:")
print("; ".join(f"n_neighbors {k}: {100 * share:.0f} %" for k, share in kept.items()))

# %% tags=["sub", "hide-input"]
course.keep(lesson.seeds_figure(crowds[3], alike, title="One Gaussian cloud, n_neighbors = 3"), "09_umap_one_cloud")

# %% [markdown]
# **What this tells you.** With 3 neighbours one even cloud falls into strings and clumps, and each seed draws others. None
# of them exists. With many neighbours the clumps are gone, but more than half of the nearest neighbours are still lost: ten
# dimensions do not fit into two.
#
# Move the slider, and look for the smallest `n_neighbors` at which you would no longer report "sub-groups". (Without a
# kernel, the figure above is the first stop.)

# %%
lesson.neighbours_explorer(crowds, alike, 3, "One Gaussian cloud")

# %% [markdown] tags=["exercise"]
# ### Exercise 9.2 · Read the picture
#
# Which statement can be read from the picture of the three clouds?
#
# * `"a"` Cloud C is about as wide as cloud A.
# * `"b"` B and C are about equally far from A.
# * `"c"` The nearest neighbours of a row of A are mostly rows of A.
# * `"d"` A white gap in a UMAP picture proves that two groups exist.

# %% tags=["exercise"]
statement_9_2 = ...  # your answer: "a", "b", "c" or "d"

# %% tags=["solution"]
statement_9_2 = "c"

# %% tags=["check"]
check.check_2(statement_9_2)

# %% [markdown] tags=["slide"]
# ## 3 · Figure 3: four grid positions over the epochs (8 min)
#
# The paper takes the patch features of all training images at four positions of the 28 × 28 grid, (9, 14), (15, 15),
# (10, 16) and (16, 17), and colours them by position: PatchCore's features first, then f(p) after epochs 1, 40 and 58. We
# read a pair as (row, column). On other grids we take the same places of the image.

# %% tags=["nbval-check-output"]
# real data: os.environ.update(RCP_DATA="/data/mvtec", RCP_CATEGORY="bottle")  (import os)
category = course.category("terminal")
extractor = rcp.PatchExtractor(rcp.FeatureSettings("efficientnet_lite0"))
train, test = extractor.extract(category.train), extractor.extract(category.test)  # (n, H, W, C)

n, h, w, _ = train.values.shape
places = positions(h, w)
four = torch.cat([train.values[:, r, c] for r, c in places])  # (4n, C), position by position
position = torch.arange(4).repeat_interleave(n)  # (4n,)
print(f"{course.source(category)}: {n} images, grid {h} × {w}, positions {places}, rows {tuple(four.shape)}")

# %% tags=["sub", "hide-input"]
course.keep(judged.positions_figure(category.train, train.settings.geometry, (h, w)), "09_umap_positions")

# %% [markdown]
# **What this tells you.** The crops are three patches wide. Where a row of crops shows the same thing in every image, the
# position means something, and its patches should be near each other. On a category that is turned or shifted from image
# to image the colours below would mean little. Where the crops of two positions look alike, the features may still differ:
# a patch feature sees far more than three patches (notebook 01).

# %% [markdown]
# ### Numbers first
#
# Before any picture: the mean distance of two patches of the same position (*within*), and of different positions
# (*between*), in the feature space. On four points on a line, by eye: positions 0 and 1 belong together, 5 and 7 do.
# Within: (1 + 2) / 2 = 1.5. Between: (5 + 7 + 4 + 6) / 4 = 5.5.

# %% tags=["nbval-check-output"]
toy, pairs = torch.tensor([[0.0], [1.0], [5.0], [7.0]]), torch.tensor([0, 0, 1, 1])
within, between = [], []
for i in range(4):
    for j in range(i):
        (within if pairs[i] == pairs[j] else between).append(float((toy[i] - toy[j]).norm()))

assert np.allclose((np.mean(within), np.mean(between)), separation(toy, pairs))
print(f"within {np.mean(within)}, between {np.mean(between)}, ratio {np.mean(between) / np.mean(within):.2f}")


# %% [markdown] tags=["notes"]
# *For the lecturer.* Ask for guess (a) now. Guesses are often near 1, because "the training must have something to do".

# %% [markdown] tags=["slide"]
# ### The training
#
# The paper trains 120 epochs at learning rate 1e-5. We have 10 epochs of 10 steps, so that a class need not wait, and take a
# rate of 1e-3, a hundred times as large: with the paper's rate so few steps would hardly move f. We do both, to see it. A
# callback keeps a copy of f after every epoch.

# %%
training = rcp.TrainSettings(epochs=10, steps=10, batch_size=512, learning_rate=1e-3)
weights = []  # of f, (512, C), for epochs 0, 1, 2, …
bank = rcp.BankSettings(folds=2)  # held-out folds only set the colour scale of section 6: two will do
fitted = {
    "PatchCore": rcp.PatchCore(bank=bank).fit(train),
    "untrained f": rcp.ReConPatch(training=replace(training, epochs=0), bank=rcp.BankSettings(folds=0)).fit(train),
    "ReConPatch": rcp.ReConPatch(training=training, bank=bank).fit(
        train, callbacks=[lambda end: weights.append(end.head.f.weight.detach().cpu().clone())]
    ),
}
slow = train_head(train.rows, replace(training, learning_rate=1e-5), seed=0)[0].f.weight.cpu()  # the paper's rate


# %% tags=["sub"]
def far(f, start):
    return f"{100 * (f - start).norm() / start.norm():.1f} % of its length"


half, last = training.epochs // 2, training.epochs
late = far(weights[-1], weights[half])
print(f"rate 1e-3: f moves by {far(weights[-1], weights[0])}; from epoch {half} to {last} by {late}")
print(f"rate 1e-5: f moves by {far(slow, weights[0])}")

# %% [markdown]
# Now the layouts. Each epoch's UMAP starts from the coordinates of the epoch before (`init=`), the first one from
# PatchCore's. So a group stays about where it was unless something moves it, and no picture is merely turned over by another
# start. It also means that the pictures are *made* to look alike: a layout that starts at a good place stays near it.

# %%
patchcore = layout(four)  # (4n, 2)
layouts = []
for f in weights:
    start = layouts[-1] if layouts else patchcore
    layouts.append(layout(four @ f.T, init=start))


def ratio(rows):
    within, between = separation(torch.as_tensor(rows), position)
    return between / within


ratios = [ratio(four @ f.T) for f in weights]  # in the feature space, an epoch each
drawn_ratios = [ratio(coords) for coords in layouts]  # the same in the pictures

# %% tags=["slide", "hide-input"]
labels, stops = [str(place) for place in places], (0, 1, half, last)
shown = {"PatchCore": patchcore} | {f"epoch {e}": layouts[e] for e in stops}
four_ratios = [ratio(four)] + [ratios[e] for e in stops]
course.keep(plots_paper.stages_figure(shown, four_ratios, position, labels), "09_umap_epochs")

# %% tags=["hide-input"]
Markdown(
    f"*Our short run; {course.source(category)}, {n} training images, EfficientNet-Lite0; {last} epochs of "
    f"{training.steps} steps of {training.batch_size} patches at rate {training.learning_rate:g}. UMAP: 15 neighbours, "
    "200 rounds, seed 0, each epoch started from the one before. Coordinates have no unit. Below each panel: a number of "
    "the feature space, not of the picture.*"
)

# %% [markdown]
# Move through the epochs with the slider or the play button, or click on the curves at the right: blue is the feature space,
# grey the same ratio measured in the picture. Where groups change places although the blue curve is flat, nothing has
# happened to them: few links or none join them, so they drift. (Without a kernel, the figure above shows five of the stops.)

# %%
curves = {"feature space": ratios, "in the picture": drawn_ratios}
lesson.epochs_explorer(patchcore, layouts, curves, ratio(four), position, labels)


# %% tags=["sub"]
def line(name, rows, coords=None):
    within, between = separation(rows, position)
    agree = neighbour_agreement(rows, position)
    drawn = "–" if coords is None else f"{ratio(coords):.2f}"
    return f"| {name} | {within:.1f} | {between:.1f} | **{between / within:.2f}** | {agree:.4f} | {drawn} |"


stages = {f"epoch {e} (rate 1e-3)": (four @ weights[e].T, layouts[e]) for e in stops}
stages |= {f"epoch {last} (the paper's rate, 1e-5)": (four @ slow.T,)}
head = "| | within | between | between / within | 10 nearest agree | drawn ratio |\n|---|---|---|---|---|---|\n"
Markdown(head + "\n".join([line("PatchCore", four, patchcore), *(line(name, *stage) for name, stage in stages.items())]))

# %% [markdown]
# An untrained f is a random matrix, and another draw gives other numbers. How much do they vary?

# %%
drawn_f = [Head(four.shape[1], generator=torch.Generator().manual_seed(seed)).f.weight for seed in range(10)]
untrained = torch.tensor([ratio(four @ f.detach().T) for f in drawn_f])
print(f"ten untrained f: between / within {untrained.mean():.2f} ± {untrained.std():.2f}")

# %% tags=["sub", "hide-input"]
agree = [neighbour_agreement(rows, position) for rows in (four, four @ weights[-1].T)]
moved = "rises" if ratios[-1] > ratios[0] else "falls"
beyond = "more" if abs(ratios[-1] - ratios[0]) > 2 * untrained.std() else "not more"
Markdown(
    f"**What this tells you.** Answer to (a), for these data: {ratio(four):.2f} times, without any training. Of the ten "
    f"nearest neighbours of a patch, {100 * agree[0]:.1f} % are of its own position in PatchCore's features, "
    f"{100 * agree[1]:.1f} % after our training. A random f leaves the ratio about where it was: a random matrix with many "
    f"rows nearly keeps the proportions of distances. In our short training the ratio {moved} from {ratios[0]:.2f} to "
    f"{ratios[-1]:.2f}, {beyond} than twice the spread of ten random f. The drawn ratio goes from {drawn_ratios[0]:.2f} to "
    f"{drawn_ratios[-1]:.2f} meanwhile."
)

# %% [markdown]
# In the committed run the training makes *both* distances smaller, and the one between positions more so. That does not
# contradict Eq. 7: it pulls every pair by its weight $w_{ij}$, which is above zero for different things, too, and pushes only
# pairs that are nearer than the margin, with margin 1 nearer than the *mean* distance. Far pairs are never pushed. And what
# decides detection is not this ratio, but how far a defect is from the nearest normal patch: sections 5 and 6.

# %% [markdown] tags=["slide"]
# ### The paper's figure, from a long run
#
# A training as long as the paper's takes minutes, so it ran beforehand, and left a file with the layouts, all settings, the
# hash of the weights and the fingerprint of the images. The figure is drawn from that file alone. If there is none for the
# images at hand (you set `RCP_DATA`, or run this on Colab), a short one is measured now: the caption says what it was.

# %%
material = Material(category, [extractor], [train], [test])
folders = ("../figures/results", "../runs/figures")  # where result files may lie; a new one is put into the last
path = found_or_measured("figure3", material, folders)
course.keep(plots_paper.figure3(path), "09_umap_figure3")

# %% tags=["sub", "hide-input"]
file = plots_paper.read(path, "figure3")
lines = ["| | within | between | **between / within** | 10 nearest agree |", "|---|---|---|---|---|"]
for row in file["rows"]:
    numbers = f"{row['within']:.1f} | {row['between']:.1f} | **{row['ratio']:.2f}** | {row['agreement']:.4f}"
    lines.append(f"| {row['stage']} | {numbers} |")
Markdown("\n".join([*lines, f"\n*After ReConPatch, Figure 3; {plots_paper.caption(file)}*"]))

# %% tags=["hide-input"]
start, end = file["rows"][0], file["rows"][-1]
change = end["ratio"] - start["ratio"]
size = "less" if abs(change) < 2 * float(untrained.std()) else "more"
Markdown(
    f"**What this tells you.** From PatchCore's features to {end['stage']} the ratio goes from {start['ratio']:.2f} to "
    f"{end['ratio']:.2f}: {size} than twice the spread of ten random f above. The share of neighbours of the same position "
    f"goes from {100 * start['agreement']:.1f} % to {100 * end['agreement']:.1f} %. The paper takes its figure as a sign that the "
    "training brings the position into the features; here, look at these numbers, not at the drawn gaps, to see whether it did."
)

# %% [markdown]
# ### What the picture does show
#
# Within a group UMAP can be worth looking at: neighbours in the picture are neighbours in truth, in part. We go once around
# the group of the third position, in the order of the angle in PatchCore's picture, and look at twelve of the crops.

# %%
ring = lesson.order_around(patchcore[2 * n : 3 * n])  # images, by the angle at which they lie around their group's centre
stops_around = [int(image) for image in ring[np.linspace(0, n - 1, 12).round().astype(int)]]
course.keep(lesson.strip_figure(category.train, train.settings.geometry, (h, w), places[2], stops_around), "09_umap_around")

# %% [markdown]
# **What this tells you.** In the committed run the position lies on a screw, and its group is a ring: going around it turns
# the slot, by half a turn. Nobody told the network about angles. This is what such a picture is good for: an idea of what
# varies, to be checked on the images.

# %% [markdown] tags=["slide"]
# ### Three seeds, same features
#
# Could we have seen from the pictures alone what the training did to the ratio? Here are PatchCore's features, three times.
# The only difference is the seed.

# %%
seeds = {k: {} for k in sizes}
for k in sizes:
    for seed in range(3):
        coords = layout(four, seed, k)
        seeds[k][f"seed {seed}: drawn ratio {ratio(coords):.1f}"] = coords

# %% tags=["sub", "hide-input"]
title = f"The same rows; true ratio {ratio(four):.1f}, n_neighbors = 15"
course.keep(lesson.seeds_figure(seeds[15], position, labels, title), "09_umap_seeds")

# %%
def closest(rows):  # the two positions whose centres are nearest
    rows = torch.as_tensor(rows)
    centre = torch.stack([rows[position == i].mean(0) for i in range(4)])
    pair = int((distances(centre) + torch.eye(4) * 1e9).argmin())
    return f"{labels[pair // 4]}–{labels[pair % 4]}"


lines = [f"feature space: {closest(four)} are closest"]
for k in (5, 15, 60):
    pairs = ", ".join(closest(coords) for coords in seeds[k].values())
    lines.append(f"n_neighbors {k:2}, {lesson.parts(four, k)} parts, seeds 0, 1, 2: {pairs}")
drawn = [ratio(coords) for each in seeds.values() for coords in each.values()]
lines.append(f"drawn ratios of all {len(drawn)} pictures: {min(drawn):.1f} to {max(drawn):.1f}; true: {ratio(four):.1f}")
print("\n".join(lines))

# %% [markdown]
# **What this tells you.** Compare the spread of the drawn ratios, over seeds and `n_neighbors`, with what the true ratio did
# in the training. From these pictures nobody could say whether the training moved the positions together or apart. What
# they do tell is that there are groups, and who belongs to them, and the column "10 nearest agree" says that, too, as a
# number.
#
# The slider goes through `n_neighbors`. Watch how far the groups are from each other. (Without a kernel: the figure above.)

# %%
lesson.neighbours_explorer(seeds, position, 15, f"The same rows; true ratio {ratio(four):.1f}", labels)

# %% [markdown] tags=["exercise"]
# ### Exercise 9.3 · Agreement of neighbours
#
# Write the function behind the column "10 nearest agree". It gets the distances of all rows to all rows, (N, N), the group
# of each row, (N,), and k. It returns the share of the k nearest *other* rows that belong to the same group, averaged over
# all rows.

# %% tags=["exercise"]
def agreement(d, groups, k):  # (N, N), (N,), a number → a number in [0, 1]
    return ...  # your turn


# %% tags=["solution"]
def agreement(d, groups, k):  # (N, N), (N,), a number → a number in [0, 1]
    d = d.clone().fill_diagonal_(float("inf"))  # no row is its own neighbour
    nearest = d.topk(k, largest=False).indices  # (N, k)
    return (groups[nearest] == groups[:, None]).float().mean()


# %% tags=["check"]
check.check_3(agreement)

# %% [markdown] tags=["slide"]
# ## 4 · A picture is no score (4 min)
#
# The trap that follows: "this patch lies far out in the UMAP, so it is anomalous." An anomaly score is a distance to the
# memory *in the feature space* (Eq. 9). We draw PatchCore's memory and some test patches in one picture, measure the
# same distance there, and compare.

# %%
results = {name: rcp.evaluate(detector, category.test, features=test) for name, detector in fitted.items()}
masks = hits.masks_of(category.test, results["PatchCore"])  # (n, 224, 224) bool
share = torch.nn.functional.adaptive_avg_pool2d(torch.as_tensor(masks)[:, None].float(), (h, w))  # of a patch's cell

generator = torch.Generator().manual_seed(0)
picked = []
for which, count in ((share == 0, 300), (share > 0.5, 100)):
    cells = which.flatten().nonzero()[:, 0]
    picked.append(cells[torch.randperm(len(cells), generator=generator)[:count]])
defective = np.repeat([False, True], [len(cells) for cells in picked])
picked = torch.cat(picked)  # (Q,) of all n·H·W test patches
print(f"{(~defective).sum()} patches outside any outline, {defective.sum()} that lie mostly inside one")

# %% [markdown]
# The true distance by the library, and the score that PatchCore gave: they must be the same.

# %%
memory = fitted["PatchCore"].memory.rows  # (M, C)
true_distance = nearest_neighbours(test.rows[picked], memory)[0][:, 0]  # (Q,)
scores = results["PatchCore"].scores.patch_scores.flatten()[picked]
assert torch.allclose(true_distance, scores, rtol=1e-4)

coords = layout(torch.cat([memory, test.rows[picked]]))  # (M + Q, 2)
here, there = torch.as_tensor(coords[len(memory) :]), torch.as_tensor(coords[: len(memory)])
drawn_distance = nearest_neighbours(here, there)[0][:, 0]  # (Q,) the same in the picture


# %%
def rank_correlation(a, b):  # Spearman: the correlation of the ranks, 1 for the same order
    return float(torch.corrcoef(torch.stack([x.argsort().argsort().float() for x in (a, b)]))[0, 1])


good = torch.as_tensor(~defective)
print(f"rank correlation of drawn and true distance: {rank_correlation(drawn_distance, scores):.2f}, ", end="")
print(f"among the patches outside outlines {rank_correlation(drawn_distance[good], scores[good]):.2f}")
for name, value in (("true", scores), ("drawn", drawn_distance)):
    print(f"AUROC of the {name:5} distance, outside against inside: {metrics.auroc(defective, value):.3f}")

# %% tags=["slide", "hide-input"]
crowd = judged.Crowd(coords, drawn_distance.numpy(), scores.numpy(), defective)
title = f"rank correlation {rank_correlation(drawn_distance, scores):.2f}"
course.keep(judged.score_figure(crowd, title), "09_umap_scores")

# %%
high, crowded = scores > scores[good].quantile(0.95), drawn_distance <= drawn_distance[good].median()
print(f"{int(high.sum())} patches score above 95 % of the normal ones; {int((high & crowded).sum())} of them are drawn")
print("nearer to the memory than half of the normal patches are")

# %% [markdown] tags=["sub"]
# **What this tells you.** Answer to (b): sometimes. A kind of defect that is common in the test set forms a group of its own
# and may well be drawn apart. But that group stands where there was room, not at its distance. A rare defect has no fellows:
# its nearest neighbours are normal patches, UMAP makes the nearest of them a neighbour of membership 1, and draws it among
# them. And rare defects are what the job is about. Also, the picture was fitted to the test patches; a score never is.
#
# Click on a point of the picture, or of the diagram, to see the patch; or go through the ranks with the slider. Look for
# triangles in the crowd: which defect are they? (Without a kernel, the figure above shows all points, not the images.)

# %%
judged.score_explorer(crowd, category.test, results["PatchCore"], picked)

# %% [markdown] tags=["slide"]
# ## 5 · Figure 4: the histogram and d' (3 min)
#
# The paper scales image scores to 0–1, draws normal against abnormal, and states the **sensitivity index**
#
# $$d' = \frac{|\mu_a - \mu_n|}{\sqrt{(\sigma_a^2 + \sigma_n^2)/2}}$$
#
# (this form, with population variances, is our reading). Scaling changes means and
# deviations by the same factor, so d' must not change:

# %%
lines = []
for name, result in results.items():
    raw = result.scores.image_scores.numpy()
    assert math.isclose(metrics.dprime(result.labels, raw), metrics.dprime(result.labels, plots_paper.scaled(raw)), rel_tol=1e-4)
    auroc = metrics.auroc(result.labels, raw)
    lines.append(f"{name:11} d' {metrics.dprime(result.labels, raw):.2f}, image AUROC {auroc:.3f}")
print("\n".join(lines))

# %% [markdown]
# That was one short training. The figure has several seeds of a long one, again from a result file; f is never shown trained
# without the same f untrained beside it.

# %% tags=["slide"]
path = found_or_measured("figure4", material, folders)
course.keep(plots_paper.figure4(path), "09_umap_figure4")

# %% tags=["hide-input"]
Markdown(f"*After ReConPatch, Figure 4; {plots_paper.caption(plots_paper.read(path, 'figure4'))}*")

# %% [markdown]
# What follows ± is the standard deviation over seeds. How sure is such a number for other test images? For our short run we
# draw the test images again, with replacement, within each class, 300 times, the same draws for all detectors.

# %%
generator = torch.Generator().manual_seed(0)
labels_of = results["PatchCore"].labels
classes = [torch.as_tensor(np.flatnonzero(labels_of == label)) for label in (0, 1)]
draws = {name: [] for name in results}
for _ in range(300):
    again = torch.cat([own[torch.randint(len(own), own.shape, generator=generator)] for own in classes])
    for name, result in results.items():
        draws[name].append(metrics.dprime(labels_of[again], result.scores.image_scores[again]))

# %% tags=["sub"]
def interval(values):
    low, high = np.quantile(values, (0.025, 0.975))
    return f"{low:.2f} to {high:.2f}"


lines = ["| | d', short run | 95 % interval | d', published (MVTec AD bottle) |", "|---|---|---|---|"]
for name, result in results.items():
    value = metrics.dprime(labels_of, result.scores.image_scores)
    published = plots_paper.published_dprime().get(name)
    lines.append(f"| {name} | {value:.2f} | {interval(draws[name])} | {f'{published:.2f}' if published else '–'} |")
gain = np.subtract(draws["ReConPatch"], draws["PatchCore"])
lines.append(f"\nReConPatch minus PatchCore, draw by draw: 95 % of the differences lie from {interval(gain)}.")
Markdown("\n".join(lines))

# %% [markdown] tags=["hide-input"]
# Published: ReConPatch (arXiv 2305.16713), Figure 4, with the paper's own backbone and training.

# %% tags=["hide-input"]
sure = "does not contain 0" if np.quantile(gain, 0.025) > 0 or np.quantile(gain, 0.975) < 0 else "contains 0"
Markdown(
    f"**What this tells you.** Our column is {course.source(category)}, with a small backbone and a short training; the "
    "published one is the original bottle images, with another backbone and a long training. So compare lines within a "
    f"column, not across. The interval of our difference {sure}; it covers the choice of test images only, not the seed of "
    "the training. Scaling to 0–1 is for the drawing: it uses the largest and smallest *test* score, so it may never come "
    "before a threshold."
)

# %% [markdown]
# What does a d' mean? For two normal distributions of equal width it fixes the AUROC: $\Phi(d'/\sqrt{2})$. Move the slider to
# the published 4.32, then 4.92, and read how much AUROC lies between them. Then see at your measured value whether
# real scores, which are no normal distributions, obey. (Without a kernel: the figure is at rest at PatchCore's measured d'.)

# %% tags=["hide-input"]
measured_dprime = metrics.dprime(labels_of, results["PatchCore"].scores.image_scores)
course.keep(judged.dprime_figure(measured_dprime), "09_umap_dprime")

# %%
judged.dprime_explorer(measured_dprime)

# %% [markdown] tags=["exercise"]
# ### Exercise 9.4 · d' by hand
#
# Four normal and four abnormal scores. What is d'? (A number; pencil and paper are enough.)

# %% tags=["setup"]
normal, abnormal = check.DPRIME_NORMAL, check.DPRIME_ABNORMAL
print("normal", normal.tolist(), "| abnormal", abnormal.tolist())

# %% tags=["exercise"]
dprime_9_4 = ...  # your answer: a number

# %% tags=["solution"]
dprime_9_4 = abs(abnormal.mean() - normal.mean()) / math.sqrt((abnormal.var() + normal.var()) / 2)

# %% tags=["check"]
check.check_4(dprime_9_4)

# %% [markdown] tags=["slide"]
# ## 6 · Figure 5: contours (2 min)
#
# The paper draws, on each map, the true outline, the outline of what lies above the **F1-optimal threshold**, and the
# place of the maximum. That threshold is an *oracle*: it is the one value that, knowing the true outlines of all test pixels,
# gives the best F1. Nobody has it in production. It is good for pictures only.

# %%
path = found_or_measured("figure5", material, folders)
course.keep(plots_paper.figure5(path), "09_umap_figure5")

# %% tags=["sub"]
file = plots_paper.read(path, "figure5")
for name, found in file["detectors"].items():
    print(f"{name:11} oracle threshold {found['threshold']:.1f}, pixel F1 {found['pixel_f1']:.3f}; of {found['abnormal']}", end=" ")
    print(f"defective images {found['reached']} reach it, in {found['maximum_inside']} the maximum lies inside the true outline")

# %% tags=["hide-input"]
found = file["detectors"]["PatchCore"]
Markdown(
    f"*After ReConPatch, Figure 5; {plots_paper.caption(file)} For each kind the image with PatchCore's median score; maps show "
    "the dotted window.*\n\n**What this tells you.** The dashed line follows the solid one only roughly: a patch sees its "
    "surroundings, and the maps are smoothed. But count how many defective images reach the threshold at all: with PatchCore "
    f"{found['reached']} of {found['abnormal']}. F1 over *pixels* is decided by the defects with many and bright pixels, and a faint one "
    "has no dashed line. \"F1-optimal\" does not mean good for every defect. The cross says where the highest value is even then."
)

# %%
views = {}  # for the sliders: our short run again
for name in ("PatchCore", "ReConPatch"):
    _, oracle = metrics.f1_threshold(masks, results[name].scores.maps.numpy())
    views[name] = (results[name], fitted[name].colour_limits(), oracle)

# %% [markdown]
# Go through the images (they are sorted by PatchCore's score), then move the threshold: how many good images light up
# before the faintest defect does? (Without a kernel: the figure above, at the oracle of its own run.)

# %%
judged.contour_explorer(category.test, views, masks)

# %% [markdown] tags=["slide"]
# ## 7 · What each figure can carry (1 min)
#
# | figure | you may read | you may not read | number to print instead |
# |---|---|---|---|
# | UMAP | who is whose neighbour, in part | distances, widths, gaps, scores | between / within, agreement, `kept_neighbours` |
# | histogram with d' | how far apart the classes are | a threshold; other data's d' | AUROC, d' with its interval |
# | contours | where the map is high | whether a detector decides well | pixel AUROC, AUPRO, maximum inside |

# %% [markdown]
# ## Where we differ from the paper
#
# * **Data and backbone.** Embedded synthetic data unless you set `RCP_DATA`; EfficientNet-Lite0, 152 numbers a patch. The
#   paper: capsule (Figure 3) and bottle (Figure 4) of MVTec AD; its single model at 224 pixels has a WideResNet-50.
# * **Training.** The result files: 120 epochs at the paper's rate, but an epoch is 16 steps of 128 patches, no pass over the
#   data; Figure 3 stops at 58. What is computed live: 100 steps at rate 1e-3, one seed.
# * **Positions** are read as (row, column): our reading. On another grid we take the same places of the image.
# * **UMAP.** The paper's settings are not known to us. Ours stand in `layout`, and in the file of Figure 3; live we take 200
#   rounds instead of the package's 500 for so few rows; each epoch starts from the one before.
# * **d'** with population variances, our form. **F1-optimal threshold**: over all test pixels, and called an oracle.
# * Colour limits come from two held-out folds in what is computed live, from five elsewhere.
#
# ## What to read next
#
# Notebook 11 asks how many good images are enough. For thresholds that are no oracle see `05_scoring`, for the training and
# its history `03_relaxed_contrastive_loss`.

# %% [markdown] tags=["notes"]
# *For the lecturer.* Show the picture of section 2 before the truth above it, and let the class describe it: nearly
# everybody reports distances. What usually confuses: that the ratio of distances is no quality measure of a detector (it may
# fall while the AUROC rises); that `n_neighbors` counts the row itself; that a layout can be bit-reproducible and still
# arbitrary. If time is short, leave out the three seeds of section 3, not those of section 2.
