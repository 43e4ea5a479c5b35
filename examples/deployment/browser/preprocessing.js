// Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
// From the pixels of a picture to `pixel_values`, to the last bit as the image processor with Pillow does it.

// Filters by Pillow's numbers: the distance from which they are 0, and their value at a distance.
const FILTERS = {
  2: { name: "bilinear", support: 1, at: (x) => Math.max(1 - Math.abs(x), 0) },
  3: { name: "bicubic", support: 2, at: bicubic },
};

function bicubic(x) {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

// For each new pixel along one side: the first old pixel it is made of, and their weights in units of 2**-22.
function weightsOf(size, newSize, filter) {
  const scale = size / newSize;
  const stretch = Math.max(scale, 1); // the antialiasing: a smaller image takes more pixels into account
  return Array.from({ length: newSize }, (_, idx) => {
    const centre = (idx + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - filter.support * stretch + 0.5), 0);
    const end = Math.min(Math.trunc(centre + filter.support * stretch + 0.5), size);
    const weights = Array.from({ length: end - first }, (_, k) => filter.at((first + k - centre + 0.5) / stretch));
    const sum = weights.reduce((a, b) => a + b);
    const rounded = weights.map((weight) => Math.trunc((weight / sum) * 2 ** 22 + 0.5 * Math.sign(weight)));
    return { first, weights: rounded };
  });
}

// RGBA pixels, row by row, at another size. Columns first, with bytes between, as `ImagingResample` of Pillow.
export function resize({ data, width, height }, newWidth, newHeight, filter) {
  const apply = (source, target, start, step, { first, weights }) => {
    for (let channel = 0; channel < 3; channel++) {
      let sum = 2 ** 21;
      for (let k = 0; k < weights.length; k++) sum += source[start + (first + k) * step + channel] * weights[k];
      target[channel] = Math.min(Math.max(sum >> 22, 0), 255);
    }
  };
  if (newWidth !== width) {
    const columns = weightsOf(width, newWidth, filter);
    const resized = new Uint8ClampedArray(4 * newWidth * height);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < newWidth; x++) {
        apply(data, resized.subarray(4 * (y * newWidth + x)), 4 * y * width, 4, columns[x]);
      }
    }
    data = resized;
  }
  if (newHeight !== height) {
    const rows = weightsOf(height, newHeight, filter);
    const resized = new Uint8ClampedArray(4 * newWidth * newHeight);
    for (let y = 0; y < newHeight; y++) {
      for (let x = 0; x < newWidth; x++) {
        apply(data, resized.subarray(4 * (y * newWidth + x)), 4 * x, 4 * newWidth, rows[y]);
      }
    }
    data = resized;
  }
  return { data, width: newWidth, height: newHeight };
}

// The pixels of an image file, turned as its EXIF data says.
export async function pixelsOf(file) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

// `settings`: the content of preprocessor_config.json. Returns float32 numbers in the order of `dims`.
export function preprocess(pixels, settings) {
  const { size, crop_size: crop } = settings;
  const filter = FILTERS[settings.resample];
  if (!filter) {
    throw new Error(`preprocessor_config.json has resample=${settings.resample}; this page knows 2 and 3.`);
  }
  const shorter = Math.min(pixels.width, pixels.height);
  const sideOf = (side) => (side === shorter ? size.shortest_edge : Math.trunc((size.shortest_edge * side) / shorter));
  const [width, height] = size.shortest_edge
    ? [sideOf(pixels.width), sideOf(pixels.height)]
    : [size.width, size.height];
  const resized = resize(pixels, width, height, filter);
  const left = Math.floor((width - crop.width) / 2);
  const top = Math.floor((height - crop.height) / 2);
  const area = crop.width * crop.height;
  const values = new Float32Array(3 * area);
  const mean = settings.image_mean.map(Math.fround);
  const std = settings.image_std.map(Math.fround);
  for (let y = 0; y < crop.height; y++) {
    for (let x = 0; x < crop.width; x++) {
      for (let channel = 0; channel < 3; channel++) {
        const inside = left + x >= 0 && left + x < width && top + y >= 0 && top + y < height;
        const byte = inside ? resized.data[4 * ((top + y) * width + left + x) + channel] : 0;
        const value = Math.fround(byte * settings.rescale_factor);
        values[channel * area + y * crop.width + x] = Math.fround(value - mean[channel]) / std[channel];
      }
    }
  }
  return { values, dims: [1, 3, crop.height, crop.width] };
}
