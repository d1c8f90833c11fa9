"""Every scalar is shown once, with those that it is compared with."""

from __future__ import annotations

import numpy as np

from sagecache.project.run_log import Curve
from sagecache.visualization.curves import PANELS, charts_of, last_values


def curves(*names: str) -> dict[str, Curve]:
    return {name: Curve(np.array([10, 20]), np.array([0.5, k + 1.0])) for k, name in enumerate(names)}


def test_every_panel_is_there_with_all_that_it_names_when_all_is_logged():
    names = [name.replace("*", "x") for panel in PANELS for name in panel.names]
    main, more = charts_of(curves(*names), {})
    assert [chart.title for chart in main] == [panel.title for panel in PANELS] and more == []
    assert sum(len(chart.lines) for chart in main) == len(names)


def test_a_curve_without_data_is_left_out_and_a_panel_without_curves():
    main, _ = charts_of(curves("keep_mean", "lr"), {})
    assert [(chart.title, [line.name for line in chart.lines]) for chart in main] == [
        ("Joints learned from", ["kept"]),
        ("Learning rate", ["learning rate"]),
    ]
    assert charts_of({}, {}) == ([], [])


def test_what_no_panel_names_has_a_chart_of_its_own_but_not_joints_and_sums():
    logged = curves("loss", "diffusion_pull", "time", "joints/kept/nose", "probe/precision/nose", "a<b>")
    main, more = charts_of(logged, {})
    assert main == [] and [chart.title for chart in more] == ["a<b>", "diffusion pull", "time"]


def test_losses_carry_their_weights_and_the_end_of_the_ramp():
    logged = curves("loss_kpt", "loss_consistency")
    logged["loss_consistency"].values[0] = 0.01
    main, _ = charts_of(logged, {"consistency": 0.25}, ramp_end=50)
    (losses,) = main
    assert [(line.name, line.note) for line in losses.lines] == [
        ("consistency", "× 0.25"),
        ("labels (kpt)", ""),
    ]
    assert losses.log and "logarithmic" in losses.note and losses.marks == [(50, "full weight")]
    assert charts_of(curves("loss_kpt"), {}, ramp_end=50)[0][0].marks == []


def test_losses_of_one_size_have_a_plain_axis():
    (losses,) = charts_of(curves("loss_kpt", "loss_consistency"), {})[0]
    assert not losses.log and "logarithmic" not in losses.note
    nothing = {"loss_a": Curve(np.array([1]), np.array([np.nan]))}
    assert not charts_of(nothing, {})[0][0].log


def test_fates_are_told_in_the_words_and_the_order_of_their_signs():
    logged = curves("fate/a", "fate/kept", "fate/low_confidence", "fate/new_one")
    words = {"kept": "kept", "low_confidence": "below", "a": "first"}
    (chart,) = charts_of(logged, {}, fates=words)[0]
    assert [line.name for line in chart.lines] == ["kept", "below", "first", "new one"]


def test_last_values():
    logged = curves("joints/kept/a", "joints/kept/b")
    assert last_values(logged, "joints/kept/", ["b", "c", "a"]) == [2.0, None, 1.0]
