"""What the command `rcp` takes: its options, their help, and the settings that they stand for."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import fields, replace

import rcp
from rcp import synthetic
from rcp.backbones import PRESETS
from rcp.bench import SUITES
from rcp.detectors import PAPERS, SYSTEMS
from rcp.detectors.patchcore import VARIANTS
from rcp.evaluation import PROTOCOLS
from rcp.exact import exact
from rcp.experiments.command import add_options as experiments_options
from rcp.features import STORED
from rcp.memory import SEARCHES
from rcp.reproduce.command import add_options as reproduce_options

Command = Callable[[argparse.Namespace], None]

LAYOUTS = ("auto", "mvtec", "btad", "visa", "folder")
BACKBONES = "\n".join(f"  {name:20} {preset.tag:32} {preset.note}" for name, preset in PRESETS.items())

OVERVIEW = """\
Patch-based anomaly detection, opened up: PatchCore, ReConPatch, and the systems that they are compared with.

A frozen network describes every patch of the good images; a few of these rows are kept in a memory; an image is as
anomalous as its patch that is farthest from the memory. ReConPatch first trains a linear layer on those rows. The other
systems keep a distribution, a student, a decoder, or a way to compare.
"""

RUN = """\
Fit a detector on the good images of one category, score its test images, and write into --out:
  result.json   settings, data, weights, seeds, metrics, seconds per stage, peak memory, a line an image
  model/        the fitted detector, for `rcp predict`
  scores.png    image scores, normal against anomalous
  maps.png      heat maps on one colour scale that was set on held-out normal images
Before it starts it says how many rows, bytes and seconds it expects. A killed training goes on when the same command
is given again. --epochs 0 leaves ReConPatch's layer untrained: the control that the training has to beat.
"""

RUN_EXAMPLES = f"""\
backbones (any other timm model with features_only: name it with its weight tag):
{BACKBONES}

examples:
  rcp run --data mvtec --category bottle --detector patchcore --out runs/bottle-patchcore
  rcp run --data mvtec --category pill --detector reconpatch --epochs 40 --seed 1 --out runs/pill-1
  rcp predict runs/pill-1 new/*.png
  rcp run --data mvtec --category pill --detector padim --set dimension=60 --set reduction=pca
  rcp run --data mvtec --category pill --detector reconpatch --backbone wide_resnet101_2 --resize 512 \\
          --image-size 480 --epochs 120 --out runs/pill-paper
"""

PREDICT = """\
Score images with a saved detector. For each image: its score, the verdict against the limit that at most
--false-alarm-rate of normal images are expected to exceed (from held-out training images), and a heat map as PNG.
"""

CENSUS = """\
Tell what DIR holds: layout, categories, counts per split and defect against the official ones, and each oddity. The exit
status is 1 if something would spoil numbers: unreadable files, missing masks, test images among the training ones.
"""

COMPARE = """\
Fit PatchCore, ReConPatch with an untrained layer, and ReConPatch on the same features with the same seeds, and print one
table: mean ± standard deviation over seeds. This is the command behind the tables of the README.
"""


def parser(does: Mapping[str, Command]) -> argparse.ArgumentParser:
    """Return the parser of all commands.

    Args:
        does: command → the function that gets its options.
    """
    whole = argparse.ArgumentParser(prog="rcp", description=OVERVIEW, **PAGE)
    whole.add_argument("--version", action="version", version=f"rcp {rcp.__version__}")
    commands = whole.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _demo_options(commands.add_parser("demo", help="compare the detectors on the embedded data", **PAGE))
    _run_options(_command(commands, "run", "one detector on one category: metrics, figures, model", RUN, RUN_EXAMPLES))
    _compare_options(_command(commands, "compare", "three detectors, several seeds, one table", COMPARE))
    _predict_options(_command(commands, "predict", "score images with a saved detector", PREDICT))
    _synthetic_options(commands.add_parser("synthetic", help="write the embedded data as files", **PAGE))
    experiments_options(commands.add_parser("experiments", help="measure a grid of experiments, resumable, here or on a cluster", **PAGE))
    reproduce_options(commands.add_parser("reproduce", help="the paper's tables and figures, published beside measured", **PAGE))
    _data_command_options(_command(commands, "data", "what a folder of images holds, and what is odd about it", CENSUS))
    _bench_options(commands.add_parser("bench", help="time the stages on this machine", **PAGE))
    for name, command in does.items():
        commands.choices[name].set_defaults(command=command)
    return whole


# A misspelt or shortened option is an error: --seed must not be taken for --seeds.
PAGE = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}


def _command(commands, name: str, summary: str, description: str, examples: str | None = None):
    return commands.add_parser(name, help=summary, description=description, epilog=examples, **PAGE)


# What each command takes


def _data_options(parser: argparse.ArgumentParser, several: bool) -> None:
    group = parser.add_argument_group("data")
    group.add_argument("--data", metavar="DIR", required=True, help="MVTec AD, BTAD or VisA, or a folder of good images")
    action = "append" if several else "store"
    group.add_argument("--category", metavar="NAME", action=action, help="e.g. bottle" + ("; repeatable" * several))
    group.add_argument(
        "--layout", choices=LAYOUTS, default="auto", help="default: find out"
    )


def _feature_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("features")
    standard = rcp.FeatureSettings()
    group.add_argument("--backbone", help=f"default {standard.backbone}")
    group.add_argument("--weights", metavar="FILE", help="a local weight file: safetensors or a state dict")
    group.add_argument("--levels", type=_numbers, metavar="2,3", help="feature maps to join, default 2,3")
    group.add_argument("--strides", type=_numbers, metavar="8,16", help="the same by stride, instead of --levels")
    group.add_argument("--patch-size", type=int, metavar="S", help="neighbourhood, default 3; 1 for the other systems")
    group.add_argument(
        "--image-size", type=_side, metavar="N", help="centre crop: N, HxW or none; default 224"
    )
    group.add_argument(
        "--resize", type=_side, default=None, metavar="N",
        help="short side before the crop: N, HxW or none; default 256 for 224, 366 for 320, 512 for 480, else 8/7 of it",
    )  # fmt: skip
    group.add_argument("--normalization", choices=("imagenet", "model"), help="input colours: ImageNet's for every backbone (default), or the model's own")
    group.add_argument("--precision", choices=("float32", "bfloat16"), help="of the network, default float32")
    group.add_argument("--stored", choices=tuple(STORED), help="how exactly features are kept, default float32")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")


def _training_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training (ReConPatch)")
    standard = rcp.TrainSettings()
    group.add_argument("--epochs", type=_count, help=f"default {standard.epochs}; the paper: 120")
    group.add_argument("--steps", type=_positive, help="steps an epoch; default: all patches once")
    group.add_argument("--dimension", type=_positive, help=f"width of f, default {standard.dimension}")
    group.add_argument("--batch", choices=("patches", "images"), help="a step sees random patches (default) or whole images")
    group.add_argument("--learning-rate", type=float, metavar="RATE", help=f"default {standard.learning_rate:g}")


def _demo_options(parser: argparse.ArgumentParser) -> None:
    parser.description = "Compare the three detectors on the embedded data: a table and a figure a category, in --out."
    parser.add_argument("--out", metavar="DIR", default="demo", help="default: demo")
    parser.add_argument("--seeds", type=_positive, default=1, metavar="N", help="seeds 0 … N-1, default 1")
    parser.add_argument("--epochs", type=_count, default=3, help="of ReConPatch, default 3")


def _run_options(parser: argparse.ArgumentParser) -> None:
    _data_options(parser, several=False)
    parser.add_argument("--detector", choices=("reconpatch", "patchcore", *SYSTEMS), required=True)
    parser.add_argument("--out", metavar="DIR", default="runs/latest", help="default: runs/latest")
    _feature_options(parser)
    _training_options(parser)
    _system_options(parser)
    group = parser.add_argument_group("memory and scores (PatchCore, ReConPatch)")
    bank = rcp.BankSettings()
    group.add_argument("--coreset", type=float, metavar="SHARE", help=f"default {bank.coreset}, i.e. 1 %%")
    group.add_argument("--parts", type=_positive, help="pick the coreset in parts: for millions of rows")
    group.add_argument("--variant", choices=tuple(VARIANTS), help="of PatchCore, default concat")
    group.add_argument("--search", choices=SEARCHES, help="who finds the nearest rows: torch and faiss exactly, the others approximately, for memories of a million rows")
    group.add_argument("--folds", type=_count, help=f"to hold normal images out, default {bank.folds}; 0: no threshold")
    group.add_argument("--seed", type=_count, default=0, help="of all that is drawn")
    _evaluation_options(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--maps", action="store_true", help="write the raw maps, too (maps.safetensors)")
    group.add_argument(
        "--max-memory", type=_gigabytes, metavar="GB",
        help="keep the process's own memory below this; features beyond it wait in a file in --out until the run ends",
    )  # fmt: skip
    group.add_argument("--no-figures", action="store_true", help="write no PNGs")


def _system_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(f"the other systems ({', '.join(SYSTEMS)})")
    group.add_argument("--preset", choices=("teaching", "paper"), help="teaching (default): minutes on a laptop; paper: its settings and backbone")
    group.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="one of the system's options; repeatable; a wrong name lists them")
    group.add_argument("--auxiliary", metavar="DIR", help="InCTRL: labelled categories to learn from, default the embedded ones")


def _evaluation_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("evaluation")
    group.add_argument("--protocol", choices=PROTOCOLS, default="crop", help="masks cropped as images are, or kept whole")
    group.add_argument("--false-alarm-rate", type=_rate, default=0.05, metavar="SHARE", help="for the limit, default 0.05")
    group.add_argument("--on-error", choices=("raise", "skip"), default="raise", help="what to do with unreadable files")


def _compare_options(parser: argparse.ArgumentParser) -> None:
    _data_options(parser, several=True)
    _feature_options(parser)
    _training_options(parser)
    parser.add_argument("--seeds", type=_positive, default=3, metavar="N", help="seeds 0 … N-1, default 3")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="crop")
    parser.add_argument("--name", default=None, help="of the dataset, for the table's caption")
    parser.add_argument("--out", metavar="DIR", help="write table.md and rows.csv there, too")


def _predict_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a folder that `rcp run` or `save` wrote")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    parser.add_argument("--out", metavar="DIR", default="heatmaps", help="for the PNGs, default: heatmaps")
    parser.add_argument("--false-alarm-rate", type=_rate, default=0.05, metavar="SHARE", help="for the limit, default 0.05")
    parser.add_argument("--weights", metavar="FILE", help="the backbone's weight file, if it lies elsewhere now")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")


def _data_command_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("check",))
    parser.add_argument("dir", metavar="DIR", help="MVTec AD, BTAD or VisA, or a folder of good images")
    parser.add_argument("--layout", choices=LAYOUTS, default="auto", help="default: find out")
    parser.add_argument("--deep", action="store_true", help="decode every image, too, to find damaged ones")
    parser.add_argument("--json", metavar="FILE", help="write what was found, too")


def _synthetic_options(parser: argparse.ArgumentParser) -> None:
    parser.description = f"Write the embedded data in MVTec AD's layout: {', '.join(synthetic.CATEGORIES)}."
    parser.add_argument("dir", metavar="DIR")
    parser.add_argument("--seed", type=_count, default=0, help="other seeds give other images, default 0")


def _bench_options(parser: argparse.ArgumentParser) -> None:
    parser.description = "Measure on this machine: stages against what it can do, growth, searches, memory, peers."
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"{', '.join(SUITES)}; default: stages")
    parser.add_argument("--json", metavar="FILE", help="write the numbers, too")
    parser.add_argument("--repeats", type=_positive, default=5, help="measurements a line, default 5")
    parser.add_argument("--peer", metavar="PYTHON", help="an environment's Python that can import anomalib, for peers")
    parser.add_argument("--data", metavar="DIR", help="a dataset, for peers")
    parser.add_argument("--category", metavar="NAME", help="of the dataset, for peers")
    parser.add_argument("--figures", metavar="DIR", help="write the curves of growth there, as PNG")
    parser.add_argument("--folder", metavar="DIR", help="for large temporary files (memory: 4.3 GB), default the system's")


def _count(text: str) -> int:
    """A whole number from 0, small enough to seed a generator."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if _count(text) == 0:
        raise argparse.ArgumentTypeError("expected a whole number from 1, got 0")
    return int(text)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a share such as 0.05, got {text!r}") from error
    if not 0 < rate < 1:
        raise argparse.ArgumentTypeError(f"expected a share between 0 and 1, got {text!r}")
    return rate


def _gigabytes(text: str) -> int:
    try:
        count = int(float(text) * 1e9)
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"expected gigabytes such as 2.5, got {text!r}") from error
    if count < 1:
        raise argparse.ArgumentTypeError(f"expected gigabytes above 0, got {text!r}")
    return count


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected numbers such as 2,3, got {text!r}") from error


def _side(text: str) -> int | tuple[int, int] | str:
    if text == "none":
        return text
    try:
        sides = tuple(int(part) for part in text.lower().split("x"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected N, HxW or none, got {text!r}") from error
    if len(sides) > 2:
        raise argparse.ArgumentTypeError(f"expected N, HxW or none, got {text!r}")
    return sides[0] if len(sides) == 1 else sides


def features(options: argparse.Namespace, base: rcp.FeatureSettings = rcp.FeatureSettings()) -> rcp.FeatureSettings:
    """What was said of the features; the rest is as in `base`."""
    if options.levels and options.strides:
        raise ValueError("--levels and --strides say the same thing in two ways: give one of them")
    names = ("backbone", "weights", "levels", "strides", "patch_size", "normalization", "precision", "stored")
    chosen = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.image_size is not None:
        chosen["crop"] = None if options.image_size == "none" else options.image_size
        chosen["resize"] = _usual_resize(chosen["crop"])
    if options.resize is not None:
        chosen["resize"] = options.resize
    if chosen.get("resize") == "none":
        chosen["resize"] = None
    return replace(base, **chosen)


def _usual_resize(crop: int | tuple[int, int] | None) -> int | str:
    """The short side before a centre crop of this size: the papers' three, and their proportion for others."""
    if crop is None:
        return "none"
    short = min(crop) if isinstance(crop, tuple) else crop
    return {224: 256, 320: 366, 480: 512}.get(short, round(short * 8 / 7))


def training(options: argparse.Namespace) -> rcp.TrainSettings:
    return rcp.TrainSettings(**training_choices(options))


def training_choices(options: argparse.Namespace) -> dict[str, object]:
    """What was said of the training; the rest keeps its default."""
    names = ("epochs", "steps", "dimension", "batch", "learning_rate")
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def bank(options: argparse.Namespace) -> rcp.BankSettings:
    return rcp.BankSettings(**bank_choices(options))


def bank_choices(options: argparse.Namespace) -> dict[str, object]:
    """What was said of the memory; the rest keeps its default."""
    return {name: value for name in ("coreset", "parts", "search", "folds") if (value := getattr(options, name)) is not None}


def system(options: argparse.Namespace) -> tuple[rcp.FeatureSettings, object]:
    """The features and the options of one of the other systems: its preset's, with what was said besides."""
    kind = SYSTEMS[options.detector]
    chosen, base = (kind.Options(), kind.features_of(rcp.FeatureSettings.backbone)) if options.preset != "paper" else PAPERS[options.detector]
    names = [one.name for one in fields(kind.Options)]
    changes = {}
    for text in options.set:
        name, sign, value = text.partition("=")
        if not sign or name not in names:
            raise ValueError(f"--set {text}: expected NAME=VALUE with one of {', '.join(names)}")
        changes[name] = _value(value)
    return features(options, base), replace(chosen, **exact(kind.Options, changes))


def _value(text: str) -> object:
    """A number, true or false, several of them with commas between, or a word."""
    if "," in text:
        return tuple(_value(part) for part in text.split(",") if part)
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
