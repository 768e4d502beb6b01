"""Uninformed Students: several small networks learn, on good images only, what a teacher says; where they fail is a defect.

The teacher (`students_teacher`) describes every patch of an image in d numbers; it has seen many pictures. The students, of
the same shape, are trained to say the same, and have seen good images of one product only. On a patch unlike those all of them
miss what the teacher says (regression error), each in a way of its own, as it began from other random weights (predictive
variance). The two are brought to one scale and added.

Source: Bergmann et al., Uninformed Students: Student-Teacher Anomaly Detection with Discriminative Latent Embeddings,
CVPR 2020 (arXiv 1911.02357), sections 3.2 and 3.3.

Where we differ
* The networks step by 4 pixels: only every fourth pixel has a descriptor, exactly that of its patch. The paper's way to have
  one for every pixel costs 16 times as much. A cell of 4 pixels has no middle one: scores lie half a pixel off.
* At the border the image is reflected, so that the grid covers it. Students of all fields are trained in one step.
* The teaching preset has fewer steps, a larger rate, narrower networks. The teacher differs too: see `students_teacher`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcp.backbones import hash_tensors
from rcp.detectors.pixel import TrainedDetector
from rcp.detectors.students_teacher import LAYERS, STRIDE, TeacherOptions, patch_net, teacher
from rcp.features import FeatureSettings
from rcp.modelfile import ModelFile
from rcp.pixels import AT_A_TIME
from rcp.scoring import image_scores
from rcp.training import StepRecord, TrainingOptions, train


@dataclass(frozen=True)
class UninformedStudentsOptions(TeacherOptions, TrainingOptions):
    """What can be chosen; all that `TeacherOptions` and `TrainingOptions` name, and

    Attributes:
        fields: receptive fields p; the scores of several are averaged (paper: 17, 33, 65; why 65 alone: REPRODUCIBILITY.md).
        students: M, networks a field.
        variance: whether the students' predictive variance counts; False leaves the regression error (an ablation).
    """

    steps: int = 700
    batch_size: int = 2
    fields: tuple[int, ...] = (65,)
    students: int = 3
    variance: bool = True

    def __post_init__(self):
        TrainingOptions.__post_init__(self)
        TeacherOptions.__post_init__(self)
        if not self.fields or len(set(self.fields)) < len(self.fields) or not set(self.fields) <= set(LAYERS):
            raise ValueError(f"fields must be some of {', '.join(map(str, LAYERS))}, each once, got {self.fields}")
        if self.students < 1 + self.variance:
            raise ValueError(f"students must be at least 1, and 2 for a variance between them, got {self.students}")


PAPER = UninformedStudentsOptions(
    dimension=128, width=256, crops=16384, side=224, teacher_steps=50_000, teacher_rate=2e-4, triplet=0.0,
    compactness=128 * 127 / 512, steps=20_000, batch_size=1, learning_rate=1e-4, fields=(17, 33, 65),  # λ_c: see the teacher
)  # fmt: skip
PAPER_FEATURES = FeatureSettings("resnet18", levels=(4,), patch_size=1, resize=(256, 256), crop=None)


# The formulae of sections 3.2 and 3.3

def student_loss(student: Tensor, target: Tensor) -> Tensor:
    """Return the mean over all positions of ‖S(r, c) - y(r, c)‖²: (b, d, H, W) twice → ()."""
    return (student - target).square().sum(1).mean()


def regression_error(target: Tensor, students: Tensor) -> Tensor:
    """Return e, the squared distance between the mean of the students and the teacher: (b, H, W).

    Args:
        target: (b, d, H, W) the teacher's descriptors, standardised.
        students: (M, b, d, H, W).
    """
    return (students.mean(0) - target).square().sum(1)


def predictive_variance(students: Tensor) -> Tensor:
    """Return v, the mean squared distance of the students from their mean: (M, b, d, H, W) → (b, H, W).

    It is the paper's mean of ‖S_i‖² less ‖mean of S_i‖², in a form that loses no digits.
    """
    return (students - students.mean(0)).square().sum(2).mean(0)


def anomaly_scores(target: Tensor, students: Tensor, scale: Tensor, variance: bool = True) -> Tensor:
    """Return (e - e_μ)/e_σ + (v - v_μ)/v_σ: (b, H, W).

    Args:
        target: (b, d, H, W) the teacher's descriptors, standardised.
        students: (M, b, d, H, W).
        scale: (2, 2): e_μ, e_σ; v_μ, v_σ, of normal images.
        variance: False leaves the second term out.
    """
    (e_mean, e_std), (v_mean, v_std) = scale
    scores = (regression_error(target, students) - e_mean) / e_std
    return scores + (predictive_variance(students) - v_mean) / v_std if variance else scores


def covered(pixels: Tensor, field: int) -> Tensor:
    """Return images reflected at their borders so that a network has a descriptor for every cell of 4 × 4 pixels.

    Args:
        pixels: (b, 3, h, w) → (b, 3, p + 4·(H-1), p + 4·(W-1)), H = ⌈h/4⌉ and W = ⌈w/4⌉.
        field: p.
    """
    sides = []
    for length in (pixels.shape[3], pixels.shape[2]):  # `pad` wants the last dimension first
        rim = field + STRIDE * (-(-length // STRIDE) - 1) - length
        if rim - rim // 2 >= length:
            raise ValueError(f"images of {pixels.shape[2]} x {pixels.shape[3]} pixels are too small for patches of {field}")
        sides += [rim // 2, rim - rim // 2]
    return F.pad(pixels, sides, mode="reflect")


def moments(parts: Iterable[Tensor]) -> Tensor:
    """Return mean and standard deviation of each row, summed in float64 part by part: (k, m), (k, m'), … → (k, 2) float32."""
    count, sums = 0, 0.0
    for part in parts:
        exact = part.cpu().double()
        count += exact.shape[1]
        sums = sums + torch.stack([exact.sum(1), exact.square().sum(1)])  # (2, k)
    mean, square = sums / count  # (k,) each
    return torch.stack([mean, (square - mean.square()).clamp_min(1e-12).sqrt()], 1).float()


class UninformedStudents(TrainedDetector):
    """A frozen teacher, and students that have seen good images only."""

    kind = "students"
    Options = UninformedStudentsOptions
    levels = (4,)
    missing = "students"

    def _is_fitted(self) -> bool:
        return hasattr(self, "students")

    @property
    def unit(self) -> str:
        return "error + variance, in normal deviations" if self.options.variance else "error, in normal deviations"

    def _learn(self, pixels: Tensor, held: Tensor, generator: torch.Generator) -> list[StepRecord]:
        o = self.options
        self.teachers = nn.ModuleDict({str(p): teacher(p, o, self.extractor) for p in o.fields})
        self.standard = {p: self._standard(pixels, p) for p in o.fields}
        targets = {p: self._targets(pixels, p) for p in o.fields}
        self.students = self._new_students(generator)

        def step(indices: Tensor, number: int) -> dict[str, Tensor]:
            losses = {}
            for p in o.fields:
                view = covered(self.extractor.normalised(pixels[indices]), p)
                target, nets = targets[p][indices].to(view.device), enumerate(self.students[str(p)], 1)
                losses |= {f"p{p}_student{i}": student_loss(student(view), target) for i, student in nets}
            return losses | {"loss": sum(losses.values())}

        optimizer = torch.optim.Adam(self.students.parameters(), lr=o.learning_rate, weight_decay=o.weight_decay)
        history = train(
            step, self.students, optimizer, images=pixels, options=o, generator=generator,
            identity=self._identity() | {"teacher": hash_tensors(self.teachers.state_dict())},
            callbacks=self._callbacks, checkpoint=self._checkpoint,
        )  # fmt: skip
        if not len(held):
            warnings.warn("error and variance are scaled by the training images: none was held out", stacklevel=2)
        self.scaled_on = "held-out images" if len(held) else "training images"
        self.scales = {p: self._scale(held if len(held) else pixels, p) for p in o.fields}
        return history

    def _new_students(self, generator: torch.Generator) -> nn.ModuleDict:
        o = self.options
        nets = {p: [patch_net(p, o.width, o.dimension, generator) for _ in range(o.students)] for p in o.fields}
        return nn.ModuleDict({str(p): nn.ModuleList(some) for p, some in nets.items()}).to(self.extractor.device)

    @torch.no_grad()
    def _standard(self, pixels: Tensor, field: int) -> Tensor:
        """(2, d, 1, 1): mean and standard deviation of the teacher's descriptors over the training images."""
        views = (covered(self.extractor.normalised(part), field) for part in pixels.split(AT_A_TIME))
        found = moments(self.teachers[str(field)](view).transpose(0, 1).flatten(1) for view in views)  # (d, 2)
        return found.T[..., None, None].to(self.extractor.device)

    def _scale(self, pixels: Tensor, field: int) -> Tensor:
        """(2, 2): mean and standard deviation of the error, and of the variance, over normal images."""
        said = (self._said(part, field) for part in pixels.split(AT_A_TIME))
        pairs = (torch.stack([regression_error(y, s), predictive_variance(s)]).flatten(1) for y, s in said)
        return moments(pairs).to(self.extractor.device)

    def _targets(self, pixels: Tensor, field: int) -> Tensor:
        """(n, d, H, W): what the teacher says of every training image, asked once, as many at a time as a step has."""
        kept, size = None, min(self.options.batch_size, len(pixels))
        for at in [*range(0, len(pixels) - size, size), len(pixels) - size]:
            some = slice(at, at + size)
            part = self._target(covered(self.extractor.normalised(pixels[some]), field), field)
            kept = self.limit.empty((len(pixels), *part.shape[1:])).values if kept is None else kept
            kept[some] = part.to(kept.device)
        return kept

    @torch.no_grad()
    def _target(self, view: Tensor, field: int) -> Tensor:
        """The teacher's descriptors, standardised: (b, d, H, W)."""
        mean, std = self.standard[field]
        return (self.teachers[str(field)](view) - mean) / std

    @torch.no_grad()
    def _said(self, pixels: Tensor, field: int) -> tuple[Tensor, Tensor]:
        """What the teacher says of a few images, (b, d, H, W), and what the students say, (M, b, d, H, W)."""
        view = covered(self.extractor.normalised(pixels), field)
        return self._target(view, field), torch.stack([student(view) for student in self.students[str(field)]])

    def _score(self, values: Tensor) -> tuple[Tensor, Tensor]:
        maps = [anomaly_scores(*self._said(values, p), self.scales[p], self.options.variance) for p in self.options.fields]
        grids = torch.stack(maps).mean(0)  # (b, H, W), the average of section 3.3
        return image_scores(grids), grids

    def _facts(self) -> dict:
        return super()._facts() | {"teacher": hash_tensors(self.teachers.state_dict()), "scaled_on": self.scaled_on}

    def state_bytes(self, images: int, size: tuple[int, int]) -> int:
        """Return how many bytes teachers and students hold, however many and large the images are."""
        nets = [patch_net(p, self.options.width, self.options.dimension, torch.Generator()) for p in self.options.fields]
        return sum(4 * (1 + self.options.students) * sum(w.numel() for w in net.parameters()) for net in nets)

    def _state(self) -> dict[str, Tensor]:
        tensors = {f"teachers.{key}": tensor for key, tensor in self.teachers.state_dict().items()}
        tensors |= {f"students.{key}": tensor for key, tensor in self.students.state_dict().items()}
        tensors |= {f"standard.{p}": tensor for p, tensor in self.standard.items()}
        return tensors | {f"scale.{p}": tensor for p, tensor in self.scales.items()}

    def _take(self, file: ModelFile) -> None:
        super()._take(file)
        o, device, drawn = self.options, self.extractor.device, torch.Generator()
        self.teachers = nn.ModuleDict({str(p): patch_net(p, o.width, o.dimension, drawn) for p in o.fields}).to(device)
        self.students = self._new_students(drawn)
        for name, module in (("teachers", self.teachers), ("students", self.students)):
            for key, tensor in module.state_dict().items():
                file.check_shape(f"{name}.{key}", tuple(tensor.shape))
            module.load_state_dict({key: file.tensors[f"{name}.{key}"] for key in module.state_dict()})
            module.eval().requires_grad_(False)
        for name, shape in (("standard", (2, o.dimension, 1, 1)), ("scale", (2, 2))):
            for p in o.fields:
                file.check_shape(f"{name}.{p}", shape)
        self.standard, self.scales = ({p: file.tensors[f"{name}.{p}"].to(device) for p in o.fields} for name in ("standard", "scale"))
