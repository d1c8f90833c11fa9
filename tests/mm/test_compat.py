"""What only a fresh interpreter can show: imports, stand-ins, refusals, a process group."""

import json
import os
import subprocess
import sys
import textwrap
from importlib import metadata

import pytest

INDEPENDENT = {  # shim of an optional package: needed exactly where that package is not installed
    "mmcv._ext": "mmcv",
    "mmdet.utils": "mmdet",
    "torchvision.transforms": "torchvision",
}


def python(code: str, **environment: str) -> str:
    """stdout of a fresh interpreter in which warnings are errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def test_mmpose_imports_without_leaving_a_stand_in():
    seen = json.loads(
        python(
            """
            import json, sys
            from sagecache.mm import compat
            from sagecache.mm.compat import activate

            reasons = activate()
            import mmpose.apis, mmpose.models
            from mmengine.utils.dl_utils import mmcv_full_available
            names = ("torchvision", "mmdet", "mmdet.utils", "mmcv._ext", "xtcocotools._mask")
            print(json.dumps(dict(
                reasons=reasons, again=activate(), full=mmcv_full_available(),
                fakes=[n for n in names if n in sys.modules and sys.modules[n].__spec__ is None],
                status=[[s.name, s.active, s.reason, s.until] for s in compat.shim_status()],
            )))
            """
        )
    )
    assert seen["fakes"] == []
    assert seen["full"] is installed("mmcv")
    assert seen["again"] == seen["reasons"]
    active = {name for name, active, _, _ in seen["status"] if active}
    assert active == set(seen["reasons"])
    for shim, package in INDEPENDENT.items():
        assert (shim in active) is not installed(package)
    assert all(reason and until for _, _, reason, until in seen["status"])


def test_errors_say_how_to_install_and_are_told_again():
    for setup, message in (
        ("sys.modules['mmpose'] = None", "mmpose is not installed"),
        ("sys.modules['mmpose.models'] = types.ModuleType('x')", "imported before its shims"),
        ("sys.modules['mmengine.runner'] = None", "mmpose can't be imported: ModuleNotFoundError"),
    ):
        output = python(
            f"""
            import sys, types
            from sagecache.errors import SagecacheError
            from sagecache.mm.compat import activate
            {setup}
            for _ in range(2):
                try:
                    activate()
                except SagecacheError as error:
                    print(error)
            """
        )
        first, second = output.splitlines()
        assert message in first and first == second
        if "before" not in message:
            assert "pip install --no-deps -r requirements.lock" in first
            assert "mmpose==1.3.2" in first


def test_a_runner_trains_saves_resumes_and_wraps_on_cpu(tmp_path):
    """Three steps in bfloat16 under a gloo group of one, then two more from the checkpoint."""
    script = """
        import json, sys, warnings
        import torch
        from sagecache.mm.compat import activate, ddp_wrapper_cfg, init_cpu_distributed

        activate()
        warnings.simplefilter("default")  # mmengine's own
        from mmengine.config import Config
        from mmengine.model import BaseModel
        from mmengine.runner import Runner

        class Line(BaseModel):
            def __init__(self):
                super().__init__()
                self.line = torch.nn.Linear(2, 1)

            def forward(self, x, y, mode="tensor"):
                return {"loss": (self.line(x).float() - y).square().mean()}

        def run(steps, resume):
            data = [(torch.tensor([i / 4.0, 1.0]), torch.tensor([i / 2.0])) for i in range(4)]
            torch.manual_seed(0)
            runner = Runner(
                Line(), sys.argv[1], train_dataloader=torch.utils.data.DataLoader(data, 4),
                train_cfg=dict(by_epoch=False, max_iters=steps), launcher="pytorch",
                optim_wrapper=dict(type="AmpOptimWrapper", dtype="bfloat16",
                                   optimizer=dict(type="SGD", lr=0.1, momentum=0.9)),
                default_hooks=dict(checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=1)),
                resume=resume, log_level="ERROR", cfg=Config(dict(model_wrapper_cfg=ddp_wrapper_cfg())),
                experiment_name=f"{steps}{resume}",
            )
            runner.train()
            return runner

        started = [init_cpu_distributed(), init_cpu_distributed()]
        kind = type(run(3, False).model).__name__
        resumed = run(5, True)
        parts = resumed.model.module.state_dict()
        straight = run(5, False).model.module.state_dict()
        same = all(torch.equal(parts[k], straight[k]) for k in parts)
        torch.distributed.destroy_process_group()
        print(json.dumps(dict(started=started, kind=kind, steps=resumed.iter, same=same)))
    """
    script = script.replace("sys.argv[1]", repr(str(tmp_path)))
    group = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    seen = json.loads(python(script, **group).splitlines()[-1])
    assert seen == dict(started=[True, False], kind="MMDistributedDataParallel", steps=5, same=True)


@pytest.mark.parametrize("gpu", [True, False])
def test_ddp_names_devices_only_where_there_are_some(monkeypatch, gpu):
    import torch

    from sagecache.mm.compat import ddp_wrapper_cfg, init_cpu_distributed

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert (ddp_wrapper_cfg() is None) is gpu
    if gpu:
        assert init_cpu_distributed() is False
