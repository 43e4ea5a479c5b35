# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Read checkpoints and configurations with random changes, in limited memory.

    python tests/conversion/mutated_files.py FOLDER NUMBER [SEED]

prints how many were read and how many refused. Anything but a `ConversionError` of one line ends it.
"""

import io
import json
import random
import resource
import sys
import zipfile
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy
import torch
from transformers import logging

from conversion.errors import ConversionError
from conversion.original_checkpoint import read_classes, read_original_checkpoint
from conversion.original_config import checkpoint_from_config


WEIGHTS = {"x.weight": torch.arange(6.0).view(2, 3), "head.bias": torch.ones(4), "x.number": torch.tensor(3)}
CHECKPOINT = {"model": WEIGHTS, "meta": {"CLASSES": ("a", "b"), "best": numpy.float64(1)}}
SETTINGS = {"CORE_OP": "DCNv3", "DEPTHS": [1, 1, 1, 1], "GROUPS": [1, 2, 4, 8], "CHANNELS": 16, "LAYER_SCALE": "None"}
YAML = json.dumps({"BASE": [""], "DATA": {"IMG_SIZE": 64}, "MODEL": {"INTERN_IMAGE": SETTINGS}}, indent=1)
CONFIG = json.dumps({name.lower(): value for name, value in SETTINGS.items()} | {"id2label": {"0": "a"}})
PYTHON = """_base_ = ["base.py"]
channels = 2 * 8
model = dict(type="EncoderDecoder", backbone=dict(type="InternImage", depths=[1, 1, 1, 1], groups=[1, 2, 4, 8],
    channels=channels), decode_head={"type": "SegformerHead", "channels": 8, "num_classes": 4})
norm = dict(mean=[0, 0, 0], std=[1, 1, 1], to_rgb=True)
test_pipeline = [dict(type="Resize", scale=(64, 32), keep_ratio=True), dict(type="Normalize", **norm)]
"""
PICKLE_PIECES = [
    b"R", b"b", b"}", b"(", b"t", b"\x85", b"\x86", b"Q", b"\x81", b"h\x00", b"J\xff\xff\xff\x7f",
    b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", b"ctorch\nFloatStorage\n", b"cnumpy\ndtype\n",
    b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n",
]  # fmt: skip
TEXT_PIECES = [
    b"&a ", b"*a", b"!!", b"[", b"{", b": ", b"- ", b"9" * 21, b".inf", b".nan", b"NaN", b"1e999", b"null", b'"',
    b"-1", b"!!python/object:os.system", b"2001-99-99", b"<<: ", b"[" * 5000, b"true", b"[]",
]  # fmt: skip


PYTHON_PIECES = [
    b"**model", b"*", b"/ 0", b"model", b"[", b"(", b"{", b"-", b"lambda: 0", b"if 1:", b"None", b"True", b"1e999",
    b'"', b"0x", b"9" * 5000, b"(" * 5000, b"\n", b"\0", b"_delete_=True", b"[0] * 9**9", b"__import__('os')",
]  # fmt: skip


def mutated(content: bytes, pieces: list[bytes], rng: random.Random) -> bytes:
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4])):
        start, length = rng.randrange(len(content)), rng.randrange(1, 9)
        piece = rng.choice([rng.choice(pieces), rng.randbytes(length), content[start // 2 :][:40], b"\xff" * 4, b""])
        content[start : start + rng.choice([0, length])] = piece
    return bytes(content)


def saved(content, rng: random.Random) -> bytes:
    """A zip archive with a mutated pickle or mutated as a whole, or a mutated file from before PyTorch 1.6."""
    written = io.BytesIO()
    kind = rng.randrange(3)
    torch.save(content, written, _use_new_zipfile_serialization=kind > 0)
    if kind < 2:
        return mutated(written.getvalue(), PICKLE_PIECES, rng)
    rewritten = io.BytesIO()
    with zipfile.ZipFile(written) as archive, zipfile.ZipFile(rewritten, "w") as new:
        for member in archive.infolist():
            data = archive.read(member)
            new.writestr(member.filename, mutated(data, PICKLE_PIECES, rng) if "data.pkl" in member.filename else data)
    return rewritten.getvalue()


def main(folder: Path, number: int, seed: int = 0):
    resource.setrlimit(resource.RLIMIT_AS, (8 * 10**9, 8 * 10**9))
    logging.set_verbosity_error()
    rng, refused = random.Random(seed), 0
    torch.save(
        {"model": {str(idx): torch.ones(1) for idx in range(9)} | {"head.bias": torch.ones(4)}}, folder / "own.pth"
    )
    (folder / "base.py").write_text("model = dict(decode_head=dict(align_corners=False))")
    for _ in range(number):
        suffix = rng.choice([".pth", ".pth", ".yaml", ".json", ".py"])
        file = folder / f"mutated{suffix}"
        try:
            if suffix == ".pth":
                file.write_bytes(saved(CHECKPOINT, rng))
                read_original_checkpoint(file, ema=rng.random() < 0.1)
                read_classes(file)
            elif suffix == ".py":
                file.write_bytes(mutated(PYTHON.encode(), PYTHON_PIECES, rng))
                checkpoint_from_config(file, folder / "own.pth")
            else:
                text = YAML if suffix == ".yaml" else CONFIG
                file.write_bytes(mutated(text.encode(), TEXT_PIECES, rng))
                checkpoint_from_config(file, folder / "own.pth")
        except ConversionError as error:
            refused += 1
            assert "\n" not in str(error)
    print(number - refused, refused)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
