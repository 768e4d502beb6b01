"""InCTRL's text prior: how likely CLIP, asked in words, calls a picture damaged rather than intact.

CLIP's two towers bring pictures and sentences into one space. Many sentences that say "intact", and many that say "damaged", are
averaged to two directions; a softmax over the picture's cosines with them gives s_T. Nothing is trained, and nothing is
downloaded: the weights are a local file, the package `open_clip_torch` is an extra (`pip install rcp[clip]`).

Source: Zhu & Pang, InCTRL (arXiv 2403.06495), section 3.5; the ensemble of states and templates goes back to Jeong et al.,
WinCLIP (arXiv 2303.14814). Where we differ: the words are ours, and one noun names what all pictures show.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcp.backbones import WeightsError, hash_tensors

NORMAL = ("{}", "intact {}", "sound {}", "clean {}", "{} in good condition", "{} as it should be", "{} without any fault")
ANOMALOUS = ("broken {}", "faulty {}", "{} with a fault", "{} with a flaw", "{} with visible damage")
TEMPLATES = (
    "a photo of a {}.", "a photo of the {}.", "a close photo of a {}.", "a close photo of the {}.", "a bright picture of the {}.",
    "a dark picture of the {}.", "a blurred photo of the {}.", "a photo of the {}, taken for inspection.",
)  # fmt: skip
TEMPERATURE = 100.0  # CLIP's own, of the cosines


class TextPrior:
    """The prior of one CLIP model and one noun."""

    def __init__(self, model: nn.Module, tokenizer: Callable[[list[str]], Tensor], noun: str, device: torch.device | str = "cpu"):
        """Encode the sentences, once.

        Args:
            model: has `encode_image` and `encode_text`, and in `visual` the size, mean and deviation of its input.
            tokenizer: sentences → (n, length) int64.
            noun: what the pictures show.
            device: where the model is put.
        """
        self.model, self.device = model.eval().requires_grad_(False).to(device), torch.device(device)
        self.sha256 = hash_tensors(self.model.state_dict())
        groups = [[template.format(state.format(noun)) for state in states for template in TEMPLATES] for states in (NORMAL, ANOMALOUS)]
        with torch.no_grad():
            embedded = [F.normalize(self.model.encode_text(tokenizer(group).to(self.device)), dim=1) for group in groups]
        self.directions = F.normalize(torch.stack([one.mean(0) for one in embedded]), dim=1)  # (2, D)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Return s_T of pictures: (b, 3, h, w) uint8 → (b,) in [0, 1]; they are resized to CLIP's own size."""
        visual, x = self.model.visual, pixels.to(self.device).float() / 255
        size = visual.image_size if isinstance(visual.image_size, tuple) else (visual.image_size,) * 2
        x = F.interpolate(x, size, mode="bilinear", antialias=True)
        mean, std = (torch.tensor(one, device=self.device).view(3, 1, 1) for one in (visual.image_mean, visual.image_std))
        return text_score(self.model.encode_image((x - mean) / std), self.directions)


def text_score(images: Tensor, directions: Tensor) -> Tensor:
    """Return the probability of the second direction.

    Args:
        images: (b, D) embeddings.
        directions: (2, D) of length 1: "intact", "damaged".

    Returns:
        (b,).

    Source: section 3.5.
    """
    return (TEMPERATURE * F.normalize(images, dim=1) @ directions.T).softmax(1)[:, 1]


def load_prior(name: str, weights: str | Path, noun: str, device: torch.device | str = "cpu") -> TextPrior:
    """Return the text prior of an open_clip model whose weights lie in a local file.

    Args:
        name: of the model, as open_clip lists it.
        weights: a file that open_clip reads.
        noun: what the pictures show.
        device: where to compute.

    Raises:
        WeightsError: if the package or the file is missing, or the weights do not fit.
        ValueError: if open_clip has no such model, or its words need a tokenizer that would be downloaded.
    """
    try:
        import open_clip
    except ImportError as error:
        raise WeightsError('the text prior needs the package open_clip_torch: pip install "rcp[clip]"') from error
    if not Path(weights).is_file():
        raise WeightsError(f"the text prior needs CLIP's weights, but there is no file {weights}: nothing is downloaded")
    config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if config is None or {"hf_model_name", "hf_tokenizer_name"} & set(config["text_cfg"]):
        raise ValueError(f"clip must be one of open_clip's models with CLIP's own words, such as ViT-B-16-plus-240, got {name!r}")
    try:
        model = open_clip.create_model(name, pretrained=str(weights), pretrained_image=False, pretrained_text=False)
    except Exception as error:  # its readers raise many kinds; the cause is kept
        raise WeightsError(f"{weights} does not hold the weights of {name}: {str(error).splitlines()[0]}") from error
    return TextPrior(model, open_clip.get_tokenizer(name), noun, device)


def check_tower(clip: nn.Module, backbone: nn.Module) -> None:
    """Raise a ValueError if the backbone is not the CLIP model's image tower, judged by its first convolution's weights.

    Args:
        clip: the CLIP model.
        backbone: with whatever names of its tensors.
    """
    first = next(tensor for tensor in clip.visual.state_dict().values() if tensor.ndim == 4).cpu()
    for tensor in backbone.state_dict().values():  # not to the bit: one of the two files may be in half precision
        if tensor.shape == first.shape and torch.allclose(tensor.cpu().float(), first.float(), rtol=1e-2, atol=1e-3):
            return
    raise ValueError(
        "the text prior speaks of CLIP's space, but the backbone is not this CLIP model's image tower: take that tower, "
        "as PAPER_FEATURES does for ViT-B-16-plus-240, or text=False"
    )
