// Where things lie in the buffers that kernels, launchers and binding of `encode_context` share:
// plain numbers, neither CUDA nor torch.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define MG2L_BOTH __host__ __device__  // called by kernels too
#else
#define MG2L_BOTH
#endif

namespace mg2l {

constexpr int kMaxLayers = 8;                // hidden layers
constexpr int64_t kQuad = 4;                 // every width is padded to a multiple of it
constexpr int64_t kMaxTileRows = 32;         // transitions of a tile
constexpr int64_t kSharedBytes = 60 * 1024;  // for a tile; every GPU since sm_75 has 64 KiB
constexpr int64_t kForwardBlocks = 512;      // wanted, where contexts are few and long
constexpr int64_t kBackwardBlocks = 256;     // each with sums of the gradients of its own

MG2L_BOTH constexpr int64_t padded(int64_t width) { return (width + kQuad - 1) / kQuad * kQuad; }

// From one row of a tile in shared memory to the next: rows begin in different banks.
MG2L_BOTH constexpr int64_t pitch(int64_t width) { return padded(width) + kQuad; }

// Packed parameters of one layer and set of weights: weights transposed [inputs, units], weights
// [units, inputs], biases [units], all padded with zeros.
MG2L_BOTH constexpr int64_t packed_size(int64_t units, int64_t inputs) {
  return 2 * padded(units) * padded(inputs) + padded(units);
}

// Gradients of the same: weights [units, inputs], biases [units].
MG2L_BOTH constexpr int64_t gradient_size(int64_t units, int64_t inputs) {
  return padded(units) * (padded(inputs) + 1);
}

// Where a layer's packed parameters begin, those of all sets together: one layer after the other,
// then the query, a layer without inputs; after that comes the end.
inline int64_t packed_offset(int64_t features, int64_t layers, const int64_t* units, int64_t sets,
                             int64_t layer) {
  int64_t offset = 0, inputs = features;
  for (int64_t l = 0; l < layer && l < layers; ++l) {
    offset += sets * packed_size(units[l], inputs);
    inputs = units[l];
  }
  return layer > layers ? offset + sets * packed_size(inputs, 0) : offset;
}

// Where a layer's gradients begin among the sums of one part: in the same order.
inline int64_t gradient_offset(int64_t features, int64_t layers, const int64_t* units,
                               int64_t layer) {
  int64_t offset = 0, inputs = features;
  for (int64_t l = 0; l < layer && l < layers; ++l) {
    offset += gradient_size(units[l], inputs);
    inputs = units[l];
  }
  return layer > layers ? offset + padded(inputs) : offset;
}

// What a split leaves of a context: sums, the largest logit, the sum of exponentials.
MG2L_BOTH constexpr int64_t partial_width(int64_t units) { return padded(units) + 2; }

// Numbers in shared memory per row of a tile. Forward: what a layer reads and what it writes, in
// turns. Backward: the inputs, and of every layer features and slopes.
inline int64_t shared_per_row(int64_t features, int64_t layers, const int64_t* units,
                              bool backward) {
  int64_t widest = 0, total = pitch(features);
  int64_t others = features;  // widest of the buffer that holds the inputs
  for (int64_t l = 0; l < layers; ++l) {
    total += 2 * pitch(units[l]);
    int64_t& side = l % 2 == 0 ? widest : others;
    side = units[l] > side ? units[l] : side;
  }
  return backward ? total : pitch(widest) + pitch(others);
}

// Rows of a tile: as many as fit into shared memory, with a row of sums, and a context needs; 0 if
// not even four fit.
inline int64_t tile_rows(int64_t transitions, int64_t per_row, int64_t bytes_per_number) {
  int64_t rows = kMaxTileRows;
  while (rows >= kQuad && (rows + 1) * per_row * bytes_per_number > kSharedBytes) rows /= 2;
  return rows < kQuad ? 0 : rows < padded(transitions) ? rows : padded(transitions);
}

// Blocks that share a context's tiles, each with an online softmax of its own.
inline int64_t context_splits(int64_t pairs, int64_t transitions) {
  const int64_t tiles = (transitions + kMaxTileRows - 1) / kMaxTileRows;
  const int64_t wanted = pairs == 0 ? 1 : kForwardBlocks / pairs;
  return wanted < 1 ? 1 : wanted < tiles ? wanted : tiles;
}

// Blocks that share a set of weights' tiles, each with sums of its own.
inline int64_t gradient_parts(int64_t sets, int64_t pairs_of_set, int64_t transitions) {
  const int64_t tiles = pairs_of_set * ((transitions + kMaxTileRows - 1) / kMaxTileRows);
  const int64_t wanted = kBackwardBlocks / (sets < 1 ? 1 : sets);
  const int64_t parts = wanted < tiles ? wanted : tiles;
  return parts < 1 ? 1 : parts;
}

}  // namespace mg2l
