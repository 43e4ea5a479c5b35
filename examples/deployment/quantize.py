# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Quantize an exported model to int8 after training, calibrated with pictures like those it will see.

    python -m examples.deployment.quantize outputs/exported outputs/int8 --runtime openvino --calibration_dir pictures

The folder `outputs/exported` comes from `python -m modeling_internimage.export`. The new one holds `model.onnx` (ONNX
Runtime) or `model.xml` and `model.bin` (OpenVINO), the configurations, and `quantization.json`, which says how it was
made. Offsets stay in float32, from the layers that predict them to the operators that sample.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from transformers import AutoImageProcessor

from modeling_internimage.images import decode_image


logger = logging.getLogger(__name__)

PICTURES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
DEFAULT_PICTURES = 300
# The layers that int8 makes faster. The other operators of the network take little time, or have no int8 kernel.
QUANTIZED_OPERATORS = ["Conv", "Gemm", "MatMul"]


class Node(NamedTuple):
    """A node of a graph of either runtime. `inputs` are the names of the nodes before it, `None` for weights."""

    operator: str
    inputs: list[str | None]


def onnx_graph(model: onnx.ModelProto) -> dict[str, Node]:
    """The nodes of an ONNX model by name."""
    producers = {output: node.name for node in model.graph.node for output in node.output}
    return {node.name: Node(node.op_type, [producers.get(name) for name in node.input]) for node in model.graph.node}


def openvino_graph(model) -> dict[str, Node]:
    """The nodes of an `openvino.Model` by name, without constants and results."""
    nodes = [node for node in model.get_ops() if node.get_type_name() not in ("Constant", "Parameter", "Result")]
    names = {node.get_friendly_name() for node in nodes}
    graph = {}
    for node in nodes:
        inputs = [value.get_node().get_friendly_name() for value in node.input_values()]
        graph[node.get_friendly_name()] = Node(
            node.get_type_name(), [name if name in names else None for name in inputs]
        )
    return graph


# Inputs that say where a deformable operator samples and with which weight.
SAMPLING_INPUTS = {"GridSample": [1], "DeformConv": [2, 4]}
PROJECTIONS = ("Conv", "Convolution", "Gemm", "MatMul")
SHAPES = ("Shape", "ShapeOf", "Size")


def sampling_nodes(graph: dict[str, Node]) -> list[str]:
    """
    Names of the nodes that compute where to sample: from the layers that predict offsets up to the operators that
    sample. And of the layers that read the same features, for masks and gates: if one of them were quantized, ONNX
    Runtime would give the quantized features to all.

    Raises:
        `ValueError`: if nothing in the graph samples.
    """
    waiting = [
        node.inputs[index]
        for node in graph.values()
        for index in SAMPLING_INPUTS.get(node.operator, [])
        if index < len(node.inputs)
    ]
    if not waiting:
        raise ValueError(
            "The model has no GridSample and no DeformConv node, so that its offsets cannot be found. Export it with "
            "`python -m modeling_internimage.export`."
        )
    found = set()
    while waiting:
        name = waiting.pop()
        if name is None or name in found or graph[name].operator in SHAPES:
            continue
        found.add(name)
        if graph[name].operator not in PROJECTIONS:
            waiting += graph[name].inputs
    features = {graph[name].inputs[0] for name in found if graph[name].operator in PROJECTIONS} - {None}
    return [
        name
        for name, node in graph.items()
        if name in found or (node.operator in PROJECTIONS and node.inputs[0] in features)
    ]


def check_is_float(graph: dict[str, Node]):
    """Raise a `ValueError` for a model that is quantized already."""
    quantizers = {"QuantizeLinear", "DequantizeLinear", "FakeQuantize"} & {node.operator for node in graph.values()}
    if quantizers:
        raise ValueError(
            f"The model is quantized already (it has {', '.join(sorted(quantizers))} nodes): start from the float32 "
            "export."
        )


def find_pictures(folder: Path, number: int) -> list[Path]:
    """
    Up to `number` readable pictures in a folder and its sub-folders, spread evenly over the sorted names. Those that
    cannot be read are named and counted in the log.

    Raises:
        `ValueError`: if there are none.
    """
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES)
    if not files:
        raise ValueError(
            f"`--calibration_dir {folder}` has no pictures ({', '.join(sorted(PICTURES))}). Name a folder with 100 to "
            "300 pictures like those the model will see."
        )
    files = [files[index] for index in np.linspace(0, len(files) - 1, min(number, len(files))).round().astype(int)]
    readable = []
    for file in files:
        try:
            decode_image(str(file), f"The picture {file}")
            readable.append(file)
        except ValueError as error:
            logger.warning(str(error))
    if len(readable) < len(files):
        logger.warning(f"{len(files) - len(readable)} of {len(files)} pictures were left out: they cannot be read.")
    if not readable:
        raise ValueError(f"None of the {len(files)} pictures in `--calibration_dir {folder}` can be read.")
    return readable


class CalibrationInputs:
    """
    The inputs of a model for pictures, one batch after the other: dictionaries of arrays, as the image processor of
    the exported model makes them.

    Args:
        pictures (`list[Path]`):
            Image files.
        image_processor:
            The image processor of the model.
        shapes (`dict[str, list[int | None]]`):
            Shape of each input of the model, `None` for a dynamic size. A fixed batch size is kept: the last batch is
            filled up with the first pictures.

    Raises:
        `ValueError`: while iterating, if the image processor makes inputs of another shape.
    """

    def __init__(self, pictures: list[Path], image_processor, shapes: dict[str, list[int | None]]):
        self.image_processor = image_processor
        self.shapes = shapes
        batch_size = shapes["pixel_values"][0] or 1
        pictures = pictures + (batch_size * pictures)[: -len(pictures) % batch_size]
        self.batches = [pictures[start : start + batch_size] for start in range(0, len(pictures), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for files in self.batches:
            images = [decode_image(str(file), f"The picture {file}") for file in files]
            features = self.image_processor(images, return_tensors="np")
            inputs = {name: np.asarray(features[name]) for name in self.shapes}
            for name, shape in self.shapes.items():
                if any(size not in (None, actual) for size, actual in zip(shape, inputs[name].shape)):
                    raise ValueError(
                        f"The model takes `{name}` of shape {shape}, and its image processor makes "
                        f"{list(inputs[name].shape)} of {files[0]}. Export the model with the size of its image "
                        "processor, or with dynamic sizes."
                    )
            yield inputs


def quantize_for_onnxruntime(
    model_file: Path, make_inputs: Callable[[dict], CalibrationInputs], folder: Path
) -> list[str]:
    """Write `folder / "model.onnx"` with QDQ nodes. Returns the names of the sampling nodes, which stay in float32."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    check_is_float(onnx_graph(onnx.load(model_file, load_external_data=False)))
    prepared = folder / "prepared.onnx"  # with inferred shapes and the rewriting that ONNX Runtime does anyway
    quant_pre_process(model_file, prepared, skip_symbolic_shape=True)
    model = onnx.load(prepared)
    names = sampling_nodes(onnx_graph(model))
    shapes = {
        value.name: [size.dim_value or None for size in value.type.tensor_type.shape.dim]
        for value in model.graph.input
    }
    inputs = iter(make_inputs(shapes))

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(inputs, None)

    quantize_static(
        prepared,
        folder / "model.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=QUANTIZED_OPERATORS,
        nodes_to_exclude=names,
        # Weights of 7 bits: before VNNI, processors add pairs of products in 16 bits, which 8 bits overflow.
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        reduce_range=True,
        per_channel=True,
        extra_options={"MatMulConstBOnly": True},
    )
    prepared.unlink()
    return names


def quantize_for_openvino(
    model_file: Path, make_inputs: Callable[[dict], CalibrationInputs], folder: Path
) -> list[str]:
    """Write `folder / "model.xml"` and `model.bin`. Returns the names of the sampling nodes, which stay in float32."""
    import nncf
    import openvino

    if "DeformConv" in {node.op_type for node in onnx.load(model_file, load_external_data=False).graph.node}:
        raise ValueError("OpenVINO does not know DeformConv: export the model with `--operator grid_sample`.")
    model = openvino.Core().read_model(model_file)
    graph = openvino_graph(model)
    check_is_float(graph)
    names = sampling_nodes(graph)
    shapes = {
        value.any_name: [None if size.is_dynamic else size.get_length() for size in value.partial_shape]
        for value in model.inputs
    }
    inputs = make_inputs(shapes)
    model = nncf.quantize(
        model,
        nncf.Dataset(inputs),
        subset_size=len(inputs),
        preset=nncf.QuantizationPreset.MIXED,  # activations without symmetry: most follow a GELU
        ignored_scope=nncf.IgnoredScope(names=names),
    )
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    return names


class Runtime(NamedTuple):
    packages: list[str]
    quantize: Callable[[Path, Callable[[dict], CalibrationInputs], Path], list[str]]


RUNTIMES = {
    "onnxruntime": Runtime(["onnxruntime"], quantize_for_onnxruntime),
    "openvino": Runtime(["openvino", "nncf"], quantize_for_openvino),
}


def quantize_export(
    model_folder: Path, output: Path, runtime: str, calibration_dir: Path, num_pictures: int = DEFAULT_PICTURES
) -> dict:
    """
    Quantize the exported model in a folder, and write the result to a new one.

    Args:
        model_folder (`Path`):
            Folder with `model.onnx`, in float32, and `preprocessor_config.json`.
        output (`Path`):
            The new folder. It is written whole or not at all.
        runtime (`str`):
            `"onnxruntime"` or `"openvino"`.
        calibration_dir (`Path`):
            Folder with pictures like those the model will see, also in sub-folders.
        num_pictures (`int`, *optional*, defaults to 300):
            How many pictures to calibrate with, at most.

    Returns:
        `dict`: the content of `quantization.json`.

    Raises:
        `ImportError`: if a package of the runtime is not installed.
        `ValueError`: if a folder or file is missing, `output` exists, the model is quantized already or has no
            sampling operator, no picture can be read, or pictures do not fit the model.
    """
    packages = RUNTIMES[runtime].packages
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(f"Quantizing for {runtime} needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    if output.exists():
        raise ValueError(f"The output folder {output} exists: name another one, or remove it.")
    for name in ("model.onnx", "preprocessor_config.json"):
        if not (model_folder / name).is_file():
            raise ValueError(
                f"{model_folder} has no {name}: name a folder written by `python -m modeling_internimage.export`."
            )
    if num_pictures < 1:
        raise ValueError(f"`--num_pictures {num_pictures}` must be at least 1.")
    pictures = find_pictures(calibration_dir, num_pictures)
    image_processor = AutoImageProcessor.from_pretrained(model_folder)

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as temporary:
        folder = Path(temporary) / output.name
        folder.mkdir()
        names = RUNTIMES[runtime].quantize(
            model_folder / "model.onnx",
            lambda shapes: CalibrationInputs(pictures, image_processor, shapes),
            folder,
        )
        for name in ("config.json", "preprocessor_config.json"):
            if (model_folder / name).exists():
                shutil.copy(model_folder / name, folder)
        description = {
            "runtime": runtime,
            "calibration_pictures": len(pictures),
            "float_nodes": names,
            "versions": {package: importlib.metadata.version(package) for package in packages},
            "date": datetime.date.today().isoformat(),
        }
        (folder / "quantization.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        folder.rename(output)
    return description


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_folder", type=Path, help="folder of the exported model, with model.onnx")
    parser.add_argument("output", type=Path, help="new folder for the int8 model")
    parser.add_argument("--runtime", choices=RUNTIMES, required=True, help="which runtime the model is for")
    parser.add_argument("--calibration_dir", type=Path, required=True, help="folder with pictures for calibration")
    parser.add_argument("--num_pictures", type=int, default=DEFAULT_PICTURES, help="how many of them to use, at most")
    args = parser.parse_args()
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        description = quantize_export(
            args.model_folder, args.output, args.runtime, args.calibration_dir, args.num_pictures
        )
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    print(
        f"Written: {args.output}, calibrated with {description['calibration_pictures']} pictures, "
        f"{len(description['float_nodes'])} nodes of sampling positions in float32."
    )


if __name__ == "__main__":
    main()
