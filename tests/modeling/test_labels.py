# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Class names, in the order of the official models."""

import gzip
import json
from pathlib import Path

import pytest
from testing_utils import GOLDEN

import modeling_internimage
from modeling_internimage import InternImageConfig
from modeling_internimage.configuration_internimage import IMAGENET_LABEL_FILES, imagenet_labels
from modeling_internimage.detection.labels import DETECTION_LABEL_FILES, detection_labels


# Of the original's class lists: the first, the last and twenty others.
EXPECTED = {
    1000: {
        0: ("n01440764", "tench, Tinca tinca"),
        30: ("n01641577", "bullfrog, Rana catesbeiana"),
        65: ("n01751748", "sea snake"),
        97: ("n01847000", "drake"),
        121: ("n01981276", "king crab, Alaska crab, Alaskan king crab, Alaska king crab, Paralithodes camtschatica"),
        138: ("n02018795", "bustard"),
        215: ("n02101388", "Brittany spaniel"),
        262: ("n02112706", "Brabancon griffon"),
        389: ("n02514041", "barracouta, snoek"),
        461: ("n02895154", "breastplate, aegis, egis"),
        484: ("n02981792", "catamaran"),
        500: ("n03042490", "cliff dwelling"),
        508: ("n03085013", "computer keyboard, keypad"),
        583: ("n03467068", "guillotine"),
        668: ("n03788195", "mosque"),
        780: ("n04147183", "schooner"),
        783: ("n04153751", "screw"),
        808: ("n04259630", "sombrero"),
        822: ("n04311174", "steel drum"),
        868: ("n04476259", "tray"),
        915: ("n04613696", "yurt"),
        999: ("n15075141", "toilet tissue, toilet paper, bathroom tissue"),
    },
    21841: {
        0: ("n00004475", "organism, being"),
        70: ("n00449054", "skateboarding"),
        929: ("n01638722", "amphiuma, congo snake, congo eel, blind eel"),
        2068: ("n02052204", "white pelican, Pelecanus erythrorhynchos"),
        3076: ("n02338722", "cotton rat, Sigmodon hispidus"),
        3864: ("n02572196", "cardinalfish"),
        4403: ("n02753044", "atom bomb, atomic bomb, A-bomb, fission bomb, plutonium bomb"),
        6880: ("n03344393", "fireboat"),
        8359: ("n03707766", "magnetic stripe"),
        8728: ("n03805725", "nail polish, nail enamel, nail varnish"),
        12440: ("n07593004", "pot-au-feu"),
        12774: ("n07696839", "club sandwich, three-decker, triple-decker"),
        14181: ("n08644045", "harborage, harbourage"),
        14595: ("n09684901", "swami"),
        14729: ("n09736798", "Uzbek, Uzbeg, Uzbak, Usbek, Usbeg"),
        15475: ("n10052694", "emissary, envoy"),
        15987: ("n10251612", "leaker"),
        16235: ("n10345100", "nanny, nursemaid, nurse"),
        18652: ("n12096395", "water pimpernel"),
        19905: ("n12574866", "gorse, furze, whin, Irish gorse, Ulex europaeus"),
        21352: ("n13130014", "cladode, cladophyll, phylloclad, phylloclade"),
        21840: ("n15102894", "knothole"),
    },
}


@pytest.mark.parametrize("num_labels", EXPECTED)
def test_index_order(num_labels):
    labels = imagenet_labels(num_labels)
    file = Path(modeling_internimage.__file__).parent / "labels" / IMAGENET_LABEL_FILES[num_labels]
    synsets = [line.split()[0] for line in file.read_text().splitlines()]
    assert len(labels) == len(synsets) == num_labels
    assert synsets == sorted(set(synsets))  # as the folders of the data sets
    for idx, (synset, label) in EXPECTED[num_labels].items():
        assert (synsets[idx], labels[idx]) == (synset, label)


def test_imagenet_1k_against_torchvision():
    models = pytest.importorskip("torchvision.models")
    categories = models.ResNet18_Weights.DEFAULT.meta["categories"]
    ours = {idx: label.split(",")[0].lower() for idx, label in imagenet_labels(1000).items()}
    different = {idx for idx, label in ours.items() if label != categories[idx].lower()}
    assert different == {134, 639}  # crane (the bird) and maillot (the tank suit): torchvision says which


@pytest.mark.parametrize(
    "num_labels, first", [(1000, "tench, Tinca tinca"), (21841, "organism, being"), (10, "LABEL_0")]
)
def test_official_configurations_get_names(num_labels, first):
    """The `config.json` of the official repositories have none; a configuration of ours is taken as it is."""
    config = InternImageConfig(norm_layer="LN", num_classes=num_labels)
    assert config.num_labels == num_labels and config.id2label[0] == first and config.label2id[first] == 0
    assert InternImageConfig.from_dict(config.to_dict()).id2label == config.id2label
    assert InternImageConfig(num_labels=num_labels).id2label[0] == "LABEL_0"
    assert InternImageConfig(norm_layer="LN", num_classes=num_labels, num_labels=3).id2label[0] == "LABEL_0"
    named = InternImageConfig(norm_layer="LN", num_classes=2, id2label={0: "cat", 1: "dog"})
    assert named.id2label == {0: "cat", 1: "dog"}


def test_detection_labels():
    """Those of the original's data sets, and no others."""
    manifests = json.loads(gzip.decompress((GOLDEN / "detection" / "manifests.json.gz").read_bytes()))
    expected = {tuple(manifest["class_names"]) for manifest in manifests.values()}
    assert {tuple(detection_labels(dataset)) for dataset in DETECTION_LABEL_FILES} == expected
    assert len(detection_labels("LVIS v1")) == 1203 and detection_labels("VOC")[-1] == "tvmonitor"
    assert detection_labels("another") is None
