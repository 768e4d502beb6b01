"""What all lessons share: the choice of data, kept figures, and checks that say why."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rcp import course, plots, synthetic
from rcp.course import checks


def drawing():
    figure = plots.new_figure(4, 3)
    figure.subplots().plot([1, 2, 3])
    return figure


def test_a_kept_figure_is_a_png_and_a_small_svg_and_the_same_every_time(tmp_path, monkeypatch):
    monkeypatch.setenv("RCP_OUT", str(tmp_path))
    figure = drawing()
    assert course.keep(figure, "99_name_shape") is figure
    first = (tmp_path / "99_name_shape.svg").read_bytes()
    assert (tmp_path / "99_name_shape.png").read_bytes().startswith(b"\x89PNG")
    course.keep(drawing(), "99_name_shape")
    assert (tmp_path / "99_name_shape.svg").read_bytes() == first


def test_a_large_svg_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("RCP_OUT", str(tmp_path))
    figure = plots.new_figure(4, 3)
    figure.subplots().plot(np.random.default_rng(0).random(20_000), ".")
    course.keep(figure, "99_name_cloud")
    assert (tmp_path / "99_name_cloud.png").exists() and not (tmp_path / "99_name_cloud.svg").exists()


def test_the_environment_chooses_the_data(monkeypatch):
    monkeypatch.delenv("RCP_DATA", raising=False)
    monkeypatch.delenv("RCP_CATEGORY", raising=False)
    assert course.source(course.category("flange")) == "embedded synthetic data, flange"
    monkeypatch.setenv("RCP_CATEGORY", "granulate")
    assert course.source(course.category("flange")) == "embedded synthetic data, granulate"
    monkeypatch.setenv("RCP_DATA", str(synthetic.cached()))
    monkeypatch.setenv("RCP_CATEGORY", "brick")
    chosen = course.category("flange")
    assert chosen.name == "brick" and course.source(chosen) == "mvtec brick"


class TestAnswer:
    def check(self, given):
        return checks.answer("9.1", given, 0.4, "because.", [(2, "a count, not a share."), (0.25, "the union.")], hint="count again.")

    def test_the_right_one_is_right_to_the_tolerance(self):
        assert self.check(0.4).right and self.check(torch.tensor(0.40001)).right and "because" in self.check(0.4).text

    @pytest.mark.parametrize(("given", "word"), [(2, "a count"), (0.25, "the union"), (7.0, "count again"), ("x", "count again")])
    def test_a_wrong_one_is_told_why(self, given, word):
        assert self.check(given).right is False and word in self.check(given).text

    def test_no_answer_is_no_mistake(self):
        assert self.check(...).right is None and self.check(None).right is None

    def test_a_shape_is_told(self):
        outcome = checks.answer("9.1", torch.zeros(3, 2), torch.zeros(2, 3), "because.")
        assert outcome.right is False and "(3, 2)" in outcome.text and "(2, 3)" in outcome.text

    def test_the_tolerance_is_relative_to_each_entry(self):
        assert not checks.answer("9.1", [1000.0, 1.5], [1000.0, 1.0], "because.").right
        assert checks.answer("9.1", [1000.0, 1e-5], [1000.0, 0.0], "because.").right  # rounding

    def test_tensors_with_a_gradient_in_a_list_are_no_crash(self):
        assert checks.answer("9.1", [torch.ones((), requires_grad=True)], [1.0], "because.").right is not None

    def test_zero_is_not_right_for_a_small_number(self):
        assert not checks.answer("9.1", 0.0, 1e-6, "because.").right
        assert checks.answer("9.1", 0.0, 0.0, "because.").right


class TestFunction:
    def check(self, given):
        return checks.function(
            "9.2", given, lambda x: x * x, [(torch.tensor([2.0, 3.0]),), (torch.tensor([0.0]),)], "squared.",
            [(lambda x: 2 * x, "doubled, not squared."), (lambda x: x**3, "one power too many.")],
        )  # fmt: skip

    def test_right_wrong_and_not_written_yet(self):
        assert self.check(lambda x: x**2).right
        assert self.check(lambda x: ...).right is None and self.check(...).right is None

    @pytest.mark.parametrize(
        ("given", "word"),
        [(lambda x: x + x, "doubled"), (lambda x: x * x * x, "power"), (lambda x: x + 1, "case 1 of 2"), (lambda x: x[:0], "shape (0,)")],
    )
    def test_a_wrong_one_is_told_why(self, given, word):
        assert self.check(given).right is False and word in self.check(given).text

    def test_an_error_of_the_student_is_told_and_not_raised(self):
        outcome = self.check(lambda x: x.no_such_thing)
        assert outcome.right is False and "AttributeError" in outcome.text

    def test_a_function_may_change_what_it_is_given(self):
        assert self.check(lambda x: x.mul_(x)).right

    def test_a_mistake_must_hold_in_every_case(self):
        outcome = self.check(lambda x: 2 * x if len(x) == 2 else x + 1)
        assert outcome.right is False and "doubled" not in outcome.text


def test_a_choice_says_why_of_each_option():
    options = {"a": "since a.", "b": "b is not."}
    assert checks.choice("9.3", "A ", options, "a").right
    assert checks.choice("9.3", "b", options, "a").right is False and "b is not" in checks.choice("9.3", "b", options, "a").text
    assert checks.choice("9.3", "c", options, "a").right is False and checks.choice("9.3", ..., options, "a").right is None


def test_an_outcome_is_shown_in_lines_of_readable_length():
    text = repr(checks.answer("9.4", 1, 1, "word " * 60))
    assert max(map(len, text.splitlines())) <= checks.WIDTH and text.startswith("✓ 9.4 Right.")
