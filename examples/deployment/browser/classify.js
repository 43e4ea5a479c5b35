// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
// The page: loads the exported model, classifies the picture that is dropped or chosen, shows the five best classes.

import * as ort from "onnxruntime-web";
import { pixelsOf, preprocess } from "./preprocessing.js";

const folder = new URLSearchParams(location.search).get("model") ?? "model";
const element = (id) => document.getElementById(id);
const status = element("status");
let queue = Promise.resolve(); // a session runs one picture at a time

function say(text, isError = false) {
  status.textContent = text;
  status.classList.toggle("error", isError);
}

async function fetchFile(name) {
  const response = await fetch(`${folder}/${name}`);
  if (!response.ok) {
    throw new Error(`There is no ${name} in "${folder}". Export a classifier into this folder, see README.md.`);
  }
  return response;
}

async function loadModel() {
  const [config, settings] = await Promise.all(
    ["config.json", "preprocessor_config.json"].map(async (name) => (await fetchFile(name)).json()),
  );
  const file = await (await fetchFile("model.onnx")).arrayBuffer();
  const session = await ort.InferenceSession.create(file, { executionProviders: ["wasm"] });
  if (!session.outputNames.includes("logits")) {
    throw new Error(`The model in "${folder}" has no output "logits": this page needs a classifier.`);
  }
  say(`The model is loaded (${(file.byteLength / 2 ** 20).toFixed(0)} MiB). Nothing you choose leaves this browser.`);
  return { session, settings, labels: config.id2label };
}

function softmax(logits) {
  const largest = Math.max(...logits);
  const exponentials = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = exponentials.reduce((a, b) => a + b);
  return exponentials.map((value) => value / sum);
}

async function classify(file) {
  if (!file) throw new Error("That was not a file. Drop an image file, or choose one.");
  let pixels;
  try {
    pixels = await pixelsOf(file);
  } catch {
    throw new Error(`${file.name} is not a picture that this browser can read. Choose a JPEG, PNG or WebP file.`);
  }
  const { session, settings, labels } = await model;
  URL.revokeObjectURL(element("picture").src);
  element("picture").src = URL.createObjectURL(file);
  element("picture").alt = file.name;
  say(`Classifying ${file.name} ...`);
  await new Promise((resolve) => setTimeout(resolve, 30)); // for the browser to draw it
  const { values, dims } = preprocess(pixels, settings);
  const start = performance.now();
  const { logits } = await session.run({ pixel_values: new ort.Tensor("float32", values, dims) }, ["logits"]);
  const duration = performance.now() - start;
  const best = softmax(logits.data)
    .map((probability, idx) => ({ probability, label: labels[idx] }))
    .sort((a, b) => b.probability - a.probability)
    .slice(0, 5);
  element("classes").replaceChildren(...best.map(row));
  element("result").hidden = false;
  say(`${file.name}: ${best[0].label}, ${percent(best[0].probability)}. It took ${duration.toFixed(0)} ms.`);
}

const percent = (probability) => `${(100 * probability).toFixed(1)}%`;

function row({ probability, label }) {
  const item = document.createElement("li");
  item.dataset.probability = probability;
  for (const [name, text] of [["label", label], ["percent", percent(probability)], ["bar", ""]]) {
    const part = document.createElement("span");
    part.className = name;
    part.textContent = text;
    item.append(part);
  }
  item.lastChild.style.setProperty("--share", percent(probability));
  return item;
}

function enqueue(file) {
  queue = queue.then(() => classify(file)).catch((error) => say(error.message, true));
}

const drop = element("drop");
element("file").addEventListener("change", (event) => {
  if (event.target.files.length) enqueue(event.target.files[0]);
  event.target.value = ""; // so that the same file can be chosen again
});
for (const type of ["dragover", "dragleave", "drop"]) {
  addEventListener(type, (event) => {
    event.preventDefault(); // else the browser opens the file
    drop.classList.toggle("over", type === "dragover");
    if (type === "drop") enqueue(event.dataTransfer.files[0]);
  });
}
const model = loadModel();
model.catch((error) => say(error.message, true));
