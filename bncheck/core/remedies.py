"""Lines to paste that more than one rule recommends."""

import json
import shlex

from bncheck.core.run_options import RunOptions

EVERY_BATCH_NORM = """\
for m in model.modules():
    if isinstance(m, torch.nn.modules.batchnorm._BatchNorm):
"""

RECALIBRATE = "bncheck recalibrate {path} --model SPEC --data SPEC -o fixed.pt"
"""Estimates the moments from data; the weights stay."""


def about_file(remedy: str, path: str) -> str:
    """The lines with the file's path for ``{path}``: as a literal inside Python, else quoted for a shell."""
    literal = json.dumps(path, ensure_ascii=False)
    return remedy.replace('"{path}"', literal).replace("{path}", shlex.quote(path))


def with_specs(remedy: str, run: RunOptions | None) -> str:
    """The lines with the SPECs that are known, so that they can be pasted as they stand."""
    if run is None or run.data is None:
        return remedy
    data = f"--data {shlex.quote(run.data)}"
    model = "" if run.model is None else f"--model {shlex.quote(run.model)} "
    remedy = remedy.replace("--model SPEC --data SPEC", f"{model}{data}")
    return remedy.replace("--model SPEC ", model)
