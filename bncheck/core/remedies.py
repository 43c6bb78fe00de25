"""Lines to paste that more than one rule recommends."""

EVERY_BATCH_NORM = """\
for m in model.modules():
    if isinstance(m, torch.nn.modules.batchnorm._BatchNorm):
"""

RECALIBRATE = "bncheck recalibrate {path} --model SPEC --data SPEC -o fixed.pt"
"""Estimates the moments from data; the weights stay."""
