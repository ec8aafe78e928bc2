// CPU kernel of `stacked_mlp`.
#include <tuple>

#include "stacked_mlp_tiles.h"

namespace mg2l {
namespace {

// Sum over the first `width` numbers of a row, whose padding is zero, of body(vector).
template <int kBytes, typename scalar_t, typename Body>
MG2L_INLINE scalar_t sum_row(const scalar_t* row, int64_t width, const Body& body) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  using V = Vec<scalar_t, kLanes>;
  V sum{};
  for (int64_t i = 0; i < width; i += kLanes) {
    V term = body(load<V>(row + i));
    if (i + kLanes > width) {
      for (int lane = static_cast<int>(width - i); lane < kLanes; ++lane) term[lane] = 0;
    }
    sum += term;
  }
  return sum_lanes<scalar_t, kLanes>(sum);
}

// LayerNorm of a tile in place; columns past `units` become zero.
template <int kBytes, typename scalar_t>
MG2L_INLINE void normalise(const Span<scalar_t>& tile, int64_t units, int64_t count,
                           scalar_t* moments) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  using V = Vec<scalar_t, kLanes>;
  for (int64_t t = 0; t < count; ++t) {
    scalar_t* row = tile.data + t * tile.stride;
    const scalar_t mean =
        sum_row<kBytes>(row, units, [](const V& v) MG2L_INLINE_LAMBDA { return v; }) /
        static_cast<scalar_t>(units);
    const V centre = splat<V>(mean);
    const scalar_t squares = sum_row<kBytes>(row, units, [&](const V& v) MG2L_INLINE_LAMBDA {
      const V d = v - centre;
      return V(d * d);
    });
    const scalar_t inverse = scalar_t(1) / std::sqrt(squares / static_cast<scalar_t>(units) +
                                                     static_cast<scalar_t>(kNormEps));
    const V scale = splat<V>(inverse);
    for (int64_t i = 0; i < units; i += kLanes) {
      store(row + i, V((load<V>(row + i) - centre) * scale));
    }
    std::fill(row + units, row + tile.stride, scalar_t(0));
    if (moments) {
      moments[2 * t] = mean;
      moments[2 * t + 1] = inverse;
    }
  }
}

// A narrow linear layer: to[t, unit] = rows[t] . weight[unit] + bias[unit].
template <int kBytes, typename scalar_t>
MG2L_INLINE void dot_products(const Rows<scalar_t>& rows, const scalar_t* weight,
                              const scalar_t* bias, int64_t units, int64_t count,
                              const Span<scalar_t>& to) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  using V = Vec<scalar_t, kLanes>;
  const int64_t whole = rows.width / kLanes * kLanes;
  for (int64_t unit = 0; unit < units; ++unit, weight += rows.width) {
    for (int64_t t = 0; t < count; ++t) {
      const scalar_t* row = rows.data + t * rows.stride;
      V sum{};
      for (int64_t i = 0; i < whole; i += kLanes) sum += load<V>(row + i) * load<V>(weight + i);
      scalar_t total = sum_lanes<scalar_t, kLanes>(sum) + bias[unit];
      for (int64_t i = whole; i < rows.width; ++i) total += row[i] * weight[i];
      to.data[t * to.stride + unit] = total;
    }
  }
}

// One thread's memory.
template <typename scalar_t>
struct MlpScratch {
  std::vector<TileRows<scalar_t>> tiles;  // inputs, then what every layer makes of them
  std::vector<TileRows<Pair>> pairs;      // what a rounded layer multiplies
  NonZeros<scalar_t> nonzeros;            // of the inputs

  explicit MlpScratch(const MlpArrays<scalar_t>& a)
      : nonzeros(a.sizes.inputs, a.lists ? std::min(a.sizes.rows, kTile) : 0) {
    const MlpSizes& sizes = a.sizes;
    tiles.emplace_back(sizes.inputs, sizes.rows);
    for (const int64_t units : sizes.units) tiles.emplace_back(units, sizes.rows);
    for (size_t l = 0; l < sizes.layers() && a.rounded(l); ++l) {
      pairs.emplace_back(pairs_of(sizes.inputs_of(l)), sizes.rows);
    }
  }
};

template <int kBytes, typename scalar_t>
MG2L_INLINE void forward_tile(const MlpArrays<scalar_t>& a, MlpScratch<scalar_t>& scratch,
                              int64_t group, int64_t first, int64_t count) {
  const MlpSizes& sizes = a.sizes;
  Rows<scalar_t> rows{a.row(group, first), a.row_stride, sizes.inputs};
  NonZeros<scalar_t>& nonzeros = scratch.nonzeros;
  nonzeros.template list<kBytes>(rows.data, rows.stride, count);
  if (!a.rounded(0) && !nonzeros.listed) {
    copy_rows(rows.data, rows.stride, count, sizes.inputs, scratch.tiles[0]);
    rows = {scratch.tiles[0].data, scratch.tiles[0].stride, sizes.inputs};
  }
  for (size_t l = 0; l < sizes.layers(); ++l) {
    const int64_t units = sizes.units[l];
    scalar_t* const out = a.features(l, group, first);
    // Whole vectors of whole blocks of rows are made where they are kept.
    const bool in_place =
        out != nullptr && units == padded_width<scalar_t>(units) && count % kRows<kBytes> == 0;
    const Span<scalar_t> to = in_place ? Span<scalar_t>{out, units} : scratch.tiles[l + 1].span();
    const scalar_t* bias = a.layers[l].bias + group * units;
    if (l < sizes.normalised()) {
      if (l == 0 && nonzeros.listed) {
        linear_listed<kBytes, true>(rows, nonzeros, a.layers[l].panels, group, bias, units, count,
                                    a.relu, to);
      } else if (!a.rounded(l)) {
        linear<kBytes, true>(rows, a.layers[l].panels, group, bias, units, count, a.relu, to);
      } else if constexpr (kHasPairs<kBytes, scalar_t>) {
        const TileRows<Pair>& pairs = scratch.pairs[l];
        pair_along(rows.data, rows.stride, count, rows.width, pairs.data, pairs.stride);
        linear<kBytes, true>(Rows<Pair>{pairs.data, pairs.stride, pairs_of(rows.width)},
                             a.layers[l].pairs, group, bias, units, count, a.relu, to);
      }
      normalise<kBytes>(to, units, count, a.moments_of(l, group, first));
    } else if (is_narrow(sizes, l)) {
      const scalar_t* weight = a.layers[l].weight + group * units * rows.width;
      dot_products<kBytes>(rows, weight, bias, units, count, to);
    } else {
      linear<kBytes, false>(rows, a.layers[l].panels, group, bias, units, count, a.relu, to);
    }
    if (out != nullptr && !in_place) {
      for (int64_t t = 0; t < count; ++t) {
        std::copy_n(to.data + t * to.stride, units, out + t * units);
      }
    }
    rows = {to.data, to.stride, units};
  }
}

template <typename scalar_t>
void stacked_mlp_kernel(const MlpArrays<scalar_t>& a) {
  const MlpSizes& sizes = a.sizes;
  const int64_t tiles = (sizes.rows + kTile - 1) / kTile;
  const int64_t work = products_of_row<scalar_t>(sizes) * std::min(sizes.rows, kTile);
  const int64_t grain = tiles_per_task(work);
  torch::stable::parallel_for(0, sizes.groups * tiles, grain, [&](int64_t begin, int64_t end) {
    MlpScratch<scalar_t> scratch(a);
    run_simd([&](auto bytes) MG2L_INLINE_LAMBDA {
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t first = tile % tiles * kTile;
        forward_tile<bytes>(a, scratch, tile / tiles, first, std::min(kTile, sizes.rows - first));
      }
    });
  });
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> stacked_mlp_cpu(const Tensor& x,
                                                   const std::vector<Tensor>& weights,
                                                   const std::vector<Tensor>& biases, bool relu,
                                                   bool plain_last, bool bfloat16, bool keep) {
  const MlpSizes sizes = check_stacked_mlp(x, weights, biases, plain_last, bfloat16);
  const MlpTensors tensors(x, weights, biases);
  Tensor y = allocate(x, {sizes.groups, sizes.rows, sizes.units.back()});
  Tensor kept = allocate(x, {keep ? sizes.kept() : 0});
  Tensor moments = allocate(x, {keep ? sizes.moments() : 0});
  for_floating(x.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    auto arrays = arrays_of<scalar_t>(sizes, tensors, relu, bfloat16, false, false);
    arrays.y = data<scalar_t>(y);
    if (keep) {
      arrays.kept = data<scalar_t>(kept);
      arrays.moments = data<scalar_t>(moments);
    }
    stacked_mlp_kernel(arrays);
  });
  return {y, kept, moments};
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CPU, m) {
  m.impl("stacked_mlp", TORCH_BOX(&mg2l::stacked_mlp_cpu));
}
