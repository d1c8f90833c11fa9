"""``sagecache cache``: what is stored, is it sound, mend it, clean up, how large; export and import."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sagecache.cli.context import json_option, project_option
from sagecache.cli.exchange import export_command, import_command
from sagecache.cli.output import emit_json, emit_table, note, progress
from sagecache.errors import SagecacheError

if TYPE_CHECKING:
    from sagecache.project import Project
    from sagecache.store import Problem
    from sagecache.store.inventory import StoreFacts

splits_option = click.option(
    "--split", "splits", multiple=True, help="Only this split (can be repeated). Default: all."
)


@click.group("cache", short_help="The stores: list, verify, repair, clean up, export, import.")
def cache_command() -> None:
    """A project's stores: what there is, is it sound and up to date; in and out of other formats."""


cache_command.add_command(export_command)
cache_command.add_command(import_command)


# ---------------------------------------------------------------------------------------------------- ls
@cache_command.command("ls")
@project_option
@splits_option
@json_option
def ls_command(project: Project, splits: tuple[str, ...], as_json: bool) -> None:
    """All stores, and whether data.py still fits them: content, size, trials and what --force set aside."""
    rows = list_stores(project, _names(project, splits))
    if as_json:
        emit_json(rows)
        return
    columns = ("store", "instances", "done", "failed", "missing", "fields", "map", "MB", "made from", "state")
    emit_table("target stores", columns, [_ls_row(row) for row in rows])
    if not rows:
        note("none yet; make one: " + project.command("sagecache precompute geo"))


def list_stores(project: Project, splits: Sequence[str]) -> list[dict]:
    """A dict a store, of trials and what --force set aside too. One that can't be read has a 'problem'."""
    from sagecache.cli.jobs import is_imported
    from sagecache.precompute.leftovers import kind_of
    from sagecache.store.inventory import find_stores

    rows, judge = [], functools.partial(_judge, project, _teacher_once(project))
    for split in splits:
        current = project.geometry_store(split)
        for facts in find_stores(current.parent):
            kind = kind_of(facts.root.name, current.name)
            grown, stale = (0, "") if facts.problem else judge(split, kind, facts)
            rows.append(
                dict(
                    split=split,
                    name=facts.root.name,
                    path=str(facts.root),
                    kind=kind,
                    instances=facts.instances,
                    done=facts.done,
                    failed=facts.failed,
                    missing=facts.missing + grown,
                    grown=grown,
                    fields=list(facts.fields),
                    map_size=list(facts.size),
                    bytes=facts.total_bytes,
                    fingerprint=facts.fingerprint_sha256,
                    complete=facts.complete and not grown,
                    imported=bool(facts.fingerprint) and is_imported(facts.fingerprint),
                    stale=stale,
                    problem=facts.problem,
                )
            )
    return rows


def _teacher_once(project: Project) -> Callable:
    """Build the teacher when it is first asked for."""
    from sagecache.teachers.registry import build_teacher

    return functools.cache(lambda: build_teacher(project.data.teacher))


def _judge(project: Project, teacher: Callable, split: str, kind: str, facts: StoreFacts) -> tuple[int, str]:
    """How many instances of the split a store in use lacks; '' for what fits data.py and the split, else what
    differs, old -> new, or why nobody can tell."""
    from sagecache.cli.jobs import differing_parts, is_imported, stale_boxes
    from sagecache.precompute.plan import outgrown

    grown, told = 0, []
    try:
        if kind == "current":
            told.append(stale_boxes(project, split))
            grown, changed = outgrown(facts.root, project.instances(split))
            told.append(changed)
        known = None if is_imported(facts.fingerprint) else teacher()
        told.append(differing_parts(project, facts.fingerprint, known))
    except SagecacheError as error:
        told.append(f"can't tell: {error.message}")
    return grown, "; ".join(filter(None, told))


def _ls_row(row: dict) -> tuple:
    state = ["complete" if row["complete"] else "not complete"]
    if row["grown"]:
        state = [f"grown: {row['grown']} to be made"]
    state += [row["kind"]] * (row["kind"] != "current") + ["imported"] * row["imported"]
    state += [f"stale: {row['stale']}"] * bool(row["stale"])
    shown = (f"{row['split']}/{row['name']}", row["instances"], row["done"], row["failed"], row["missing"])
    if row["problem"]:
        return (shown[0], *"-" * 6, _megabytes(row["bytes"]), "-", row["problem"])
    size = "x".join(map(str, row["map_size"]))
    made_from = row["fingerprint"][:8]
    megabytes = _megabytes(row["bytes"])
    return (*shown, " ".join(row["fields"]), size, megabytes, made_from, ", ".join(state))


# ------------------------------------------------------------------------------------------------ verify
@cache_command.command("verify")
@click.argument("paths", nargs=-1)
@project_option
@splits_option
@json_option
@click.pass_context
def verify_command(
    context, paths: tuple[str, ...], project: Project, splits: tuple[str, ...], as_json: bool
) -> None:
    """Test every checksum of the stores in use, or of those at PATHS. Exit 1 on damage."""
    stores = _stores_in_use(project, splits) if splits or not paths else {}
    found = {str(root): _verify(root, name) for name, root in {**stores, **_at(paths)}.items()}
    again = {str(root): _anew(root, split) for split, root in stores.items()}
    count = sum(map(len, found.values()))
    if as_json:
        emit_json(
            dict(
                problems=count,
                stores=[dict(path=path, problems=_as_dicts(some)) for path, some in found.items()],
            )
        )
    else:
        _show_problems(project, found, again)
    context.exit(1 if count else 0)


def _at(paths: Sequence[str]) -> dict[str, Path]:
    from sagecache.store.files import open_root

    return {path: open_root(path) for path in paths}


def _verify(root: Path, name: str) -> list[Problem]:
    """All that is wrong with a store. Raises SagecacheError where there is none."""
    from sagecache.store import Problem, layout
    from sagecache.store.verification import verify

    if not ((root / layout.MANIFEST).exists() or (root / layout.GROUP).exists()):
        fix = None if name == str(root) else f"Make it: sagecache precompute geo --split {name}"
        raise SagecacheError("there is no target store", file=root, fix=fix)
    try:
        with progress(f"verify {name}") as report:
            problems = verify(root, report)
    except SagecacheError as error:  # what makes it a store is damaged
        return [Problem(str(error.file or root).removeprefix(f"{root}/"), error.message)]
    if not problems and not (root / layout.COMPLETE).exists():
        return [Problem(layout.COMPLETE, "missing: the store was not finished")]
    return problems


def _as_dicts(problems: Sequence[Problem]) -> list[dict]:
    return [
        dict(file=one.file, message=one.message, shard=one.shard, instances=len(one.ids), ids=one.ids)
        for one in problems
    ]


def _anew(root: Path, split: str) -> str:
    """The command that makes a split's store anew; that of an import as far as a store can know it."""
    import json

    from sagecache.store import layout

    try:
        about = json.loads((root / layout.GROUP / "zarr.json").read_bytes())["attributes"]["sagecache"]
        imported = "cache import" in about["command"]
    except (OSError, ValueError, KeyError, TypeError):  # damaged too
        imported = False
    if imported:
        return f"sagecache cache import --split {split} --depth … --normal … --force"
    return f"sagecache precompute geo --split {split} --force"


def _show_problems(project: Project, found: dict[str, list[Problem]], again: dict[str, str]) -> None:
    """again: of stores in use, what makes them anew where nothing can be mended."""
    from sagecache.store import layout
    from sagecache.store.inventory import first_ids

    emit_table("verify", ("store", "problems"), [(path, len(some) or "none") for path, some in found.items()])
    rows = [
        (path, one.file, "-" if one.shard is None else one.shard, one.message, first_ids(one.ids))
        for path, some in found.items()
        for one in some
    ]
    if rows:
        columns = ("store", "file", "shard", "what", "takes away (image/instance)")
        emit_table("problems", columns, rows)
    lost = {path for path, some in found.items() if any(one.file == layout.MANIFEST for one in some)}
    if any(found[path] for path in again.keys() - lost):
        note("mend them: " + project.command("sagecache cache repair"))
    for path in again.keys() & lost:
        note(f"{path}: without its manifest it can't be mended; make it anew: {project.command(again[path])}")


# ------------------------------------------------------------------------------------------------ repair
@cache_command.command("repair")
@project_option
@splits_option
@json_option
@click.pass_context
def repair_command(context, project: Project, splits: tuple[str, ...], as_json: bool) -> None:
    """Make anew what is damaged or missing. Of the stores in use; the rest of them is not touched."""
    stores = _stores_in_use(project, splits)
    rows = [_repair(project, split, root) for split, root in stores.items()]
    if as_json:
        emit_json(rows)
    else:
        shown = [
            (row["path"], len(row["before"]) or "none", row["computed"], len(row["after"]) or "none")
            for row in rows
        ]
        emit_table("repair", ("store", "problems", "instances made anew", "problems left"), shown)
    context.exit(1 if any(row["after"] for row in rows) else 0)


def _repair(project: Project, split: str, root: Path) -> dict:
    from sagecache.cli.actions import geo
    from sagecache.cli.jobs import is_imported
    from sagecache.precompute.jobs import RunOptions
    from sagecache.store import layout

    before, computed = _verify(root, split), 0
    after = before
    if before:
        try:
            manifest = layout.read_manifest(root)
        except SagecacheError as error:  # nothing else says what the store was made from
            fix = f"Make the store anew, this one is kept beside it: {_anew(root, split)}"
            raise SagecacheError(error.message, file=error.file, fix=fix) from error
        if manifest is not None and is_imported(manifest["identity"]["fingerprint"]):
            raise SagecacheError(
                "its targets were imported: only from the same folders can they be made anew",
                file=root,
                fix=f"Run 'sagecache cache import --split {split} --depth … --normal …' as the first time.",
            )
        computed = geo(project, split, RunOptions(verify=True)).computed
        after = _verify(root, split)
    row = dict(split=split, path=str(root), before=_as_dicts(before), computed=computed)
    return row | dict(after=_as_dicts(after))


# ---------------------------------------------------------------------------------------------------- gc
@cache_command.command("gc")
@project_option
@click.option("--yes", is_flag=True, help="Delete what is listed. Without it nothing is touched.")
@json_option
@click.pass_context
def gc_command(context, project: Project, yes: bool, as_json: bool) -> None:
    """What may be deleted, and with --yes delete it.

    Trials, what --force set aside, what killed runs left half-written, kept shards of stores in buckets.
    """
    from sagecache.precompute.leftovers import find_leftovers, remove

    found, rows = find_leftovers(_places(project)), []
    for one in found:
        held = one.held
        if yes and not held:
            try:
                remove(one)
            except SagecacheError as error:
                held = error.message
        rows.append(
            dict(
                path=str(one.path),
                bytes=one.bytes,
                reason=one.reason,
                held=held,
                deleted=yes and not held,
            )
        )
    free = sum(row["bytes"] for row in rows if not row["held"])
    if as_json:
        emit_json(dict(deleted=yes, bytes=free, leftovers=rows))
    else:
        shown = [(row["path"], _megabytes(row["bytes"]), row["reason"], row["held"] or "-") for row in rows]
        if not rows:
            click.echo("nothing to delete")
        else:
            emit_table("deleted" if yes else "may be deleted", ("path", "MB", "why", "stays because"), shown)
            click.echo(f"{_megabytes(free)} MB" + ("" if yes or not free else "; delete them with --yes"))
    context.exit(1 if yes and any(row["held"] for row in rows) else 0)


def _places(project: Project):
    from sagecache.precompute.leftovers import Places
    from sagecache.store import layout
    from sagecache.store.files import is_remote
    from sagecache.store.fingerprint import sha256

    names = list(project.data.splits)
    stores = {name: project.geometry_store(name) for name in names}
    complete = [store / layout.COMPLETE for store in stores.values() if is_remote(store)]
    return Places(
        cache_root=project.cache_root,
        stores=stores,
        shards=project.shard_folder,
        states=frozenset(sha256(path.read_bytes())[:16] for path in complete if path.exists()),
        needed=frozenset(project.detections(name) for name in names),
    )


# ---------------------------------------------------------------------------------------------------- du
@cache_command.command("du")
@project_option
@splits_option
@json_option
def du_command(project: Project, splits: tuple[str, ...], as_json: bool) -> None:
    """Where the bytes are. By split, store, array and instance; detections, statistics, kept shards."""
    summary = disk_usage(project, _names(project, splits))
    if as_json:
        emit_json(summary)
        return
    arrays = list(dict.fromkeys(name for row in summary["stores"] for name in row["arrays"]))
    rows = [
        (
            f"{row['split']}/{row['name']}",
            *(_megabytes(row["arrays"].get(name, 0)) for name in arrays),
            _megabytes(row["bytes"]),
            row["instances"],
            row["bytes_an_instance"],
        )
        for row in summary["stores"]
    ]
    emit_table("MB of target stores", ("store", *arrays, "all", "instances", "bytes an instance"), rows)
    rows = [(f"stores of {name}", _megabytes(size)) for name, size in summary["splits"].items() if size]
    rows += [
        (f"detections of {name}", _megabytes(size)) for name, size in summary["detections"].items() if size
    ]
    rows += [(name.replace("_", " "), _megabytes(summary[name])) for name in _ALONE]
    emit_table("", ("", "MB"), rows)


_ALONE = ("statistics", "kept_shards", "total")


def disk_usage(project: Project, splits: Sequence[str]) -> dict:
    from sagecache.precompute.leftovers import folder_bytes
    from sagecache.store.inventory import RECORDS, find_stores

    stores = [(split, one) for split in splits for one in find_stores(project.geometry_store(split).parent)]
    plan = ("status", "depth_range", "ids", "bbox", "image_sha256", "target_from_image", RECORDS)
    rows = []
    for split, one in stores:
        arrays = {name: size for name, size in sorted(one.bytes.items()) if name not in plan}
        arrays["plan and records"] = one.total_bytes - sum(arrays.values())
        each = round(one.total_bytes / one.instances) if one.instances else 0
        rows.append(
            dict(
                split=split,
                name=one.root.name,
                path=str(one.root),
                bytes=one.total_bytes,
                instances=one.instances,
                bytes_an_instance=each,
                arrays=arrays,
            )
        )
    by_split = {split: sum(row["bytes"] for row in rows if row["split"] == split) for split in splits}
    detections = {}
    for split in splits:
        found = sorted(project.split_folder(split).glob("detections*"))
        detections[split] = sum(map(folder_bytes, found))
    summary = dict(
        stores=rows,
        splits=by_split,
        detections=detections,
        statistics=sum(map(folder_bytes, project.stats_file.parent.glob("skeleton_stats.json*"))),
        kept_shards=folder_bytes(project.shard_folder),
    )
    total = sum(by_split.values()) + sum(detections.values()) + summary["statistics"] + summary["kept_shards"]
    return summary | dict(total=total)


# ------------------------------------------------------------------------------------------------ common
def _megabytes(size: int) -> str:
    return f"{size / 1e6:.3f}" if size < 1e6 else f"{size / 1e6:.1f}"


def _names(project: Project, splits: Sequence[str]) -> list[str]:
    for name in splits:
        project.split(name)  # raises for an unknown one
    return list(splits or project.data.splits)


def _stores_in_use(project: Project, splits: Sequence[str]) -> dict[str, Path]:
    """Split -> the store that training reads. Raises SagecacheError for a named split without any."""
    from sagecache.store import layout

    stores = {name: project.geometry_store(name) for name in _names(project, splits)}
    there = {
        name: root
        for name, root in stores.items()
        if name in splits or (root / layout.MANIFEST).exists() or (root / layout.GROUP).exists()
    }
    if not there:
        raise SagecacheError(
            "there are no target stores", file=project.cache_root, fix="Run: sagecache precompute geo"
        )
    return there
