"""8-bit integers in ONNX: QuantizeLinear and DequantizeLinear around what a calibration has scales for."""

from collections.abc import Mapping
from typing import Any

from hrnet_fast.export.packages import needed
from hrnet_fast.network.integers import Integers


def quantize(proto, integers: Mapping[str, Integers]) -> None:
    """Lets convolutions multiply 8-bit integers: unsigned images with one scale, signed weights with one a channel.

    Runtimes take DequantizeLinear in front of a convolution and the convolution as one. Biases and sums stay in
    float32.

    Args:
        proto: the model, which is changed.
        integers: of convolutions, by the names of their weights.
    """
    onnx, np = needed("onnx"), needed("numpy")
    graph = proto.graph
    nodes, initializers, taken = [], {}, {i.name: i for i in graph.initializer}
    images: dict[tuple, str] = {}  # rounded ones

    def constant(name: str, value: Any) -> str:
        initializers[name] = onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def rounded(name: str, made: Integers) -> str:
        key = (name, *made.rounding)
        if key not in images:
            images[key] = f"{name}_rounded{len(images)}"
            scale = constant(f"{images[key]}_scale", np.float32(made.rounding.step))
            zero = constant(f"{images[key]}_zero", np.uint8(made.rounding.zero))
            byte = f"{images[key]}_bytes"
            nodes.append(onnx.helper.make_node("QuantizeLinear", [name, scale, zero], [byte], byte))
            nodes.append(onnx.helper.make_node("DequantizeLinear", [byte, scale, zero], [images[key]], images[key]))
        return images[key]

    for node in graph.node:
        made = integers.get(node.input[1]) if node.op_type == "Conv" else None
        if made is not None:
            weight = node.input[1]
            if f"{weight}_bytes" not in initializers:
                inputs = [
                    constant(f"{weight}_bytes", made.weight.numpy()),
                    constant(f"{weight}_scale", made.scale.numpy()),
                    constant(f"{weight}_zero", np.zeros(len(made.scale), np.int8)),
                ]
                nodes.append(
                    onnx.helper.make_node(
                        "DequantizeLinear", inputs, [f"{weight}_rounded"], f"{weight}_rounded", axis=0
                    )
                )
            bias = constant(f"{weight}_bias", made.bias.numpy())
            image = rounded(node.input[0], made)
            del node.input[:]
            node.input.extend([image, f"{weight}_rounded", bias])
        nodes.append(node)
    read = {name for node in nodes for name in node.input} | {out.name for out in graph.output}
    kept = [i for name, i in taken.items() if name in read] + list(initializers.values())
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]  # the graph owns the old ones
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
