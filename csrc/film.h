// What the CPU and the CUDA implementation of `film` share: checking the arguments. See
// mg2l/ops/film.py for what the operator computes.
#pragma once

#include <optional>

#include "checks.h"
#include "tensors.h"

namespace mg2l {

struct FilmSizes {
  int64_t groups, rows, width;
  int64_t latents;  // for which scales and shifts are given
};

inline FilmSizes check_film(const Tensor& features, const Tensor& generated,
                            const std::optional<Tensor>& index) {
  constexpr const char* op = "film";
  check_floating(op, "features", features);
  MG2L_CHECK(features.dim() == 3, op, ": features must have shape [A, rows, H], got ",
             to_text(sizes_of(features)));
  const int64_t rows = features.size(1), width = features.size(2);
  if (index) {
    check_like(op, "index", *index, "features", features, {rows}, "[rows]", ScalarType::Long);
    MG2L_CHECK(generated.dim() == 3, op, ": generated must have shape [A, N, 2 H], got ",
               to_text(sizes_of(generated)));
  }
  const int64_t latents = index ? generated.size(1) : rows;
  check_like(op, "generated", generated, "features", features,
             {features.size(0), latents, 2 * width}, index ? "[A, N, 2 H]" : "[A, rows, 2 H]");
  return {features.size(0), rows, width, latents};
}

inline FilmSizes check_film_backward(const Tensor& grad, const Tensor& features,
                                     const Tensor& generated, const std::optional<Tensor>& index) {
  const FilmSizes sizes = check_film(features, generated, index);
  check_like("film_backward", "grad", grad, "features", features, sizes_of(features),
             "[A, rows, H]");
  return sizes;
}

// Contiguous arguments.
struct FilmTensors {
  FilmSizes sizes;
  Tensor features, generated;
  std::optional<Tensor> index;

  FilmTensors(const FilmSizes& sizes_, const Tensor& features_, const Tensor& generated_,
              const std::optional<Tensor>& index_)
      : sizes(sizes_), features(as_contiguous(features_)), generated(as_contiguous(generated_)) {
    if (index_) index = as_contiguous(*index_);
  }
};

}  // namespace mg2l
