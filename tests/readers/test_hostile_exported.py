"""Hostile exported programs: healthy archives of each layout with one thing forged."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from tests.readers.hostile import (
    AUDITED,
    BROKEN,
    EITHER,
    PROTO2,
    REFUSED,
    STOP,
    SYSTEM,
    Case,
    Entry,
    Watched,
    call,
    encoded_name,
    harmless,
    healthy_network,
    healthy_state_dict,
    judge,
    pack,
    text,
    watch,
)
from tests.readers.hostile import saved as file_of

FOREIGN = ("unsupported-file",)
Json = dict
Change = Callable[[Json], object]

GRAPH, WEIGHTS, CONSTANTS = "models/model.json", "model_weights_config.json", "model_constants_config.json"
OLD_GRAPH, OLD_WEIGHTS = "serialized_exported_program.json", "serialized_state_dict.pt"


# --- healthy archives --------------------------------------------------------------------------------------


@cache
def saved(layout: str = "written") -> tuple[tuple[str, bytes], ...]:
    """Names and contents of the members that torch writes."""
    import zipfile

    import torch

    from tests.readers import exported_files

    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        exported = torch.export.export(healthy_network(), (torch.ones(2, 3, 8, 8),))
        path = getattr(exported_files, layout)(exported, Path(folder) / "model.pt2")
        with zipfile.ZipFile(path) as archive:
            return tuple((info.filename, archive.read(info)) for info in archive.infolist())


def members(layout: str = "written") -> list[Entry]:
    return [Entry(name, data) for name, data in saved(layout)]


def member(entries: list[Entry], suffix: str) -> Entry:
    [found] = [entry for entry in entries if encoded_name(entry).endswith(suffix)]
    return found


def with_bytes(suffix: str, data: bytes | Callable[[bytes], bytes], layout: str = "written") -> bytes:
    """The archive with one member replaced."""
    entries = members(layout)
    target = member(entries, suffix)
    target.data = data if isinstance(data, bytes) else data(target.data)
    return pack(entries)


def with_json(suffix: str, change: Change, layout: str = "written") -> bytes:
    """The archive with one member's JSON changed."""

    def edit(data: bytes) -> bytes:
        parsed = json.loads(data)
        change(parsed)
        return json.dumps(parsed).encode()

    return with_bytes(suffix, edit, layout)


def with_more(*entries: Entry, layout: str = "written") -> bytes:
    """The archive with members added behind its own."""
    return pack([*members(layout), *entries])


def without(suffix: str, layout: str = "written") -> bytes:
    entries = members(layout)
    entries.remove(member(entries, suffix))
    return pack(entries)


# --- cases -------------------------------------------------------------------------------------------------


def raw(name: str, data: bytes | Callable[[bytes], bytes], kinds: tuple[str, ...] = BROKEN, says: str = "") -> Case:
    """The graph's JSON given as bytes."""
    return Case(name, lambda: with_bytes(GRAPH, data), kinds=kinds, says=says, filename="model.pt2")


def graph(name: str, change: Change, kinds: tuple[str, ...] = BROKEN, says: str = "") -> Case:
    """The graph changed."""
    return Case(name, lambda: with_json(GRAPH, change), kinds=kinds, says=says, filename="model.pt2")


def norm_call(program: Json) -> Json:
    return next(n for n in program["graph_module"]["graph"]["nodes"] if n["target"].startswith("torch.ops.aten.batch"))


def argument(name: str, told: object, kinds: tuple[str, ...] = BROKEN) -> Case:
    """One argument of the batch norm forged."""

    def change(program: Json) -> None:
        next(entry for entry in norm_call(program)["inputs"] if entry["name"] == name)["arg"] = told

    return graph(f"argument-{name}-{json.dumps(told)[:60]}", change, kinds)


def payload(name: str, field: str, told: object, kinds: tuple[str, ...] = BROKEN, says: str = "") -> Case:
    """One field of the running variance's entry among the weights forged, or of its tensor_meta."""

    def change(config: Json) -> None:
        entry = config["config"]["1.running_var"]
        (entry["tensor_meta"] if field in entry["tensor_meta"] else entry)[field] = told

    return Case(name, lambda: with_json(WEIGHTS, change), kinds=kinds, says=says, filename="model.pt2")


def ints(*sizes: object) -> list[object]:
    return [{"as_int": size} for size in sizes]


def archive(name: str, make: Callable[[], bytes], kinds: tuple[str, ...], says: str = "") -> Case:
    return Case(name, make, kinds=kinds, says=says, filename="model.pt2")


def put(path: str, told: object) -> Change:
    """Sets an entry by its path."""

    def change(program: Json) -> None:
        *outer, last = path.split("/")
        owner = program
        for key in outer:
            owner = owner[int(key) if key.isdecimal() else key]
        owner[int(last) if last.isdecimal() else last] = told

    return change


def nested(depth: int) -> Change:
    """The graph inside itself, as an argument of a call, so many times."""

    def change(program: Json) -> None:
        inner = program["graph_module"]["graph"]
        bare = {"inputs": [], "outputs": [], "tensor_values": {}}
        for _ in range(depth):
            given = {"name": "", "arg": {"as_graph": {"name": "g", "graph": inner}}}
            node = {"target": "torch.ops.higher_order.cond", "inputs": [given], "outputs": [], "metadata": {}}
            inner = {**bare, "nodes": [node]}
        program["graph_module"]["graph"] = inner

    return change


def deep(depth: int) -> bytes:
    """``nested``, written by hand: json.dumps would run out of stack itself."""
    head = '{"inputs":[],"tensor_values":{},"nodes":[{"target":"a.b","outputs":[],"metadata":{},"inputs":[{"name":"",'
    head += '"arg":{"as_graph":{"name":"g","graph":'
    tail = "}}}]}]}"
    inner = head * depth + '{"inputs":[],"tensor_values":{},"nodes":[]}' + tail * depth
    outer = '{"schema_version":{"major":8,"minor":0},"graph_module":{"signature":{"input_specs":[]},'
    return (outer + '"module_call_graph":[],"graph":' + inner + "}}").encode()


def repeated(count: int, change: Callable[[int, Json], object]) -> Change:
    """The batch norm's call so many times, each changed by its number."""

    def edit(program: Json) -> None:
        first = norm_call(program)
        for number in range(count):
            copied = deepcopy(first)
            copied["metadata"] = {}
            change(number, copied)
            program["graph_module"]["graph"]["nodes"].append(copied)

    return edit


def untracked(_number: int, node: Json) -> None:
    for entry in node["inputs"]:
        if entry["name"] in ("weight", "bias", "running_mean", "running_var"):
            entry["arg"] = {"as_none": True}


def plain_nodes(count: int) -> Change:
    node = {"target": "a.b", "inputs": [], "outputs": [], "metadata": {}}
    return lambda program: program["graph_module"]["graph"]["nodes"].extend([node] * count)


def twice(data: bytes) -> bytes:
    """One name twice in an object; readers differ on which one counts."""
    assert data.count(b'"name": "training"') == 1
    return data.replace(b'"name": "training"', b'"name": "eps", "name": "training"')


def pickled(**changes: object) -> bytes:
    """The first weight said to be a pickled tensor, and replaced."""

    def change(config: Json) -> None:
        config["config"]["1.running_var"]["use_pickle"] = True

    entries = members()
    config = member(entries, WEIGHTS)
    parsed = json.loads(config.data)
    change(parsed)
    config.data = json.dumps(parsed).encode()
    member(entries, f"/{parsed['config']['1.running_var']['path_name']}").data = bytes(changes["data"])  # type: ignore[call-overload]
    return pack(entries)


def many_pickled(count: int) -> bytes:
    """Very many tensors, each a file of torch.save of its own."""
    import torch

    entries, tensor = members(), file_of(torch.ones(1))
    config = member(entries, WEIGHTS)
    parsed = json.loads(config.data)
    folder = encoded_name(config).removesuffix(WEIGHTS)
    for number in range(count):
        parsed["config"][f"t{number}"] = {"path_name": f"p{number}", "is_param": False, "use_pickle": True}
        entries.append(Entry(f"{folder}p{number}", tensor))
    config.data = json.dumps(parsed).encode()
    return pack(entries)


def many_tensors(count: int) -> Change:
    def change(config: Json) -> None:
        entry = config["config"]["1.running_var"]
        config["config"].update((f"t{number}.running_var", entry) for number in range(count))

    return change


def with_a_pickle() -> bytes:
    """A state dict of torch.save in the same folder, for torch.load to find."""
    pickle, *_ = healthy_state_dict().entries()
    storages = [entry for entry in healthy_state_dict().entries() if "/data/" in encoded_name(entry)]
    for entry in (pickle, *storages):
        entry.name = encoded_name(entry).replace("archive/", "model/", 1)
    return with_more(pickle, *storages)


def inner_with(entry: Entry) -> bytes:
    """The old layout, its state dict's archive with one member more."""
    return with_bytes(
        OLD_WEIGHTS,
        lambda _data: pack([*healthy_state_dict().entries(), entry]),
        layout="written_as_2_7",
    )


def payload_in(layout: str, suffix: str) -> bytes:
    """A live payload in a nested pickle."""
    return with_bytes(suffix, healthy_state_dict().beside(SYSTEM), layout=layout)


LIVE = Case("nested-payload-alone", lambda: healthy_state_dict().beside(SYSTEM), live=True)

GRAPHS = [
    raw("empty", b""),
    raw("not-json", b"\x80\x02}."),
    raw("a-list", b"[1, 2]"),
    raw("text", b'"{}"'),
    raw("empty-object", b"{}", FOREIGN),
    raw("cut-short", lambda data: data[:-1]),
    raw("trailing", lambda data: data + b"{}"),
    raw("not-utf8", lambda data: data.replace(b"batch_norm", b"batch_\xff\xfe", 1)),
    raw("utf16", lambda data: data.decode().encode("utf-16")),
    raw("twice", twice, says="twice"),
    raw("nan", lambda data: data.replace(b"1e-05", b"NaN", 1), says="NaN"),
    raw("infinity", lambda data: data.replace(b"1e-05", b"-Infinity", 1)),
    raw("10**5-digits", lambda data: data.replace(b"1e-05", b"9" * 100_000, 1)),
    raw("of-51-MB", lambda data: data + b" " * 51_000_000, says="bytes"),
    raw("of-lists", b'{"a":[' + b"[]," * 10_000_000 + b"[]]}", says="lists"),
    raw("of-objects", b'{"a":[' + b"{}," * 10_000_000 + b"{}]}", says="more values"),
    raw("of-entries", b"{" + b",".join(b'"%d":0' % n for n in range(300_000)) + b"}", FOREIGN),
    raw("nested-100000", b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    raw("nested-objects", b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    raw("graphs-nested-300", deep(300)),
    raw("graphs-nested-10000", deep(10_000)),
    graph("graphs-nested-20", nested(20), (*AUDITED, *BROKEN)),
    graph("schema-9", put("schema_version/major", 9), FOREIGN, says="schema 9"),
    graph("schema-0", put("schema_version/major", 0), FOREIGN),
    graph("schema-true", put("schema_version/major", True), FOREIGN),
    graph("schema-text", put("schema_version", "8.20" * 10_000), FOREIGN),
    graph("schema-list", put("schema_version", [8, 20]), FOREIGN),
    graph("no-graph", lambda program: program.pop("graph_module")),
    graph("graph-is-list", put("graph_module/graph", [])),
    graph("no-nodes", lambda program: program["graph_module"]["graph"].pop("nodes")),
    graph("nodes-are-an-object", put("graph_module/graph/nodes", {})),
    graph("node-is-number", put("graph_module/graph/nodes/1", 5)),
    graph("node-is-null", put("graph_module/graph/nodes/1", None)),
    graph("target-is-list", put("graph_module/graph/nodes/1/target", ["torch.ops.aten.batch_norm.default"])),
    graph("target-of-1-MB", put("graph_module/graph/nodes/1/target", "a" * 2**20)),
    graph("no-metadata", lambda program: norm_call(program).pop("metadata")),
    graph("metadata-is-text", put("graph_module/graph/nodes/1/metadata", "x")),
    graph("inputs-are-text", put("graph_module/graph/nodes/1/inputs", "abc")),
    graph("input-is-text", put("graph_module/graph/nodes/1/inputs/0", "abc")),
    graph("argument-of-two-kinds", put("graph_module/graph/nodes/1/inputs/0/arg/as_int", 5)),
    graph("argument-of-no-kind", put("graph_module/graph/nodes/1/inputs/0/arg", {})),
    graph("outputs-are-numbers", put("graph_module/graph/nodes/1/outputs", [1])),
    graph("argument-twice", lambda program: norm_call(program)["inputs"].append(norm_call(program)["inputs"][5])),
    graph("argument-missing", lambda program: norm_call(program)["inputs"].pop(5)),
    graph("stack-is-number", put("graph_module/graph/nodes/1/metadata/nn_module_stack", 5), AUDITED),
    graph("stack-is-odd", put("graph_module/graph/nodes/1/metadata/nn_module_stack", ";;,"), AUDITED),
    graph("stack-of-1-MB", put("graph_module/graph/nodes/1/metadata/nn_module_stack", "k," + "p" * 2**20 + ",c")),
    graph(
        "stack-of-brackets", put("graph_module/graph/nodes/1/metadata/nn_module_stack", "k,['" * 900 + ",c"), AUDITED
    ),
    graph("function-is-number", put("graph_module/graph/nodes/1/metadata/torch_fn", 5), AUDITED),
    graph("node-name-is-number", put("graph_module/graph/nodes/1/name", 5), AUDITED),
    graph("node-name-of-1-MB", put("graph_module/graph/nodes/1/name", "n" * 2**20)),
    graph("module-is-number", put("graph_module/module_call_graph/0/fqn", 5)),
    graph("no-modules", lambda program: program["graph_module"].pop("module_call_graph")),
    graph("no-signature", lambda program: program["graph_module"].pop("signature")),
    graph("input-specs-are-text", put("graph_module/signature/input_specs", "x")),
    graph("input-spec-of-two-kinds", put("graph_module/signature/input_specs/0/buffer", {})),
    graph("parameter-name-is-number", put("graph_module/signature/input_specs/1/parameter/parameter_name", 5)),
    graph(
        "two-inputs-of-one-name",
        lambda program: program["graph_module"]["signature"]["input_specs"].append(
            program["graph_module"]["signature"]["input_specs"][1]
        ),
    ),
    graph("a-tensor-that-is-not-there", put("graph_module/signature/input_specs/2/parameter/parameter_name", "gone")),
    graph("values-are-a-list", put("graph_module/graph/tensor_values", [])),
    argument("training", {"as_bool": "true"}),
    argument("training", {"as_int": 1}),
    argument("training", {"as_none": True}),
    argument("training", {"as_sym_bool": {"as_name": "x"}}, ("unread",)),
    argument("training", "true"),
    argument("eps", {"as_float": "1e-5"}),
    argument("eps", {"as_float": "NaN"}, AUDITED),
    argument("eps", {"as_float": True}),
    argument("eps", {"as_float": 10**400}),
    argument("eps", {"as_string": "x"}),
    argument("eps", {"as_none": True}),
    replace(argument("momentum", {"as_float": "-Infinity"}, AUDITED), exits=(1,)),
    argument("momentum", {"as_ints": [1]}),
    argument("running_var", {"as_tensor": {"name": "nothing"}}),
    argument("running_var", {"as_tensor": {"name": ["b_1_running_var"]}}),
    argument("running_var", {"as_tensor": "b_1_running_var"}),
    argument("running_var", {"as_int": 5}),
    argument("running_var", {"as_tensors": [{"name": "b_1_running_var"}]}),
    argument("running_var", {"as_tensor": {"name": "conv2d"}}, ("unread",)),
    argument("running_mean", {"as_tensor": {"name": "p_0_weight"}}, ("unread",)),
    argument("input", {"as_tensor": {}}),
    graph("50001-nodes", plain_nodes(50_001), says="nodes"),
    graph("5000-calls-without-tensors", repeated(5_000, untracked), (*REFUSED, *AUDITED)),
    graph("5000-calls-of-one-layer", repeated(5_000, lambda _n, _node: None), AUDITED),
]

PAYLOADS = [
    payload("path-up", "path_name", "../weights/weight_0", EITHER, says="outside"),
    payload("path-absolute", "path_name", "/etc/passwd", EITHER, says="outside"),
    payload("path-below", "path_name", "x/weight_0", EITHER, says="outside"),
    payload("path-windows", "path_name", "..\\weight_0", EITHER, says="outside"),
    payload("path-empty", "path_name", "", EITHER),
    payload("path-dot", "path_name", ".", EITHER),
    payload("path-dots", "path_name", "..", EITHER),
    payload("path-missing", "path_name", "weight_99"),
    payload("path-number", "path_name", 4),
    payload("path-null", "path_name", None),
    payload("path-of-1-MB", "path_name", "w" * 2**20),
    payload("pickle-text", "use_pickle", "no"),
    payload("pickle-number", "use_pickle", 0),
    payload("meta-null", "tensor_meta", None),
    payload("meta-list", "tensor_meta", []),
    payload("dtype-unknown", "dtype", 27, ("unread",)),
    payload("dtype-huge", "dtype", 10**300, ("unread",)),
    payload("dtype-text", "dtype", "7"),
    payload("dtype-bool", "dtype", True),
    payload("dtype-wider", "dtype", 8),
    payload("dtype-complex", "dtype", 10, (*BROKEN, "unread")),
    payload("layout-sparse", "layout", 1, ("unread",)),
    payload("layout-text", "layout", "7"),
    payload("sizes-larger", "sizes", ints(9), says="1.running_var"),
    payload("sizes-negative", "sizes", ints(-8)),
    payload("sizes-2**62", "sizes", ints(2**62)),
    payload("sizes-overflow", "sizes", ints(2**40, 2**40)),
    payload("sizes-float", "sizes", ints(8.0)),
    payload("sizes-bool", "sizes", ints(True)),
    payload("sizes-symbol", "sizes", [{"as_expr": {"expr_str": "s0"}}]),
    payload("sizes-plain", "sizes", [8]),
    payload("sizes-text", "sizes", "8"),
    payload("sizes-of-65", "sizes", ints(*[1] * 65)),
    payload("sizes-more-than-strides", "sizes", ints(4, 2)),
    payload("strides-larger", "strides", ints(2)),
    payload("strides-negative", "strides", ints(-1)),
    payload("strides-2**59", "strides", ints(2**59)),
    payload("offset-beyond", "storage_offset", {"as_int": 1}),
    payload("offset-negative", "storage_offset", {"as_int": -1}),
    payload("offset-2**63", "storage_offset", {"as_int": 2**63}),
    payload("offset-plain", "storage_offset", 0),
    archive("config-is-list", lambda: with_bytes(WEIGHTS, b"[]"), BROKEN),
    archive("config-of-text", lambda: with_bytes(WEIGHTS, b'{"config": "x"}'), BROKEN),
    archive("config-of-51-MB", lambda: with_bytes(WEIGHTS, lambda data: data + b" " * 51_000_000), BROKEN, "bytes"),
    archive("config-nested", lambda: with_bytes(WEIGHTS, b"[" * 100_000 + b"]" * 100_000), BROKEN),
    archive("name-of-1-MB", lambda: with_bytes(WEIGHTS, lambda d: d.replace(b"1.bias", b"b" * 2**20)), BROKEN),
    archive("name-twice", lambda: with_bytes(WEIGHTS, lambda d: d.replace(b"1.bias", b"1.weight")), BROKEN, "twice"),
    archive(
        "weight-and-constant",
        lambda: with_json(CONSTANTS, put("config", {"1.bias": {"path_name": "custom_obj_0"}})),
        AUDITED,
    ),
    archive(
        "formats-of-one-storage",
        lambda: with_json(
            WEIGHTS,
            lambda config: (
                config["config"]["1.bias"].update(config["config"]["1.num_batches_tracked"])
                or config["config"]["1.bias"].update(path_name=config["config"]["1.weight"]["path_name"])
            ),
        ),
        BROKEN,
        "number formats",
    ),
    archive("aliases-without-end", lambda: with_json(WEIGHTS, many_tensors(5_000)), (*REFUSED, *AUDITED)),
]

ARCHIVES = [
    harmless("healthy", lambda: pack(members()), filename="model.pt2"),
    harmless("healthy-as-2-8", lambda: pack(members("written_as_2_8")), filename="model.pt2"),
    harmless("healthy-as-2-7", lambda: pack(members("written_as_2_7")), filename="model.pt2"),
    harmless("called-pt", lambda: pack(members())),
    harmless("called-bin", lambda: pack(members("written_as_2_7")), filename="pytorch_model.bin"),
    LIVE,
    archive("payload-as-2-7", lambda: payload_in("written_as_2_7", OLD_WEIGHTS), ("unsafe-file",)),
    archive("payload-as-2-8", lambda: payload_in("written_as_2_8", "data/weights/model.pt"), ("unsafe-file",)),
    archive("payload-in-constants", lambda: payload_in("written_as_2_8", "data/constants/model.pt"), ("unsafe-file",)),
    archive("payload-in-a-weight", lambda: pickled(data=healthy_state_dict().beside(SYSTEM)), ("unsafe-file",)),
    # What nobody opens may hold what it likes.
    harmless("payload-in-inputs", lambda: payload_in("written", "data/sample_inputs/model.pt"), filename="model.pt2"),
    harmless(
        "payload-in-an-object",
        lambda: with_json(CONSTANTS, put("config", {"o": {"path_name": "opaque_obj_0", "use_pickle": True}})),
        filename="model.pt2",
    ),
    archive("payload-in-code", lambda: with_more(Entry("model/data/aotinductor/m/a.so", SYSTEM)), ("unread",)),
    archive("weight-is-no-archive", lambda: pickled(data=PROTO2 + SYSTEM + STOP), EITHER),
    archive("weight-is-a-dict", lambda: pickled(data=healthy_state_dict().archive()), BROKEN, "no tensor"),
    archive("weight-is-empty", lambda: pickled(data=b""), EITHER),
    archive("weights-are-a-list", lambda: with_bytes(OLD_WEIGHTS, state_of(b"]"), "written_as_2_7"), BROKEN),
    archive("weights-are-text", lambda: with_bytes(OLD_WEIGHTS, state_of(text("x")), "written_as_2_7"), BROKEN),
    archive(
        "weights-are-a-call",
        lambda: with_bytes(OLD_WEIGHTS, state_of(call("builtins:eval", "1")), "written_as_2_7"),
        ("unsafe-file",),
    ),
    archive("weights-are-cut-short", lambda: with_bytes(OLD_WEIGHTS, lambda d: d[:-1], "written_as_2_7"), EITHER),
    archive("weights-are-empty", lambda: with_bytes(OLD_WEIGHTS, b"", "written_as_2_7"), BROKEN),
    archive("inner-traversal", lambda: inner_with(Entry("../x", b"")), EITHER),
    archive("inner-second-pickle", lambda: inner_with(Entry("archive/x/data.pkl", b"")), EITHER),
    archive("inner-deflated", lambda: inner_with(Entry("archive/x", b"", method=8)), EITHER),
    archive("inner-encrypted", lambda: inner_with(Entry("archive/x", b"", flags=1)), EITHER),
    archive("outer-deflated", lambda: deflated("written_as_2_7"), BROKEN),
    archive("4097-pickles", lambda: many_pickled(4097), BROKEN, "pickled tensors"),
    archive("with-a-pickle", with_a_pickle, ("unsafe-file",), "of which a reader sees one"),
    archive(
        "two-layouts",
        lambda: with_more(*(Entry(encoded_name(e), e.data) for e in members("written_as_2_7"))),
        EITHER,
        "two layouts",
    ),
    archive("two-kinds-of-weights", lambda: with_more(Entry("model/data/weights/model.pt", b"")), BROKEN),
    archive(
        "two-state-dicts",
        lambda: with_more(Entry("serialized_state_dict.json", b""), layout="written_as_2_7"),
        BROKEN,
    ),
    archive("no-weights", lambda: without(WEIGHTS), BROKEN),
    archive("no-constants", lambda: without(CONSTANTS), BROKEN),
    archive("no-weight", lambda: without("data/weights/weight_2"), BROKEN),
    archive("no-state-dict", lambda: without(OLD_WEIGHTS, "written_as_2_7"), BROKEN),
    archive("no-program", lambda: without(GRAPH), FOREIGN),
    archive("no-old-graph", lambda: without(OLD_GRAPH, "written_as_2_7"), FOREIGN),
    archive("no-format", lambda: without("archive_format"), FOREIGN),
    archive("another-format", lambda: with_bytes("archive_format", b"pt3"), FOREIGN),
    archive("format-of-1-MB", lambda: with_bytes("archive_format", b"p" * 2**20), FOREIGN),
    archive("another-version", lambda: with_bytes("archive_version", b"1"), FOREIGN),
    archive("byteorder-middle", lambda: with_bytes("byteorder", b"middle"), BROKEN),
    archive("byteorder-of-1-MB", lambda: with_bytes("byteorder", b"b" * 2**20), BROKEN),
    archive("a-model-that-is-none", lambda: with_more(Entry("model/models/x.txt", b"{}")), BROKEN),
    archive("a-model-without-name", lambda: with_more(Entry("model/models/.json", b"{}")), BROKEN),
    archive(
        "a-model-without-weights",
        lambda: with_more(Entry("model/models/b.json", dict(saved())[f"model/{GRAPH}"])),
        BROKEN,
    ),
]


def state_of(opcodes: bytes) -> bytes:
    """A file of torch.save that holds what these opcodes leave."""
    return healthy_state_dict().archive(PROTO2 + opcodes + STOP)


def deflated(layout: str) -> bytes:
    entries = members(layout)
    for entry in entries:
        entry.method = 8
    return pack(entries)


EVIL_NAMES = {
    "surrogate": "a\ud800",
    "escape": "a\x1b[2J",
    "workflow-command": "a\n::error::x",
    "empty": "",
    "dots": "...",
}


def renamed(name: str) -> bytes:
    """The layer's tensors under another name in graph and weights, the running variance negative."""
    old, new = '"1.', json.dumps(f"{name}.")[:-1]
    entries = members()
    for suffix in (GRAPH, WEIGHTS):
        target = member(entries, suffix)
        target.data = target.data.decode().replace(old, new).encode()
    path = json.loads(member(entries, WEIGHTS).data)["config"][f"{name}.running_var"]["path_name"]
    variance = member(entries, f"weights/{path}")
    variance.data = b"\0\0\x80\xbf" * (len(variance.data) // 4)
    return pack(entries)


PRINTED = [
    Case(
        f"name-{kind}-{form}",
        lambda name=name: renamed(name),  # type: ignore[misc]
        kinds=AUDITED,
        arguments=arguments,
        filename="model.pt2",
    )
    for kind, name in EVIL_NAMES.items()
    for form, arguments in {"text": ("--show-passed",), "json": ("--format", "json")}.items()
]
CASES = [*GRAPHS, *PAYLOADS, *ARCHIVES]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Watched]:
    return watch(tmp_path_factory.mktemp("exported"), [*CASES, *PRINTED])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_hostile_exported(case: Case, results: dict[str, Watched]) -> None:
    judge(case, results)


@pytest.mark.parametrize("case", PRINTED, ids=str)
def test_names_do_not_steer_the_terminal(case: Case, results: dict[str, Watched]) -> None:
    seen = results[case.name]
    assert not seen.deeds
    assert not seen.files
    assert seen.exit == 1, seen.out[-500:]
    assert "Traceback" not in seen.err
    assert all(letter.isprintable() or letter == "\n" for letter in seen.out + seen.err)
    assert not any(line.lstrip().startswith("::") for line in seen.out.splitlines())
    if "json" in case.arguments:
        assert seen.document["summary"]
