"""The ablations of SAGE-Pose: a question each, at equal steps and with the same strong views.

Every arm is the control with what its question asks about changed, and nothing else.
"""

control = "consistency"
floor = "supervised"
ceiling = "oracle"


def _arm(asks, overrides, recipe="stage1-baseline"):
    return dict(recipe=recipe, asks=asks, overrides=overrides)


# The second view of a teacher that looks at two: the plain crop in other colours.
_appearance = {"views.appearance.colour": 0.3, "views.appearance.blur": 0.3, "views.appearance.noise": 6.0}
_dual = {"semi.teacher.mode": "dual", "semi.teacher.appearance.decay": 0.98, **_appearance}
_akm, _cutmix = {"semi.mixing.akm.joints": 3}, {"semi.mixing.cutmix": 0.5}
_prior = {"semi.terms.topology.weight": 0.05, "semi.terms.bone.weight": 0.05, "semi.terms.angle.weight": 0.02}
_dynamic = {"semi.pseudo_labels.rule": "adaptive"}
_camera, _fda = {"views.strong.radial": 0.25, "views.strong.tilt": 15.0}, {"semi.style.fda": 0.5}
_instances = {"semi.instances.expected_oks": 0.3, "semi.instances.size": 1.5, "semi.instances.inverted": True}
_geometry = {"semi.terms.geometry.weight": 6.0}
_swaps = {
    **{f"semi.swaps.{side}": 0.2 for side in ("front", "back")},
    "semi.swaps.weight_back": 2.0,
    "semi.terms.sides.weight": 1.0,
}

arms = dict(
    supervised=_arm("labels alone, as many steps", {}, "stage1-supervised"),
    consistency=_arm("one EMA teacher, one strong view, fixed threshold", {}),
    two_views_of_one=_arm("one teacher looks twice", {"semi.teacher.mode": "single_two_view", **_appearance}),
    dual=_arm("two teachers, a view each, fused by joint", _dual),
    dual_by_instance=_arm("two teachers, fused by instance", {**_dual, "semi.fusion.by": "instance"}),
    strong_2=_arm("two strong views of each image", {"views.num_strong": 2}),
    strong_3=_arm("three strong views of each image", {"views.num_strong": 3}),
    akm=_arm("hard joints are hidden", _akm),
    akm_cutmix=_arm("hard joints are hidden, limbs exchanged", {**_akm, **_cutmix}),
    prior=_arm("topology, bone lengths and angles of labeled bodies", _prior),
    dynamic=_arm("a threshold for each joint, from its running confidence", _dynamic),
    prior_dynamic=_arm("structural prior and dynamic threshold", {**_prior, **_dynamic}),
    camera=_arm("strong views bent by lens and tilt", _camera),
    fda=_arm("labeled images in unlabeled ones' low frequencies", _fda),
    instances=_arm("whole persons are dropped before joints", _instances),
    geometry=_arm("cached depth, normals and mask as a second task", _geometry),
    swaps=_arm("left and right held by stage 0's vote", _swaps),
    sage_pose=_arm("what helped, together", {}, "sage-pose"),
    sage_pose_dual=_arm("the design's two teachers and two strong views", {}, "sage-pose-dual"),
    unsup_only=_arm("no labels in the step", {}, "unsup-only"),
    oracle=_arm("true labels of every unlabeled image", {}, "oracle"),
)


def _group(asks, *arms):
    return dict(asks=asks, arms=["consistency", *arms])


groups = dict(
    teachers=_group("One teacher or two?", "two_views_of_one", "dual", "dual_by_instance"),
    views=_group("One, two or three strong views?", "strong_2", "strong_3"),
    hiding=_group("Does hiding hard joints and exchanging limbs help?", "akm", "akm_cutmix"),
    structure=_group("Does the structural prior help?", "prior"),
    threshold=_group("Dynamic or fixed threshold?", "dynamic"),
    domain=_group("Do a camera's distortions and others' spectra help?", "camera", "fda"),
    filters=_group("Instances then joints, or joints alone?", "instances"),
    geometry=_group("Does it help to predict the cached geometry?", "geometry"),
    swaps=_group("Does a fixed vote on front and back hold left and right?", "swaps"),
)
contrasts = dict(
    more_than_views=dict(
        asks="Is sage-pose more than a second strong view?", weights=dict(sage_pose=1, strong_2=-1)
    ),
    structure_x_threshold=dict(
        asks="Does the prior help more under a dynamic threshold?",
        weights=dict(prior_dynamic=1, prior=-1, dynamic=-1, consistency=1),
    ),
)

evidence = dict(
    net_use=["consistency", "two_views_of_one", "dual"],
    hard_joints=["consistency", "dual", "dual_by_instance"],
    stability=["consistency", "strong_2", "strong_3"],
    hidden=["consistency", "akm", "akm_cutmix"],
    selection=["consistency", "dynamic"],
    drift=["supervised", "consistency", "prior"],
    camera=["consistency", "camera"],
)
