# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""A folder with an index of image features: `index.json` says what is in it, FAISS's own file holds the vectors."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import faiss
import numpy as np
from PIL import Image
from transformers import Pipeline

from examples.image_files import embed_images
from examples.output_files import mark_of, write_json


MARK = mark_of(__file__)
# The same weights in another dtype or on another device differ by less, other weights by much more.
TOLERANCE = 0.05


def model_signature(extractor: Pipeline) -> np.ndarray:
    """
    The model's features of a picture that is always the same, (channels,). They tell whether two models, with their
    preprocessing, are the same, wherever their folders are.
    """
    rows, columns = np.mgrid[:256, :256]
    squares = np.where((rows // 32 + columns // 32) % 2, 255, 0)
    picture = np.stack([rows, columns, squares], axis=2).astype(np.uint8)
    return embed_images(extractor, [Image.fromarray(picture)])[0]


def normalized(features: np.ndarray) -> np.ndarray:
    """Vectors of length 1, whose inner product is the cosine of the angle between them."""
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def are_same(features: np.ndarray, other: np.ndarray) -> bool:
    """Whether features of one picture, (channels,), are of the same model."""
    if features.shape != other.shape:
        return False
    return bool(np.linalg.norm(features - other) < TOLERANCE * np.linalg.norm(other))


def build_vectors(features: np.ndarray, factory: str) -> faiss.Index:
    """FAISS's index of cosine similarity for features (num_images, channels). See [`ImageIndex.set_images`]."""
    vectors = faiss.index_factory(features.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    features = normalized(features)
    if not vectors.is_trained:
        vectors.train(features)
    vectors.add(features)
    return vectors


@dataclass
class ImageIndex:
    """
    Attributes:
        folder: Where the index is saved.
        model: The checkpoint that computes the features.
        signature: See `model_signature`.
        files: The image of each vector.
        vectors: FAISS's index of cosine similarity, `None` of an index that is not finished.
    """

    folder: Path
    model: str
    signature: np.ndarray
    files: list[str] = field(default_factory=list)
    vectors: faiss.Index | None = None

    @staticmethod
    def exists(folder: Path) -> bool:
        """Raises a `ValueError` if the folder is there and has other files, but no index."""
        if (folder / "index.json").is_file():
            return True
        if folder.is_dir() and any(file.name != "_lock" for file in folder.iterdir()):
            raise ValueError(f"`--index {folder}` has files and no index: name a new folder, or that of an index.")
        return False

    @classmethod
    def load(cls, folder: Path) -> "ImageIndex":
        try:
            content = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"`--index {folder}` is not the folder of an index: build it first. ({error})") from error
        if not isinstance(content, dict) or content.get("Software") != MARK:
            raise ValueError(f"{folder / 'index.json'} is not written by build_index.py: name another folder.")
        vectors = content["vectors"] and faiss.read_index(str(folder / content["vectors"]))
        return cls(folder, content["model"], np.array(content["signature"], np.float32), content["files"], vectors)

    def save(self):
        """Killed at any moment, this leaves the index as it was or as it is now."""
        name = None
        if self.vectors is not None:
            content = faiss.serialize_index(self.vectors).tobytes()
            name = f"vectors-{hashlib.sha256(content).hexdigest()[:16]}.faiss"
            (self.folder / name).write_bytes(content)
        description = {"model": self.model, "signature": self.signature.tolist(), "vectors": name, "files": self.files}
        write_json(self.folder / "index.json", description, MARK)
        for file in self.folder.glob("vectors-*.faiss"):
            if file.name != name:
                file.unlink()

    def check_model(self, model: str, signature: np.ndarray):
        """Raise a `ValueError` if a model of this signature is another one than that of the index."""
        if not are_same(signature, self.signature):
            raise ValueError(
                f"The index in {self.folder} was made with {self.model}, and {model} computes other features: name "
                "that model, or the folder of another index."
            )

    def set_images(self, files: list[str], features: np.ndarray, factory: str):
        """
        Args:
            features (`np.ndarray` of shape `(len(files), channels)`):
                The pooled features.
            factory (`str`):
                The kind of index, in the language of `faiss.index_factory`: "Flat" compares with every image.
        """
        if features.shape[1:] != self.signature.shape:
            raise ValueError(
                f"The features have {features.shape[1]} channels, and {self.model} computes {len(self.signature)}: "
                "name the model that computed them."
            )
        self.vectors = build_vectors(features, factory)
        self.files = files

    def nearest(self, features: np.ndarray, count: int) -> list[list[tuple[str, float]]]:
        """For each of the features (num_images, channels), the nearest files and their cosine similarities."""
        if self.vectors is None:
            raise ValueError(f"The index in {self.folder} is not finished: run build_index.py again.")
        similarities, positions = self.vectors.search(normalized(features), min(count, len(self.files)))
        return [
            [(self.files[position], similarity) for position, similarity in zip(*row) if position >= 0]
            for row in zip(positions.tolist(), similarities.tolist())
        ]
