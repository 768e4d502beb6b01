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
# # 00 · Quick start: find what does not belong
#
# **Goal.** From image files to anomaly scores, heat maps and an honest table, with the two detectors of this course:
# *PatchCore*, which only remembers, and *ReConPatch*, which trains first.
#
# **Time.** 20 minutes to teach, about a minute to run.
#
# **Predict first.** A production line gives you photographs of *good* parts only. You may keep one percent of what a
# network sees in them. Look at the defects in the first figure below: which kinds will be caught, which missed? Write
# your guess down; section 4 counts them.

# %% tags=["install", "remove-cell"]
import importlib.util

if importlib.util.find_spec("rcp") is None:  # Colab: install rcp there; silent where it is installed
    get_ipython().run_line_magic("pip", 'install --quiet "rcp[notebooks] @ git+https://github.com/-OWNER-/rcp"')
    print("Restart the session now (menu Runtime), then run all cells.")  # what is loaded already is of another version

# %% tags=["setup"]
# %matplotlib inline
# %config InlineBackend.figure_formats = ["jpeg"]
import os

import rcp  # before torch: it asks waiting threads to sleep, which keeps a busy laptop responsive
import torch
from IPython.display import Markdown
from rcp import comparison, course, plots, synthetic, widgets
from rcp.course import quickstart as lesson
from rcp.files import write_atomically
from rcp.memory import nearest_neighbours

# %% [markdown] tags=["slide"]
# ## 1 · Data: good parts to learn from, all kinds to be tested on (3 min)
#
# The embedded data are made on this machine, from a seed: two surfaces cut from real photographs, two rendered parts.
# They lie on disk as MVTec AD does, so the same lines read the real thing: the
# comment below says how, in every notebook.

# %% tags=["setup", "nbval-check-output"]
# real data: os.environ.update(RCP_DATA="/data/mvtec", RCP_CATEGORY="bottle")
category = course.category("terminal")
print(category.name, "| train:", category.train.counts())
print("test:", category.test.counts())

# %% tags=["sub", "hide-input"]
course.keep(plots.contact_sheet(category.test), "00_quickstart_data")

# %% [markdown]
# **What this tells you.** The first row is good: such parts vary (light, position, noise), and none of that may raise an
# alarm. In the others the true outline of the defect is drawn in cyan. The detectors never see these outlines, nor any label: they
# are for judging only.

# %% [markdown] tags=["slide"]
# ## 2 · The idea on six points you can check by eye (3 min)
#
# A *memory* holds what normal looks like, here four points in the plane. A new point is as anomalous as it is far from
# its **nearest** neighbour in the memory, the $r^*$ of ReConPatch's Eq. 9:
#
# $$s(p) = \lVert p - r^* \rVert, \qquad r^* = \arg\min_{r \in \mathcal M} \lVert p - r \rVert$$

# %% tags=["nbval-check-output"]
memory = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
queries = torch.tensor([[1.0, 0.5], [4.0, 5.0]])

by_hand = []
for q in queries:
    by_hand.append(min(((q - r) ** 2).sum().sqrt() for r in memory))
print([f"{float(d):.2f}" for d in by_hand])

# %% [markdown]
# The library does the same for many thousand rows at a time. It must agree with the loop:

# %% tags=["nbval-check-output"]
distances, which = nearest_neighbours(queries, memory)
assert torch.allclose(distances[:, 0], torch.stack(by_hand))
print("distances", [f"{d:.2f}" for d in distances[:, 0].tolist()], "| nearest row", which[:, 0].tolist())

# %% [markdown]
# The distances are rooted L2, not squared: $(4,5)$ is 5 away from $(1,1)$, not 25.

# %% [markdown]
# ## 3 · The same with real patches (3 min)
#
# A frozen ImageNet network turns each image into a grid of patch features. *Predict:* 28 × 28 patches an image, how many
# rows and bytes will the training images give?

# %% tags=["setup", "nbval-check-output"]
extractor = rcp.PatchExtractor(rcp.FeatureSettings("efficientnet_lite0"))
train = extractor.extract(category.train)  # (n, 28, 28, 152)
test = extractor.extract(category.test)

n, h, w, c = train.values.shape
print(f"predicted {n} × {h} × {w} × {c} × 4 bytes = {n * h * w * c * 4 / 1e6:.1f} MB")
print(f"measured  {train.values.nbytes / 1e6:.1f} MB in {len(train.rows):,} rows")

# %% [markdown]
# Both detectors keep 1 % of the rows as their memory. PatchCore takes them as they are: one pass, no training. ReConPatch
# first trains a linear layer `f` on them, without labels (Eqs 1–8 of the paper, in `rcp.similarity`,
# `rcp.loss` and `rcp.head`), and remembers `f(p)`.

# %% tags=["setup"]
short = rcp.TrainSettings(epochs=3, steps=12)  # a short training, so that a class need not wait; the paper: 120 epochs
fitted = {
    "PatchCore": rcp.PatchCore("efficientnet_lite0").fit(train),
    "ReConPatch": rcp.ReConPatch("efficientnet_lite0", training=short).fit(train),
}
results = {title: rcp.evaluate(d, category.test, features=test) for title, d in fitted.items()}
for title, result in results.items():
    print(f"{title:11} {len(fitted[title].memory)} rows | {result}")

# %% [markdown]
# **What this tells you.** *AUROC* is the chance that a random defective image (or pixel) scores higher than a random good
# one: 0.5 is guessing. *AUPRO* gives every defect the same weight, large or small. *AP* and *F1-max* are two more summaries
# (notebook 05 derives them all). *Protocol crop*: what the network saw is what is judged. These numbers come from one
# seed; whether one detector is better than the other needs several (section 6).

# %% [markdown] tags=["slide"]
# ## 4 · Scores, and where to draw the line (4 min)
#
# The limit is set **without any test label**: each training image was scored against a memory built without it, and the
# limit is the score that at most 5 % of such normal images are expected to exceed.

# %% tags=["sub", "hide-input"]
course.keep(plots.score_histogram(results), "00_quickstart_scores")

# %%
for title, result in results.items():
    v = result.verdict
    low, high = (100 * share for share in v.threshold.interval)
    print(f"{title:11} limit {v.threshold.value:.1f} from {v.threshold.normals} held-out good images")
    print(f"            asked for 5 % false alarms (95 % interval {low:.0f}–{high:.0f} %), ", end="")
    print(f"got {v.false_alarms} of {v.normals}; found {v.detected} of {v.anomalies} defects")
    print("            missed:", lesson.missed(result))

# %% [markdown]
# **What this tells you.** Compare the last lines with your guess: small and faint defects are the ones that are missed.
# The interval of the false-alarm rate is as wide as the good images are few: a rate of 1 % cannot even be asked of fewer
# than 99. In the figure, $d'$ is the distance of the two means in units of the pooled standard deviation,
# $\sqrt{(\sigma_a^2 + \sigma_n^2)/2}$. The two x axes cannot be compared: distances of different feature spaces have
# different units, and ReConPatch's are re-weighted by its Eq. 10 besides (`rcp.scoring.reweighting`).

# %% [markdown] tags=["slide"]
# ## 5 · Heat maps on one scale (3 min)
#
# One colour scale per detector, set on held-out *normal* images: its lower half is what normal patches score. With a scale
# per image, every good part would have a glowing spot somewhere (notebook 05 shows that illusion).

# %% tags=["sub", "hide-input"]
limits = {title: (result, fitted[title].colour_limits()) for title, result in results.items()}
course.keep(plots.map_sheet(category.test, limits), "00_quickstart_maps")

# %% [markdown]
# Move through all test images, from the most normal to the most anomalous (arrow keys work, too). Without a running
# kernel you see the figure above, which is the same for one image of each kind.

# %%
widgets.browse(category.test, limits)

# %% [markdown] tags=["slide"]
# ## 6 · The honest table: all four categories, three seeds, and an untrained `f` (4 min)
#
# If training helps, ReConPatch must beat two controls on the *same* features: PatchCore, and its own linear layer as it
# was drawn at random. A difference smaller than its spread is no difference.

# %%
if "RCP_DATA" in os.environ:
    chosen, data_name = [category], course.source(category)
else:
    chosen = [rcp.mvtec(synthetic.cached(), name) for name in synthetic.CATEGORIES]
    data_name = "embedded synthetic data, seed 0"
seeds = (0, 1, 2)
rows = comparison.compare(chosen, training=short, seeds=seeds)

# %% tags=["sub", "hide-input"]
text = comparison.caption(data_name, rcp.FeatureSettings(), short, seeds, "crop")
table = comparison.markdown(rows, text)
write_atomically(course.out() / "00_quickstart_results.md", lambda path: path.write_text(table, encoding="utf-8"))
write_atomically(course.out() / "00_quickstart_results.csv", lambda path: path.write_text(comparison.as_csv(rows), encoding="utf-8"))
Markdown(table)

# %% [markdown]
# **What this tells you.** Read the ± first. Where the three lines of a category lie within each other's spread, these data
# do not show that the training helps:

# %%
Markdown(lesson.finding(rows))

# %% [markdown]
# A short training with the paper's small learning rate moves `f` little. The published gain (99.1 → 99.56 % image AUROC on MVTec AD, ReConPatch's Table 2) has not been shown independently; this course
# reports whatever it measures.

# %% [markdown]
# ## Exercises
#
# Each check says why an answer is wrong. Solutions are folded below; executed, they are in `solutions/00_quickstart.ipynb`.

# %% [markdown] tags=["exercise"]
# ### Exercise 0.1 · The score
#
# Write Eq. 9 for many queries at once: `queries` is (Q, D), `memory` is (M, D), the result (Q,).

# %% tags=["exercise"]
def scores_of(queries, memory):
    return ...  # your turn


# %% tags=["solution"]
def scores_of(queries, memory):
    return torch.cdist(queries, memory).amin(1)  # (Q, M) → (Q,)


# %% tags=["check"]
lesson.check_1(scores_of)

# %% [markdown] tags=["exercise"]
# ### Exercise 0.2 · A larger memory
#
# How many rows does the memory have if it keeps 10 % instead of 1 %? Answer first, then try `rcp.BankSettings(coreset=0.1)`.
# (To go on, without a check: does the image AUROC move by more than a seed does? Fit with `seed=0, 1, 2` at both sizes.)

# %% tags=["exercise"]
rows_0_2 = ...  # your answer: a number

# %% tags=["solution"]
big = rcp.PatchCore(bank=rcp.BankSettings(coreset=0.1)).fit(train)
rows_0_2 = len(big.memory)

# %% tags=["check"]
lesson.check_2(rows_0_2, len(train.rows), len(train))

# %% [markdown] tags=["exercise"]
# ### Exercise 0.3 · What is missed
#
# Which defect does PatchCore miss most often, i.e. leave at or below its limit ("none" if it misses none)? Count it from `results["PatchCore"].defects`,
# `.scores.image_scores` and `.verdict.threshold.value`.

# %% tags=["exercise"]
defect_0_3 = ...  # your answer: its name, or "none"

# %% tags=["solution"]
result = results["PatchCore"]
below = result.scores.image_scores <= result.verdict.threshold.value
missed = [defect for defect, low in zip(result.defects, below.tolist()) if low and defect != "good"]
defect_0_3 = max(sorted(set(missed)), key=missed.count, default="none")

# %% tags=["check"]
lesson.check_3(defect_0_3, results["PatchCore"])

# %% [markdown]
# ## Where we differ from the papers
#
# * The backbone is EfficientNet-Lite0, whose weights come with the installation; the papers use WideResNets, which this code
#   takes by name (`rcp run --backbone wide_resnet50_2`).
# * PatchCore here is the *concat* variant (plain 3×3 averages, no re-weighting), the fair opponent on equal features; the
#   paper's and the published code's variants have names, too.
# * The training is short. The settings of the paper are in `rcp.TrainSettings` (`epochs=120`).
#
# ## What to read next
#
# Notebook 01 opens the first stage: what does a patch feature see? On your own images, three lines do the job:
#
# ```python
# detector = rcp.ReConPatch(backbone="efficientnet_lite0")
# detector.fit(rcp.mvtec(DIR, "bottle").train)
# result = rcp.evaluate(detector, rcp.mvtec(DIR, "bottle").test)
# ```
#

# %% [markdown] tags=["notes"]
# *For the lecturer.* Ask before section 4 where the class would draw the line, and why not where the F1 is best (it takes
# test labels). What usually confuses: that the scores have no upper end, and that two detectors' scores cannot be compared.
