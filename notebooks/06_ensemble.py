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
# # 06 · Ensembles: three networks, one score
#
# **Goal.** Three networks look at the same part. You will see why their distances must not simply be averaged, derive the
# modified z-score that makes them comparable, and measure what the ensemble gains, and where the gain comes from.
#
# **Time.** 25 minutes to teach, about half a minute to run.
#
# **Predict first.** One detector finds most defects. Three detectors with three *different* networks find more. How much of
# that gain would you get from the *same* network three times, with three random seeds? Write down a share in percent;
# section 6 has the answer.

# %% tags=["install", "remove-cell"]
import importlib.util

if importlib.util.find_spec("rcp") is None:  # Colab: install rcp there; silent where it is installed
    get_ipython().run_line_magic("pip", 'install --quiet "rcp[notebooks] @ git+https://github.com/-OWNER-/rcp"')
    print("Restart the session now (menu Runtime), then run all cells.")  # what is loaded already is of another version

# %% tags=["setup"]
# %matplotlib inline
# %config InlineBackend.figure_formats = ["png"]
import rcp  # before torch: it asks waiting threads to sleep, which keeps a busy laptop responsive
import numpy as np
import torch
from IPython.display import Markdown
from rcp import course, metrics, plots
from rcp.course import ensemble as lesson
from rcp.course import ensemble_checks as checks
from rcp.course import ensemble_gains as gains
from rcp.memory import nearest_neighbours
from rcp.scoring import modified_z_score

# real data: os.environ.update(RCP_DATA="/data/mvtec", RCP_CATEGORY="bottle")  (import os)
category = course.category("terminal")

# %% [markdown] tags=["slide"]
# ## 1 · Three networks, three units (3 min)
#
# EfficientNet-Lite0, Lite1 and Lite2 are three sizes of one family; their weights come with the installation. Each makes
# its own patch features, and each gets its own PatchCore. Members of an ensemble must look at the same crop of the image,
# or their maps do not fit on each other. The features are extracted once; the seeds of section 6 use them again.

# %%
extractors = {name: rcp.PatchExtractor(rcp.FeatureSettings(backbone)) for name, backbone in gains.BACKBONES.items()}
features = {name: (e.extract(category.train), e.extract(category.test)) for name, e in extractors.items()}
for name, (train, test) in features.items():
    print(f"{name}: train {tuple(train.values.shape)}, test {tuple(test.values.shape)}")

# %%
members = {}
for name, backbone in gains.BACKBONES.items():
    members[name] = rcp.PatchCore(backbone, seed=0)
    members[name].extractor = extractors[name]  # loaded already
    members[name].fit(features[name][0])

# %%
labels = category.test.labels  # (n,) 0 normal, 1 anomalous: for judging only
scored = {name: member.score(features[name][1]) for name, member in members.items()}
parts = {name: (scored[name].image_scores, members[name].normal_scores()) for name in members}
for name, (scores, normal) in parts.items():
    print(f"{name}: image AUROC {metrics.auroc(labels, scores.numpy()):.3f}, ", end="")
    print(f"held-out normals: median {normal.image_median:.1f}, MAD {normal.image_mad:.2f}")

# %% tags=["slide", "hide-input"]
course.keep(lesson.members_figure(labels, parts), "06_ensemble_members")

# %%
Markdown(f"*Image scores of the test images of {course.source(category)}, one panel a network; PatchCore, 1 % coreset, seed 0.*")

# %% [markdown]
# **What this tells you.** A distance has the unit of its feature space, and every network has its own. A score of the same
# height can be clearly anomalous for one network and perfectly normal for another. The grey band is what good images score
# when the memory does not know them: its *position* and its *width* differ from network to network. Section 3 makes both equal.

# %% [markdown] tags=["slide"]
# ## 2 · Why raw scores cannot be averaged (5 min)
#
# Two members, four parts; the last part is defective. Member A sees that, member B does not. B's unit is larger: its
# scores differ by tens where A's differ by ones.

# %% tags=["nbval-check-output"]
toy_labels = np.array([0, 0, 0, 1])
a = np.array([1.0, 1.2, 0.9, 3.0])
b = np.array([40.0, 80.0, 60.0, 50.0])
print("A alone", metrics.auroc(toy_labels, a), "| B alone", round(metrics.auroc(toy_labels, b), 3))
print("mean  ", (a + b) / 2, "→", round(metrics.auroc(toy_labels, a + b), 3))
print("B / 10", (a + b / 10) / 2, "→", round(metrics.auroc(toy_labels, a + b / 10), 3))
print("B / 40", (a + b / 40) / 2, "→", metrics.auroc(toy_labels, a + b / 40))

# %% [markdown]
# **What this tells you.** The plain mean orders the parts as B does: the member with the widest spread decides, whether it
# is any good or not. And the answer depends on a factor that means nothing. The features of a network could be multiplied by 10
# without any change in *who is whose nearest neighbour*, and so without any change in that network's own AUROC. A combination
# that changes then is a combination of units, not of opinions.
#
# Such factors are real: one published PatchCore reports *squared* distances, another rooted ones; a linear layer such as
# ReConPatch's `f` may shrink or stretch its space at will. Now the three real members, with one of them in another unit:

# %%
raw = {name: scores.numpy() for name, (scores, _) in parts.items()}
for factor in (1, 10):
    together = (factor * raw["Lite0"] + raw["Lite1"] + raw["Lite2"]) / 3
    print(f"Lite0 × {factor:2}: raw mean {metrics.auroc(labels, together):.3f}", end="   ")
    print(f"(Lite0 alone {metrics.auroc(labels, factor * raw['Lite0']):.3f})")

# %% tags=["slide", "hide-input"]
course.keep(lesson.scale_figure(labels, parts, "Lite0", 10.0), "06_ensemble_scale")

# %% [markdown]
# Left: how closely the order of the mean follows each member's order. Right: the AUROC while the factor changes. Choose a
# member and move the factor (or drag in the right panel). Look for the two ends of the pink curve. Without a kernel,
# the figure above is the same at rest, at a factor of 10.

# %%
lesson.scale_explorer(labels, parts)

# %% [markdown]
# **What this tells you.** With a large factor the raw mean *becomes* that member; with a small one it forgets it. The z mean
# (next section) is a straight line. Be fair to the raw mean, though: in the committed run it does well at a factor of 1, because these
# three networks happen to have spreads of the same order. That is luck of this family, and nobody tells you when it ends.

# %% [markdown] tags=["slide"]
# ## 3 · The modified z-score, by hand (6 min)
#
# Count each score in *standard deviations above normal*. The usual z-score uses mean and standard deviation. But among the
# images that are meant to be normal there is always a blurred one. Seven scores; the last photograph is blurred:

# %% tags=["setup", "nbval-check-output"]
seven = checks.SEVEN
print([round(value, 1) for value in seven.tolist()])

# %% tags=["nbval-check-output"]
in_order = sorted(seven.tolist())
median = in_order[3]  # the fourth of seven
distances = sorted(abs(value - median) for value in in_order)
mad = distances[3]  # median absolute deviation from the median
print("mean", round(float(seven.mean()), 2), "± deviation", round(float(seven.std()), 2))
print("median", round(median, 2), "  distances", [round(d, 2) for d in distances], "→ MAD", round(mad, 2))

# %% [markdown]
# The mean lies above six of the seven numbers, and the deviation is several times the range of those six:
# the outlier hides behind the spread that it made. Median and MAD hardly know it.
#
# **Where does 1.4826 come from?** For a standard normal variable, half of all values lie within ±0.6745. So its MAD is
#   0.6745 of
# its standard deviation, and 1 / 0.6745 = 1.4826 turns a MAD into a standard deviation. Check it by simulation:

# %% tags=["nbval-check-output"]
normal_sample = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
half = float(normal_sample.abs().median())
print(f"median of |N(0, 1)| = {half:.3f}, and 1 / {half:.3f} = {1 / half:.2f}")

# %% [markdown] tags=["slide"]
# The paper's modified z-score (ReConPatch, section 3.4) of a score $s$:
#
# $$\bar s = \frac{s - \mathrm{median}}{1.4826 \cdot \mathrm{MAD}}$$

# %% tags=["nbval-check-output"]
by_hand = [(value - median) / (1.4826 * mad) for value in seven.tolist()]
library = modified_z_score(seven, median, mad)
assert torch.allclose(library, torch.tensor(by_hand))
print("modified z", [round(z, 2) for z in by_hand])
print("usual z   ", [round(float(z), 2) for z in (seven - seven.mean()) / seven.std()])

# %% [markdown]
# **What this tells you.** The blurred photograph is nineteen robust deviations away, but only two usual ones: with a limit
#   at 3,
# the usual z would let it pass.
#
# **MAD with an M as in median.** Two summaries of the paper write "mean absolute deviation". It is not the same:

# %% tags=["nbval-check-output"]
mean_deviation = float((seven - median).abs().mean())
print(f"median absolute deviation {mad:.2f} → 1.4826 × it = {1.4826 * mad:.2f}")
print(f"mean absolute deviation   {mean_deviation:.2f} → 1.4826 × it = {1.4826 * mean_deviation:.2f}")
spread = float(normal_sample.abs().mean())
print(f"and without any outlier: mean of |N(0, 1)| = {spread:.3f}; its constant would be {1 / spread:.2f}, not 1.48")

# %% tags=["sub", "hide-input"]
course.keep(lesson.robust_figure(), "06_ensemble_robust")

# %% [markdown]
# Move the outlier (slider, or drag in the picture): mean and deviation follow it wherever it goes; the median stops as soon as
# it has been passed. Without a kernel, the figure above is the same at rest.

# %%
lesson.robust_explorer()

# %% [markdown] tags=["exercise"]
# ### Exercise 6.1 · A new part
# The seven scores are `seven`. A new part scores 12. What is its modified z-score?

# %% tags=["exercise"]
new_part = ...  # your answer: a number, in robust deviations

# %% tags=["solution"]
centre = float(np.median(seven))
new_part = (12 - centre) / (1.4826 * float(np.median((seven - centre).abs())))

# %% tags=["check"]
checks.check_1(new_part)

# %% [markdown] tags=["exercise"]
# ### Exercise 6.2 · The function
# Write the function: `scores` are to be judged, `normal` are scores of normal images. Mind even numbers of values:
# `torch.median` takes the lower of the two in the middle, `np.median` their mean.

# %% tags=["exercise"]
def z_of(scores, normal):  # both 1-D tensors
    return ...  # your turn

# %% tags=["solution"]
def z_of(scores, normal):
    centre = float(np.median(normal))
    return (scores - centre) / (1.4826 * float(np.median((normal - centre).abs())))

# %% tags=["check"]
checks.check_2(z_of)

# %% [markdown] tags=["slide"]
# ## 4 · Whose median? (4 min)
#
# Three sets of images could set median and MAD. *Test images* must not: a batch with many defects would look normal, and a
# single part on the line has no batch. *Training images* sound right, and the paper says so. But a memory that holds a
# point finds it at distance 0, whatever the point is:

# %% tags=["nbval-check-output"]
memory = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
itself = nearest_neighbours(memory, memory)[0][:, 0]
print("scores of the memory's own points", itself.tolist())

# %% [markdown]
# So rcp holds images *out*: the training images are split into five parts, and each is scored against a memory built from
# the other four (`normal_scores()`, notebook 05). *Predict:* of these two, which comes nearer to what new good images score? Is
# the answer the same for a memory of 1 % and of 3 % of the rows?

# %%
larger = rcp.PatchCore(gains.BACKBONES["Lite0"], bank=rcp.BankSettings(coreset=0.03), seed=0)
larger.extractor = extractors["Lite0"]
larger.fit(features["Lite0"][0])
detectors = {f"{name}, 1 %": (name, member) for name, member in members.items()} | {"Lite0, 3 %": ("Lite0", larger)}

# %%
good, three = torch.from_numpy(labels == 0), {}
for title, (name, detector) in detectors.items():
    inside, normal = detector.score(features[name][0]).image_scores, detector.normal_scores()
    new = detector.score(features[name][1]).image_scores[good]
    three[title] = (inside, normal.image_scores, new)
    z_inside, z_new = (modified_z_score(s, normal.image_median, normal.image_mad).median() for s in (inside, new))
    print(f"{title}: median z of images in the memory {z_inside:+.1f}, of good test images {z_new:+.1f}")

# %% tags=["slide", "hide-input"]
course.keep(lesson.illusion_figure(three), "06_ensemble_illusion")

# %% [markdown]
# **What this tells you.** There are two errors, with opposite signs.
#
# * Images that the memory holds score lower than new good ones: the *dangerous* side, as new good parts then look anomalous.
#   The
#   illusion grows with the memory; with all rows kept, every training image would score exactly 0.
# * Held-out images score higher than new good ones: the memories that judged them were built from four fifths of the images
#   and hold four fifths of the rows. That is the *safe* side: fewer false alarms than asked for, and some
#   defects missed. This error shrinks as the memory grows. In the committed run it is the larger of the two at 1 %, and
#   the smaller one at 3 %.
#
# For the ensemble the sign matters less than this: every member's zero must be found in the same way.

# %% [markdown] tags=["slide"]
# ## 5 · The ensemble (4 min)
#
# Per member the modified z-score with *its* held-out median and MAD, then the mean over members. By hand:

# %%
z = [modified_z_score(scores, normal.image_median, normal.image_mad) for scores, normal in parts.values()]
by_hand = (z[0] + z[1] + z[2]) / 3  # (n,)

# %% [markdown]
# `rcp.Ensemble` does the same, for images and for patches (their own median and MAD). It must agree:

# %%
ensemble = rcp.Ensemble(list(members.values()))
together = rcp.evaluate(ensemble, category.test)  # reads the test images once a member
assert torch.allclose(together.scores.image_scores, by_hand, atol=1e-3)
for name, (scores, _) in parts.items():
    print(f"{name:8} image AUROC {metrics.auroc(labels, scores.numpy()):.3f}")
print(f"together image AUROC {together.metrics['image_auroc']:.3f}")
v = together.verdict
print(f"limit {v.threshold.value:.1f} robust deviations: {v.false_alarms} of {v.normals} false alarms, {v.detected} of {v.anomalies} found")

# %% [markdown]
# The limit needs no test label either: every training image was held out from each member's memory in turn, so the mean of its
# three z-scores is a held-out score of the ensemble.

# %% tags=["sub", "hide-input"]
course.keep(lesson.combine_figure(labels, parts), "06_ensemble_combine")

# %% [markdown]
# Switch members off (weight 0), or give one more weight; compare the three ways of averaging. *Ranks* are a third
# way without units, but a rank needs the whole test batch: a single part has none. Without a kernel, the figure above is
# the same with equal weights.

# %%
lesson.combine_explorer(labels, parts)

# %% [markdown]
# **What this tells you.** Some choice of weights will beat equal weights on these images. You found it by looking at test
#   labels:
# it is an oracle, and would be worth nothing on the next batch. The ensemble uses equal weights.

# %%
results = {}
for name, member in members.items():
    alone = rcp.evaluate(member, category.test, features=features[name][1])
    results[name] = (alone, member.colour_limits())
results["ensemble (z)"] = (together, ensemble.colour_limits())
shown = plots.typical(together)[-1]

# %% tags=["slide", "hide-input"]
course.keep(lesson.maps_figure(category.test, results, shown), "06_ensemble_maps")

# %% [markdown]
# Image with the true outline, heat maps of the three members (L2 distance, each on its own scale from held-out normals), and
# of the ensemble (robust deviations); numbers are image scores. Move through all test images; without a kernel, the figure
# above is one of them.

# %%
lesson.maps_explorer(category.test, results)

# %% [markdown] tags=["slide"]
# ## 6 · What it gains, and from what (3 min)
#
# An AUROC moves by points when only the seed of the coreset changes. So a gain has to be counted over seeds, and against
# a control: the mean z of *one* network with three seeds averages as much, without any second opinion.

# %%
everything = {}
for name, backbone in gains.BACKBONES.items():
    everything[name, 0] = gains.Scored(members[name], scored[name])
    for seed in (1, 2):
        everything[name, seed] = gains.fit_and_score(backbone, *features[name], seed, extractors[name])
here = gains.gains(category, everything)

# %%
Markdown(gains.markdown(here, f"{course.source(category)}; PatchCore, 1 % coreset, seeds 0, 1, 2, in %; ± over draws"))

# %% [markdown]
# All four embedded categories take several minutes, so they were measured once by the same lines (`python -m
# rcp.course.ensemble_gains`), together with a second control: *one* network whose memory is three times as large, as many rows
# as the ensemble's three.

# %%
everywhere = gains.measured()
Markdown(gains.markdown(everywhere, "embedded synthetic data, seed 0, measured once; PatchCore, seeds 0, 1, 2, in %; ± over draws"))

# %%
apart = gains.largest_difference(here, everywhere)  # None if the data are not among them
assert apart is None or apart < 3.0, "measure again: python -m rcp.course.ensemble_gains"
print("largest difference between this run and the measured table:", "–" if apart is None else f"{apart:.2f} points")

# %% tags=["slide", "hide-input"]
course.keep(lesson.gains_figure(everywhere), "06_ensemble_gains")

# %% tags=["nbval-check-output"]
one, seeds, raw_mean, z_mean, big = (
    100 * gains.mean_over_categories(s) for s in (gains.ONE, gains.SEEDS, gains.RAW, gains.MEAN_Z, gains.BIG)
)
print(f"mean image AUROC: one {one:.2f} %, three seeds {seeds:.2f} %, three backbones {z_mean:.2f} % (raw mean {raw_mean:.2f} %)")
print(f"one backbone with three times the memory: {big:.2f} %")

# %% [markdown]
# **What this tells you**, on the embedded data, in the measured table:
#
# * The ensemble is better than the mean of its members in every category, for images and for pixels.
# * The z mean is *not* better than the raw mean here: the spreads of these three networks are alike (section 1). What it
#   buys is safety, the flat line of section 2, and a score that means the same everywhere.
# * Most of the gain is there already with one network and three seeds, and about as much with one network and a memory three
#   times as large, at a third of the network's cost. The coreset is drawn with a random start and projection; much of what an
#   ensemble repairs is *that* noise. The rest is what different networks add, and it is of the size of the spread.

# %% tags=["setup"]
table = gains.measured()  # rows with .detector (the system) and .metrics
systems = (gains.ONE, gains.SEEDS, gains.MEAN_Z)

# %% [markdown] tags=["exercise"]
# ### Exercise 6.3 · Your prediction
# Of the gain in image AUROC of the *three backbones, mean z* over *one backbone, one seed*, which share has *one backbone,
# three
# seeds*? Means over all rows of `table`; `gains.mean_over_categories(system)` computes one for you.

# %% tags=["exercise"]
share = ...  # your answer: a number between 0 and 1

# %% tags=["solution"]
single, same_network, three_networks = (gains.mean_over_categories(system) for system in systems)
share = (same_network - single) / (three_networks - single)

# %% tags=["check"]
checks.check_3(share)

# %% [markdown]
# **And the paper's ensemble?** Published means over the 15 categories of MVTec AD, in %, with networks many times as large;
#   they
# cannot be compared with the numbers above, only with each other:
#
# | published | networks | size | image AUROC | pixel AUROC | source |
# |---|---|---:|---:|---:|---|
# | ReConPatch, single | WRN-101 | 480 | 99.62 | 98.53 | ReConPatch paper |
# | ReConPatch, ensemble | WRN-101 + ResNeXt-101 + DenseNet-201 | 480 | 99.72 | 98.67 | ReConPatch paper, Table 6 |
# | ReConPatch, ensemble | the same three | 320 | 99.67 | 98.36 | ReConPatch paper |
# | PatchCore, ensemble | the same three | 320 | 99.6 | 98.2 | PatchCore paper |
#
# The published gain is 0.10 points in image AUROC, stated without seeds and without a control of equal cost.

# %% [markdown]
# ## Where we differ from the paper
#
# * Median and MAD come from *held-out* training images; the paper says training images. Section 4 shows what either costs.
# * MAD is the *median* absolute deviation, to which the constant 1.4826 belongs.
# * The paper averages ReConPatch members; here they are PatchCore, so that the gain is the averaging's alone.
#   `rcp.Ensemble` takes any mixture of fitted or unfitted detectors with the same resize and crop.
# * Lite0, Lite1 and Lite2 are relatives. Networks of different families differ more, and may gain more.
#
# ## What to read next
#
# Notebook 09 draws the feature spaces themselves (UMAP), and what such a drawing does not show; notebook 11 asks how many
# good images
# a detector needs, and what bad ones among them do.

# %% [markdown] tags=["notes"]
# *For the lecturer.* Ask before section 2: "may we average kilometres and degrees?" Ask before section 4 whose median to
# take, and let someone defend the training images. Section 6 is best as a bet: collect the predictions first.
# What usually confuses: that a z-score of 3 is *not* a probability (the scores have long right tails, so the limit still
# comes from
# a quantile); that multiplying all scores of a member leaves its AUROC as it is; and that the best weights in
# the explorer are an oracle. With other data (`RCP_DATA`), the numbers of sections 1, 2, 4 and 5 change; the measured table
# stays that of the embedded data and says so.
