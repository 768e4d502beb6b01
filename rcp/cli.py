"""The command `rcp`: what it takes is what the module's functions take."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import rcp
from rcp import census, data, options, synthetic
from rcp.auxiliary import auxiliary
from rcp.backbones import WeightsError
from rcp.bench import Choice, bench
from rcp.comparison import as_csv, caption, compare, markdown
from rcp.detectors import SYSTEMS, Detector
from rcp.evaluation import METRICS
from rcp.experiments.command import experiments
from rcp.files import write_atomically, write_json
from rcp.reproduce.command import reproduce
from rcp.run import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 1 after one sentence on standard error."""
    given = options.parser(COMMANDS).parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"rcp: {message}", file=sys.stderr)
            return given.command(given) or 0
    except (ValueError, OSError, MemoryError, WeightsError) as error:
        print(f"rcp: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("rcp: interrupted; given again, `rcp run` goes on behind the last full epoch, a grid behind its last cell", file=sys.stderr)
        return 130


def _run(given: argparse.Namespace) -> None:
    if given.detector == "reconpatch" and given.variant:
        raise ValueError("--variant names forms of PatchCore: leave it out, or say --detector patchcore")
    category = data.find(given.data, given.category, given.layout)
    detector = _detector(given, category)
    record = run(
        category,
        detector,
        given.out,
        protocol=given.protocol,
        false_alarm_rate=given.false_alarm_rate,
        on_error=given.on_error,
        maps=given.maps,
        figures=not given.no_figures,
    )
    for name in METRICS:
        value = record["metrics"].get(name)
        if value is not None and value == value:
            print(f"{name:13} {value:.4f}")
    if record["unseen_share"]:
        print(f"{100 * record['unseen_share']:.0f} % of the judged pixels lie outside the crop that the network sees")
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
    print(f"{seconds:.1f} s, peak memory {peak:.2f} GB; written to {Path(given.out)}")


def _detector(given: argparse.Namespace, category: data.Category) -> Detector:
    """The detector that was asked for; options that do not concern it are told."""
    limit = rcp.MemoryLimit(given.max_memory, given.out)
    common = {"seed": given.seed, "device": given.device, "limit": limit}
    if given.detector in SYSTEMS:
        _no_effect([*options.training_choices(given), *options.bank_choices(given), *(["variant"] if given.variant else [])],
                   f"{given.detector} has options of its own: --set NAME=VALUE")  # fmt: skip
        for name in SYSTEMS[given.detector].unused:
            if getattr(given, name, None) is not None:
                _no_effect([name], f"{SYSTEMS[given.detector].__name__} has no use for it")
                setattr(given, name, None)
        features, chosen = options.system(given)
        detector = SYSTEMS[given.detector](features, options=chosen, **common)
        if given.detector == "inctrl":
            detector.pretrain(auxiliary(category, given.auxiliary))
        elif given.auxiliary:
            _no_effect(["auxiliary"], "only InCTRL learns from other categories")
        return detector
    _no_effect([name for name in ("preset", "set", "auxiliary") if getattr(given, name)], "it is for the other systems")
    common["bank"] = options.bank(given)
    if given.detector == "patchcore":
        _no_effect(options.training_choices(given), "PatchCore does not train")
        return rcp.PatchCore(options.features(given), variant=given.variant or "concat", **common)
    return rcp.ReConPatch(options.features(given), training=options.training(given), **common)


def _no_effect(names: Iterable[str], why: str) -> None:
    """One command line serves all detectors, but says so."""
    for name in names:
        print(f"--{name.replace('_', '-')} has no effect: {why}", file=sys.stderr)


def _compare(given: argparse.Namespace) -> None:
    names = given.category or data.categories(given.data) or [None]
    categories = [data.find(given.data, name, given.layout) for name in names]
    features, training, seeds = options.features(given), options.training(given), range(given.seeds)
    if given.out:
        Path(given.out).mkdir(parents=True, exist_ok=True)  # a folder that cannot be made is found before the work
    rows = compare(
        categories, features=features, training=training, seeds=seeds, protocol=given.protocol, device=given.device,
        say=lambda line: print(line, file=sys.stderr),
    )  # fmt: skip
    dataset = given.name or categories[0].dataset
    table = markdown(rows, caption(dataset, features, training, seeds, given.protocol))
    print(table)
    if given.out:
        _write_table(rows, table, Path(given.out))


def _write_table(rows, table: str, out: Path) -> None:
    write_atomically(out / "table.md", lambda path: path.write_text(table, encoding="utf-8"))
    write_atomically(out / "rows.csv", lambda path: path.write_text(as_csv(rows), encoding="utf-8"))


def _demo(given: argparse.Namespace) -> None:
    from rcp import plots  # matplotlib loads only where something is drawn

    root, out = synthetic.cached(), Path(given.out)
    categories = [data.mvtec(root, name) for name in synthetic.CATEGORIES]
    training, seeds = rcp.TrainSettings(epochs=given.epochs), range(given.seeds)
    rows = compare(categories, training=training, seeds=seeds, say=lambda line: print(line, file=sys.stderr))
    table = markdown(rows, caption("embedded synthetic data, seed 0", rcp.FeatureSettings(), training, seeds, "crop"))
    print(table)
    _write_table(rows, table, out)
    for category in categories:
        detector = rcp.PatchCore().fit(category.train)
        result, limits = rcp.evaluate(detector, category.test), detector.normal_scores().colour_limits()
        plots.write(plots.map_sheet(category.test, {"PatchCore": (result, limits)}), out / f"{category.name}.png")
    print(f"written to {out}: table.md, rows.csv, a figure of heat maps a category")


def _predict(given: argparse.Namespace) -> None:
    from rcp import plots  # matplotlib loads only where something is drawn

    model = Path(given.model)
    if (model / "model").is_dir():  # the folder of a run holds its model one level below
        model = model / "model"
    Path(given.out).mkdir(parents=True, exist_ok=True)
    detector = rcp.load(model, device=given.device, weights=given.weights)
    paths = [Path(image) for image in given.images]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"there is no image file {missing[0]}")
    scores = detector.score(paths)
    try:
        limit = detector.threshold(given.false_alarm_rate)
    except (ValueError, RuntimeError) as error:  # a verdict is not possible; scores and maps are
        limit = None
        print(f"no verdict: {error}", file=sys.stderr)
    names = _unique_names(paths)
    for position, path in enumerate(paths):
        score = float(scores.image_scores[position])
        figure = plots.verdict_figure(path, scores, position, detector.colour_limits(), limit)
        written = plots.write(figure, Path(given.out) / f"{names[position]}.png")
        verdict = "" if limit is None else ("anomalous" if score > limit.value else "normal")
        print(f"{score:10.4f}  {verdict:9}  {path}  → {written}")
    if limit is not None:
        low, high = (100 * share for share in limit.interval)
        print(
            f"limit {limit.value:.4f}: at most {100 * limit.false_alarm_rate:g} % of normal images are expected above it "
            f"({limit.normals} held-out normals; 95 % interval {low:.1f}–{high:.1f} %)"
        )


def _unique_names(paths: Sequence[Path]) -> list[str]:
    """File stems, with the folder in front and a number behind where two images share one."""
    stems = [path.stem for path in paths]
    return [
        path.stem if stems.count(path.stem) == 1 else f"{path.parent.name}-{path.stem}-{number}"
        for number, path in enumerate(paths, start=1)
    ]


def _data(given: argparse.Namespace) -> int:
    found = census.check(given.dir, deep=given.deep, layout=given.layout)
    print(found)
    if given.json:
        write_json(given.json, found.as_json())
    return 0 if found.ok else 1


def _synthetic(given: argparse.Namespace) -> None:
    root = synthetic.write_with_bar(given.dir, seed=given.seed)
    print(f"written to {root}: {', '.join(synthetic.CATEGORIES)}")


def _bench(given: argparse.Namespace) -> None:
    category = data.find(given.data, given.category) if given.data else None
    peer, folder = (Path(path) if path else None for path in (given.peer, given.folder))
    report = bench(given.suites or ["stages"], Choice(given.repeats, category, peer, folder))
    if given.json:
        write_json(given.json, report)
    if given.figures and "growth" in report:
        from rcp import plots  # matplotlib loads only where something is drawn

        about = "{processor}, {threads} threads".format(**report["machine"])
        for name, curve in report["growth"]["curves"].items():
            file = f"bench_growth_{name.replace(' ', '_')}.png"
            plots.write(plots.growth_figure(curve, about), Path(given.figures) / file)


COMMANDS = {
    "demo": _demo,
    "run": _run,
    "compare": _compare,
    "predict": _predict,
    "synthetic": _synthetic,
    "data": _data,
    "experiments": experiments,
    "reproduce": reproduce,
    "bench": _bench,
}
