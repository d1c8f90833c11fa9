"""What the code of a TorchScript archive asks for beside numbers, read before any of it runs."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from sagecache.errors import SagecacheError

# all that torch has for files
FILES = {"save": "writes files (torch.save)", "from_file": "reads files (torch.from_file)"}
LIBRARIES = {"aten", "prim", "prims", "quantized", "_quantized", "prepacked", "sparse", "mkldnn"}
LIBRARIES |= {"mkldnn_prepacked", "onednn", "profiler"}
LIBRARIES |= {"torchvision"}  # boxes; its readers and writers of pictures are called 'image'

_TOKEN = re.compile(r'"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'|#[^\n]*|\w+|[^\s\w\\]', re.DOTALL)


def refuse_files(path: Path) -> None:
    """Raise SagecacheError for a TorchScript archive whose code touches files or asks for foreign operators.

    Loading runs some of the code already (__setstate__), so it is read before. This is no sandbox: a program
    can still take any time and memory. What is no archive is left to torch.jit.load.
    """
    for code in _code_of(path):
        told = _more_than_numbers(code)
        if told is not None:
            raise SagecacheError(
                f"its program {told}, so it is not run", file=path, fix="Take an export from its publisher."
            )


def _more_than_numbers(code: str) -> str | None:
    """What a program does beside calculating, as its words tell; None where nothing.

    A function may be called, given another name, or fetched by getattr: naming it is enough. What stands in
    strings and comments is not named, and module paths (``__torch__.save.Net``) go on after the word.
    """
    words = [word for word in _TOKEN.findall(code) if not word.startswith("#")]
    if {"'", '"'} & set(words) or '"""' in code or "'''" in code:  # where a string ends could be misread
        return "holds text in a form that torch does not write"
    for place, (before, word, after) in enumerate(zip(["", *words], words, [*words[1:], ""], strict=False)):
        if before == "." and word in FILES and after != ".":
            return FILES[word]
        if word == "getattr" and (told := _fetched(words, place)):
            return told
        if word == "ops" and before != ".":
            library = "".join(words[place + 2 : place + 3]) if after == "." else "unknown libraries"
            if library not in LIBRARIES:
                return f"asks for operators of '{library}', which nobody here knows"
    return None


def _fetched(words: Sequence[str], place: int) -> str | None:
    """What getattr(something, "name") at a place gets hold of beside attributes; None where nothing."""
    depth, inside = 0, []
    for word in words[place + 1 :]:
        depth += (word in "([{") - (word in ")]}")
        if depth == 0:
            break
        inside.append(word)
    inside = inside[1:-1] if inside[-1:] == [","] else inside[1:]
    name = inside[-1] if len(inside) > 2 else ""
    if name[1:-1] in FILES:
        return FILES[name[1:-1]]
    plain = name[:1] in ("'", '"') and "\\" not in name and inside[-2] == ","
    plain = plain and not {"torch", "ops"} & set(inside)
    return None if plain else "looks up names that it hides (getattr)"


def _code_of(path: Path) -> Iterator[str]:
    """Text of every .py of an archive; of an old one, whose model.json says where code is, of all members."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            old = any(member.filename.endswith("/model.json") for member in members)  # it says where code is
            for member in members:
                if old or member.filename.endswith(".py"):
                    yield archive.read(member).decode("utf-8", "replace")
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
        raise SagecacheError(
            f"not a readable TorchScript file ({error})", file=path, fix="Download it again."
        ) from error
