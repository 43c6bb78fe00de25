"""Lines to paste that more than one rule recommends."""

EVERY_BATCH_NORM = """\
for m in model.modules():
    if isinstance(m, torch.nn.modules.batchnorm._BatchNorm):
"""

LEARN_MOMENTS = """\
with torch.no_grad():
    for x, _ in loader:
        model(x)
model.eval()"""
"""Runs the data through a network in training mode: its moments are learned, its weights stay."""
