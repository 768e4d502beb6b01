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
# # 02 · Pseudo-labels: which patches are the same?
#
# **Goal.** ReConPatch trains without labels, so it makes its own: a number from 0 (different) to 1 (same) for every pair of
# patches. You will compute these numbers by hand, see why distance alone is not enough, and click on real patches to see
# what the network takes for the same.
#
# **Time.** 35 minutes to teach, half a minute to run.
#
# **Predict first.** Two pairs of patches lie *equally* far apart. The first pair lies inside a dense cluster, the second
# spans the gap between two clusters. Should both pairs get the same label? Write down yes or no, and a reason; section 4
# computes it.

# %% tags=["install", "remove-cell"]
import importlib.util

if importlib.util.find_spec("rcp") is None:  # Colab: install rcp there; silent where it is installed
    get_ipython().run_line_magic("pip", 'install --quiet "rcp[notebooks] @ git+https://github.com/-OWNER-/rcp"')
    print("Restart the session now (menu Runtime), then run all cells.")  # what is loaded already is of another version

# %% tags=["setup"]
# %matplotlib inline
# %config InlineBackend.figure_formats = ["png"]
import rcp  # before torch, see notebook 00
import torch
from IPython.display import Markdown
from rcp import course, similarity
from rcp.course import pseudo_labels as lesson
from rcp.head import Head

points = lesson.TWELVE  # (12, 2)
k, sigma, alpha = 5, 1.0, 0.5

# %% [markdown] tags=["slide"]
# ## 1 · Twelve points you can check by eye (3 min)
#
# Later a point will be a patch with 512 numbers. Here it has two, so that you can see it. Two clusters of five, and two
# lonely points. Points 1 and 3 lie inside a cluster, points 4 and 5 on the two sides of the gap; both pairs are exactly 1
# apart.

# %% tags=["sub", "hide-input"]
course.keep(lesson.points_figure(), "02_pseudo_labels_points")

# %% [markdown] tags=["slide"]
# ## 2 · Pairwise similarity: distance alone (4 min)
#
# $$w^P_{ij} = \exp\!\left(-\lVert \bar z_i - \bar z_j \rVert^2 / \sigma\right) \tag{1}$$
#
# $\bar z$ is what the *teacher* makes of a patch (notebook 03 says who that is; here it is simply the point). The bandwidth
# $\sigma$ counts in squared distance.

# %%
n = len(points)
by_hand = torch.zeros(n, n)
for i in range(n):
    for j in range(n):
        difference = points[i] - points[j]  # (2,)
        by_hand[i, j] = torch.exp(-(difference**2).sum() / sigma)

# %% tags=["nbval-check-output"]
pairwise = similarity.pairwise_similarity(points, sigma)  # (12, 12)
assert torch.allclose(pairwise, by_hand, atol=1e-6)
for name, (i, j) in lesson.PAIRS.items():
    print(f"{name:17} points {i} and {j}: w^P = {float(pairwise[i, j]):.3f}")

# %% [markdown]
# **What this tells you.** $e^{-1} = 0.368$ for both. Whatever looks at the two points alone *must* give both pairs the same
# answer. To tell them apart one has to look at their surroundings.

# %% [markdown] tags=["slide"]
# ## 3 · Contextual similarity: who shares my neighbours? (8 min)
#
# $N_k(i)$ are the $k$ points nearest to $i$; the point itself (distance 0) is one of them. Two points are alike if they
# have the same neighbours:
#
# $$\tilde w_{ij} = \begin{cases} |N_k(i) \cap N_k(j)| \, / \, |N_k(i)| & j \in N_k(i) \\ 0 & \text{otherwise} \end{cases} \tag{2}$$


# %% tags=["setup"]
def neighbours(z, k):
    """The k nearest of every row, itself first: a list of N lists."""
    distance = torch.cdist(z, z)  # (N, N)
    return [row.argsort(stable=True)[:k].tolist() for row in distance]


# %% tags=["nbval-check-output"]
near = neighbours(points, k)
for i in (1, 3, 4, 5, 10):
    print(f"N_5({i}) = {sorted(near[i])}")

# %%
overlap = torch.zeros(n, n)  # w̃
for i in range(n):
    for j in near[i]:  # all others stay 0
        overlap[i, j] = len(set(near[i]) & set(near[j])) / k

# %% [markdown]
# Point 10 is lonely: it *has* neighbours, as everybody has, but nobody has it back. So neighbours are trusted only if they
# are **reciprocal**:
#
# $$R_k(i) = \{\, j : j \in N_k(i) \text{ and } i \in N_k(j) \,\} \tag{3}$$
#
# and the closest of them, $R_{k/2}(i)$, lend their overlaps to $i$. This is called query expansion: my answer is the mean
# of my nearest friends' answers.
#
# $$\hat w_{ij} = \frac{1}{|R_{k/2}(i)|} \sum_{l \in R_{k/2}(i)} \tilde w_{lj} \tag{4}$$
#
# The last step makes it symmetric:
#
# $$w^C_{ij} = \tfrac12\left(\hat w_{ij} + \hat w_{ji}\right) \tag{5}$$

# %%
half = neighbours(points, k // 2)  # floor: 2 for k = 5
expanded = torch.zeros(n, n)  # ŵ
for i in range(n):
    friends = [l for l in half[i] if i in half[l]]  # R_{k/2}(i); i itself is always there
    for l in friends:
        expanded[i] += overlap[l] / len(friends)
context_by_hand = (expanded + expanded.T) / 2

# %% tags=["nbval-check-output"]
contextual = similarity.contextual_similarity(points, k)
assert torch.allclose(contextual, context_by_hand, atol=1e-6)
for name, (i, j) in lesson.PAIRS.items():
    print(f"{name:17} w̃ = {float(overlap[i, j]):.2f}   w^C = {float(contextual[i, j]):.2f}")
print(f"all of w^C between {float(contextual.min()):.1f} and {float(contextual.max()):.1f}")

# %% [markdown]
# **What this tells you.** Inside the cluster the two points share all five neighbours: $w^C = 1$. Across the gap they share
# only each other (0.4), and the friends of each, points 2 and 7, do not know the other side at all: the mean is 0.2.

# %% [markdown] tags=["slide"]
# ## 4 · The label (5 min)
#
# $$w_{ij} = \alpha\, w^P_{ij} + (1-\alpha)\, w^C_{ij} \tag{6}$$

# %% tags=["nbval-check-output"]
labels = similarity.pseudo_labels(points, alpha, sigma, k, normalize=False)
assert torch.allclose(labels, alpha * by_hand + (1 - alpha) * context_by_hand, atol=1e-6)
print({name: round(float(labels[pair]), 2) for name, pair in lesson.PAIRS.items()})

# %% tags=["sub", "hide-input"]
course.keep(lesson.matrices_figure(), "02_pseudo_labels_matrices")

# %% [markdown]
# **What this tells you.** Every row is a point, every column its partner; the framed cells are our two pairs. $w^P$ fades
# with distance and does not care about clusters; $w^C$ draws the clusters as blocks, and connects the lonely points 10 and
# 11 to nobody strongly. The label mixes the two. That was the question at the top: *no*, the pairs should not get the same label, and
# with half of $w^C$ they do not.

# %% [markdown] tags=["slide"]
# ## 5 · Playground: the paper's Figure 2 (5 min)
#
# Rings mark $N_k$ of the two ends of each pair (blue, solid: one end; orange, dashed: the other), thick bars lead to the close
# reciprocal neighbours $R_{k/2}$, over which Eq. 4 averages; the legend lists them.

# %% tags=["sub", "hide-input"]
course.keep(lesson.context_figure(), "02_pseudo_labels_context")

# %% [markdown]
# Move the sliders, and **drag the points** (keyboard: click into the picture, arrow keys move a cross, Shift + arrows drag).
# Without a kernel, the figure above is the same thing at rest. Try: pull point 4 to the left until 5 is no longer among its neighbours;
# make $k$ so large that both clusters are one; make σ tiny.

# %%
lesson.context_explorer()

# %% [markdown]
# **What to look for.** With $k = 10$ a neighbourhood holds twice as many points as a cluster, and the gap is no gap any
# more: $k$ says how large a cluster is. With σ near 0 only $w^C$ is left.

# %% [markdown] tags=["slide"]
# ## 6 · Real patches, and how σ can ruin them (5 min)
#
# Two good images, 784 patches each. The teacher is two random linear layers at the start of the training; $\bar z$ is what
# they make of the patch features.

# %%
# real data: os.environ.update(RCP_DATA="/data/mvtec", RCP_CATEGORY="bottle")  (import os)
category = course.category("terminal")
extractor = rcp.PatchExtractor(rcp.FeatureSettings("efficientnet_lite0"))
features = extractor.extract(category.train[:2])
images, height, width, channels = features.values.shape
teacher = Head(channels, generator=torch.Generator().manual_seed(0)).teacher
z = teacher(features.rows)  # (N, 512)
typical = torch.cdist(z[::2], z[1::2]).square().median()  # of many pairs
Markdown(f"{course.source(category)}: {images} × {height} × {width} = {len(z):,} patches; "
         f"typical squared distance of two patches: {typical:.0f}, so $e^{{-d^2}}$ = {torch.exp(-typical):.0e}")

# %%
course.keep(lesson.sigma_figure(z), "02_pseudo_labels_sigma")

# %%
lesson.sigma_explorer(z)

# %% [markdown]
# **What this tells you.** The same σ = 1, the same patches. Left: squared distances are so large (see the line above) that their
# exponential is 0, and $w^P$ says "different" of every pair: half of the label is switched off, silently. Public ports of
# ReConPatch do just that. Right: brought to length 1, squared distances lie between 0 and 4, and σ = 1 means something. Move the slider: the left half comes to life only
# where σ has the size of the features' squared distances (`relative_sigma=True` in the library).

# %% [markdown] tags=["slide"]
# ## 7 · Click a patch: what is it the same as? (5 min)
#
# The white square with the dark cross is the chosen patch; frames are the patches with the largest labels, brighter for
# larger; the first seven stand beside them as crops, framed in the same colours. Both images are good; the second one was taken of another part.

# %% tags=["setup"]
def seen(path, geometry):
    """The image as the network saw it: resized and cropped."""
    return geometry.apply(rcp.images.read_image(path))


# %% tags=["sub"]
pictures = [seen(path, features.settings.geometry) for path in features.paths]
same = lesson.SameAs(pictures, z, (height, width))
chosen = same.patch_at(0, 100, 64)  # image, y, x in pixels
course.keep(same.figure(chosen, alpha=0.0), "02_pseudo_labels_same")

# %% [markdown]
# Click on any patch of either image. At α = 0 the label is $w^C$ alone, at α = 1 it is $w^P$ alone. (Without a kernel: the
# figure above.)

# %%
same.explorer(chosen)

# %%
row_p, row_c = same.labels(chosen, alpha=1.0), same.labels(chosen, alpha=0.0)
Markdown(f"Of {len(z) - 1:,} other patches, {int((row_c > 0).sum()) - 1} have a contextual similarity above 0 to this one; "
         f"its pairwise similarity has the median {float(row_p.median()):.2f}, and is above 0.5 for {int((row_p > 0.5).sum()) - 1}.")

# %% [markdown]
# **What this tells you.** Contextual similarity is *sparse*: with $k = 5$ a patch has a handful of partners, often its direct
# neighbours in the image (they see nearly the same pixels, notebook 01) and the same place in the other image. Pairwise
# similarity is *dense* and vague. The loss (notebook 03) pulls the few together that both call alike, and pushes apart
# what lies close without being alike.

# %% [markdown]
# ## Exercises
#
# Each check says why an answer is wrong. Solutions are folded below; executed, they are in `solutions/02_pseudo_labels.ipynb`.

# %% [markdown] tags=["exercise"]
# ### Exercise 2.1 · By hand
#
# What is $\tilde w_{10,4}$ (Eq. 2, $k = 5$), of the lonely point 10 with point 4? Count in the figure of section 1; no code.

# %% tags=["exercise"]
overlap_2_1 = ...  # your answer: a number

# %% tags=["solution"]
overlap_2_1 = 3 / 5  # N_5(10) = {1, 4, 5, 6, 10}, N_5(4) = {1, 2, 3, 4, 5}: 1, 4 and 5 are in both

# %% tags=["check"]
lesson.check_1(overlap_2_1)

# %% [markdown] tags=["exercise"]
# ### Exercise 2.2 · Reciprocal neighbours
#
# Write Eq. 3. The argument is what `neighbours(points, k)` returns, a list of N lists; the result is a (N, N) tensor of
# True and False, True at $(i, j)$ if $j \in R_k(i)$.

# %% tags=["exercise"]
def reciprocal(near):
    return ...  # your turn


# %% tags=["solution"]
def reciprocal(near):
    table = torch.zeros(len(near), len(near), dtype=torch.bool)
    for i, own in enumerate(near):
        for j in own:
            table[i, j] = i in near[j]
    return table


# %% tags=["check"]
lesson.check_2(reciprocal)

# %% [markdown] tags=["exercise"]
# ### Exercise 2.3 · A σ that fits
#
# These are squared distances of some pairs. For which σ is the *median* pairwise similarity exactly ½?

# %% tags=["exercise"]
d2 = torch.tensor([900.0, 1600.0, 2500.0])
sigma_2_3 = ...  # your answer: a number

# %% tags=["solution"]
d2 = torch.tensor([900.0, 1600.0, 2500.0])
sigma_2_3 = float(d2.median() / torch.log(torch.tensor(2.0)))  # exp(-d²/σ) = ½  ⟺  σ = d² / ln 2

# %% tags=["check"]
lesson.check_3(sigma_2_3, d2)

# %% [markdown] tags=["exercise"]
# ### Exercise 2.4 · k = 3
#
# A port sets $k = 3$ to be quick. What does Eq. 4 do then? Choose `"nothing changes"`, `"no expansion"` or
# `"division by zero"`.

# %% tags=["exercise"]
choice_2_4 = ...  # your answer: one of the three

# %% tags=["solution"]
choice_2_4 = "no expansion"  # floor(3 / 2) = 1: R_1(i) = {i}

# %% tags=["check"]
lesson.check_4(choice_2_4)

# %% [markdown]
# ## Where ports go wrong, and where we differ from the paper
#
# * Three slips are common in public ports: no mask $j \in N_k(i)$ in Eq. 2, $R_k$ instead of $R_{k/2}$ in Eq. 4, and the
#   product the wrong way round. Together they let "similarities" exceed 1, so $1 - w$ turns negative and the loss *rewards*
#   closeness that it should punish:

# %% tags=["nbval-check-output"]
table = torch.zeros(n, n)
for i, own in enumerate(neighbours(points, 10)):
    table[i, own] = 1  # N_k as a 0/1 table
shared = table @ table.T / 10  # the mask of Eq. 2 is missing
mutual = table * table.T  # R_k, not R_{k/2}
slipped = shared @ mutual / mutual.sum(1, keepdim=True)  # the wrong way round
print(f"largest: three slips {float((slipped + slipped.T).max() / 2):.2f}, "
      f"library {float(similarity.contextual_similarity(points, 10).max()):.2f}")

# %% [markdown]
# * $i \in N_k(i)$ is our fixed reading: so $R_{k/2}(i)$ is never empty, and Eq. 4 never divides by zero. $k/2$ is rounded down.
# * The paper does not say whether $\bar z$ is brought to length 1, nor what σ is. We normalise (its ancestors do) and take
#   σ = 1; the un-normalised form is `normalize=False, relative_sigma=True`.
# * $k = 5$ and $\alpha = 0.5$ are second-hand: the defaults of STML (arXiv 2205.01903), the method's direct ancestor.
#
# ## What to read next
#
# Notebook 03 turns the labels into forces: pull with $w$, push with $1 - w$. The library's room is `rcp/similarity.py`.

# %% [markdown] tags=["notes"]
# *For the lecturer.* Let the class answer the question at the top by a show of hands, and again after section 4. Ask before section 6: what
# does $e^{-1000}$ print in float32? What usually confuses: that a point is its own neighbour; that $N_k$ is not symmetric (point 10);
# that $w^C$ is computed within one *batch*, so the same pair gets another label in another batch. In the playground, let
# somebody find a place for point 4 where its $w^C$ to 5 is 0 although $w^P$ is not.
