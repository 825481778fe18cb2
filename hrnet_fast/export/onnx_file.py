"""ONNX: written from a recorded network, with standard operators only."""

import contextlib
import copy
import io
import logging
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.export import ExportedProgram

from hrnet_fast.export.packages import needed
from hrnet_fast.export.quantize import quantize
from hrnet_fast.export.record import Recorded

OPSETS = (18, 23)  # the oldest that torch's exporter writes, and the newest that was tried
DEFAULT_OPSET = 18
_SIDES = ("batch", "height", "width")  # of the input's dimensions 0, 2 and 3


def require(opset: int, check: bool = False) -> None:
    """Raises what ``write`` would, and what checking the file would, before minutes were spent on a recording."""
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise ValueError(f"opset {opset}: expected {OPSETS[0]} to {OPSETS[1]}")
    for name in ("onnx", "onnxscript", *(("onnxruntime",) if check else ())):
        needed(name)


def write(recorded: Recorded, path: Path, metadata: Mapping[str, str], opset: int = DEFAULT_OPSET) -> Counter:
    """Writes a file of ONNX; how often each operator is in it.

    Raises:
        ImportError: a package that is needed is missing.
        ValueError: an opset that cannot be written, or a network that needs operators beyond ONNX's own.
    """
    require(opset)
    onnx = needed("onnx")
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            proto = _translated(recorded, opset)
    finally:
        logger.setLevel(level)
    _strip(proto)
    _name_sizes(proto)
    if recorded.integers:
        quantize(proto, recorded.integers)
    del proto.metadata_props[:]
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    proto.producer_name, proto.producer_version = "hrnet_fast", metadata.get("hrnet_fast_version", "").strip('"')
    foreign = {f"{node.domain}::{node.op_type}" for node in proto.graph.node if node.domain not in ("", "ai.onnx")}
    if foreign or proto.functions:
        raise ValueError(f"model: it needs operators beyond ONNX's own: {', '.join(sorted(foreign))}")
    onnx.checker.check_model(proto)
    onnx.save(proto, path)
    return Counter(node.op_type for node in proto.graph.node)


class _NotTakenApart(ExportedProgram):
    """A copy of a program whose operators are translated as they are."""

    def __init__(self, program: ExportedProgram):
        module = copy.deepcopy(program.graph_module)  # the exporter changes what it gets
        super().__init__(
            root=module,
            graph=module.graph,
            graph_signature=program.graph_signature,
            state_dict=program.state_dict,
            range_constraints=program.range_constraints,
            module_call_graph=program.module_call_graph,
            example_inputs=program.example_inputs,
            constants=program.constants,
            verifiers=program.verifiers,
        )

    def run_decompositions(self, *args, **kwargs) -> ExportedProgram:
        return self


def _translated(recorded: Recorded, opset: int):
    """In the operators of ONNX.

    torch takes operators apart before it translates them, for which it records the whole network twice more. What an
    HRNet is made of can be translated as it is; only where something cannot, that is done.
    """
    names = {"input_names": ["image"], "output_names": recorded.outputs}

    def translated(program: ExportedProgram):
        return torch.onnx.export(program, dynamo=True, opset_version=opset, verbose=False, **names).model_proto

    try:
        return translated(_NotTakenApart(recorded.program))
    except torch.onnx.errors.OnnxExporterError:
        return translated(recorded.program)


def _strip(proto) -> None:
    """Takes out what the exporter notes about the program that it ran in: its source files and their places."""
    for item in (
        proto.graph,
        *proto.graph.node,
        *proto.graph.value_info,
        *proto.graph.input,
        *proto.graph.output,
        *proto.graph.initializer,
    ):
        del item.metadata_props[:]
        item.doc_string = ""
    proto.doc_string = ""


def _name_sizes(proto) -> None:
    """Dimensions called batch, height and width instead of by the symbols of the recording."""
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    given = {dims[k].dim_param: name for k, name in zip((0, 2, 3), _SIDES) if dims[k].dim_param}
    plain = {symbol: name for symbol, name in given.items() if re.fullmatch(r"\w+", symbol)}
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in given:
                dim.dim_param = given[dim.dim_param]
            elif dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda match: plain.get(match[0], match[0]), dim.dim_param)
