// CPU kernels of `film` and `film_backward`.
#include "film.h"

#include <algorithm>
#include <tuple>

#include "vec.h"

namespace mg2l {
namespace {

constexpr int64_t kMinTaskNumbers = 1 << 16;  // below it a thread costs more
constexpr int64_t kStrip = 64;                // columns whose sums over rows are one task

template <typename scalar_t>
struct FilmArrays {
  FilmSizes sizes;
  const scalar_t* features;   // [A, rows, H]
  const scalar_t* generated;  // [A, N, 2 H]
  const int64_t* index;       // [rows], or null where rows have a latent each

  // The place of the scales of a row in arrays like `generated`; its shifts are H numbers on.
  int64_t place(int64_t group, int64_t row) const {
    return (group * sizes.latents + (index == nullptr ? row : index[row])) * 2 * sizes.width;
  }
};

// Calls body with the place of every vector of `count` numbers, then of every number left, and with
// a value whose type is to be loaded there.
template <int kBytes, typename scalar_t, typename Body>
MG2L_INLINE void along(int64_t count, const Body& body) {
  constexpr int kLanes = kBytes / static_cast<int>(sizeof(scalar_t));
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) body(i, Vec<scalar_t, kLanes>{});
  for (; i < count; ++i) body(i, scalar_t(0));
}

template <int kBytes, typename scalar_t>
MG2L_INLINE void modulate(const scalar_t* features, const scalar_t* scale, const scalar_t* shift,
                          int64_t count, scalar_t* y) {
  along<kBytes, scalar_t>(count, [&](int64_t i, auto zero) MG2L_INLINE_LAMBDA {
    using V = decltype(zero);
    store(y + i,
          V((load<V>(scale + i) + scalar_t(1)) * load<V>(features + i) + load<V>(shift + i)));
  });
}

// Gradients of a row, which those of scales and shifts are added to where other rows share these.
template <int kBytes, bool kAdd, typename scalar_t>
MG2L_INLINE void modulate_backward(const scalar_t* grad, const scalar_t* features,
                                   const scalar_t* scale, int64_t count, scalar_t* to_features,
                                   scalar_t* to_scale, scalar_t* to_shift) {
  along<kBytes, scalar_t>(count, [&](int64_t i, auto zero) MG2L_INLINE_LAMBDA {
    using V = decltype(zero);
    const V g = load<V>(grad + i);
    V of_scale = g * load<V>(features + i), of_shift = g;
    if constexpr (kAdd) {
      of_scale += load<V>(to_scale + i);
      of_shift += load<V>(to_shift + i);
    }
    store(to_features + i, V(g * (load<V>(scale + i) + scalar_t(1))));
    store(to_scale + i, of_scale);
    store(to_shift + i, of_shift);
  });
}

int64_t rows_per_task(int64_t width) {
  return std::max<int64_t>(kMinTaskNumbers / std::max<int64_t>(width, 1), 1);
}

template <typename scalar_t>
void film_kernel(const FilmArrays<scalar_t>& a, scalar_t* y) {
  const int64_t rows = a.sizes.rows, width = a.sizes.width;
  torch::stable::parallel_for(
      0, a.sizes.groups * rows, rows_per_task(width), [&](int64_t begin, int64_t end) {
        run_simd([&](auto bytes) MG2L_INLINE_LAMBDA {
          for (int64_t i = begin; i < end; ++i) {
            const scalar_t* scale = a.generated + a.place(i / rows, i % rows);
            modulate<bytes>(a.features + i * width, scale, scale + width, width, y + i * width);
          }
        });
      });
}

// Every row has scales and shifts of its own.
template <typename scalar_t>
void each_backward(const FilmArrays<scalar_t>& a, const scalar_t* grad, scalar_t* to_features,
                   scalar_t* to_generated) {
  const int64_t width = a.sizes.width;
  torch::stable::parallel_for(
      0, a.sizes.groups * a.sizes.rows, rows_per_task(width), [&](int64_t begin, int64_t end) {
        run_simd([&](auto bytes) MG2L_INLINE_LAMBDA {
          for (int64_t i = begin; i < end; ++i) {
            scalar_t* to_scale = to_generated + 2 * i * width;
            modulate_backward<bytes, false>(grad + i * width, a.features + i * width,
                                            a.generated + 2 * i * width, width,
                                            to_features + i * width, to_scale, to_scale + width);
          }
        });
      });
}

// Rows share them: a task is a strip of columns, whose rows are added in order, so that results do
// not depend on the number of threads.
template <typename scalar_t>
void shared_backward(const FilmArrays<scalar_t>& a, const scalar_t* grad, scalar_t* to_features,
                     scalar_t* to_generated) {
  const auto [groups, rows, width, latents] = a.sizes;
  const int64_t strips = (width + kStrip - 1) / kStrip;
  std::fill_n(to_generated, groups * latents * 2 * width, scalar_t(0));
  const int64_t grain =
      std::max<int64_t>(kMinTaskNumbers / (std::max<int64_t>(rows, 1) * kStrip), 1);
  torch::stable::parallel_for(0, groups * strips, grain, [&](int64_t begin, int64_t end) {
    run_simd([&](auto bytes) MG2L_INLINE_LAMBDA {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t group = task / strips, first = task % strips * kStrip;
        const int64_t count = std::min(kStrip, a.sizes.width - first);
        for (int64_t row = 0; row < a.sizes.rows; ++row) {
          const int64_t at = (group * a.sizes.rows + row) * a.sizes.width + first;
          const int64_t place = a.place(group, row) + first;
          scalar_t* to_scale = to_generated + place;
          modulate_backward<bytes, true>(grad + at, a.features + at, a.generated + place, count,
                                         to_features + at, to_scale, to_scale + a.sizes.width);
        }
      }
    });
  });
}

void check_index(const FilmTensors& tensors) {
  if (!tensors.index || tensors.sizes.rows == 0) return;
  const int64_t latents = tensors.sizes.latents;
  const auto* index = data_or_null<int64_t>(tensors.index);
  const auto [lowest, highest] = std::minmax_element(index, index + tensors.sizes.rows);
  MG2L_CHECK(*lowest >= 0 && *highest < latents, "film: index must be in [0, N) = [0, ", latents,
             "), got ", *lowest < 0 ? *lowest : *highest);
}

template <typename scalar_t>
FilmArrays<scalar_t> arrays_of(const FilmTensors& tensors) {
  return {tensors.sizes, data<scalar_t>(tensors.features), data<scalar_t>(tensors.generated),
          data_or_null<int64_t>(tensors.index)};
}

}  // namespace

Tensor film_cpu(const Tensor& features, const Tensor& generated,
                const std::optional<Tensor>& index) {
  const FilmTensors tensors(check_film(features, generated, index), features, generated, index);
  check_index(tensors);
  Tensor y = allocate_like(features);
  for_floating(features.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    film_kernel(arrays_of<scalar_t>(tensors), data<scalar_t>(y));
  });
  return y;
}

std::tuple<Tensor, Tensor> film_backward_cpu(const Tensor& grad_, const Tensor& features,
                                             const Tensor& generated,
                                             const std::optional<Tensor>& index) {
  const FilmTensors tensors(check_film_backward(grad_, features, generated, index), features,
                            generated, index);
  check_index(tensors);
  const Tensor grad = as_contiguous(grad_);
  Tensor to_features = allocate_like(features), to_generated = allocate_like(generated);
  for_floating(features.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    const auto backward = index ? shared_backward<scalar_t> : each_backward<scalar_t>;
    backward(arrays_of<scalar_t>(tensors), data<scalar_t>(grad), data<scalar_t>(to_features),
             data<scalar_t>(to_generated));
  });
  return {to_features, to_generated};
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CPU, m) {
  m.impl("film", TORCH_BOX(&mg2l::film_cpu));
  m.impl("film_backward", TORCH_BOX(&mg2l::film_backward_cpu));
}
