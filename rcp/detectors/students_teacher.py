"""The teacher of Uninformed Students: a patch network that has learned, from many pictures, what patches look like.

A big pretrained network P sees whole images; its features at a position have looked far around. The teacher T is a small
network that sees a patch of p × p pixels and nothing else. It is trained to say in d numbers what P says of that patch
(distillation), to say nearly the same of a patch that was moved a little (metric learning), and to use all of its d numbers
(compactness). A teacher knows nothing of the product that will be inspected, so one serves all products: it is trained once
for each p and backbone, and kept in the user's cache.

Source: Bergmann et al., Uninformed Students, CVPR 2020 (arXiv 1911.02357), section 3.1.

Where we differ
* The paper distils on ImageNet. Here are the good training images of the embedded categories and the photographs that come
  with scikit-image: `crops` patches of random place and scale, cut once. A teacher for an embedded category has thus seen good
  images of it, never a defective one.
* The paper's networks have poolings that drop a row at some sizes, and are turned into networks for every pixel afterwards.
  Ours have receptive fields of exactly p, and one descriptor every 4 pixels.
* P(p) is the mean of the backbone's last map of a patch that was brought to `side` pixels, standardised over all crops.
* Distillation is divided by the K numbers of the target and compactness by the d(d - 1) pairs of numbers of the descriptor, so
  that weights mean the same for every backbone and every d; the triplets are the paper's. Beside the paper's sum, a weight of 1
  thus counts K times as much for the triplets, and K / (d(d - 1)) times for the compactness: `PAPER` makes up for that.
* The compactness term squares the correlations, as L2-Net does (Tian et al., CVPR 2017), from which it comes: a plain sum is
  least for descriptors that oppose each other, which is as redundant as agreeing.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from dataclasses import dataclass, fields
from pathlib import Path

import platformdirs
import skimage
import torch
from torch import Tensor, nn

from rcp import synthetic
from rcp.backbones import hash_tensors
from rcp.detectors.students_patches import PHOTOGRAPHS, backbone_descriptors, centres, cut, pictures, positives
from rcp.features import PatchExtractor
from rcp.files import read_tensors, write_tensors
from rcp.training import TrainingOptions, drawn_from, train

RECIPE = 1  # raise it when teachers come out otherwise, so that cached ones are not taken for new ones
STRIDE = 4  # pixels between two descriptors
LAYERS = {17: ((3, 1), (1, 1), (1, 1)), 33: ((3, 1), (3, 1), (3, 1)), 65: ((3, 1), (3, 2), (3, 4))}  # p: (kernel, dilation)


@dataclass(frozen=True)
class TeacherOptions:
    """What decides a teacher, besides p and the backbone.

    Attributes:
        dimension: d, numbers a descriptor (paper: 128).
        width: channels of the hidden layers, half as many in the first (paper: 128 to 256).
        crops: patches to learn from, cut once (ours; the paper cuts new ones for every step).
        side: pixels to which a patch is brought for the backbone (ours).
        teacher_steps: of the optimizer.
        teacher_batch: patches a step.
        teacher_rate: learning rate.
        weight_decay: of teacher and students.
        triplet: λ_m, weight of the metric learning; 0 switches it off, as the paper does on MVTec AD.
        compactness: λ_c, weight of the compactness; 0 switches it off.
        margin: δ of the triplets, in squared distances.
    """

    dimension: int = 64
    width: int = 64
    crops: int = 4096
    side: int = 64
    teacher_steps: int = 1500
    teacher_batch: int = 64
    teacher_rate: float = 1e-3
    weight_decay: float = 1e-5
    triplet: float = 1.0
    compactness: float = 1.0
    margin: float = 1.0

    def __post_init__(self):
        if min(self.dimension, self.width - 1, self.side) < 1:
            raise ValueError(
                f"dimension and side must be positive, width at least 2, got {self.dimension}, {self.side} and {self.width}"
            )
        if self.teacher_steps < 0 or self.teacher_batch < 2 or self.crops < 2:
            raise ValueError(
                "teacher_steps must not be negative, teacher_batch and crops at least 2, "
                f"got {self.teacher_steps}, {self.teacher_batch} and {self.crops}"
            )
        if not self.teacher_rate > 0 or self.weight_decay < 0:
            raise ValueError(
                f"teacher_rate must be positive, weight_decay not negative, got {self.teacher_rate} and {self.weight_decay}"
            )
        if min(self.triplet, self.compactness, self.margin) < 0:
            raise ValueError(
                "triplet, compactness and margin must not be negative, "
                f"got {self.triplet}, {self.compactness} and {self.margin}"
            )


# The network


def patch_net(field: int, width: int, dimension: int, generator: torch.Generator) -> nn.Sequential:
    """Return a network whose every output has seen a patch of exactly field × field pixels, and whose weights are drawn.

    The first two layers see 9 pixels and step by 4; a 3 × 3 layer of dilation r adds 8·r. No layer pads, so that a patch alone
    has the descriptor that it has in a large image.

    Args:
        field: p: 17, 33 or 65.
        width: channels of the hidden layers.
        dimension: d.
        generator: draws the weights, on the CPU.

    Returns:
        (b, 3, p + 4·(H-1), p + 4·(W-1)) normalised pixels → (b, d, H, W).
    """
    with drawn_from(generator):
        layers = [nn.Conv2d(3, width // 2, 5, stride=2), nn.LeakyReLU(0.005), nn.MaxPool2d(3, stride=2)]  # 9 pixels, stride 4
        for before, (kernel, dilation) in zip((width // 2, width, width), LAYERS[field], strict=True):
            layers += [nn.Conv2d(before, width, kernel, dilation=dilation), nn.LeakyReLU(0.005)]
        net = nn.Sequential(*layers, nn.Conv2d(width, dimension, 1))
        for layer in net:
            if isinstance(layer, nn.Conv2d):  # He's: with torch's own, descriptors of different patches begin nearly equal
                nn.init.kaiming_normal_(layer.weight, nonlinearity="leaky_relu")
                nn.init.zeros_(layer.bias)
    return net.to(memory_format=torch.channels_last)  # a quarter faster on CPUs


# The losses of section 3.1


def distillation_loss(decoded: Tensor, target: Tensor) -> Tensor:
    """Return L_k, the mean of ‖D(T(p)) - P(p)‖²: (b, K) and (b, K) → ()."""
    return (decoded - target).square().sum(1).mean()


def triplet_losses(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """Return L_m of each triplet, max(0, δ + δ⁺ - δ⁻), with the harder of the two negative distances.

    Args:
        anchor: (b, d) T(p).
        positive: (b, d) T(p⁺), of nearly the same patch.
        negative: (b, d) T(p⁻), of a patch from another picture.
        margin: δ.

    Returns:
        (b,).
    """
    near = (anchor - positive).square().sum(1)  # (b,) δ⁺
    far = torch.minimum((anchor - negative).square().sum(1), (positive - negative).square().sum(1))  # (b,) δ⁻
    return (margin + near - far).clamp_min(0)


def compactness_loss(descriptors: Tensor) -> Tensor:
    """Return L_c, the sum of the squared correlations c_ij, i ≠ j, between the numbers of the descriptors: (b, d) → ()."""
    centred = descriptors - descriptors.mean(0)
    unit = centred / centred.norm(dim=0).clamp_min(1e-6)
    correlations = unit.T @ unit  # (d, d)
    return correlations.square().sum() - correlations.diagonal().square().sum()


# The training, and the cache


def distil(field: int, options: TeacherOptions, extractor: PatchExtractor) -> nn.Sequential:
    """Return a newly trained teacher; `teacher` keeps it."""
    generator = torch.Generator().manual_seed(0)
    patches, sources = cut(pictures(), field, options.crops, generator)
    targets = backbone_descriptors(centres(patches, field), extractor, options.side)
    net = patch_net(field, options.width, options.dimension, generator)
    with drawn_from(generator):
        decoder = nn.Linear(options.dimension, targets.shape[1])  # D
    model = nn.ModuleDict({"net": net, "decoder": decoder}).to(extractor.device)

    def descriptors(pixels: Tensor) -> Tensor:
        return net(extractor.normalised(pixels)).flatten(1)  # (b, d)

    def step(indices: Tensor, number: int) -> dict[str, Tensor]:
        here = descriptors(centres(patches[indices], field))
        losses = {"distillation": distillation_loss(decoder(here), targets[indices].to(here.device))}
        total = losses["distillation"] / targets.shape[1]
        if options.triplet:
            near = descriptors(positives(patches[indices], field, generator))
            each = triplet_losses(here, near, here.roll(1, 0), options.margin)
            differ = (sources[indices] != sources[indices].roll(1)).to(each)  # a negative is of another picture
            losses["triplet"] = (each * differ).sum() / differ.sum().clamp_min(1)
            total = total + options.triplet * losses["triplet"]
        if options.compactness:
            losses["compactness"] = compactness_loss(here)
            total = total + options.compactness * losses["compactness"] / (options.dimension * max(1, options.dimension - 1))
        return losses | {"loss": total}

    optimizer = torch.optim.Adam(model.parameters(), lr=options.teacher_rate, weight_decay=options.weight_decay)
    plan = TrainingOptions(options.teacher_steps, options.teacher_batch, options.teacher_rate)
    history = train(step, model, optimizer, images=patches, options=plan, generator=generator, identity={}, what="teacher")
    if options.teacher_steps and (not history or history[-1].step < options.teacher_steps):
        raise KeyboardInterrupt("a teacher whose training was interrupted is not kept")
    return net


def identity(field: int, options: TeacherOptions, extractor: PatchExtractor) -> dict:
    """Return everything that decides a teacher, as plain data."""
    own = {one.name: getattr(options, one.name) for one in fields(TeacherOptions)}
    backbone, settings = extractor.backbone, extractor.settings
    seen = {"weights": backbone.sha256, "strides": list(backbone.strides), "normalization": settings.normalization}
    sources = {"synthetic": synthetic.VERSION, "photographs": list(PHOTOGRAPHS), "skimage": skimage.__version__}
    return {"recipe": RECIPE, "field": field, "precision": settings.precision} | own | seen | sources


def teacher(field: int, options: TeacherOptions, extractor: PatchExtractor) -> nn.Sequential:
    """Return the teacher of a receptive field, frozen: from the cache, or trained now and put there (under a minute).

    The cache is the folder that the environment variable RCP_CACHE names, else the system's usual place. The file is named
    after a hash of all that decides the teacher. A file that is damaged is replaced, with a warning.

    Args:
        field: p: 17, 33 or 65.
        options: `TeacherOptions`.
        extractor: the pretrained network P, and where to compute.

    Returns:
        As `patch_net`.
    """
    decides = identity(field, options, extractor)
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    cache = Path(os.environ.get("RCP_CACHE") or platformdirs.user_cache_dir("rcp"))
    path = cache / f"students-teacher-p{field}-{digest[:16]}.safetensors"
    net = None
    if path.is_file():
        try:
            net = _read(path, field, options, decides)
        except ValueError as error:
            warnings.warn(f"{error}: the teacher is trained again", stacklevel=2)
    if net is None:
        net = distil(field, options, extractor).cpu()
        state = net.state_dict()
        write_tensors(path, state, {"identity": decides, "sha256": hash_tensors(state)})
    return net.to(extractor.device).eval().requires_grad_(False)


def _read(path: Path, field: int, options: TeacherOptions, decides: dict) -> nn.Sequential:
    tensors, header = read_tensors(path)
    if header.get("identity") != decides or header.get("sha256") != hash_tensors(tensors):
        raise ValueError(f"{path} does not hold what its name says")
    net = patch_net(field, options.width, options.dimension, torch.Generator())
    net.load_state_dict(tensors)
    return net
