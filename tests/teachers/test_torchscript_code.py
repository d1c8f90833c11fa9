"""Programs in TorchScript archives: what touches files is refused before it runs, what calculates is run."""

import importlib
import zipfile
from pathlib import Path

import pytest
import torch
from scripted import Red, build
from torch import Tensor, nn

from sagecache.errors import SagecacheError
from sagecache.teachers.torchscript import load_torchscript

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Writes(nn.Module):
    def __init__(self, path: str):
        super().__init__()
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, self.path)
        return x[:, :1]


class WritesWhenLoaded(Red):
    """__setstate__ runs in torch.jit.load."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        torch.save(torch.zeros(1), self.path)


class Reads(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_file("/etc/hostname", False, 4, dtype=torch.uint8).float()


def test_a_program_that_touches_files_is_not_run(save, tmp_path, crops):
    for make in (Writes, WritesWhenLoaded):
        made = tmp_path / "made"
        path = save(make(str(made)))
        made.unlink(missing_ok=True)
        with pytest.raises(
            SagecacheError, match=r"model.pt2: its program writes files \(torch.save\), so it is"
        ):
            build(files=dict(depth=path))(crops)
        assert not made.exists()
    with pytest.raises(SagecacheError, match=r"its program reads files \(torch.from_file\).*its publisher"):
        load_torchscript(Path(save(Reads())), "cpu")


class Plain(nn.Module):
    """Numbered layers, whose names TorchScript looks up by getattr, and words that look like files."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1), nn.Sequential(nn.ReLU()))
        self.saved = 1.0

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            raise ValueError("can't save or load this")
        return self.layers(x) * self.saved


def rewritten(path: Path, line: str) -> Path:
    """The file of Red whose program has one more line."""
    out = path.with_suffix(".changed")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as target:
        for member in source.infolist():
            content = source.read(member)
            head, marker, tail = content.partition(b"x: Tensor) -> Tensor:\n")
            if marker and member.filename.endswith(".py"):
                content = head + marker + f"    {line}\n".encode() + tail
            if not member.filename.endswith(".debug_pkl"):
                target.writestr(member, content)
    return out


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('a = torch.save\n    a(x, "FILE")', "writes files"),
        ('a = torch\n    a.save(x, "FILE")', "writes files"),
        ('torch . save(x, "FILE")', "writes files"),
        ('torch.\\\n  save(x, "FILE")', "writes files"),
        ('a = (torch.  # more\n  save(x, "FILE"))', "writes files"),
        ('ops.aten.save(x, "FILE")', "writes files"),
        ('getattr(torch, "save")(x, "FILE")', "writes files"),
        ('getattr(ops.aten, "sa" "ve")(x, "FILE")', "looks up names"),
        ('getattr(ops.aten, """save""")(x, "FILE")', "holds text in a form"),
        ('a = """b"c"""\n    torch.save(x, "FILE")\n    d = """e"f"""', "holds text in a form"),
        ('getattr(getattr(ops, "aten"), "save")(x, "FILE")', "writes files"),
        ('a = torch\n    getattr(a, "sa" "ve")(x, "FILE")', "looks up names"),
        ('ops.image.write_file("FILE", x)', "asks for operators of 'image'"),
        ('getattr(ops, "image").write_file("FILE", x)', "looks up names|asks for operators"),
    ],
)
def test_spellings_of_one_thing_are_all_refused(save, tmp_path, line, told):
    made = tmp_path / "made"
    path = rewritten(Path(save(Red())), line.replace("FILE", str(made)))
    with pytest.raises(SagecacheError, match=f"model.changed: its program {told}.*so it is not run"):
        load_torchscript(path, "cpu")
    if "image" not in line:  # the spelling works: torch alone would have written
        torch.jit.load(path)(torch.zeros(1, 3, 2, 2))
        assert made.exists()


def test_a_long_comment_is_read_in_no_time(save):
    path = rewritten(Path(save(Red())), "a = (x." + "#" * 5000 + "\n  shape)")
    assert load_torchscript(path, "cpu")(torch.ones(1, 3, 2, 2)).shape == (1, 1, 2, 2)


class Watched(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autograd.profiler.record_function("first part"):
            return x[:, :1]


def test_words_that_only_look_alike_are_no_reason(save, tmp_path, monkeypatch):
    """A class in a module called save, the word in a string, a profiler's mark."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "save.py").write_text(
        "from torch import nn\n\nclass Net(nn.Module):\n    def forward(self, x):\n        return x[:, :1]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    inner = importlib.import_module("own.save").Net()
    for module in (
        nn.Sequential(inner, Red()),
        Watched(),
        torch.jit.trace(Watched(), torch.ones(1, 3, 2, 2)),
    ):
        assert load_torchscript(Path(save(module)), "cpu")(torch.ones(1, 3, 4, 4)).shape == (1, 1, 4, 4)


def test_code_is_found_wherever_it_lies(save, tmp_path):
    """Members called 'extra' are notes, unless they are code."""
    out = tmp_path / "extra.pt2"
    with zipfile.ZipFile(save(Red())) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as target:
        for member in source.infolist():
            target.writestr(member, source.read(member))
        target.writestr("model/code/__torch__/extra/m.py", 'def f(x: Tensor):\n  torch.save(x, "F")\n')
    with pytest.raises(SagecacheError, match="writes files"):
        load_torchscript(out, "cpu")


def test_programs_that_calculate_are_run(save):
    module = load_torchscript(Path(save(Plain())), "cpu")
    with pytest.raises(torch.jit.Error, match="can't save or load this"):
        module(torch.zeros(1, 2, 4, 4))
    assert module(torch.zeros(1, 3, 4, 4)).shape == (1, 1, 4, 4)
