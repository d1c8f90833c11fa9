"""Names and shapes of a checkpoint against those of a network: what is harmless, and what a gap usually is.

Works on {name: tensor}; reads no file. Nothing is guessed: what does not fit as a whole is refused, with the
likeliest reason first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

BACKBONE = "backbone."
LAST = "head.final_layer"  # of mmpose's heads: as many maps as keypoints
CLASSIFIER = ("head.fc.", "head.layers.", "fc.")  # of ImageNet training: no heatmap head has such layers
JOINTS = {
    14: "CrowdPose",
    16: "MPII",
    17: "COCO",
    21: "a hand's",
    26: "Halpe",
    68: "a face's",
    133: "COCO-WholeBody",
    308: "Sapiens' whole body",
}

State = Mapping[str, Tensor]


def backbone_alone(state: State, own: State) -> dict[str, Tensor] | None:
    """The backbone's tensors under the network's names, where a file holds a whole one and no pose head.

    Names may lack 'backbone.' (Sapiens' and timm's pretraining); an ImageNet classifier beside it is left
    out. None unless every tensor of the backbone is there in its shape and no other is.
    """
    wanted = {key: value for key, value in own.items() if key.startswith(BACKBONE)}
    rest = {key: value for key, value in state.items() if not key.startswith(CLASSIFIER)}
    if not any(key.startswith(BACKBONE) for key in rest):
        rest = {BACKBONE + key: value for key, value in rest.items()}
    if not wanted or rest.keys() != wanted.keys():
        return None
    return None if any(rest[key].shape != value.shape for key, value in wanted.items()) else rest


def usable_start(state: State, own: State) -> tuple[dict[str, Tensor], str] | None:
    """(a whole state, what it is in words) of a file that a training can start from although it lacks
    something: a backbone alone, or a head of other keypoints, which goes without its last layer. What is
    lacking is the network's own. None for any other file.
    """
    backbone = backbone_alone(state, own)
    if backbone is not None and backbone.keys() != own.keys():
        lacking = sorted({key.split(".")[0] for key in own.keys() - backbone.keys()})
        return {**own, **backbone}, f"is a backbone alone: {' and '.join(lacking)} starts from scratch"
    misshapen = [key for key in state if key in own and state[key].shape != own[key].shape]
    joints = _other_joints(state, own, misshapen)
    if joints is None or state.keys() != own.keys() or not all(key.startswith(LAST) for key in misshapen):
        return None
    kept = {key: value for key, value in state.items() if key not in misshapen}
    found, wanted = map(_named, joints)
    return {**own, **kept}, f"draws {found} keypoints, not {wanted}: the last layer starts from scratch"


def mismatch(state: State, own: State) -> tuple[str, str] | None:
    """(what does not fit, what to do about it); None where everything does."""
    misshapen = [key for key in state if key in own and state[key].shape != own[key].shape]
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}" for key in misshapen]
    groups = (("lacks", missing), ("has unknown", unexpected), ("has misshapen", shapes))
    problems = [f"{label} {len(keys)} keys ({_some(keys)})" for label, keys in groups if keys]
    if not problems:
        return None
    told, fix = _reason(state, own, missing, unexpected, misshapen)
    return f"the checkpoint {'; '.join(problems)}{f': {told}' if told else ''}", fix


def _reason(
    state: State, own: State, missing: list[str], unexpected: list[str], misshapen: list[str]
) -> tuple[str, str]:
    """The likeliest cause of a gap and its cure."""
    if joints := _other_joints(state, own, misshapen):
        found, wanted = joints
        return (
            f"its head draws {_named(found)} keypoints, this network's {_named(wanted)}",
            f"Take a checkpoint of {wanted} keypoints. As load_from of a recipe this one is taken too, where "
            "nothing else differs: its last layer starts from scratch.",
        )
    if backbone_alone(state, own) is not None:
        return (
            "it is a backbone alone, with no head that could draw keypoints",
            "It can only be what a training starts from: load_from of a recipe.",
        )
    if len(unexpected) == len(state):
        if not any(key.startswith(BACKBONE) for key in unexpected):
            told = f"none of its names begins with '{BACKBONE}'"
            return told, "Write the names as mmpose has them: backbone.…, neck.…, head.…."
        return "it has no name in common with model.py's network", "Take a checkpoint of that network."
    if misshapen and all("pos_embed" in key for key in misshapen):
        return (
            "its position embeddings are of another input size",
            "Set input_size and img_size in model.py to those that it was trained with.",
        )
    if any(key.startswith(BACKBONE) for key in [*misshapen, *missing, *unexpected]):
        told = "its backbone is another one, or of another width or depth"
        return told, "model.py must describe the network that was saved."
    if all(key.startswith("head.") for key in [*misshapen, *missing, *unexpected]):
        told = "its backbone fits and its head is built otherwise"
        return told, "Copy the head of the page that it was trained with into model.py."
    return "", "model.py must describe the network that was saved."


def _other_joints(state: State, own: State, misshapen: Iterable[str]) -> tuple[int, int] | None:
    """(in the file, in the network), where a last layer's maps are as many as keypoints of another set."""
    for key in misshapen:
        if key.startswith(LAST) and key.endswith(("weight", "bias")) and state[key].ndim:
            found, wanted = len(state[key]), len(own[key])
            if found != wanted:
                return found, wanted
    return None


def _named(count: int) -> str:
    return f"{count} ({JOINTS[count]})" if count in JOINTS else str(count)


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
