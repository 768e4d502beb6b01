"""The measurements of notebook 11 on all embedded categories: prints what stands in `learning_measured`.

    python -m rcp.course.learning_measure      (some minutes on two cores)
"""

from __future__ import annotations

from rcp.course.contamination import line, trials
from rcp.course.learning_runs import METRICS, SYSTEMS, embedded, learning_curve, sizes
from rcp.features import FeatureSettings, PatchExtractor


def main() -> None:
    """Print the two tables."""
    extractor, everything = PatchExtractor(FeatureSettings()), embedded()
    for category, train, test in everything.values():
        for number, system in enumerate(SYSTEMS):
            for p in learning_curve(category, train, test, extractor, system=system, counts=sizes(len(train))):
                values = ";".join(f"{p.metrics[name]:.4f}" for name in METRICS)
                print(f"{p.category};{number};{p.images};{p.draw};{values}", flush=True)
    print()
    for category, train, test in everything.values():
        for trial in trials(category, train, test, extractor):
            print(line(trial), flush=True)


if __name__ == "__main__":
    main()
