"""Configs that are good and configs that are not, which the reader and the shipped schema must tell apart alike."""

from __future__ import annotations

from bncheck.catalogue import RULES
from bncheck.report.formats import ReportFormat

CODES = tuple(rule.id for rule in RULES)
FORMATS = tuple(ReportFormat)

GOOD = {
    "nothing": "{}",
    "models": "models: [{paths: 'a/*.pt'}, {paths: [b.pt, c/], stage: training}]",
    "no models yet": "models:",
    "no suppressions yet": "suppress:",
    "everything said of all models": """
stage: release
select: [BN2, BN405, ALL]
ignore: BN5
severity: {BN405: error, BN303: notice}
limits: {gain-warning: 10, residue-warning: 0.02, pickle-opcodes: 1000}
allow-call: [builtins.getattr]
model: nets.py:build
model-arg: {width: 64, deep: {er: [1, null]}}
data: inputs.npy
forward: package.module:predict
train-data: nets.py:loader
train-step: nets.py:step
samples: 2
batch-size: 1
input-key: image
label-key: label
device: cuda:0
precision: bf16
trust-pickle: false
group: ema
""",
    "everything said of a run": """
extends: []
fail-on: never
fail-if-not-checked: [BN2, BN405]
allow-nothing: true
baseline: known.yaml
format: json
output: {sarif: a.sarif, junit: [b.xml, c.xml]}
jobs: 4
""",
    "strict": "fail-if-not-checked: true",
    "strict about one": "fail-if-not-checked: BN405",
    "suppression": "suppress: [{rule: BN405, reason: a reason}]",
    "suppression with all": "suppress: [{rule: BN405, reason: r, path: 'a/**', layer: 'head.*', until: 2030-12-31}]",
    "day in quotes": "suppress: [{rule: BN405, reason: r, until: '2030-12-31'}]",
    "no rules": "select: []",
}
BAD = {
    "unknown key": ("modls: []", ":1: unknown key 'modls'; did you mean 'models'?"),
    "key in Python's spelling": ("fail_on: error", ":1: unknown key 'fail_on'; did you mean 'fail-on'?"),
    "unknown key, nothing near": ("zzz: 1", ":1: unknown key 'zzz'; there are allow-call,"),
    "unknown key of a model": (
        "models:\n  - paths: a\n    stag: release",
        ":3: unknown key of a model 'stag'; did you mean 'stage'?",
    ),
    "key of a run in a model": ("models: [{paths: a, jobs: 3}]", ":1: unknown key of a model 'jobs'"),
    "unknown key of a suppression": (
        "suppress:\n  - rule: BN405\n    reason: r\n    expires: 2030-01-01",
        ":4: unknown key of a suppression 'expires'; there are layer, path, reason, rule, until",
    ),
    "unknown rule": ("suppress: [{rule: BN4055, reason: r}]", ":1: 'BN4055' is no rule; did you mean 'BN405'?"),
    "prefix of a rule in a suppression": ("suppress: [{rule: BN4, reason: r}]", "is no rule"),
    "unknown severity's rule": ("severity:\n  BN999: error", ":2: unknown rule 'BN999'; did you mean"),
    "unknown severity": ("severity: {BN405: fatal}", ":1: 'fatal' is no choice"),
    "unknown limit": ("limits:\n  gain-warnin: 3", ":2: unknown limit 'gain-warnin'; did you mean 'gain-warning'?"),
    "unknown format": ("format: jsn", ":1: 'jsn' is no format; did you mean 'json'?"),
    "unknown output": ("output: {serif: a}", ":1: unknown format 'serif'; did you mean 'sarif'?"),
    "unknown prefix": ("select: [BN2, XX]", ":1: 'XX' begins no rule's code"),
    "unknown fail-on": ("fail-on: eror", ":1: 'eror' is no choice; did you mean 'error'?"),
    "fail-on that YAML 1.1 reads as false": ("fail-on: off", ":1: false is no choice"),
    "unknown stage": ("stage: test", ":1: 'test' is no choice"),
    "unknown precision": ("precision: int8", "is no choice"),
    "models that are no list": ("models: a.pt", ":1: wants a list"),
    "model that is no mapping": ("models: [a.pt]", ":1: wants keys with values, not 'a.pt'"),
    "model without paths": ("models:\n  - stage: release", ":2: says no paths"),
    "model of no paths": ("models:\n  - paths: []", ":2: wants one at least, not an empty list"),
    "empty path": ("models: [{paths: ['']}]", ":1: wants text, not ''"),
    "path that is a number": ("models: [{paths: 3}]", ":1: wants text, not 3"),
    "suppression without a reason": ("suppress:\n  - rule: BN405", ":2: a suppression says its reason"),
    "suppression without a rule": ("suppress: [{reason: r}]", ":1: a suppression says its rule"),
    "suppression with an empty reason": ("suppress: [{rule: BN405, reason: ''}]", ":1: wants text, not ''"),
    "no day": ("suppress: [{rule: BN405, reason: r, until: next week}]", ":1: wants a day such as 2030-12-31"),
    "day that is none": ("suppress: [{rule: BN405, reason: r, until: '2030-02-31'}]", ":1: wants a day"),
    "day that is a number": ("suppress: [{rule: BN405, reason: r, until: 2030}]", ":1: wants a day"),
    "samples that are text": ("samples: many", ":1: wants a whole number from 2 up, not 'many'"),
    "one sample": ("samples: 1", ":1: wants a whole number from 2 up, not 1"),
    "half a sample": ("samples: 2.5", ":1: wants a whole number from 2 up, not 2.5"),
    "samples that are true": ("samples: true", ":1: wants a whole number from 2 up, not true"),
    "no jobs": ("jobs: 0", ":1: wants a whole number from 1 up, not 0"),
    "limit of 0": ("limits: {gain-warning: 0}", ":1: wants a number above 0, not 0"),
    "limit that is text": ("limits: {gain-warning: high}", ":1: wants a number above 0, not 'high'"),
    "limit that is true": ("limits: {gain-warning: true}", ":1: wants a number above 0, not true"),
    "count with a fraction": ("limits: {pickle-opcodes: 0.5}", ":1: wants a whole number above 0, not 0.5"),
    "flag that is text": ("trust-pickle: 'yes'", ":1: wants true or false, not 'yes'"),
    "flag that is nothing": ("allow-nothing:", ":1: wants true or false, not nothing"),
    "strict about nothing there is": ("fail-if-not-checked: [BX]", ":1: 'BX' begins no rule's code"),
    "text that is a list": ("baseline: [a]", ":1: wants text, not a list"),
    "text that is a mapping": ("device: {a: b}", ":1: wants text, not keys with values"),
    "arguments that are a list": ("model-arg: [1]", ":1: wants keys with values, not a list"),
    "limits that are nothing": ("limits:", ":1: wants keys with values, not nothing"),
    "a list": ("- models", ":1: wants keys with values, not a list"),
    "a word": ("models", ":1: wants keys with values, not 'models'"),
}
"""Config → what the error says behind the file's name."""
