"""The command `rcp`: what it takes is what the module's functions take."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import rcp
from rcp import data, synthetic
from rcp.backbones import PRESETS, WeightsError
from rcp.bench import bench
from rcp.comparison import as_csv, caption, compare, markdown
from rcp.detectors.patchcore import VARIANTS
from rcp.evaluation import METRICS, PROTOCOLS
from rcp.files import write_atomically, write_json
from rcp.memory import SEARCHES
from rcp.run import run

BACKBONES = "\n".join(f"  {name:20} {preset.tag:32} {preset.note}" for name, preset in PRESETS.items())

OVERVIEW = """\
Patch-based anomaly detection, opened up: PatchCore and ReConPatch.

A frozen network describes every patch of the good images; a few of these rows are kept in a memory; an image is as
anomalous as its patch that is farthest from the memory. ReConPatch first trains a linear layer on those rows.
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
  rcp run --data mvtec --category pill --detector reconpatch --backbone wide_resnet101_2 --resize 512 \\
          --image-size 480 --epochs 120 --out runs/pill-paper
"""

PREDICT = """\
Score images with a saved detector. For each image: its score, the verdict against the limit that at most
--false-alarm-rate of normal images are expected to exceed (from held-out training images), and a heat map as PNG.
"""

COMPARE = """\
Fit PatchCore, ReConPatch with an untrained layer, and ReConPatch on the same features with the same seeds, and print one
table: mean ± standard deviation over seeds. This is the command behind the tables of the README.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 1 after one sentence on standard error."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except (ValueError, OSError, WeightsError) as error:
        print(f"rcp: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("rcp: interrupted; a training goes on from its last epoch if you repeat the command", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _page(argparse.ArgumentParser, prog="rcp", description=OVERVIEW)
    parser.add_argument("--version", action="version", version=f"rcp {rcp.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _demo_options(commands.add_parser("demo", help="compare the detectors on the embedded data", **PAGE))
    _run_options(_command(commands, "run", "one detector on one category: metrics, figures, model", RUN, RUN_EXAMPLES))
    _compare_options(_command(commands, "compare", "three detectors, several seeds, one table", COMPARE))
    _predict_options(_command(commands, "predict", "score images with a saved detector", PREDICT))
    _synthetic_options(commands.add_parser("synthetic", help="write the embedded data as files", **PAGE))
    _bench_options(commands.add_parser("bench", help="time the stages on this machine", **PAGE))
    return parser


PAGE = {"formatter_class": argparse.RawDescriptionHelpFormatter}


def _page(kind, **texts):
    return kind(**PAGE, **texts)


def _command(commands, name: str, summary: str, description: str, examples: str | None = None):
    return commands.add_parser(name, help=summary, description=description, epilog=examples, **PAGE)


# What each command takes


def _data_options(parser: argparse.ArgumentParser, several: bool) -> None:
    group = parser.add_argument_group("data")
    group.add_argument("--data", metavar="DIR", required=True, help="MVTec AD, BTAD or VisA, or a folder of good images")
    action = "append" if several else "store"
    group.add_argument("--category", metavar="NAME", action=action, help="e.g. bottle" + ("; repeatable" * several))
    group.add_argument(
        "--layout", choices=("auto", "mvtec", "btad", "visa", "folder"), default="auto", help="default: find out"
    )


def _feature_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("features")
    standard = rcp.FeatureSettings()
    group.add_argument("--backbone", default=standard.backbone, help=f"default {standard.backbone}")
    group.add_argument("--weights", metavar="FILE", help="a local weight file: safetensors or a state dict")
    group.add_argument("--levels", type=_numbers, default=standard.levels, metavar="2,3", help="feature maps to join")
    group.add_argument("--strides", type=_numbers, metavar="8,16", help="the same by stride, instead of --levels")
    group.add_argument("--patch-size", type=int, default=standard.patch_size, metavar="S", help="neighbourhood, default 3")
    group.add_argument(
        "--image-size", type=_side, default=standard.crop, metavar="N", help="centre crop: N, HxW or none; default 224"
    )
    group.add_argument(
        "--resize", type=_side, default=None, metavar="N",
        help="short side before the crop: N, HxW or none; default 256 for 224, 366 for 320, 512 for 480, else 8/7 of it",
    )  # fmt: skip
    group.add_argument("--normalization", choices=("imagenet", "model"), default=standard.normalization, help="input colours: ImageNet's for every backbone (default), or the model's own")
    group.add_argument("--precision", choices=("float32", "bfloat16"), default=standard.precision, help="of the network")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")


def _training_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training (ReConPatch)")
    standard = rcp.TrainSettings()
    group.add_argument("--epochs", type=int, default=standard.epochs, help=f"default {standard.epochs}; the paper: 120")
    group.add_argument("--steps", type=int, help="steps an epoch; default: all patches once")
    group.add_argument("--dimension", type=int, default=standard.dimension, help="width of f, default 512")
    group.add_argument("--batch", choices=("patches", "images"), default=standard.batch, help="a step sees random patches, or whole images")


def _demo_options(parser: argparse.ArgumentParser) -> None:
    parser.description = "Compare the three detectors on the embedded data: a table and a figure a category, in --out."
    parser.add_argument("--out", metavar="DIR", default="demo", help="default: demo")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 0 … N-1, default 1")
    parser.add_argument("--epochs", type=int, default=3, help="of ReConPatch, default 3")
    parser.set_defaults(command=_demo)


def _run_options(parser: argparse.ArgumentParser) -> None:
    _data_options(parser, several=False)
    parser.add_argument("--detector", choices=("reconpatch", "patchcore"), required=True)
    parser.add_argument("--out", metavar="DIR", default="runs/latest", help="default: runs/latest")
    _feature_options(parser)
    _training_options(parser)
    group = parser.add_argument_group("memory and scores")
    bank = rcp.BankSettings()
    group.add_argument("--coreset", type=float, default=bank.coreset, metavar="SHARE", help="default 0.01, i.e. 1 %%")
    group.add_argument("--variant", choices=tuple(VARIANTS), default="concat", help="of PatchCore, default concat")
    group.add_argument("--search", choices=SEARCHES, default=bank.search, help="who finds the nearest rows (equal results)")
    group.add_argument("--folds", type=int, default=bank.folds, help="to hold normal images out; 0: no threshold")
    group.add_argument("--seed", type=int, default=0, help="of f, batches, projection, coreset, folds")
    _evaluation_options(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--maps", action="store_true", help="write the raw maps, too (maps.safetensors)")
    group.add_argument("--no-figures", action="store_true", help="write no PNGs")
    parser.set_defaults(command=_run)


def _evaluation_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("evaluation")
    group.add_argument("--protocol", choices=PROTOCOLS, default="crop", help="masks cropped as images are, or kept whole")
    group.add_argument("--false-alarm-rate", type=float, default=0.05, metavar="SHARE", help="for the limit, default 0.05")
    group.add_argument("--on-error", choices=("raise", "skip"), default="raise", help="what to do with unreadable files")


def _compare_options(parser: argparse.ArgumentParser) -> None:
    _data_options(parser, several=True)
    _feature_options(parser)
    _training_options(parser)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 … N-1, default 3")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="crop")
    parser.add_argument("--name", default=None, help="of the dataset, for the table's caption")
    parser.add_argument("--out", metavar="DIR", help="write table.md and rows.csv there, too")
    parser.set_defaults(command=_compare)


def _predict_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a folder that `rcp run` or `save` wrote")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    parser.add_argument("--out", metavar="DIR", default="heatmaps", help="for the PNGs, default: heatmaps")
    parser.add_argument("--false-alarm-rate", type=float, default=0.05, metavar="SHARE", help="for the limit, default 0.05")
    parser.add_argument("--weights", metavar="FILE", help="the backbone's weight file, if it lies elsewhere now")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.set_defaults(command=_predict)


def _synthetic_options(parser: argparse.ArgumentParser) -> None:
    parser.description = f"Write the embedded data in MVTec AD's layout: {', '.join(synthetic.CATEGORIES)}."
    parser.add_argument("dir", metavar="DIR")
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other images, default 0")
    parser.set_defaults(command=_synthetic)


def _bench_options(parser: argparse.ArgumentParser) -> None:
    parser.description = "Time the stages on this machine, each against what it is compared with, in one run."
    parser.add_argument("--json", metavar="FILE", help="write the numbers, too")
    parser.add_argument("--repeats", type=int, default=5, help="default 5")
    parser.set_defaults(command=_bench)


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


# What each command does


def _features(options: argparse.Namespace) -> rcp.FeatureSettings:
    crop = None if options.image_size == "none" else options.image_size
    resize = options.resize if options.resize is not None else _usual_resize(crop)
    return rcp.FeatureSettings(
        backbone=options.backbone,
        weights=options.weights,
        levels=options.levels,
        strides=options.strides,
        patch_size=options.patch_size,
        resize=None if resize == "none" else resize,
        crop=crop,
        normalization=options.normalization,
        precision=options.precision,
    )


def _usual_resize(crop: int | tuple[int, int] | None) -> int | str:
    """The short side before a centre crop of this size: the papers' three, and their proportion for others."""
    if crop is None:
        return "none"
    short = min(crop) if isinstance(crop, tuple) else crop
    return {224: 256, 320: 366, 480: 512}.get(short, round(short * 8 / 7))


def _training(options: argparse.Namespace) -> rcp.TrainSettings:
    return rcp.TrainSettings(
        epochs=options.epochs, steps=options.steps, dimension=options.dimension, batch=options.batch
    )


def _run(options: argparse.Namespace) -> None:
    category = data.find(options.data, options.category, options.layout)
    bank = rcp.BankSettings(coreset=options.coreset, search=options.search, folds=options.folds)
    common = {"bank": bank, "seed": options.seed, "device": options.device}
    if options.detector == "patchcore":
        detector = rcp.PatchCore(_features(options), variant=options.variant, **common)
    else:
        detector = rcp.ReConPatch(_features(options), training=_training(options), **common)
    record = run(
        category,
        detector,
        options.out,
        protocol=options.protocol,
        false_alarm_rate=options.false_alarm_rate,
        on_error=options.on_error,
        maps=options.maps,
        figures=not options.no_figures,
    )
    for name in METRICS:
        value = record["metrics"].get(name)
        if value is not None and value == value:
            print(f"{name:13} {value:.4f}")
    if record["verdict"]:
        v = record["verdict"]
        print(
            f"limit {v['threshold']['value']:.3f} for {100 * v['threshold']['false_alarm_rate']:g} % false alarms: "
            f"{v['false_alarms']} of {v['normals']} normal and {v['detected']} of {v['anomalies']} anomalous test images "
            "lie above it"
        )
    for path, reason in record["skipped"]:
        print(f"skipped {path}: {reason}")
    seconds, peak = record["seconds"]["total"], record["peak_rss_bytes"] / 1e9
    print(f"{seconds:.1f} s, peak memory {peak:.2f} GB; written to {Path(options.out)}")


def _compare(options: argparse.Namespace) -> None:
    names = options.category or data.categories(options.data)
    categories = [data.find(options.data, name, options.layout) for name in names]
    features, training, seeds = _features(options), _training(options), range(options.seeds)
    rows = compare(
        categories, features=features, training=training, seeds=seeds, protocol=options.protocol, device=options.device,
        say=lambda line: print(line, file=sys.stderr),
    )  # fmt: skip
    dataset = options.name or categories[0].dataset
    table = markdown(rows, caption(dataset, features, training, seeds, options.protocol))
    print(table)
    if options.out:
        _write_table(rows, table, Path(options.out))


def _write_table(rows, table: str, out: Path) -> None:
    write_atomically(out / "table.md", lambda path: path.write_text(table, encoding="utf-8"))
    write_atomically(out / "rows.csv", lambda path: path.write_text(as_csv(rows), encoding="utf-8"))


def _demo(options: argparse.Namespace) -> None:
    from rcp import plots  # matplotlib loads only where something is drawn

    root, out = synthetic.cached(), Path(options.out)
    categories = [data.mvtec(root, name) for name in synthetic.CATEGORIES]
    training, seeds = rcp.TrainSettings(epochs=options.epochs), range(options.seeds)
    rows = compare(categories, training=training, seeds=seeds, say=lambda line: print(line, file=sys.stderr))
    table = markdown(rows, caption("embedded synthetic data, seed 0", rcp.FeatureSettings(), training, seeds, "crop"))
    print(table)
    _write_table(rows, table, out)
    for category in categories:
        detector = rcp.PatchCore().fit(category.train)
        result, limits = rcp.evaluate(detector, category.test), detector.normal_scores().colour_limits()
        plots.write(plots.map_sheet(category.test, {"PatchCore": (result, limits)}), out / f"{category.name}.png")
    print(f"written to {out}: table.md, rows.csv, a figure of heat maps a category")


def _predict(options: argparse.Namespace) -> None:
    from rcp import plots  # matplotlib loads only where something is drawn

    detector = rcp.load(options.model, device=options.device, weights=options.weights)
    paths = [Path(image) for image in options.images]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"there is no image file {missing[0]}")
    scores = detector.score(paths)
    try:
        limit = detector.threshold(options.false_alarm_rate)
    except (ValueError, RuntimeError) as error:  # a verdict is not possible; scores and maps are
        limit = None
        print(f"no verdict: {error}", file=sys.stderr)
    names = _unique_names(paths)
    for position, path in enumerate(paths):
        score, heat = float(scores.image_scores[position]), scores.original_map(position).numpy()
        figure = plots.verdict_figure(path, score, heat, detector.colour_limits(), limit)
        written = plots.write(figure, Path(options.out) / f"{names[position]}.png")
        verdict = "" if limit is None else ("anomalous" if score > limit.value else "normal")
        print(f"{score:10.4f}  {verdict:9}  {path}  → {written}")
    if limit is not None:
        low, high = (100 * share for share in limit.interval)
        print(
            f"limit {limit.value:.4f}: at most {100 * limit.false_alarm_rate:g} % of normal images are expected above it "
            f"({limit.normals} held-out normals; 95 % interval {low:.1f}–{high:.1f} %)"
        )


def _unique_names(paths: Sequence[Path]) -> list[str]:
    """File stems, with the folder in front where two images share one."""
    stems = [path.stem for path in paths]
    return [s if stems.count(s) == 1 else f"{p.parent.name}-{p.name}".replace(".", "-") for s, p in zip(stems, paths, strict=True)]


def _synthetic(options: argparse.Namespace) -> None:
    root = synthetic.write(options.dir, seed=options.seed)
    print(f"written to {root}: {', '.join(synthetic.CATEGORIES)}")


def _bench(options: argparse.Namespace) -> None:
    report = bench(repeats=options.repeats, say=print)
    if options.json:
        write_json(options.json, report)


if __name__ == "__main__":
    sys.exit(main())
