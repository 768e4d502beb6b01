"""What the public data sets hold as they were released: category names, counts, sizes. Facts only, no code.

Sources, and how sure each fact is:

* MVTec AD: Bergmann et al., CVPR 2019, Table 1 (train, good, defective per category, picture side); the counts per
  defect are those of the released archive. Their sums are the paper's 3,629 training and 1,725 test images.
* BTAD: Mishra et al., ISIE 2021, and the README.txt of the archive (400, 1,000 and 399 images of 1600x1600, 600x600
  and 800x600 pixels: the training images). The test counts are those commonly reported; they sum to the 741 test
  images, 290 of them defective, that a public conversion of the archive counted. The file types (01: bmp with png
  masks, 02: png with png, 03: bmp with bmp) are those that anomalib's maintainers found (pull request 162). The paper
  calls the third product 800x600; that this is width by height is what users of the files report.
* VisA: Zou et al., ECCV 2022, and the README and split_csv/1cls.csv of its release (amazon-science/spot-diff): nine in
  ten normal images for training. Sizes differ by object and are not listed there, so none are compared.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Facts:
    """What one category holds as released.

    Attributes:
        train: number of training images, all of them normal.
        good: number of normal test images.
        defects: number of test images of each defect, by the name of its folder.
        size: (height, width) in pixels, or None where no source states it.
        mode: "L" for grey pictures, "RGB" for colour.
        suffixes: of images and of masks, as released.
    """

    train: int
    good: int
    defects: dict[str, int] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    mode: str = "RGB"
    suffixes: tuple[str, str] = (".png", ".png")


def _mvtec(side: int, train: int, good: int, mode: str = "RGB", **defects: int) -> Facts:
    return Facts(train, good, defects, (side, side), mode)


MVTEC: dict[str, Facts] = {
    "bottle": _mvtec(900, 209, 20, broken_large=20, broken_small=22, contamination=21),
    "cable": _mvtec(1024, 224, 58, bent_wire=13, cable_swap=12, combined=11, cut_inner_insulation=14,
                    cut_outer_insulation=10, missing_cable=12, missing_wire=10, poke_insulation=10),
    "capsule": _mvtec(1000, 219, 23, crack=23, faulty_imprint=22, poke=21, scratch=23, squeeze=20),
    "carpet": _mvtec(1024, 280, 28, color=19, cut=17, hole=17, metal_contamination=17, thread=19),
    "grid": _mvtec(1024, 264, 21, "L", bent=12, broken=12, glue=11, metal_contamination=11, thread=11),
    "hazelnut": _mvtec(1024, 391, 40, crack=18, cut=17, hole=18, print=17),
    "leather": _mvtec(1024, 245, 32, color=19, cut=19, fold=17, glue=19, poke=18),
    "metal_nut": _mvtec(700, 220, 22, bent=25, color=22, flip=23, scratch=23),
    "pill": _mvtec(800, 267, 26, color=25, combined=17, contamination=21, crack=26, faulty_imprint=19, pill_type=9,
                   scratch=24),
    "screw": _mvtec(1024, 320, 41, "L", manipulated_front=24, scratch_head=24, scratch_neck=25, thread_side=23,
                    thread_top=23),
    "tile": _mvtec(840, 230, 33, crack=17, glue_strip=18, gray_stroke=16, oil=18, rough=15),
    "toothbrush": _mvtec(1024, 60, 12, defective=30),
    "transistor": _mvtec(1024, 213, 60, bent_lead=10, cut_lead=10, damaged_case=10, misplaced=10),
    "wood": _mvtec(1024, 247, 19, color=8, combined=11, hole=10, liquid=10, scratch=21),
    "zipper": _mvtec(1024, 240, 32, "L", broken_teeth=19, combined=16, fabric_border=17, fabric_interior=16, rough=17,
                     split_teeth=18, squeezed_teeth=16),
}  # fmt: skip

BTAD: dict[str, Facts] = {
    "01": Facts(400, 21, {"ko": 49}, (1600, 1600), suffixes=(".bmp", ".png")),
    "02": Facts(1000, 30, {"ko": 200}, (600, 600)),
    "03": Facts(399, 400, {"ko": 41}, (600, 800), suffixes=(".bmp", ".bmp")),
}

# Normal images in all, by object; 100 anomalous ones each. A tenth of the normal ones, rounded, are for testing.
_VISA_NORMAL = {
    "candle": 1000, "capsules": 602, "cashew": 500, "chewinggum": 503, "fryum": 500, "macaroni1": 1000,
    "macaroni2": 1000, "pcb1": 1004, "pcb2": 1001, "pcb3": 1006, "pcb4": 1005, "pipe_fryum": 500,
}  # fmt: skip
VISA: dict[str, Facts] = {
    name: Facts(total - (total + 5) // 10, (total + 5) // 10, {"anomaly": 100}, suffixes=(".JPG", ".png"))
    for name, total in _VISA_NORMAL.items()
}

NAMES = {"mvtec": "MVTec AD", "btad": "BTAD", "visa": "VisA"}


def dataset(layout: str, categories: list[str]) -> dict[str, Facts]:
    """Return the released categories, by name, of the data set that these ones are of; empty if it is not known.

    Args:
        layout: "mvtec", "btad", "visa" or "folder", as `rcp.data` found it.
        categories: the names that were found.

    Returns:
        One of the tables above. VisA as its authors' script rearranges it (MVTec's folders, one defect called
        "bad") counts as VisA. Data of one's own, whatever its layout, has no official counts.
    """
    rearranged = {name: replace(facts, defects={"bad": 100}) for name, facts in VISA.items()}
    tables = {"mvtec": (MVTEC, rearranged), "btad": (BTAD,), "visa": (VISA,)}
    return next((table for table in tables.get(layout, ()) if set(categories) & set(table)), {})
