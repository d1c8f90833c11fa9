"""``sagecache teachers check``: identify a weight file, size it, run it once and look at what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagecache.cli.teachers_look import crop_memory
from sagecache.errors import SagecacheError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sagecache.models.identify import Identity
    from sagecache.project import Project

SHOWN = 6  # names of a gap
PAGE = "not run here: model.py describes its network, and eval and train compare the two"


def check(
    project: Project,
    path: Path,
    size: str | None = None,
    role: str | None = None,
    image: str | None = None,
    split: str | None = None,
    output: str | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """What `findings` tells, as JSON. Raises SagecacheError for a file that is cut, foreign or holds code.

    role: 'depth', 'normal', 'mask' or 'detector': what a TorchScript file is; of others it is compared.
    usable: every name that there is to compare matches, and it ran, with finite numbers.
    """
    from sagecache.cli.students_look import look_at_student
    from sagecache.cli.teachers_look import look_at_boxes, look_at_maps, person_of
    from sagecache.models.identify import identify_with_state
    from sagecache.teachers.base import usable_device
    from sagecache.teachers.registry import build_detector, build_teacher

    usable_device(device)
    width_height = _parsed(size)
    found, state = identify_with_state(path)
    sapiens = found.role == "teacher" and found.settings["type"] == "sapiens"
    _expect(found, role, path)
    networks: dict[str, nn.Module] = {}
    says: dict[str, str] = {}
    if found.role == "program":
        found, networks, says = _program(found, path, role, width_height, device)
    elif found.role in ("teacher", "detector") and found.settings["type"] == "huggingface":
        found, networks = _folder(found, path, device)
        found = replace(found, settings=found.settings | _natural_size(found, path))
    summary = asdict(found) | dict(
        file=str(path), memory=_memory(found, state if sapiens else {}, width_height)
    )
    ran, picture = False, Path(output or f"{path.name}.png")
    if found.role in ("student", "start") and found.settings and not found.gaps:
        settings = _sized(found, width_height)
        person = person_of(project, image, split)
        says, ran = look_at_student(settings, path, person, picture, device)
        says |= dict(picture=str(picture))
    elif found.role in ("teacher", "detector") and not found.gaps:
        person = person_of(project, image, split)
        settings = _sized(found, width_height) | dict(device=device)
        if found.role == "teacher":
            teacher = build_teacher(settings)
            if sapiens:
                networks = {found.output: teacher.network(found.output, path, state)}
            else:
                summary["memory"] += _watched(networks, teacher.settings.input_size)
            teacher.adopt(networks)
            seen, ran = look_at_maps(teacher, person, picture, teacher.settings.normal_axes)
        else:
            seen, summary["boxes"] = look_at_boxes(build_detector(settings), person, picture)
            ran = True
        says |= seen | dict(picture=str(picture))
    if says:
        summary["memory"] += [says.pop("memory")] if "memory" in says else []
        summary["says"] = says
    elif found.role in ("student", "training") and not found.gaps:
        summary["says"] = dict(use=PAGE)
    return summary | dict(usable=ran, settings=_as_named(found.settings, project, path))


def _expect(found: Identity, role: str | None, path: Path) -> None:
    """Raise SagecacheError where --as says something else than the file itself."""
    own = found.output if found.role == "teacher" else found.role
    if role is not None and found.role != "program" and role != own:
        raise SagecacheError(
            f"is {found.what}, not a network for {role}", file=path, fix="Leave out --as: this file says it."
        )


def _program(
    found: Identity, path: Path, role: str | None, size: tuple[int, int] | None, device: str
) -> tuple[Identity, dict[str, nn.Module], dict[str, str]]:
    """A TorchScript file, loaded: as what it is to run, its network, and what was told without a person.

    The role stays 'program' where neither --as nor the number of channels says what it is.
    """
    from sagecache.teachers.torchscript import (
        TorchScriptSettings,
        load_torchscript,
        outputs_by_channels,
        returned_shapes,
    )

    module = load_torchscript(path, device)
    parameters = sum(one.numel() for one in module.parameters())
    found = replace(found, tensors=len(module.state_dict()), parameters=parameters)
    if role == "detector":
        settings = dict(type="torchscript", path=str(path))
        return replace(found, what=f"{found.what}, a detector", role=role, settings=settings), {}, {}
    says, outputs = {}, (role,) if role else ()
    if role is None:
        shapes = returned_shapes(module, path, size or TorchScriptSettings.input_size)
        outputs, says = outputs_by_channels(shapes), dict(gives=" and ".join(map(str, shapes)))
    if not outputs:
        says["use"] = "say what it is: --as depth, normal, mask or detector"
        return found, {}, says
    if len(outputs) == 1:
        settings, networks = dict(type="torchscript", files={outputs[0]: str(path)}), {outputs[0]: module}
    else:
        settings, networks = dict(type="torchscript", path=str(path), outputs=outputs), {"all": module}
    what = f"{found.what}, {' and '.join(outputs)}{'' if role else ' by its channels'}"
    return replace(found, what=what, role="teacher", output=outputs[0], settings=settings), networks, says


def _folder(found: Identity, path: Path, device: str) -> tuple[Identity, dict[str, nn.Module]]:
    """A Hugging Face folder, loaded: its names compared by transformers, and a teacher's network."""
    from sagecache.teachers.huggingface import Reader, load_with_report, reader_of

    network, report = load_with_report(path)
    gaps = tuple(f"{what.removesuffix('_keys')} {name}" for what, names in report.items() for name in names)
    if found.role == "detector":
        return replace(found, gaps=gaps), {}
    reader = Reader(network, reader_of(path, found.output)).to(device)
    return replace(found, gaps=gaps), {found.output: reader}


def _sized(found: Identity, size: tuple[int, int] | None) -> dict[str, Any]:
    """Settings for an input size; detectors of Hugging Face have the one of their folder."""
    settings = dict(found.settings)
    if found.role == "teacher" and found.output == "mask":
        settings["mask"] = "network"
    if found.role in ("student", "start"):
        page = dict(settings["backbone"])
        return settings | dict(backbone=page | (dict(img_size=(size[1], size[0])) if size else {}))
    if size is None or (found.role == "detector" and settings["type"] == "huggingface"):
        return settings
    settings["input_size"] = size
    if found.role == "teacher":
        settings["map_size"] = size
    return settings


def _natural_size(found: Identity, path: Path) -> dict[str, Any]:
    """Sizes for data.py of a folder's teacher that can't work at the default ones."""
    from sagecache.models.weight_files import read_config

    config = read_config(path)
    kind = str(config.get("model_type")) if found.role == "teacher" else ""
    if kind == "dpt" and isinstance(config.get("image_size"), int):
        return dict(input_size=(config["image_size"],) * 2, map_size=(192, 192))
    sizes = {"glpn": (480, 640), "zoedepth": (384, 512), "sapiens2": (768, 1024)}
    return dict(input_size=sizes[kind]) if kind in sizes else {}


def _as_named(settings: Mapping[str, Any] | None, project: Project, path: Path) -> dict[str, Any] | None:
    """The settings as data.py names the file: in the demo paths start here, in a project at its folder."""
    if settings is None:
        return None
    inside = path.resolve().is_relative_to(project.folder)
    named = path.resolve().relative_to(project.folder) if inside else path.resolve()
    places = {str(path): str(path if project.embedded else named)}

    def renamed(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: renamed(one) for key, one in value.items()}
        return places.get(value, value) if isinstance(value, str) else value

    return renamed(settings)


def _watched(networks: Mapping[str, nn.Module], size: tuple[int, int]) -> list[str]:
    """What a crop of size (width, height) takes on its way through networks, from running them."""
    import torch

    from sagecache.models.footprint import run_watched

    told = []
    for network in networks.values():
        weight = next((one for one in network.parameters() if one.is_floating_point()), torch.zeros(()))
        crop = torch.zeros(1, 3, size[1], size[0], dtype=weight.dtype, device=weight.device)
        try:
            told.append(crop_memory(size, run_watched(network, crop)[1]))
        except (RuntimeError, ValueError, torch.jit.Error):  # told where the network is looked at
            continue
    return told


def findings(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, told) in the order in which one asks."""
    rows = [("is", summary["what"])]
    if summary["gaps"] is not None:
        gaps = summary["gaps"]
        told = "; ".join(gaps[:SHOWN]) + (f"; {len(gaps) - SHOWN} more" if len(gaps) > SHOWN else "")
        rows.append(("names", told or f"all {summary['tensors']} match"))
    rows += [("when loaded", one) for one in summary["done"]]
    if summary["parameters"]:
        rows.append(
            ("parameters", f"{summary['parameters'] / 1e6:,.1f} million in {summary['tensors']} tensors")
        )
    rows += [("memory", told) for told in summary["memory"]]
    if summary["licence"]:
        rows.append(("licence", summary["licence"]))
    if summary["settings"]:
        where = {"teacher": "teacher", "detector": "detector"}.get(summary["role"], "model.py:")
        rows.append((where, ", ".join(f"{key}={value!r}" for key, value in summary["settings"].items())))
    rows += [(key, str(value)) for key, value in summary.get("says", {}).items()]
    if summary["role"] is None:
        rows.append(("use", "none: sagecache knows no network of these names"))
    return rows


def _parsed(size: str | None) -> tuple[int, int] | None:
    if size is None:
        return None
    width, _, height = size.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise SagecacheError(f"--size is '{size}'", fix="Give width x height, for example 768x1024.")
    return int(width), int(height)


def _memory(found: Identity, state: Mapping[str, Tensor], size: tuple[int, int] | None) -> list[str]:
    """What weights take; and of a Sapiens network, whose tensors are given, a crop on its way through it."""
    if not found.parameters:
        return []
    gib = found.parameters / 2**30
    told = [f"weights {4 * gib:.2f} GiB in float32, {2 * gib:.2f} in bfloat16"]
    if state:
        from sagecache.models.footprint import footprint
        from sagecache.models.identify import network_of

        build, (width, height) = network_of(state, size)
        widest = footprint(build, (1, 3, height, width), train=False).widest
        told.append(crop_memory((width, height), widest))
    return told
